"""The health of each provider: its condition, since when, and the headline over all of them.

The condition combines reports over time: pure functions without a clock, and a file that keeps the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from isabella.providers.plan import WRITE_ACTIONS, Action, ProviderState
from isabella.providers.report import GatewayState, GatewayStatus, Proof, ProviderReport, Report
from isabella.system import state
from isabella.system.english import English, english, joined
from isabella.vendors.client import VendorObservation, VendorState


class HealthState(StrEnum):
    """The condition of a provider."""

    #: Letta holds the configured values, and this is proven.
    IN_SYNC = "InSync"
    #: Letta holds other values; a sync would change them.
    DRIFTED = "Drifted"
    #: The vendor refuses the configured key, so Letta keeps the one that it has. It is tried again.
    REFUSED = "Refused"
    #: The configuration is unusable, or Letta does not accept it: the operator must act.
    MISCONFIGURED = "Misconfigured"
    #: The stored key cannot be read back.
    UNPROVEN = "Unproven"
    #: A sync failed.
    FAILED = "Failed"
    #: The configuration has no key for it.
    NO_KEY = "NoKey"
    #: Not declared in the configuration.
    FOREIGN = "Foreign"


@dataclass(frozen=True)
class ProviderHealth:
    """The health of one provider."""

    condition: HealthState
    reason: str  #: the reason at the last change of the condition
    since: datetime  #: the start of the condition; a report that confirms it changes nothing
    remedy: str | None = None  #: what the operator can do, if a sync has said so
    #: a hash of the configured and the stored values after a failed sync: while both are the same, its result still
    #: holds. None if only a comparison has found the condition.
    basis: str | None = None
    asked: datetime | None = None  #: when the vendor last refused the configured key


HealthByProvider = Mapping[str, ProviderHealth]
_HEALTH = TypeAdapter(dict[str, ProviderHealth])

#: The conditions that only a sync can find, not a comparison.
_SYNC_FAILURES = (HealthState.REFUSED, HealthState.MISCONFIGURED, HealthState.UNPROVEN, HealthState.FAILED)


def health_state(entry: ProviderReport) -> HealthState:
    """Return the condition of a provider by one report."""
    if not entry.configured:
        foreign = entry.stored is ProviderState.FOREIGN and entry.key_source is None
        return HealthState.FOREIGN if foreign else HealthState.NO_KEY
    if entry.proof is Proof.PROVEN:
        return HealthState.IN_SYNC
    if entry.refused_by_vendor:
        return HealthState.REFUSED
    if entry.proof is Proof.UNPROVEN or (entry.proof is Proof.NOT_ASKED and entry.stored is ProviderState.HIDDEN):
        return HealthState.UNPROVEN
    if entry.action is Action.REFUSE:
        return HealthState.MISCONFIGURED
    return HealthState.FAILED if entry.proof is Proof.FAILED else HealthState.DRIFTED


def current_health(entry: ProviderReport) -> HealthState:
    """Return the condition of a provider by all that is known, the last sync included."""
    return health_state(entry) if entry.condition is None else HealthState(entry.condition)


def update_health(
    before: HealthByProvider, report: Report, now: datetime, *, whole: bool = True, read_only: bool = False
) -> dict[str, ProviderHealth]:
    """Return the health of the providers after a report.

    A report that is not about the `whole` leaves the other providers' health as it is. If it is a comparison
    (`read_only`), the result of the last sync still holds for providers that have not changed.
    """
    health = {} if whole else dict(before)
    for entry in report.providers:
        former = before.get(entry.name)
        unchanged = former is not None and former.basis is not None and former.basis == entry.basis
        if former is not None and read_only and unchanged and entry.vendor_status is None:
            # Configuration, Letta and vendor have said nothing new since the last sync.
            health[entry.name] = former
        else:
            health[entry.name] = _update(former, entry, now, read_only)
    return health


def _update(before: ProviderHealth | None, entry: ProviderReport, now: datetime, read_only: bool) -> ProviderHealth:
    kind = health_state(entry)
    # A provider that had to be written was out of sync until now, even if no report has said so in between.
    repaired = kind is HealthState.IN_SYNC and entry.action in WRITE_ACTIONS
    changed = before is None or before.condition is not kind or repaired
    if before is not None and not changed and kind is HealthState.IN_SYNC:
        # It keeps the reason of the last change. The reason of a failure may be another one now.
        return before
    health = ProviderHealth(kind, entry.reason, now if before is None or changed else before.since)
    if read_only or kind not in _SYNC_FAILURES:
        return health
    asked = entry.vendor_status.at if kind is HealthState.REFUSED and entry.vendor_status is not None else None
    return replace(health, remedy=entry.remedy, basis=entry.basis, asked=asked)


def with_health(report: Report, health: HealthByProvider, *, unless: datetime | None = None) -> Report:
    """Return the report with the health of each provider, without the start `unless`.

    A comparison knows that something has changed, but not when: it passes its own time.
    """

    def entry_with_health(entry: ProviderReport) -> ProviderReport:
        own = health.get(entry.name)
        if own is None:
            return entry
        entry = replace(entry, condition=own.condition.value, since=None if own.since == unless else own.since)
        if own.basis is None:
            return entry
        # The result of the last sync.
        proof = Proof.UNPROVEN if own.condition is HealthState.UNPROVEN else Proof.FAILED
        entry = replace(entry, proof=proof, reason=own.reason, remedy=own.remedy)
        if own.condition is not HealthState.REFUSED:
            return entry
        refused = VendorObservation(VendorState.REFUSES_KEY, own.reason, own.asked or own.since)
        return replace(entry, refused_by_vendor=True, vendor_status=refused)

    return replace(report, providers=[entry_with_health(entry) for entry in report.providers])


class HealthFile:
    """The file with the health of one Letta's providers, in Isabella's home. It holds no key."""

    def __init__(self, home: Path, base_url: str) -> None:
        self._path = home / "conditions" / f"{hashlib.sha256(base_url.encode()).hexdigest()[:16]}.json"

    def read(self) -> dict[str, ProviderHealth]:
        """Return the last saved state; nothing if the file is missing or damaged."""
        try:
            return _HEALTH.validate_python(state.load(self._path).get("providers", {}))
        except ValueError:
            state.report_fields(self._path)
            return {}

    def write(self, health: HealthByProvider) -> None:
        """Save the health. If this fails, only times and the results of the last sync are lost."""
        document = _HEALTH.dump_python(dict(health), mode="json", exclude_none=True)
        state.keep(self._path, {"version": 1, "providers": document})


_MAX_NAMES = 3


class Level(IntEnum):
    """The severity of a condition."""

    OK = 0
    #: Nothing is known, so it may be bad.
    UNKNOWN = 1
    WARNING = 2
    PROBLEM = 3


_STORED = {
    HealthState.IN_SYNC: (Level.OK, english("the stored key is proven")),
    HealthState.DRIFTED: (Level.PROBLEM, english("Letta does not hold the configured values")),
    HealthState.REFUSED: (Level.PROBLEM, english("the vendor refuses the configured key")),
    HealthState.MISCONFIGURED: (Level.PROBLEM, english("the configured values cannot be used")),
    HealthState.UNPROVEN: (Level.WARNING, english("the stored key cannot be read back")),
    HealthState.FAILED: (Level.PROBLEM, english("the last sync failed")),
    HealthState.NO_KEY: (Level.UNKNOWN, english("no key is configured")),
    HealthState.FOREIGN: (Level.UNKNOWN, english("it is not declared")),
}
_VENDOR = {
    VendorState.ANSWERS: (Level.OK, english("answers")),
    VendorState.REFUSES_KEY: (Level.PROBLEM, english("refuses the key")),
    VendorState.REFUSES: (Level.WARNING, english("refuses requests")),
    VendorState.FAILS: (Level.PROBLEM, english("fails")),
    VendorState.UNREACHABLE: (Level.PROBLEM, english("cannot be reached")),
    VendorState.NOT_ASKED: (Level.UNKNOWN, english("not asked")),
}

_GATEWAY = {GatewayState.RUNS: Level.OK, GatewayState.UNKNOWN: Level.UNKNOWN, GatewayState.DOWN: Level.PROBLEM}


_OTHERS_ANSWER = english("Agents use their models of other vendors meanwhile.")


def _stored_remedy(health: HealthState, key: str) -> str:
    match health:
        case HealthState.DRIFTED | HealthState.FAILED:
            return english("Press Sync, or run `isabella providers sync`, to write the configured values to Letta.")
        case HealthState.REFUSED:
            return english("Replace %(key)s; a new key takes effect at once.", key=key)
        case HealthState.MISCONFIGURED:
            return english("Correct %(key)s; the change takes effect at once.", key=key)
        case HealthState.UNPROVEN:
            return english("Doctor names the cause: the button, or `isabella doctor`.")
        case _:
            return ""


def _vendor_remedy(state: VendorState, key: str) -> str:
    match state:
        case VendorState.REFUSES_KEY:
            return english("Replace %(key)s; a new key takes effect at once.", key=key)
        case VendorState.REFUSES:
            return joined([english("Wait, or add credit at the vendor."), _OTHERS_ANSWER])
        case VendorState.FAILS:
            return joined([english("Wait, or check its base URL with Doctor."), _OTHERS_ANSWER])
        case _:
            check = english("Press Doctor, or run `isabella doctor`, to check the network.")
            return joined([check, _OTHERS_ANSWER])


@dataclass(frozen=True)
class StatusHeadline:
    """The state of all providers in one sentence."""

    level: Level  #: the worst level of all
    title: str
    text: str  #: which providers it is about, and why
    remedy: str = ""  #: what to do next; empty if there is nothing to do
    seen: datetime | None = None  #: when it was seen; None if that is the time of the report

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--json` and the HTTP API show."""
        seen = None if self.seen is None else self.seen.isoformat(timespec="seconds")
        return {
            "level": self.level.name.lower(),
            "title": self.title,
            "text": self.text,
            "remedy": self.remedy,
            "seen": seen,
        }


