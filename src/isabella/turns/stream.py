"""Parse Letta's answer stream, and judge the errors in it. Events of types other than those below are ignored.

Letta wraps every failure of a vendor into a separate event (measured on 0.16.8, docs/turns.md): a type, which is
exact for 401 and 429 only, and a sentence that quotes the vendor's status and body. The status decides; the wording
counts only if there is no status.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from isabella.config.gateway_address import SERVICE
from isabella.gateway.traffic import Outcome
from isabella.system.english import english
from isabella.system.redaction import redact
from isabella.turns.events import (
    AnswerText,
    EndReason,
    ErrorCode,
    Event,
    HistorySummarized,
    ReasoningText,
    ToolReturned,
    Usage,
)
from isabella.vendors.client import VendorState
from isabella.vendors.wordings import Reason, match_reason

_STATUS = re.compile(r"Error code: (\d{3})\b|<title>\s*(\d{3})\b")
#: How vendors ask for a pause: "try again in 2s", "in 1m3.5s", "in 250ms", "retry after 30 seconds".
_RETRY_IN = re.compile(
    r"(?:again in|retry(?:[ _-](?:after|in))?|wait)\W{0,4}(?:for )?"
    r"(?:(?P<minutes>\d+)\s*m(?:in(?:utes?)?)?(?!s)\s*)?(?:(?P<seconds>\d+(?:\.\d+)?)\s*(?P<unit>ms|s\b|sec|seconds))?",
    re.IGNORECASE,
)
#: The vendor's status and body, as its client in Letta prints them. Gemini's body is an array.
_QUOTED = re.compile(r"Error code: (\d{3}) - (\{.*\}|\[\{.*\}\])", re.DOTALL)
#: The name of the client in Letta's own sentences, for any vendor (fact M7), and the code before them.
_CLIENT_NAME = re.compile(r"\bOpenAI\b(?!-compatible)")
_LETTAS_CODE = re.compile(r"^[A-Z][A-Z_]+: ")
_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL | re.IGNORECASE)
_CONTEXT_OVERFLOW = "context_window_overflow_in_system_prompt"
_MAX_MESSAGE = 300

_TABLE = tomllib.loads(resources.files("isabella.turns").joinpath("refusals.toml").read_text("utf-8"))
_STOP_REASONS = {word: EndReason(reason) for word, reason in _TABLE["stop_reasons"].items()}
_CODES = {ErrorCode(code): row for code, row in _TABLE["codes"].items()}
_VENDOR_STATES = {code: VendorState(row["vendor"]) for code, row in _CODES.items() if "vendor" in row}
_CODE_OF_STATUS = {status: code for code, row in _CODES.items() for status in row.get("statuses", ())}
_CODE_OF_TYPE = {type: code for code, row in _CODES.items() for type in row.get("types", ())}
_CODE_OF_REASON = {Reason(reason): code for code, row in _CODES.items() for reason in row.get("reasons", ())}
_CODE_OF_STOP = {word: code for code, row in _CODES.items() for word in row.get("stop_reasons", ())}
_CODES_OF_WORDS = frozenset(_CODE_OF_REASON.values())
_WORDING = {code: re.compile(row["wording"]) for code, row in _CODES.items() if "wording" in row}


@dataclass(frozen=True)
class VendorRefusal:
    """Why a vendor did not answer."""

    code: ErrorCode
    message: str  #: for people, with secrets removed
    status: int | None = None  #: the vendor's HTTP status, if it sent one
    retry_after: float | None = None  #: seconds of pause that the vendor asked for
    counts: bool = True  #: whether this is a failure of the vendor, which opens its circuit if it is repeated
    elsewhere: bool = True  #: whether another vendor may answer the same message

    @property
    def vendor(self) -> VendorState | None:
        """The state of the vendor that this shows; None if it is about the request, the agent, or Letta."""
        return _VENDOR_STATES.get(self.code)


@dataclass(frozen=True)
class RunStarted:
    """Letta has accepted the message."""

    run_id: str  #: identifies the run, to cancel it and to find what it stored


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of a tool call: parts of its name and of its arguments, to be joined by `id`."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class StopNotice:
    """Letta says why it stops."""

    reason: EndReason  #: `BROKEN` for every reason that is a failure
    word: str


Piece = Event | RunStarted | ToolCallDelta | StopNotice | VendorRefusal


def parse_line(line: str) -> Piece | None:
    """Parse a line of the stream; None for a line without a known type."""
    if not line.startswith("data:"):
        return None
    text = line[5:].strip()
    if not text.startswith("{"):
        return None
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return _piece(document) if isinstance(document, dict) else None


def _piece(document: dict[str, Any]) -> Piece | None:
    match document.get("message_type"):
        case "assistant_message":
            answer = _text(document.get("content"))
            return AnswerText(answer, _word(document, "id")) if answer else None
        case "reasoning_message":
            reasoning = _text(document.get("reasoning"))
            return ReasoningText(reasoning, _word(document, "id")) if reasoning else None
        case "tool_call_message" | "approval_request_message":
            call = document.get("tool_call")
            if not isinstance(call, dict):
                return None
            return ToolCallDelta(_word(call, "tool_call_id"), _word(call, "name"), _word(call, "arguments"))
        case "tool_return_message":
            return ToolReturned(
                id=_word(document, "tool_call_id"),
                name=_word(document, "name"),
                ok=document.get("status") == "success",
                text=redact(_text(document.get("tool_return"))),
            )
        case "ping":
            run_id = _word(document, "run_id")
            return RunStarted(run_id) if run_id else None
        case "stop_reason":
            word = _word(document, "stop_reason")
            return StopNotice(_STOP_REASONS.get(word, EndReason.BROKEN), word)
        case "usage_statistics":
            return Usage(
                prompt_tokens=_number(document, "prompt_tokens") or 0,
                completion_tokens=_number(document, "completion_tokens") or 0,
                total_tokens=_number(document, "total_tokens") or 0,
                steps=_number(document, "step_count") or 0,
                cached_tokens=_number(document, "cached_input_tokens"),
                reasoning_tokens=_number(document, "reasoning_tokens"),
            )
        case "error_message":
            return classify_refusal(
                _word(document, "error_type"), _word(document, "detail") or _word(document, "message")
            )
        case "summary_message" | "user_message" | "event_message":
            # In the middle of a turn these mean that older messages were summarised.
            return HistorySummarized()
        case None if "error" in document:
            # The server ends a stream like this if it cannot continue.
            return classify_refusal("internal_error", str(document["error"]))
        case _:
            return None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = (part.get("text") for part in value if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def _word(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    return value if isinstance(value, str) else ""


def _number(document: dict[str, Any], name: str) -> int | None:
    value = document.get(name)
    return value if isinstance(value, int) else None


def classify_refusal(type: str, detail: str) -> VendorRefusal:
    """Judge an error event by its `error_type` and its sentence."""
    if (refused := gateway_error(detail)) is not None:
        return _refusal_of_gateway(*refused)
    words = _vendor_message(detail)
    message = redact(words)[:_MAX_MESSAGE]
    match = _STATUS.search(detail)
    status = int(match[1] or match[2]) if match else None
    if type == _CONTEXT_OVERFLOW:
        return VendorRefusal(ErrorCode.CONTEXT_FULL, message, status, counts=False, elsewhere=False)
    code = (
        _code_of_wording(type, detail)
        if status is None
        else _code_of_refusal(status, f"{words} {_error_code(detail)}")
    )
    if code is ErrorCode.LETTA_FAILING and _WORDING[code].search(words):
        # Below its first line are the statement and its parameters.
        words = words.removeprefix("Unhandled LLM error: ").partition("\n")[0]
        message = english("Letta cannot use its database: %(error)s", error=redact(words)[:_MAX_MESSAGE])
    return _refusal(code, message, status, retry_delay(detail) if code is ErrorCode.RATE_LIMITED else None)


def refusal_of_stop(word: str) -> VendorRefusal:
    """Return the refusal of a turn that Letta ended with a stop reason that is a failure, and without an error."""
    code = _CODE_OF_STOP.get(word, ErrorCode.LETTA_FAILING)
    return replace(_refusal(code, english("Letta gives %(word)s as the reason.", word=repr(word))), elsewhere=False)


def malformed_call(message: str) -> VendorRefusal:
    """Return the refusal of a turn that ended with a tool call that cannot be parsed."""
    return _refusal(ErrorCode.TOOL_CALL_MALFORMED, message)


def repeated_call(name: str, steps: int) -> VendorRefusal:
    """Return the refusal of a turn that was ended because its model repeated a failing call."""
    text = english(
        "The model called %(name)s %(steps)s times in a row with the same arguments, and it failed each time.",
        name=name,
        steps=steps,
    )
    return replace(_refusal(ErrorCode.TOOL_CALL_REPEATED, text), elsewhere=False)


def _refusal(
    code: ErrorCode, message: str, status: int | None = None, retry_after: float | None = None
) -> VendorRefusal:
    row = _CODES[code]
    if "lead" in row:
        message = english("%(lead)s: %(message)s", lead=english(row["lead"]), message=message)
    return VendorRefusal(code, message, status, retry_after, counts=row.get("counts", True))


def gateway_error(detail: str) -> tuple[str, str] | None:
    """Return code and words of an error of the gateway itself that Letta quotes; None for one of a vendor."""
    error = (_quoted_body(detail) or {}).get("error")
    if not isinstance(error, Mapping) or error.get("type") != SERVICE:
        return None
    return str(error.get("code")), str(error.get("message"))


def _refusal_of_gateway(code: str, words: str) -> VendorRefusal:
    message = redact(words)[:_MAX_MESSAGE]
    if code == "vendor_unreachable":
        return VendorRefusal(ErrorCode.VENDOR_UNREACHABLE, message)
    if code == "vendor_answer_unusable":
        return VendorRefusal(ErrorCode.VENDOR_GARBLED, message)
    # A turn that was ended deliberately must not continue elsewhere.
    return VendorRefusal(ErrorCode.GATEWAY_REFUSED, message, counts=False, elsewhere=code != "turn_over")


def refusal_of(outcome: Outcome, reported: VendorRefusal) -> VendorRefusal:
    """Return a refusal as the gateway has seen it.

    Args:
        outcome: the outcome of the request at the gateway.
        reported: the refusal as Letta reports it.
    """
    if outcome.code == "unreachable":
        return replace(reported, code=ErrorCode.VENDOR_UNREACHABLE, message=outcome.message, status=None, counts=True)
    if outcome.code != "refused" or outcome.status is None:
        return reported
    message = f"{outcome.status}: {outcome.message}"[:_MAX_MESSAGE]
    if outcome.window is not None or reported.code is ErrorCode.CONTEXT_FULL:
        return replace(reported, message=message, status=outcome.status)
    # Letta quotes the vendor's error with its code, the gateway has only the vendor's sentence.
    told = reported.status == outcome.status and reported.code in _CODES_OF_WORDS
    code = reported.code if told else _code_of_refusal(outcome.status, message)
    if code not in _CODES_OF_WORDS and outcome.retry_after is not None and outcome.status in (413, 429):
        code = ErrorCode.RATE_LIMITED
    return _refusal(code, message, outcome.status, outcome.retry_after)


def _code_of_refusal(status: int, words: str) -> ErrorCode:
    """Return the code of a vendor's refusal. Its words decide, unless it refuses the key or is not a refusal."""
    code = _code_of_status(status)
    if code in (ErrorCode.KEY_REFUSED, ErrorCode.VENDOR_GARBLED):
        return code
    return next((told for reason, told in _CODE_OF_REASON.items() if match_reason(reason, words)), code)


