"""Findings of the doctor: their form, their table in `findings.toml`, and the root causes among them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from isabella.doctor.evidence import Evidence
from isabella.doctor.layers import Layer
from isabella.doctor.log_messages import scrub_document
from isabella.system.english import clause, english

#: A value in a text of `findings.toml`.
_VALUE = re.compile(r"\{(\w+)\}")


class Severity(StrEnum):
    """The severity of a finding."""

    ERROR = "error"  # agents fail now, or will at the next start
    WARNING = "warning"  # it works, but not as intended, or it will fail later
    NOTE = "note"  # information only: it does not count as a finding, nor for the exit code


class Fix(StrEnum):
    """The action of `--fix` on a finding."""

    CHMOD = "chmod"  # make a file readable for its owner only
    SYNC = "sync"  # bring a provider in sync, as `isabella providers sync --only NAME` does
    REBIND = "rebind"  # bind agents to a provider explicitly (fact M6)


@dataclass(frozen=True)
class Remedy:
    """The remedy of a finding."""

    text: str  # one or two sentences; they include the command, if there is one
    command: str | None = None  # a literal command; to run after the setting is corrected, if there is one
    #: the variable of `.env` to correct first, and its new value: None if only the reader knows it (a key), empty if
    #: the line is to be removed
    setting: tuple[str, str | None] | None = None
    fix: Fix | None = None  # what `--fix` does; None if only a person can do it
    path: Path | None = None  # the file that `--fix` changes

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--json` shows."""
        return {
            "text": self.text,
            "command": self.command,
            "setting": None if self.setting is None else dict(zip(("variable", "value"), self.setting, strict=True)),
            "fix": None if self.fix is None else self.fix.value,
        }