@dataclass(frozen=True)
class _Problem:
    """A problem of one provider."""

    level: Level
    of_vendor: bool  #: whether the vendor shows it, and not the stored key
    text: str
    remedy: str
    seen: datetime | None = None


def vendor_words(status: VendorObservation | None) -> str:
    """Return the state of a vendor in a few words."""
    return "not known" if status is None else _VENDOR[status.state][1]


def vendor_level(status: VendorObservation | None) -> Level:
    """Return how bad the state of a vendor is."""
    return Level.UNKNOWN if status is None else _VENDOR[status.state][0]


def stored_level(entry: ProviderReport) -> Level:
    """Return how bad the state of the stored key is."""
    return _STORED[current_health(entry)][0]


def level_of(entry: ProviderReport) -> Level:
    """Return the worse of the two levels."""
    return max(stored_level(entry), vendor_level(entry.vendor_status))


def _problem(entry: ProviderReport) -> _Problem | None:
    """Return the worse problem of a provider; None if stored key and vendor are fine, or not known."""
    stored, status = stored_level(entry), entry.vendor_status
    vendor, key = vendor_level(status), entry.key_source or english("its key")
    if max(stored, vendor) <= Level.UNKNOWN:
        return None
    if stored >= vendor or status is None:
        health = current_health(entry)
        refused = health is HealthState.REFUSED
        remedy = entry.remedy or _stored_remedy(health, key)
        seen = status.at if refused and status is not None else None
        return _Problem(stored, refused, _STORED[health][1], remedy, seen)
    text = english("the vendor %(does)s (%(reason)s)", does=_VENDOR[status.state][1], reason=status.reason)
    return _Problem(vendor, True, text, _vendor_remedy(status.state, key), status.at)


