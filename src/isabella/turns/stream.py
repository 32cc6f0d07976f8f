"""Letta's stream, line by line, as pieces of a turn.

Its lines are server-sent events, one JSON object each. Only what a turn is made of is read; the rest is passed over,
so that a later release may send more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from isabella.system.redaction import redact
from isabella.turns.events import Condensed, Reason, Returned, Said, Thought, Usage
from isabella.turns.vendor_errors import VendorRefusal, classify_refusal

_REASONS = {
    "end_turn": Reason.COMPLETED,
    "tool_rule": Reason.COMPLETED,
    "no_tool_call": Reason.COMPLETED,
    "max_steps": Reason.MAX_STEPS,
    "requires_approval": Reason.NEEDS_APPROVAL,
    "cancelled": Reason.STOPPED,
}


@dataclass(frozen=True)
class RunStarted:
    """Letta has taken the message on.

    Attributes:
        run_id: by which it can be stopped, and what it stored can be found.
    """

    run_id: str


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of a tool call.

    Attributes:
        id: the call's.
        name: the tool's name, or a part of it.
        arguments: a part of its arguments.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class StopNotice:
    """Letta says why it stops.

    Attributes:
        reason: the turn's; `BROKEN` for every reason that is a failure.
        word: Letta's own.
    """

    reason: Reason
    word: str


Piece = RunStarted | Said | Thought | ToolCallDelta | Returned | Condensed | StopNotice | Usage | VendorRefusal


def parse_line(line: str) -> Piece | None:
    """The piece that a line holds; None for one that is none."""
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
            said = _text(document.get("content"))
            return Said(said, _word(document, "id")) if said else None
        case "reasoning_message":
            thought = _text(document.get("reasoning"))
            return Thought(thought, _word(document, "id")) if thought else None
        case "tool_call_message" | "approval_request_message":
            return _call(document.get("tool_call"))
        case "tool_return_message":
            return Returned(
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
            return StopNotice(_REASONS.get(word, Reason.BROKEN), word)
        case "usage_statistics":
            return _usage(document)
        case "error_message":
            return classify_refusal(
                _word(document, "error_type"), _word(document, "detail") or _word(document, "message")
            )
        case "summary_message" | "user_message" | "event_message":
            # In the middle of a turn these tell that older messages were summed up.
            return Condensed()
        case None if "error" in document:
            # How the server itself ends a stream that it cannot go on with.
            return classify_refusal("internal_error", str(document["error"]))
        case _:
            return None


def _call(call: Any) -> ToolCallDelta | None:
    if not isinstance(call, dict):
        return None
    return ToolCallDelta(_word(call, "tool_call_id"), _word(call, "name"), _word(call, "arguments"))


def _usage(document: dict[str, Any]) -> Usage:
    return Usage(
        prompt_tokens=_number(document, "prompt_tokens") or 0,
        completion_tokens=_number(document, "completion_tokens") or 0,
        total_tokens=_number(document, "total_tokens") or 0,
        steps=_number(document, "step_count") or 0,
        cached_tokens=_number(document, "cached_input_tokens"),
        reasoning_tokens=_number(document, "reasoning_tokens"),
    )


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