def _code_of_status(status: int) -> ErrorCode:
    if status < 400:
        return ErrorCode.VENDOR_GARBLED
    return _CODE_OF_STATUS.get(status, ErrorCode.VENDOR_FAILING if status >= 500 else ErrorCode.REQUEST_REFUSED)


def state_of_refusal(status: int, words: str) -> VendorState | None:
    """Return the state of a vendor that its refusal shows; None if it is about the request."""
    return _VENDOR_STATES.get(_code_of_refusal(status, words))


def is_of_vendor(code: ErrorCode, status: int | None) -> bool:
    """Return whether an error is the vendor's answer or its silence, and none of Letta, the gateway or Isabella.

    Args:
        code: the code of a failover.
        status: the vendor's HTTP status, if it sent one.
    """
    return status is not None or code in _VENDOR_STATES


def remedy_of(code: ErrorCode) -> str | None:
    """Return the remedy for an error of the agent's only vendor, if the code determines it."""
    remedy: str | None = _CODES.get(code, {}).get("remedy")
    return None if remedy is None else english(remedy)


def texts_for_people() -> Iterator[str]:
    """Yield the texts of `refusals.toml` that people see, for the console's catalogues."""
    for row in _CODES.values():
        yield from (row[name] for name in ("lead", "remedy") if name in row)


