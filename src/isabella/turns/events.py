"""What happens in a turn, as events: frozen data, the same for HTTP, the terminal and programs.

Every turn begins with one `turn` and ends with exactly one `end`, whatever happens in between.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar


class Reason(StrEnum):
    """How a turn ended."""

    #: The agent has said what it had to say.
    COMPLETED = "completed"
    #: The agent took as many steps as Letta allows in one turn.
    MAX_STEPS = "max_steps"
    #: A tool waits for somebody's approval.
    NEEDS_APPROVAL = "needs_approval"
    #: Somebody stopped it, or the client went away.
    STOPPED = "stopped"
    #: The answer broke off in the middle; what came is kept.
    BROKEN = "broken"
    #: No answer began. Nothing was said, so it may be said again.
    FAILED = "failed"


class Code(StrEnum):
    """What went wrong, for programs. Those of one vendor stand in `failover` events, too."""

    # --- one vendor ---------------------------------------------------------------------------------------------
    KEY_REFUSED = "key_refused"
    OUT_OF_FUNDS = "out_of_funds"
    FORBIDDEN = "forbidden"
    MODEL_UNKNOWN = "model_unknown"
    RATE_LIMITED = "rate_limited"
    REQUEST_REFUSED = "request_refused"
    #: It does not take what another vendor, or a turn that broke off, left in the agent's context.
    CONTEXT_REFUSED = "context_refused"
    VENDOR_FAILING = "vendor_failing"
    VENDOR_UNREACHABLE = "vendor_unreachable"
    #: It did not begin to answer in time.
    VENDOR_SILENT = "vendor_silent"
    #: What it sent cannot be understood.
    VENDOR_GARBLED = "vendor_garbled"
    #: It has kept refusing and is left out for a while, or asked to be.
    LEFT_OUT = "left_out"
    #: Its provider is being changed, and that takes too long.
    PROVIDER_CHANGING = "provider_changing"
    # --- the whole turn -----------------------------------------------------------------------------------------
    #: None of the agent's vendors began to answer.
    NO_VENDOR = "no_vendor"
    #: The answer broke off in the middle.
    STREAM_BROKEN = "stream_broken"
    #: A vendor answered, but with nothing.
    EMPTY_ANSWER = "empty_answer"
    #: The turns before this one went on for too long.
    BUSY = "busy"
    #: The agent's memory does not fit into the model's window.
    CONTEXT_FULL = "context_full"
    LETTA_UNREACHABLE = "letta_unreachable"
    LETTA_REFUSED = "letta_refused"
    LETTA_FAILING = "letta_failing"
    AGENT_UNKNOWN = "agent_unknown"
    #: Something of Isabella's own configuration or state.
    INTERNAL = "internal"


@dataclass(frozen=True)
class Opened:
    """The turn is taken on.

    Attributes:
        id: the turn's id, by which it can be stopped.
        agent: the agent's name.
        agent_id: Letta's id of the agent.
    """

    kind: ClassVar[str] = "turn"

    id: str
    agent: str
    agent_id: str


@dataclass(frozen=True)
class Queued:
    """Other turns of the agent come first.

    Attributes:
        ahead: how many there are in this backend.
    """

    kind: ClassVar[str] = "queued"

    ahead: int


@dataclass(frozen=True)
class Held:
    """The provider is being changed; the turn waits for that.

    Attributes:
        provider: its name in Letta.
    """

    kind: ClassVar[str] = "held"

    provider: str


@dataclass(frozen=True)
class VendorAsked:
    """A vendor is asked now.

    Attributes:
        handle: `provider/model`.
        provider: the provider's name in Letta.
        model: the vendor's id of the model.
    """

    kind: ClassVar[str] = "vendor"

    handle: str
    provider: str
    model: str


@dataclass(frozen=True)
class Failover:
    """A vendor did not answer; the next one is asked, where there is one.

    Attributes:
        handle: the one that did not answer.
        code: why, for programs.
        message: why, for people.
        status: the vendor's HTTP status, where it gave one.
        retry_after: seconds that it asked to be left alone, or is left alone.
    """

    kind: ClassVar[str] = "failover"

    handle: str
    code: Code
    message: str
    status: int | None = None
    retry_after: float | None = None


@dataclass(frozen=True)
class Thought:
    """A piece of the agent's reasoning."""

    kind: ClassVar[str] = "reasoning"

    text: str
    message_id: str


@dataclass(frozen=True)
class Said:
    """A piece of the answer."""

    kind: ClassVar[str] = "text"

    text: str
    message_id: str


@dataclass(frozen=True)
class Called:
    """The agent uses a tool.

    Attributes:
        id: ties the call to its result.
        name: the tool.
        arguments: as the model wrote them: JSON, as a rule.
    """

    kind: ClassVar[str] = "tool_call"

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Returned:
    """What a tool gave back.

    Attributes:
        id: the call's.
        name: the tool.
        ok: whether it worked.
        text: what it gave back.
    """

    kind: ClassVar[str] = "tool_result"

    id: str
    name: str
    ok: bool
    text: str


@dataclass(frozen=True)
class Condensed:
    """Older messages were summed up, so that the conversation fits into the window again."""

    kind: ClassVar[str] = "condensed"


@dataclass(frozen=True)
class Usage:
    """What the turn used, in tokens, over all its steps."""

    kind: ClassVar[str] = "usage"

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    steps: int
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True)
class TurnFailed:
    """Something went wrong. The `end` event follows.

    Attributes:
        code: what, for programs.
        message: what, for people.
        remedy: what can be done about it.
        retry_after: seconds after which it is worth trying again.
        status: the vendor's HTTP status, where it gave one.
    """

    kind: ClassVar[str] = "error"

    code: Code
    message: str
    remedy: str | None = None
    retry_after: float | None = None
    status: int | None = None


@dataclass(frozen=True)
class Ended:
    """The turn is over. Always the last event, and always there.

    Attributes:
        reason: how it ended.
        handle: the model that answered; None where none did.
        stored: whether what was said is in the agent's history. Where it is not, it may be said again.
        seconds: how long the turn took.
        first_token: seconds until the answer began, waiting included; None where none began.
    """

    kind: ClassVar[str] = "end"

    reason: Reason
    handle: str | None
    stored: bool
    seconds: float
    first_token: float | None = None


Event = (
    Opened
    | Queued
    | Held
    | VendorAsked
    | Failover
    | Thought
    | Said
    | Called
    | Returned
    | Condensed
    | Usage
    | TurnFailed
    | Ended
)


def as_json(event: Event) -> dict[str, Any]:
    """The form that goes over the wire: what is None is left out."""
    return {field.name: value for field in fields(event) if (value := getattr(event, field.name)) is not None}
