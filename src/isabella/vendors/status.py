"""What each vendor answered when it was asked last. Kept in memory; nobody is asked for its sake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class VendorState(StrEnum):
    """What a vendor did when it was asked last."""

    ANSWERS = "answers"
    REFUSES_KEY = "refuses_key"
    #: It knows the key, but does not serve it: no funds, too many requests, no permission.
    REFUSES = "refuses"
    #: It answers, but with an error of its own, or with what cannot be understood.
    FAILS = "fails"
    UNREACHABLE = "unreachable"
    NOT_ASKED = "not_asked"


_TROUBLE = (VendorState.REFUSES_KEY, VendorState.REFUSES, VendorState.FAILS, VendorState.UNREACHABLE)


@dataclass(frozen=True)
class VendorObservation:
    """What a vendor did when it was asked last.

    Attributes:
        state: what it did.
        reason: its own words or what went wrong, scrubbed, for people.
        at: when that was seen; for one that was not asked, since when it has not been.
    """

    state: VendorState
    reason: str
    at: datetime

    def as_json(self) -> dict[str, Any]:
        """The form that `--json` and the HTTP API show."""
        return {"state": self.state.value, "reason": self.reason, "at": self.at.isoformat(timespec="seconds")}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> VendorObservation:
        """The status that `as_json` was made of.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        state, at = VendorState(document["state"]), datetime.fromisoformat(document["at"])
        return cls(state, str(document["reason"]), at)


class VendorStatusBoard:
    """The statuses of all vendors, by the provider's name in Letta. All that is learnt comes in by `observe`.

    Args:
        now: tells the time.

    Attributes:
        changed: is called when a status has changed.
    """

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._began = now()
        self._seen: dict[str, VendorObservation] = {}
        #: Those whose status comes from a list of models.
        self._listed: set[str] = set()
        self.changed: Callable[[], None] = lambda: None

    def observe(
        self, provider: str, state: VendorState, reason: str, at: datetime | None = None, *, listing: bool = False
    ) -> None:
        """Take note of what a vendor did. What was seen before the last observation changes nothing.

        Args:
            provider: its provider's name in Letta.
            state: what it did with the key that Letta holds.
            reason: why, for people.
            at: when; by default now.
            listing: whether it was asked for its models only. It lists them for a key without funds, too, so that
                changes nothing while it refuses messages.
        """
        status = VendorObservation(state, reason, at or self._now())
        former = self._seen.get(provider)
        if former is not None and (former == status or former.at > status.at):
            return
        if listing and former is not None and former.state in _TROUBLE and provider not in self._listed:
            return
        (self._listed.add if listing else self._listed.discard)(provider)
        self._seen[provider] = status
        self.changed()

    def of(self, provider: str) -> VendorObservation:
        """What is known of the vendor of a provider."""
        return self._seen.get(provider) or VendorObservation(
            VendorState.NOT_ASKED, "not asked since the backend was started", self._began
        )