def retry_delay(text: str) -> float | None:
    """Return the seconds of pause that a vendor's refusal asks for, if it does."""
    for match in _RETRY_IN.finditer(text):
        minutes, seconds = match["minutes"], match["seconds"]
        if minutes is None and seconds is None:
            continue
        wait = float(seconds or 0) / (1000 if (match["unit"] or "").lower() == "ms" else 1)
        return wait + 60 * int(minutes or 0)
    return None


def _vendor_message(detail: str) -> str:
    """Return the vendor's own words; if Letta quotes none, Letta's sentence without a company's name."""
    match = _QUOTED.search(detail)
    if match is None:
        page = _TITLE.search(detail)
        sentence = _LETTAS_CODE.sub("", detail.removesuffix(" [BYOK]"))
        return page[1].strip() if page else _CLIENT_NAME.sub("the vendor", sentence)
    words: Any = ""
    body = _quoted_body(detail)
    if body is not None:
        inner = body.get("error")
        error = inner if isinstance(inner, Mapping) else body
        words = error.get("message") or error.get("detail") or (inner if isinstance(inner, str) else "")
        if isinstance(words, Mapping):
            # Mistral's 422 has a list of errors in place of a sentence.
            errors = words.get("detail")
            items = errors if isinstance(errors, list) else ()
            words = "; ".join(str(item.get("msg")) for item in items if isinstance(item, Mapping))
    return f"{match[1]}: {words}" if isinstance(words, str) and words else f"status {match[1]}"


def _error_code(detail: str) -> str:
    """Return the code and the type in the vendor's error that Letta quotes, as JSON would have them."""
    body = _quoted_body(detail) or {}
    error = body.get("error")
    error = error if isinstance(error, Mapping) else body
    return f"'code': '{error.get('code')}', 'type': '{error.get('type')}'"


def _quoted_body(detail: str) -> Mapping[str, Any] | None:
    """Return the body of an answer that Letta quotes, if it is an object."""
    match = _QUOTED.search(detail)
    try:
        body = None if match is None else ast.literal_eval(match[2])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    body = body[0] if isinstance(body, list) and body else body
    return body if isinstance(body, Mapping) else None


def _code_of_wording(type: str, detail: str) -> ErrorCode:
    if type in _CODE_OF_TYPE:
        return _CODE_OF_TYPE[type]
    for code, pattern in _WORDING.items():
        if pattern.search(detail):
            return code
    return ErrorCode.VENDOR_FAILING if type == "llm_error" else ErrorCode.LETTA_FAILING
