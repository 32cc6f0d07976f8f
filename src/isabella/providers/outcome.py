"""What was done about one provider, in words for people."""

from __future__ import annotations

from dataclasses import dataclass, replace

from isabella.errors import LettaError, LettaRefused
from isabella.providers.followers import MovedAgent
from isabella.providers.plan import Action, PlannedChange, ProviderState
from isabella.providers.rotation import refusal
from isabella.vendors.inquiry import KeyVerdict, VendorAnswer

_AGENTS_NAMED = 5
#: Of a key that is there in plaintext; of one whose vendor has another address now.
_WHY_EMPTIED = {True: "it was in plaintext", False: "it moves to another address"}


@dataclass(frozen=True)
class ApplyOutcome:
    """What was done about one provider.

    Attributes:
        action: what was really done, which may be more than was planned.
        reason: why, and how it went, for people.
        remedy: what the operator can do now.
        failed: whether it did not go as it should.
        refused_by_vendor: whether that is because the vendor refuses the configured key.
    """

    action: Action
    reason: str
    remedy: str | None = None
    failed: bool = False
    refused_by_vendor: bool = False


@dataclass(frozen=True)
class AgentMoves:
    """What became of the agents of a provider that has moved.

    Attributes:
        moved: those that call the new address now; with trouble, those that may.
        trouble: why some may call the former one still.
    """

    moved: tuple[MovedAgent, ...] = ()
    trouble: LettaError | None = None


def with_agent_moves(outcome: ApplyOutcome, followed: AgentMoves) -> ApplyOutcome:
    """The outcome of a move, with what became of the agents."""
    if followed.trouble is not None:
        return replace(
            outcome,
            reason=f"{outcome.reason}; an agent that was bound meanwhile may not call the new address: "
            f"{followed.trouble.what}",
            remedy="Bind it anew: isabella agents repair",
        )
    if not followed.moved:
        return outcome
    names = [agent.name for agent in followed.moved]
    more = len(names) - _AGENTS_NAMED
    named = ", ".join(names[:_AGENTS_NAMED]) + (f" and {more} more" if more > 0 else "")
    return replace(outcome, reason=f"{outcome.reason}; agents that call the new address now: {named}")


def withheld(change: PlannedChange, trouble: LettaError, *, what: str) -> ApplyOutcome:
    """The configured key was not written, because an agent might carry it to another address."""
    remedy = (trouble.remedy or "Look at Letta's log").rstrip(".")
    if isinstance(trouble, LettaRefused):
        remedy = "Mend that agent, or delete it (`isabella agents list` shows them)"
    return ApplyOutcome(
        change.action,
        f"{change.reason}; {what}: an agent may still call another address than the key is for. {trouble.what}",
        f"{remedy}, then: isabella providers sync --only {change.desired.name}",
        failed=True,
    )


def key_removed(change: PlannedChange, error: LettaError) -> ApplyOutcome:
    """A key that was to be written anew, and only its place was emptied: what stands there now is no key."""
    return ApplyOutcome(
        Action.UPDATE,
        f"{_WHY_EMPTIED[change.state is ProviderState.PLAINTEXT]}, and what stands there now is no key: writing the key "
        f"failed: {error.what}",
        f"Until this is done agents on it are refused: isabella providers sync --only {change.desired.name}",
        failed=True,
    )


def refused_by_vendor(change: PlannedChange, answer: VendorAnswer) -> ApplyOutcome:
    """The vendor does not take the configured key, so nothing was written."""
    reason, remedy = refusal(change, answer)
    return ApplyOutcome(Action.REFUSE, reason, remedy, failed=True, refused_by_vendor=True)


def confirmed(reason: str, answer: VendorAnswer | None) -> str:
    """The reason, with what the vendor said of the key where that was not simply yes."""
    match answer:
        case None | VendorAnswer(verdict=KeyVerdict.ACCEPTED):
            return reason
        case VendorAnswer(verdict=KeyVerdict.OUT_OF_FUNDS):
            return f"{reason}; the vendor knows the key, but its account is out of funds"
        case VendorAnswer(verdict=KeyVerdict.RATE_LIMITED):
            return f"{reason}; the vendor knows the key, but is asked too often"
        case _:
            return f"{reason}; not confirmed by the vendor ({answer.said})"
