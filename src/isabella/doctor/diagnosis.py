"""The explanation of findings: root causes told apart from their consequences. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from isabella.doctor.evidence import Evidence
from isabella.doctor.findings import Finding, Layer, Outcome, PassedCheck, Severity, Unknown
from isabella.doctor.log_messages import scrub_document

_ORDER = list(Layer)


@dataclass(frozen=True)
class RootCause:
    """A finding that no other explains, and the findings that it explains."""

    finding: Finding
    consequences: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """The result of a run."""

    base_url: str | None  # the Letta that was examined; None if there was none
    release: str | None
    causes: tuple[RootCause, ...] = ()  # the root causes, in the order in which a key travels
    unknowns: tuple[Unknown, ...] = ()
    passed: tuple[PassedCheck, ...] = ()
    notes: tuple[Finding, ...] = ()  # information that is no fault
    practice: bool = False  # whether practice vendors replace the real ones
    fixed: tuple[str, ...] = ()  # what `--fix` did, one line each

    @property
    def healthy(self) -> bool:
        """Whether there is no finding."""
        return not self.causes

    @property
    def sentences(self) -> list[str]:
        """One line for each cause, with what to do next."""
        if self.healthy:
            return ["Healthy: nothing was found."]
        return [f"{cause.finding.sentence} {cause.finding.remedy.text}" for cause in self.causes]

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--json` and the HTTP API show, with secrets masked."""
        document: dict[str, Any] = {
            "healthy": self.healthy,
            "letta": {"base_url": self.base_url, "version": self.release},
            "verdict": self.sentences,
            "findings": [
                {**cause.finding.as_json(), "consequences": [one.as_json() for one in cause.consequences]}
                for cause in self.causes
            ],
            "unknown": [asdict(unknown) for unknown in self.unknowns],
            "fine": [asdict(passed) for passed in self.passed],
            "notes": [note.as_json() for note in self.notes],
            "practice": self.practice,
            "log": [],
            "fixed": list(self.fixed),
        }
        return {name: scrub_document(value) for name, value in document.items()}


def explain(evidence: Evidence, outcomes: Iterable[Outcome]) -> Diagnosis:
    """Return the diagnosis for the outcomes of all checks."""
    every = list(outcomes)
    letta = evidence.letta
    findings = [outcome for outcome in every if isinstance(outcome, Finding)]
    return Diagnosis(
        base_url=letta.base_url,
        release=letta.abilities.release if letta.abilities is not None else None,
        causes=root_causes(findings),
        unknowns=tuple(outcome for outcome in every if isinstance(outcome, Unknown)),
        passed=tuple(outcome for outcome in every if isinstance(outcome, PassedCheck)),
        notes=tuple(finding for finding in findings if finding.severity is Severity.NOTE),
        practice=evidence.configuration.practice,
    )


def root_causes(findings: Sequence[Finding]) -> tuple[RootCause, ...]:
    """Return the findings that no other explains, each with its direct and indirect consequences."""
    counted = [finding for finding in findings if finding.severity is not Severity.NOTE]
    cause_of = {id(one): next((other for other in counted if explains(other, one)), None) for one in counted}
    roots = [one for one in counted if cause_of[id(one)] is None]
    consequences: dict[int, list[Finding]] = {id(root): [] for root in roots}
    for one in counted:
        cause = cause_of[id(one)]
        while cause is not None and cause_of[id(cause)] is not None:
            cause = cause_of[id(cause)]
        if cause is not None:
            consequences[id(cause)].append(one)
    roots.sort(key=lambda finding: _ORDER.index(finding.layer))
    return tuple(RootCause(root, tuple(consequences[id(root)])) for root in roots)


def explains(cause: Finding, consequence: Finding) -> bool:
    """Whether one finding explains another: by its code, for the same provider or for all of them."""
    return (
        cause is not consequence
        and cause.code in consequence.explained_by
        # Two findings must never explain each other away.
        and consequence.code not in cause.explained_by
        and (cause.provider is None or cause.provider == consequence.provider)
    )
