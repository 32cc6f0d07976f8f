"""How the providers stand as a whole: of the two facts about each, the stored key and the vendor, the worse one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from isabella.providers.health import HealthState, stands
from isabella.providers.report import ProviderReport, Report
from isabella.vendors.status import VendorObservation, VendorState

_NAMED = 3


class Level(IntEnum):
    """How bad something is."""

    OK = 0
    #: Nothing is known, so it may be bad.
    UNKNOWN = 1
    WARNING = 2
    PROBLEM = 3


_OF_KIND = {
    HealthState.IN_SYNC: (Level.OK, "the stored key is proven"),
    HealthState.DRIFTED: (Level.PROBLEM, "Letta holds something else than is configured"),
    HealthState.REFUSED: (Level.PROBLEM, "the vendor refuses the configured key"),
    HealthState.MISCONFIGURED: (Level.PROBLEM, "what is configured cannot be used"),
    HealthState.UNPROVEN: (Level.WARNING, "the stored key cannot be read back"),
    HealthState.FAILED: (Level.PROBLEM, "the last sync failed"),
    HealthState.NO_KEY: (Level.UNKNOWN, "no key is configured"),
    HealthState.FOREIGN: (Level.UNKNOWN, "nobody declared it"),
}
_OF_STATE = {
    VendorState.ANSWERS: (Level.OK, "answers"),
    VendorState.REFUSES_KEY: (Level.PROBLEM, "refuses the key"),
    VendorState.REFUSES: (Level.WARNING, "refuses requests"),
    VendorState.FAILS: (Level.PROBLEM, "fails"),
    VendorState.UNREACHABLE: (Level.PROBLEM, "cannot be reached"),
    VendorState.NOT_ASKED: (Level.UNKNOWN, "not asked"),
}


@dataclass(frozen=True)
class StatusHeadline:
    """How the providers stand as a whole.

    Attributes:
        level: the worst of all facts.
        title: that in one sentence.
        text: which providers it is about, and why.
    """

    level: Level
    title: str
    text: str

    def as_json(self) -> dict[str, Any]:
        """The form that `--json` and the HTTP API show."""
        return {"level": self.level.name.lower(), "title": self.title, "text": self.text}


def vendor_words(status: VendorObservation | None) -> str:
    """What a vendor did, in a few words."""
    return "not known" if status is None else _OF_STATE[status.state][1]


def vendor_level(status: VendorObservation | None) -> Level:
    """How bad it is what a vendor did."""
    return Level.UNKNOWN if status is None else _OF_STATE[status.state][0]


def stored_level(entry: ProviderReport) -> Level:
    """How bad it is what Letta holds."""
    return _OF_KIND[stands(entry)][0]


def level_of(entry: ProviderReport) -> Level:
    """The worse of the two."""
    return max(stored_level(entry), vendor_level(entry.vendor_status))


def trouble(entry: ProviderReport) -> str | None:
    """The worse fact about a provider that is not in order; None where both are fine or nothing is known."""
    stored, vendor = stored_level(entry), vendor_level(entry.vendor_status)
    if max(stored, vendor) <= Level.UNKNOWN:
        return None
    if stored >= vendor or entry.vendor_status is None:
        return _OF_KIND[stands(entry)][1]
    return f"the vendor {vendor_words(entry.vendor_status)} ({entry.vendor_status.reason})"


def headline(report: Report) -> StatusHeadline:
    """How the configured providers stand as a whole."""
    ours = report.ours
    if not ours:
        return StatusHeadline(Level.WARNING, "No provider is configured.", "")
    level = max(map(level_of, ours))
    total = len(ours)
    wrong = [f"{entry.name}: {said}" for entry in ours if (said := trouble(entry)) is not None]
    if wrong:
        title = f"{len(wrong)} of {total} providers {'is' if len(wrong) == 1 else 'are'} not in order."
        return StatusHeadline(level, title, f"{_some(wrong, '; ')}.")
    proven = "The stored key is proven" if total == 1 else f"All {total} stored keys are proven"
    if level is Level.OK:
        answered = "the vendor answered" if total == 1 else "every vendor answered"
        return StatusHeadline(level, "Everything is in order.", f"{proven}, and {answered} when it was asked last.")
    unknown = [entry.name for entry in ours if level_of(entry) is Level.UNKNOWN]
    whom = "this vendor answers" if len(unknown) == 1 else "these vendors answer"
    return StatusHeadline(level, f"{proven}.", f"Whether {whom} is not known: {_some(unknown, ', ')}.")


def document(report: Report) -> dict[str, Any]:
    """The JSON form of a report, with its headline."""
    return {"headline": headline(report).as_json(), **report.as_json()}


def with_vendors(report: Report, seen: Callable[[str], VendorObservation | None]) -> Report:
    """The report, each entry with what its vendor did last.

    Args:
        report: what a run has found.
        seen: what is known of a provider's vendor beside that.
    """

    def told(entry: ProviderReport) -> ProviderReport:
        known, own = seen(entry.name), entry.vendor_status
        # That the vendor takes the former key does not make the configured one any better.
        if known is None or (own is not None and (entry.refused_by_vendor or own.at > known.at)):
            return entry
        return replace(entry, vendor_status=known)

    return replace(report, providers=[told(entry) for entry in report.providers])


def _some(items: list[str], between: str) -> str:
    more = len(items) - _NAMED
    return between.join(items[:_NAMED]) + (f" and {more} more" if more > 0 else "")
