"""The last observation of each vendor, in memory. No vendor is asked for its sake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class VendorState(StrEnum):
    """What a vendor did with its last request."""

    ANSWERS = "answers"
    REFUSES_KEY = "refuses_key"
    REFUSES = "refuses"  # it knows the key, but refuses: no funds, too many requests, no permission
    FAILS = "fails"  # it answers with an error of its own, or with something that cannot be understood
    UNREACHABLE = "unreachable"
    NOT_ASKED = "not_asked"


_TROUBLE = (VendorState.REFUSES_KEY, VendorState.REFUSES, VendorState.FAILS, VendorState.UNREACHABLE)


@dataclass(frozen=True)
class VendorObservation:
    """An observation of a vendor."""

    state: VendorState
    reason: str  # its own words or what went wrong, redacted, for people
    at: datetime  # the time; for a vendor that was not asked, the time since when

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--json` and the HTTP API show."""
        return {"state": self.state.value, "reason": self.reason, "at": self.at.isoformat(timespec="seconds")}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> VendorObservation:
        """Return the observation in the form of `as_json`; another form raises ValueError, KeyError or TypeError."""
        state, at = VendorState(document["state"]), datetime.fromisoformat(document["at"])
        return cls(state, str(document["reason"]), at)


class VendorStatusBoard:
    """The last observations of all vendors, by the provider's name in Letta. `now` returns the time."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._began = now()
        self._seen: dict[str, VendorObservation] = {}
        self._listed: set[str] = set()  # providers whose observation comes from a model list
        self.changed: Callable[[], None] = lambda: None  # runs after an observation has changed

    def observe(
        self, provider: str, state: VendorState, reason: str, at: datetime | None = None, *, listing: bool = False
    ) -> None:
        """Store an observation of the vendor with the key that Letta holds, unless it is older than the last one.

        `listing` means that the vendor only listed its models. It does so for a key without funds, too, so a list
        changes nothing while the vendor refuses messages.
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
        """Return the last observation of a provider's vendor."""
        return self._seen.get(provider) or VendorObservation(
            VendorState.NOT_ASKED, "not asked since the backend was started", self._began
        )