def gateway_level(gateway: GatewayStatus | None) -> Level:
    """Return how bad the state of the gateway is; it is fine if there is none."""
    return Level.OK if gateway is None else _GATEWAY[gateway.state]


def headline(report: Report) -> StatusHeadline:
    """Return the headline over the configured providers, and over the gateway that their requests pass."""
    if not report.configured:
        remedy = english("Put a key into %(file)s, such as CEREBRAS_API_KEY=…; it takes effect at once.", file=".env")
        return StatusHeadline(Level.WARNING, english("No provider is configured."), "", remedy)
    of_providers, gateway = _headline_of_providers(report), report.gateway
    match gateway_level(gateway):
        case Level.PROBLEM if gateway is not None:
            others = [] if of_providers.level <= Level.UNKNOWN else [of_providers.title, of_providers.text]
            reason = gateway.reason or english("the reason is not known")
            text = english(
                "Until it does, agents get no answer (%(address)s): %(reason)s.",
                address=gateway.address,
                reason=reason if isinstance(reason, English) else reason.rstrip("."),
            )
            title = english("The gateway is not running.")
            return StatusHeadline(Level.PROBLEM, title, joined([text, *others]), gateway.remedy or "")
        case Level.UNKNOWN if gateway is not None:
            level, title = max(of_providers.level, Level.UNKNOWN), of_providers.title
            if of_providers.level is Level.OK:
                # Every vendor answered once: that was through the gateway, which may have ended since.
                title = english("The gateway cannot be reached from here.")
            text = joined([of_providers.text, gateway.sentence])
            return replace(of_providers, level=level, title=title, text=text)
        case _:
            return of_providers


