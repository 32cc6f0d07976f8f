"""What Letta says when a vendor does not answer, and what that means.

Letta wraps every failure of a vendor into an event of its own (measured on 0.16.8, docs/turns.md): a kind, which is
exact for 401 and 429 only, and a sentence that quotes the vendor's status and body. The status is what is judged;
wording is looked at only where there is no status.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from isabella.system.redaction import redact
from isabella.turns.events import Code
from isabella.vendors.status import VendorState

_STATUS = re.compile(r"Error code: (\d{3})\b|<title>\s*(\d{3})\b")
#: How vendors word their wish to be left alone: "try again in 2s", "in 1m3.5s", "in 250ms", "retry after 30 seconds".
_AGAIN_IN = re.compile(
    r"(?:again in|retry(?:[ _-]after)?|wait)\W{0,4}(?:for )?"
    r"(?:(?P<minutes>\d+)\s*m(?:in(?:utes?)?)?(?!s)\s*)?(?:(?P<seconds>\d+(?:\.\d+)?)\s*(?P<unit>ms|s\b|sec|seconds))?",
    re.IGNORECASE,
)
#: The vendor's status and body, as its client in Letta prints them.
_QUOTED = re.compile(r"Error code: (\d{3}) - (\{.*\})", re.DOTALL)
_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL | re.IGNORECASE)
#: How Mistral words that ids, or the order of messages, are not to its liking.
_CONTEXT_REFUSED = re.compile(r"tool call id was|unexpected role '?\w+'? after role '?tool", re.IGNORECASE)
_CONTEXT_OVERFLOW = "context_window_overflow_in_system_prompt"
_SAID_LIMIT = 300

_STATES = {
    Code.KEY_REFUSED: VendorState.REFUSES_KEY,
    Code.OUT_OF_FUNDS: VendorState.REFUSES,
    Code.FORBIDDEN: VendorState.REFUSES,
    Code.RATE_LIMITED: VendorState.REFUSES,
    Code.VENDOR_FAILING: VendorState.FAILS,
    Code.VENDOR_GARBLED: VendorState.FAILS,
    Code.EMPTY_ANSWER: VendorState.FAILS,
    Code.VENDOR_SILENT: VendorState.UNREACHABLE,
    Code.VENDOR_UNREACHABLE: VendorState.UNREACHABLE,
}


@dataclass(frozen=True)
class VendorRefusal:
    """Why a vendor did not answer.

    Attributes:
        code: for programs.
        message: for people, scrubbed.
        status: the vendor's HTTP status, where it gave one.
        retry_after: seconds that it asked to be left alone.
        counts: whether it says something of the vendor, so that it is to be left out if it goes on.
        elsewhere: whether another vendor may well answer.
    """

    code: Code
    message: str
    status: int | None = None
    retry_after: float | None = None
    counts: bool = True
    elsewhere: bool = True

    @property
    def vendor(self) -> VendorState | None:
        """What it shows of the vendor; None where it is about the request, the agent, or Letta."""
        return _STATES.get(self.code)


def classify_refusal(kind: str, detail: str) -> VendorRefusal:
    """Judge an error event of Letta's stream.

    Args:
        kind: its `error_type`.
        detail: its sentence.
    """
    said = redact(_vendors_words(detail))[:_SAID_LIMIT]
    found = _STATUS.search(detail)
    status = int(found[1] or found[2]) if found else None
    if kind == _CONTEXT_OVERFLOW:
        return VendorRefusal(Code.CONTEXT_FULL, said, status, counts=False, elsewhere=False)
    code = _of_status(status) if status is not None else _of_wording(kind, detail)
    if code is Code.REQUEST_REFUSED and _CONTEXT_REFUSED.search(detail):
        code = Code.CONTEXT_REFUSED
    match code:
        case Code.RATE_LIMITED:
            return VendorRefusal(code, said, status, retry_after=retry_delay(detail))
        case Code.REQUEST_REFUSED | Code.CONTEXT_REFUSED | Code.MODEL_UNKNOWN | Code.LETTA_FAILING:
            # It answers, and others may be served well.
            return VendorRefusal(code, said, status, counts=False)
        case _:
            return VendorRefusal(code, said, status)


def retry_delay(text: str) -> float | None:
    """The seconds after which a vendor's refusal asks to be tried again, where it says so."""
    for found in _AGAIN_IN.finditer(text):
        minutes, seconds = found["minutes"], found["seconds"]
        if minutes is None and seconds is None:
            continue
        wait = float(seconds or 0) / (1000 if (found["unit"] or "").lower() == "ms" else 1)
        return wait + 60 * int(minutes or 0)
    return None


def _vendors_words(detail: str) -> str:
    """The vendor's own words. Letta puts "OpenAI" before them, whoever the vendor is (fact M7)."""
    found = _QUOTED.search(detail)
    if found is None:
        page = _TITLE.search(detail)
        return page[1].strip() if page else detail.removesuffix(" [BYOK]")
    words = ""
    try:
        body = ast.literal_eval(found[2])
    except (ValueError, SyntaxError):
        body = None
    if isinstance(body, Mapping):
        inner = body.get("error")
        said = inner if isinstance(inner, Mapping) else body
        words = said.get("message") or said.get("detail") or (inner if isinstance(inner, str) else "")
        if isinstance(words, Mapping):
            # Mistral's 422 has a list of complaints in place of a sentence.
            complaints = words.get("detail")
            listed = complaints if isinstance(complaints, list) else ()
            words = "; ".join(str(one.get("msg")) for one in listed if isinstance(one, Mapping))
    return f"{found[1]}: {words}" if isinstance(words, str) and words else f"status {found[1]}"


def _of_status(status: int) -> Code:
    match status:
        case 401:
            return Code.KEY_REFUSED
        case 402:
            return Code.OUT_OF_FUNDS
        case 403:
            return Code.FORBIDDEN
        case 404:
            return Code.MODEL_UNKNOWN
        case 408:
            return Code.VENDOR_SILENT
        case 429:
            return Code.RATE_LIMITED
        case _ if status >= 500:
            return Code.VENDOR_FAILING
        case _ if status >= 400:
            return Code.REQUEST_REFUSED
        case _:
            return Code.VENDOR_GARBLED


def _of_wording(kind: str, detail: str) -> Code:
    match kind:
        case "llm_authentication":
            return Code.KEY_REFUSED
        case "llm_rate_limit":
            return Code.RATE_LIMITED
        case "llm_timeout":
            return Code.VENDOR_SILENT
        case "llm_empty_response":
            return Code.VENDOR_GARBLED
    if detail.startswith("PAYMENT_REQUIRED"):
        return Code.OUT_OF_FUNDS
    if any(words in detail for words in ("Failed to connect", "Connection error", "Network error")):
        return Code.VENDOR_UNREACHABLE
    if "LLM error" in detail:
        return Code.VENDOR_GARBLED
    if kind == "llm_error" or detail.startswith("INTERNAL_SERVER_ERROR"):
        return Code.VENDOR_FAILING
    return Code.LETTA_FAILING