@dataclass(frozen=True)
class Finding:
    """A fault, or a consequence of one."""

    code: str
    layer: Layer
    severity: Severity
    summary: str  # one short sentence, without the provider's name
    cause: str
    remedy: Remedy
    provider: str | None = None  # None if it is about all of them or none
    agents: tuple[str, ...] = ()  # names of the agents it is about
    agent_ids: tuple[str, ...] = field(default=(), repr=False)  # their ids, for `--fix`
    evidence: tuple[str, ...] = ()  # the observations it rests on, one per line
    facts: tuple[str, ...] = ()  # numbers of the facts about Letta that it rests on
    #: codes of findings that explain this one if they are reported for the same provider
    explained_by: frozenset[str] = frozenset()

    @property
    def sentence(self) -> str:
        """The provider and the summary."""
        return self.summary if self.provider is None else f"{self.provider}: {self.summary}"

    @property
    def reason(self) -> str:
        """The summary as the rest of a sentence that begins with "because"."""
        return clause(self.summary)

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--json` shows."""
        names = ("code", "layer", "severity", "provider", "agents", "summary", "evidence", "cause", "facts")
        return {name: getattr(self, name) for name in names} | {"remedy": self.remedy.as_json()}


@dataclass(frozen=True)
class Unknown:
    """A question that could not be answered."""

    layer: Layer
    what: str  # the question, as "whether …" or "which …"
    because: str  # the reason, as the rest of a sentence
    provider: str | None = None  # None if it is about all of them


@dataclass(frozen=True)
class PassedCheck:
    """A check without a finding."""

    layer: Layer
    text: str


Outcome = Finding | Unknown | PassedCheck  # what a check yields


@cache
def finding_table() -> Mapping[str, Mapping[str, Any]]:
    """Return the entries of `findings.toml` by code, with shared remedies filled in."""
    document = tomllib.loads(resources.files(__package__).joinpath("findings.toml").read_text("utf-8"))
    remedies = document["remedies"]
    for entry in document["findings"].values():
        for texts in (entry, *entry.get("cases", {}).values()):
            if isinstance(texts.get("remedy"), str):
                texts["remedy"] = remedies[texts["remedy"]]
    findings: dict[str, dict[str, Any]] = document["findings"]
    return findings


def texts_for_people() -> Iterator[str]:
    """Yield the patterns of the summaries, causes and remedies of all findings, for the console's catalogues."""
    for entry in finding_table().values():
        for texts in (entry, *entry.get("cases", {}).values()):
            remedy = texts.get("remedy", {})
            for text in (texts.get("summary"), texts.get("cause"), remedy.get("text")):
                if text is not None and not _VALUE.fullmatch(text):
                    yield _pattern(text)


def _pattern(text: str) -> str:
    return _VALUE.sub(r"%(\1)s", text)


def _filled(text: str, values: Mapping[str, object]) -> str:
    """Return a text with its values, which a page can show in another language."""
    names = _VALUE.findall(text)
    # Numbers are statuses and lines: they have no thousands.
    known = {name: str(values[name]) if isinstance(values[name], int) else values[name] for name in names}
    if _VALUE.fullmatch(text):
        value = known[names[0]]
        return value if isinstance(value, str) else str(value)
    return english(_pattern(text), **known)


def finding(
    code: str,
    *cases: str,
    provider: str | None = None,
    agents: tuple[str, ...] = (),
    agent_ids: tuple[str, ...] = (),
    evidence: tuple[str, ...] = (),
    path: Path | None = None,
    **values: object,
) -> Finding:
    """Return the finding of this code, with its texts from the table.

    `cases` are the special cases of the entry that apply, in ascending order of precedence; `values` fill the
    placeholders in the texts. An unknown code, case or placeholder raises KeyError.
    """
    table = finding_table()[code]
    entry = dict(table)
    for case in cases:
        entry |= table["cases"][case]
    known = {"provider": provider, "agents": name_some(agents), "path": path, **values}
    remedy = {name: text.format_map(known) for name, text in entry["remedy"].items() if name != "text"}
    variable = remedy.get("setting")
    return Finding(
        code=code,
        layer=Layer(entry["layer"]),
        severity=Severity(entry["severity"]),
        summary=_filled(entry["summary"], known),
        cause=_filled(entry["cause"], known),
        remedy=Remedy(
            _filled(entry["remedy"]["text"], known),
            command=remedy.get("command"),
            setting=(variable, remedy.get("value")) if variable else None,
            fix=Fix(remedy["fix"]) if "fix" in remedy else None,
            path=path,
        ),
        provider=provider,
        agents=agents,
        agent_ids=agent_ids,
        evidence=evidence,
        facts=tuple(entry.get("facts", ())),
        explained_by=frozenset(entry.get("explained_by", ())),
    )


def name_some(names: tuple[str, ...]) -> str:
    """Return the first three names, and how many more there are."""
    if len(names) <= 3:
        return ", ".join(names)
    return english("%(names)s and %(count)s more", names=", ".join(names[:3]), count=len(names) - 3)


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
    notes: tuple[Finding, ...] = ()  # information, not faults
    practice: bool = False  # whether practice vendors replace the real ones
    fixed: tuple[str, ...] = ()  # what `--fix` did, one line each

    @property
    def healthy(self) -> bool:
        """Whether there are no findings."""
        return not self.causes

    @property
    def sentences(self) -> list[str]:
        """One line for each cause, with the next step."""
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

    def root_of(one: Finding) -> Finding:
        cause = next((other for other in counted if explains(other, one)), None)
        return one if cause is None else root_of(cause)

    roots = {id(one): root_of(one) for one in counted}
    causes = [
        RootCause(root, tuple(one for one in counted if one is not root and roots[id(one)] is root))
        for root in counted
        if roots[id(root)] is root
    ]
    return tuple(sorted(causes, key=lambda cause: list(Layer).index(cause.finding.layer)))


def explains(cause: Finding, consequence: Finding) -> bool:
    """Whether one finding explains another: by its code, for the same provider or for all of them."""
    return (
        cause is not consequence
        and cause.code in consequence.explained_by
        # Two findings must never explain each other away.
        and consequence.code not in cause.explained_by
        and (cause.provider is None or cause.provider == consequence.provider)
    )