def _headline_of_providers(report: Report) -> StatusHeadline:
    configured = report.configured
    level = max(map(level_of, configured))
    total = len(configured)
    problems = [(entry.name, problem) for entry in configured if (problem := _problem(entry)) is not None]
    if problems:
        # A vendor that refuses comes before a key that differs: a sync repairs only the latter.
        problems.sort(key=lambda one: (-one[1].level, not one[1].of_vendor))
        if len(problems) == 1:
            title = english("1 of %(total)s providers is not in order.", total=total)
        else:
            title = english("%(count)s of %(total)s providers are not in order.", count=len(problems), total=total)
        texts = [english("%(name)s: %(problem)s", name=name, problem=problem.text) for name, problem in problems]
        worst = problems[0][1]
        return StatusHeadline(level, title, _sentence(_some(texts, "; ")), worst.remedy, worst.seen)
    if total == 1:
        proven = english("The stored key is proven")
    else:
        proven = english("All %(total)s stored keys are proven", total=total)
    if level is Level.OK:
        if total == 1:
            text = english("%(proven)s, and the vendor answered the last request.", proven=proven)
        else:
            text = english("%(proven)s, and every vendor answered the last request.", proven=proven)
        return StatusHeadline(level, english("Everything is in order."), text)
    unknown = [entry.name for entry in configured if level_of(entry) is Level.UNKNOWN]
    names = _some(unknown, ", ")
    if len(unknown) == 1:
        text = english("It is not known whether this vendor answers: %(names)s.", names=names)
    else:
        text = english("It is not known whether these vendors answer: %(names)s.", names=names)
    verify = english("Press Verify, or run `isabella providers verify`, to ask them.")
    return StatusHeadline(level, _sentence(proven), text, verify)


def _some(texts: Sequence[str], between: str) -> str:
    """Join the first texts, and say how many more there are."""
    first, more = joined(texts[:_MAX_NAMES], between), len(texts) - _MAX_NAMES
    return english("%(names)s and %(count)s more", names=first, count=more) if more > 0 else first


def _sentence(text: str) -> str:
    return english("%(text)s.", text=text)


def report_document(report: Report) -> dict[str, Any]:
    """Return the JSON form of a report, with its headline."""
    return {"headline": headline(report).as_json(), **report.as_json()}


def with_vendor_status(report: Report, status_of: Callable[[str], VendorObservation | None]) -> Report:
    """Return the report with the last status of each vendor, from it or from `status_of` a provider's name."""

    def entry_with_status(entry: ProviderReport) -> ProviderReport:
        known, own = status_of(entry.name), entry.vendor_status
        # That the vendor accepts the former key does not make up for a refused new one.
        if known is None or (own is not None and (entry.refused_by_vendor or own.at > known.at)):
            return entry
        return replace(entry, vendor_status=known)

    return replace(report, providers=[entry_with_status(entry) for entry in report.providers])


def with_notes(report: Report, notes_of: Callable[[str], Iterable[str]]) -> Report:
    """Return the report with further notes for each provider, by its name; a note is not repeated."""
    entries = [
        replace(entry, notes=tuple(dict.fromkeys((*entry.notes, *notes_of(entry.name)))))
        for entry in report.providers
    ]
    return replace(report, providers=entries)
