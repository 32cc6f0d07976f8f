"""What was done about one provider, in words for people."""

from __future__ import annotations

from dataclasses import dataclass, replace

from isabella.errors import LettaError
from isabella.providers.plan import Action, Change
from isabella.providers.rotation import refusal
from isabella.vendors.inquiry import Answer, Verdict

_AGENTS_NAMED = 5


@dataclass(frozen=True)
class Outcome:
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
class Followed:
    """What became of the agents of a provider that has moved.

    Attributes:
        agents: the names of those that call the new address now.
        trouble: why some may not.
    """

    agents: tuple[str, ...] = ()
    trouble: str | None = None

    def told_of(self, outcome: Outcome) -> Outcome:
        """The outcome of the move, with this in it."""
        if self.trouble is not None:
            return replace(
                outcome,
                reason=f"{outcome.reason}; its agents may still call the former address: {self.trouble}",
                remedy="Bind them anew: isabella agents repair",
            )
        if not self.agents:
            return outcome
        more = len(self.agents) - _AGENTS_NAMED
        named = ", ".join(self.agents[:_AGENTS_NAMED]) + (f" and {more} more" if more > 0 else "")
        return replace(outcome, reason=f"{outcome.reason}; agents that call the new address now: {named}")


def half_sealed(change: Change, error: LettaError) -> Outcome:
    """Sealing that went half-way: what stands there now is no key."""
    return Outcome(
        Action.UPDATE,
        f"it was in plaintext, and what stands there now is no key: writing the key again failed: {error.what}",
        f"Until this is done agents on it are refused: isabella providers sync --only {change.desired.name}",
        failed=True,
    )


def refused_by_vendor(change: Change, answer: Answer) -> Outcome:
    """The vendor does not take the configured key, so nothing was written."""
    reason, remedy = refusal(change, answer)
    return Outcome(Action.REFUSE, reason, remedy, failed=True, refused_by_vendor=True)


def confirmed(reason: str, answer: Answer | None) -> str:
    """The reason, with what the vendor said of the key where that was not simply yes."""
    match answer:
        case None | Answer(verdict=Verdict.ACCEPTED):
            return reason
        case Answer(verdict=Verdict.OUT_OF_FUNDS):
            return f"{reason}; the vendor knows the key, but its account is out of funds"
        case Answer(verdict=Verdict.RATE_LIMITED):
            return f"{reason}; the vendor knows the key, but is asked too often"
        case _:
            return f"{reason}; not confirmed by the vendor ({answer.said})"
