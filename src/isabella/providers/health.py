"""How each provider stands, and since when: a fold over reports, without clock or files of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from isabella.providers.plan import WRITES, Action, ProviderState
from isabella.providers.report import Proof, ProviderReport, Report
from isabella.system.files import write_private
from isabella.vendors.status import VendorObservation, VendorState


class HealthState(StrEnum):
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
class ProviderHealth:
    """How one provider stands.

    Attributes:
        kind: how.
        reason: why, as it was found at the last change.
        since: when it became so; a look that finds it as it was changes nothing.
        remedy: what the operator can do, where a sync has said so.
        basis: stands for what was asked for and what Letta held after a sync that did not come to a good end: as
            long as both are the same, that is how it went. None for what only a look has found.
        asked: when the vendor refused the configured key last.
    """

    kind: HealthState
    reason: str
    since: datetime
    remedy: str | None = None
    basis: str | None = None
    asked: datetime | None = None


Conditions = Mapping[str, ProviderHealth]

#: How a sync can end other than well: what a mere look cannot find out.
_OUTCOMES = (HealthState.REFUSED, HealthState.MISCONFIGURED, HealthState.UNPROVEN, HealthState.FAILED)


def health_state(entry: ProviderReport) -> HealthState:
    """How a provider stands by one report."""
    if not entry.ours:
        return (
            HealthState.FOREIGN
            if entry.stored is ProviderState.FOREIGN and entry.key_source is None
            else HealthState.NO_KEY
        )
    if entry.proof is Proof.PROVEN:
        return HealthState.IN_SYNC
    if entry.refused_by_vendor:
        return HealthState.REFUSED
    if entry.proof is Proof.UNPROVEN or (entry.proof is Proof.NOT_ASKED and entry.stored is ProviderState.HIDDEN):
        return HealthState.UNPROVEN
    if entry.action is Action.REFUSE:
        return HealthState.MISCONFIGURED
    return HealthState.FAILED if entry.proof is Proof.FAILED else HealthState.DRIFTED


def stands(entry: ProviderReport) -> HealthState:
    """How a provider stands by all that is known, the last sync included."""
    return health_state(entry) if entry.condition is None else HealthState(entry.condition)


def update_health(
    before: Conditions, report: Report, now: datetime, *, whole: bool = True, looks: bool = False
) -> dict[str, ProviderHealth]:
    """How the providers stand after a report.

    Args:
        before: how they stood.
        report: what a run has found and done.
        now: when that was.
        whole: whether the report is about all providers; otherwise those that it leaves out stay as they were.
        looks: whether nothing was done, so that what the last sync has found out still holds where nothing changed.
    """
    conditions = {} if whole else dict(before)
    for entry in report.providers:
        former = before.get(entry.name)
        if looks and former is not None and _still_holds(former, entry):
            conditions[entry.name] = former
        else:
            conditions[entry.name] = _after(former, entry, now, looks)
    return conditions


def _still_holds(former: ProviderHealth, entry: ProviderReport) -> bool:
    """Whether neither configuration, nor Letta, nor the vendor has said anything new since the last sync."""
    return former.basis is not None and former.basis == entry.basis and entry.vendor_status is None


def _after(before: ProviderHealth | None, entry: ProviderReport, now: datetime, looks: bool) -> ProviderHealth:
    kind = health_state(entry)
    # What had to be mended was out of line until now, even where no report has said so in between.
    mended = kind is HealthState.IN_SYNC and entry.action in WRITES and entry.proof is Proof.PROVEN
    changed = before is None or before.kind is not kind or mended
    if before is not None and not changed and kind is HealthState.IN_SYNC:
        # The reason for being in sync is that of the last change; what is wrong may be wrong for another reason now.
        return before
    found = ProviderHealth(kind, entry.reason, now if before is None or changed else before.since)
    if looks or kind not in _OUTCOMES:
        return found
    asked = entry.vendor_status.at if kind is HealthState.REFUSED and entry.vendor_status is not None else None
    return replace(found, remedy=entry.remedy, basis=entry.basis, asked=asked)


def with_health(report: Report, conditions: Conditions, *, unless: datetime | None = None) -> Report:
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
        if found.basis is not None:
            vars(changed).update(_last_sync(found))
        return changed

    return replace(report, providers=[told(entry) for entry in report.providers])


def _last_sync(found: ProviderHealth) -> dict[str, Any]:
    """What the last sync has found out, as fields of an entry."""
    fields: dict[str, Any] = {
        "proof": Proof.UNPROVEN if found.kind is HealthState.UNPROVEN else Proof.FAILED,
        "reason": found.reason,
        "remedy": found.remedy,
    }
    if found.kind is HealthState.REFUSED:
        seen = VendorObservation(VendorState.REFUSES_KEY, found.reason, found.asked or found.since)
        fields |= {"refused_by_vendor": True, "vendor_status": seen}
    return fields


class HealthFile:
    """The conditions of one Letta's providers on the disk. There is no key in it.

    Args:
        home: Isabella's home.
        base_url: which Letta.
    """

    def __init__(self, home: Path, base_url: str) -> None:
        self._path = home / "conditions" / f"{hashlib.sha256(base_url.encode()).hexdigest()[:16]}.json"

    def read(self) -> dict[str, ProviderHealth]:
        """What was written last; nothing where there is no file, or it is damaged."""
        try:
            document = json.loads(self._path.read_text())
            return {
                str(name): ProviderHealth(
                    HealthState(entry["condition"]),
                    str(entry["reason"]),
                    datetime.fromisoformat(entry["since"]),
                    remedy=entry.get("remedy"),
                    basis=entry.get("basis"),
                    asked=datetime.fromisoformat(entry["asked"]) if entry.get("asked") else None,
                )
                for name, entry in document["providers"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def write(self, conditions: Conditions) -> None:
        """Write them down. Where that cannot be, only times and what the last sync has found out are lost."""
        document = {name: _written(one) for name, one in conditions.items()}
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, json.dumps({"version": 1, "providers": document}))


def _written(one: ProviderHealth) -> dict[str, str]:
    outcome = {
        "remedy": one.remedy,
        "basis": one.basis,
        "asked": None if one.asked is None else one.asked.isoformat(),
    }
    found = {"condition": one.kind.value, "reason": one.reason, "since": one.since.isoformat()}
    return found | {name: value for name, value in outcome.items() if value is not None}
