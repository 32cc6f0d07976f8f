"""How each provider stands, and since when: a fold over reports, without clock or files of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from isabella.providers.plan import WRITES, Action, State
from isabella.providers.report import Proof, ProviderReport, Report


class Kind(StrEnum):
    """How a provider stands."""

    #: Letta holds what is configured, and this is proven.
    IN_SYNC = "InSync"
    #: Letta holds something else; a sync would mend it.
    DRIFTED = "Drifted"
    #: The vendor refuses the configured key, so Letta keeps the one that it has. It is tried again.
    REFUSED = "Refused"
    #: What is configured cannot be used, or Letta cannot take it: the operator has to do something.
    MISCONFIGURED = "Misconfigured"
    #: Written, or found, but it cannot be read back.
    UNPROVEN = "Unproven"
    #: A sync was tried, and did not come to a good end.
    FAILED = "Failed"
    #: The configuration has no key for it.
    NO_KEY = "NoKey"
    #: Nobody declared it.
    FOREIGN = "Foreign"


@dataclass(frozen=True)
class Condition:
    """How one provider stands.

    Attributes:
        kind: how.
        reason: why, as it was found at the last change.
        since: when it became so; a look that finds it as it was changes nothing.
    """

    kind: Kind
    reason: str
    since: datetime


Conditions = Mapping[str, Condition]


def kind_of(entry: ProviderReport) -> Kind:
    """How a provider stands by one report."""
    if not entry.ours:
        return Kind.FOREIGN if entry.stored is State.FOREIGN and entry.key_source is None else Kind.NO_KEY
    if entry.proof is Proof.PROVEN:
        return Kind.IN_SYNC
    if entry.refused_by_vendor:
        return Kind.REFUSED
    if entry.proof is Proof.UNPROVEN or (entry.proof is Proof.NOT_ASKED and entry.stored is State.HIDDEN):
        return Kind.UNPROVEN
    if entry.action is Action.REFUSE:
        return Kind.MISCONFIGURED
    return Kind.FAILED if entry.proof is Proof.FAILED else Kind.DRIFTED


def after(before: Conditions, report: Report, now: datetime, *, whole: bool = True) -> dict[str, Condition]:
    """How the providers stand after a report.

    Args:
        before: how they stood.
        report: what a run has found and done.
        now: when that was.
        whole: whether the report is about all providers; otherwise those that it leaves out stay as they were.
    """
    conditions = {} if whole else dict(before)
    for entry in report.providers:
        conditions[entry.name] = _after(before.get(entry.name), entry, now)
    return conditions


def _after(before: Condition | None, entry: ProviderReport, now: datetime) -> Condition:
    kind = kind_of(entry)
    # What had to be mended was out of line until now, even where no report has said so in between.
    mended = kind is Kind.IN_SYNC and entry.action in WRITES and entry.proof is Proof.PROVEN
    if before is None or before.kind is not kind or mended:
        return Condition(kind, entry.reason, now)
    # The reason for being in sync is that of the last change; what is wrong may be wrong for another reason now.
    return before if kind is Kind.IN_SYNC else Condition(kind, entry.reason, before.since)


def with_conditions(report: Report, conditions: Conditions, *, unless: datetime | None = None) -> Report:
    """The report, each entry with how its provider stands.

    Args:
        report: what a run has found.
        conditions: how the providers stand by it.
        unless: a time that is not told. Who only looks knows that something has changed, but not when.
    """

    def told(entry: ProviderReport) -> ProviderReport:
        found = conditions.get(entry.name)
        if found is None:
            return entry
        since = None if found.since == unless else found.since
        # As `replace` does, in a tenth of the time: there may be a thousand of them.
        changed = object.__new__(ProviderReport)
        vars(changed).update(vars(entry), condition=found.kind.value, since=since)
        return changed

    return replace(report, providers=[told(entry) for entry in report.providers])
