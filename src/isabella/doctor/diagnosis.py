"""From what all layers found to a verdict: causes told from consequences. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from isabella.doctor.checks import agent_bindings, completions, configuration, exposure, stored_keys, vendor_keys
from isabella.doctor.evidence import Evidence
from isabella.doctor.findings import Finding, Layer, LayerResult, PassedCheck, Severity, Unknown
from isabella.doctor.sanitize import scrub_document

#: In the order in which a key travels.
JUDGES = (
    configuration.judge,
    vendor_keys.judge,
    stored_keys.judge,
    agent_bindings.judge,
    completions.judge,
    exposure.judge,
)
_ORDER = list(Layer)


@dataclass(frozen=True)
class RootCause:
    """A fault, and what follows from it.

    Attributes:
        finding: the fault.
        consequences: findings that it explains: they go away with it, or are looked at again then.
    """

    finding: Finding
    consequences: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """The outcome of an examination.

    Attributes:
        base_url: the Letta that was looked at; None where none was.
        release: its release.
        causes: the faults, in the order in which a key travels.
        unknowns: what could not be found out, and why.
        fine: what was looked at and is as it should be.
        notes: what is worth knowing, though it is no fault.
        practice: whether practice vendors stand in for the real ones.
        log: what was recognised in the log that was given.
        treated: what was done about findings, a line each.
    """

    base_url: str | None
    release: str | None
    causes: tuple[RootCause, ...] = ()
    unknowns: tuple[Unknown, ...] = ()
    fine: tuple[PassedCheck, ...] = ()
    notes: tuple[Finding, ...] = ()
    practice: bool = False
    log: tuple[dict[str, Any], ...] = field(default=())
    treated: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.causes

    @property
    def codes(self) -> set[tuple[str, str | None]]:
        """Code and provider of each cause."""
        return {(cause.finding.code, cause.finding.provider) for cause in self.causes}

    @property
    def sentences(self) -> list[str]:
        """The verdict itself: one line for each cause, with what to do next."""
        if self.healthy:
            return ["Healthy: nothing was found."]
        return [f"{cause.finding.sentence} {cause.finding.remedy.text}" for cause in self.causes]

    def as_json(self) -> dict[str, Any]:
        """The form that `--json` and the HTTP API show. Nothing in it is secret."""
        document: dict[str, Any] = {
            "healthy": self.healthy,
            "letta": {"base_url": self.base_url, "version": self.release},
            "verdict": self.sentences,
            "findings": [
                {**cause.finding.as_json(), "consequences": [one.as_json() for one in cause.consequences]}
                for cause in self.causes
            ],
            "unknown": [unknown.as_json() for unknown in self.unknowns],
            "fine": [{"layer": fine.layer.value, "text": fine.text} for fine in self.fine],
            "notes": [note.as_json() for note in self.notes],
            "practice": self.practice,
            "log": list(self.log),
            "fixed": list(self.treated),
        }
        shown = scrub_document(document)
        if not isinstance(shown, dict):
            raise TypeError("a document stays a document")
        return shown


def diagnose(evidence: Evidence) -> Diagnosis:
    """Turn evidence into a verdict."""
    total = LayerResult()
    for layer in JUDGES:
        total += layer(evidence)
    seen = evidence.seen
    return Diagnosis(
        base_url=seen.base_url,
        release=seen.abilities.release if seen.abilities is not None else None,
        causes=root_causes(total.findings),
        unknowns=total.unknowns,
        fine=total.fine,
        notes=tuple(finding for finding in total.findings if finding.severity is Severity.NOTE),
        practice=evidence.configured.practice,
    )


def root_causes(findings: Sequence[Finding]) -> tuple[RootCause, ...]:
    """Those that no other explains, each with those that it does."""
    counted = [finding for finding in findings if finding.severity is not Severity.NOTE]
    explained = {id(one): next((other for other in counted if explains(other, one)), None) for one in counted}
    roots = [one for one in counted if explained[id(one)] is None]
    consequences: dict[int, list[Finding]] = {id(root): [] for root in roots}
    for one in counted:
        cause = explained[id(one)]
        while cause is not None and explained[id(cause)] is not None:
            cause = explained[id(cause)]
        if cause is not None:
            consequences[id(cause)].append(one)
    roots.sort(key=lambda finding: _ORDER.index(finding.layer))
    return tuple(RootCause(root, tuple(consequences[id(root)])) for root in roots)


def explains(cause: Finding, consequence: Finding) -> bool:
    """Whether one finding explains another: by its code, about the same provider or about all of them."""
    return (
        cause is not consequence
        and cause.code in consequence.explained_by
        # Two findings must never explain each other away.
        and consequence.code not in cause.explained_by
        and (cause.provider is None or cause.provider == consequence.provider)
    )
