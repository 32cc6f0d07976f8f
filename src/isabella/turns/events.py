"""The events of a turn: frozen data, the same for HTTP, the terminal and programs.

Every turn begins with one `turn` event and ends with exactly one `end` event.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar


class EndReason(StrEnum):
    """The reason for the end of a turn."""

    COMPLETED = "completed"
    #: The agent took as many steps as Letta allows in one turn.
    MAX_STEPS = "max_steps"
    #: The answer reached the limit of tokens or of time; what came is stored.
    LENGTH = "length"
    #: A tool call waits for approval.
    NEEDS_APPROVAL = "needs_approval"
    #: The turn was stopped, or the client disconnected.
    STOPPED = "stopped"
    #: The answer broke off in the middle; the partial answer is stored.
    BROKEN = "broken"
    #: No answer began. Nothing is stored, so the message may be sent again.
    FAILED = "failed"


class ErrorCode(StrEnum):
    """The cause of a failure. The codes of the first group also appear in `failover` events."""

    # --- one vendor ---------------------------------------------------------------------------------------------
    KEY_REFUSED = "key_refused"
    OUT_OF_FUNDS = "out_of_funds"
    FORBIDDEN = "forbidden"
    MODEL_UNKNOWN = "model_unknown"
    RATE_LIMITED = "rate_limited"
    REQUEST_REFUSED = "request_refused"
    #: The vendor does not accept the context that another vendor, or a broken turn, left behind.
    CONTEXT_REFUSED = "context_refused"
    #: The model called a tool in a form that cannot be parsed. Neither Letta nor the vendor is at fault.
    TOOL_CALL_MALFORMED = "tool_call_malformed"
    #: The model repeated a failing call of a tool.
    TOOL_CALL_REPEATED = "tool_call_repeated"
    #: The model calls no tools, and the vendor refuses a request that has some.
    TOOLS_REFUSED = "tools_refused"
    VENDOR_FAILING = "vendor_failing"
    VENDOR_UNREACHABLE = "vendor_unreachable"
    #: Isabella's own gateway, between Letta and the vendors, does not answer.
    GATEWAY_UNREACHABLE = "gateway_unreachable"
    #: The gateway itself refused the request, and the vendor was not asked.
    GATEWAY_REFUSED = "gateway_refused"
    #: The answer did not begin in time.
    VENDOR_SILENT = "vendor_silent"
    #: The answer cannot be parsed.
    VENDOR_GARBLED = "vendor_garbled"
    #: The vendor is skipped: it failed repeatedly, or asked for a pause.
    CIRCUIT_OPEN = "left_out"
    #: The provider is being changed, and that takes too long.
    PROVIDER_CHANGING = "provider_changing"
    # --- the whole turn -----------------------------------------------------------------------------------------
    #: None of the agent's vendors began to answer.
    NO_VENDOR = "no_vendor"
    #: The answer broke off in the middle.
    STREAM_BROKEN = "stream_broken"
    EMPTY_ANSWER = "empty_answer"
    #: The turns before this one took too long.
    BUSY = "busy"
    #: The agent's memory does not fit into the model's window.
    CONTEXT_FULL = "context_full"
    LETTA_UNREACHABLE = "letta_unreachable"
    LETTA_REFUSED = "letta_refused"
    LETTA_FAILING = "letta_failing"
    AGENT_UNKNOWN = "agent_unknown"
    #: The message to be replaced is no longer in the agent's context.
    MESSAGE_GONE = "message_gone"
    CONVERSATION_UNKNOWN = "conversation_unknown"
    #: Isabella's own configuration or state.
    INTERNAL = "internal"


@dataclass(frozen=True)
class Event:
    """An event of a turn."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Opened(Event):
    """The turn is accepted. Always the first event."""

    kind: ClassVar[str] = "turn"
    id: str  #: the turn's id, by which it can be stopped
    agent: str
    agent_id: str
    conversation: str | None = None  #: the id of a conversation other than the default one


@dataclass(frozen=True)
class Queued(Event):
    """Other turns of the agent come first: `ahead` of them in this backend."""

    kind: ClassVar[str] = "queued"
    ahead: int


@dataclass(frozen=True)
class Held(Event):
    """The turn waits: its provider is being changed, or Letta, Postgres or the gateway is being restarted."""

    kind: ClassVar[str] = "held"
    reason: str  #: one sentence
    provider: str | None = None  #: the provider that is being changed, if that is the reason


@dataclass(frozen=True)
class VendorAsked(Event):
    """The message was sent to a vendor."""

    kind: ClassVar[str] = "vendor"
    handle: str  #: `provider/model`
    provider: str
    model: str


@dataclass(frozen=True)
class Failover(Event):
    """A vendor did not answer; the next one is asked, if there is one."""

    kind: ClassVar[str] = "failover"
    handle: str  #: the model that did not answer
    code: ErrorCode
    message: str
    status: int | None = None  #: the vendor's HTTP status, if it sent one
    retry_after: float | None = None  #: seconds until the vendor is asked again, by its own or by Isabella's choice


@dataclass(frozen=True)
class ReasoningText(Event):
    """A part of the agent's reasoning."""

    kind: ClassVar[str] = "reasoning"
    text: str
    message_id: str


@dataclass(frozen=True)
class AnswerText(Event):
    """A part of the answer."""

    kind: ClassVar[str] = "text"
    text: str
    message_id: str


@dataclass(frozen=True)
class ToolCalled(Event):
    """The agent calls a tool."""

    kind: ClassVar[str] = "tool_call"
    id: str  #: links the call to its result
    name: str
    arguments: str  #: as the model wrote them, usually JSON


@dataclass(frozen=True)
class ToolReturned(Event):
    """A tool returned its result."""

    kind: ClassVar[str] = "tool_result"
    id: str  #: the id of the call
    name: str
    ok: bool
    text: str


@dataclass(frozen=True)
class HistorySummarized(Event):
    """Older messages were summarised, so that the conversation fits into the window again."""

    kind: ClassVar[str] = "condensed"


@dataclass(frozen=True)
class Usage(Event):
    """The tokens that the turn used, over all its steps."""

    kind: ClassVar[str] = "usage"
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    steps: int
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True)
class TurnFailed(Event):
    """An error. The `end` event follows."""

    kind: ClassVar[str] = "error"
    code: ErrorCode
    message: str
    remedy: str | None = None
    retry_after: float | None = None  #: seconds after which another try is worthwhile
    status: int | None = None  #: the vendor's HTTP status, if it sent one


@dataclass(frozen=True)
class Ended(Event):
    """The turn is over. Always the last event."""

    kind: ClassVar[str] = "end"
    reason: EndReason
    handle: str | None  #: the model that answered; None if none did
    #: whether the message is in the agent's history; if not, it may be sent again. None if Letta does not say.
    stored: bool | None
    seconds: float
    #: seconds until the answer began, time in the queue included; None if none began
    first_token: float | None = None


def as_json(event: Event) -> dict[str, Any]:
    """Return the event as it goes over the wire, without the fields that are None."""
    return {field.name: value for field in fields(event) if (value := getattr(event, field.name)) is not None}
