"""Findings of the doctor: their form, and the table of all of them in `findings.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any


class Layer(StrEnum):
    """The layer that a finding belongs to, in the order in which a key travels."""

    CONFIGURATION = "configuration"
    VENDOR = "vendor"
    STORED = "stored"
    USE = "use"
    GATEWAY = "gateway"
    RECEIPT = "receipt"
    EXPOSURE = "exposure"

    @property
    def heading(self) -> str:
        """The name of the layer in reports."""
        return _HEADINGS[self]


_HEADINGS = {
    Layer.CONFIGURATION: "Configuration",
    Layer.VENDOR: "Vendor",
    Layer.STORED: "Letta",
    Layer.USE: "Agents",
    Layer.GATEWAY: "Gateway",
    Layer.RECEIPT: "Receipt",
    Layer.EXPOSURE: "Exposure",
}


class Severity(StrEnum):
    """How much a finding matters."""

    #: Agents fail now, or will at the next start.
    ERROR = "error"
    #: It works, but not as intended, or it will fail later.
    WARNING = "warning"
    #: Information only: it does not count as a finding, nor for the exit code.
    NOTE = "note"


class Fix(StrEnum):
    """What `--fix` does about a finding."""

    #: Make a file readable for its owner only.
    CHMOD = "chmod"
    #: Bring a provider in sync, as `isabella providers sync --only NAME` does.
    SYNC = "sync"
    #: Bind agents to a provider explicitly (fact M6).
    REBIND = "rebind"


@dataclass(frozen=True)
class Remedy:
    """What to do about a finding.

    Attributes:
        text: one or two sentences; they include the command, if there is one.
        command: a literal command; to run after the setting is corrected, if there is one.
        setting: the variable of `.env` to correct first, and its new value: None if only the reader knows it (a key),
            empty if the line is to be removed.
        fix: what `--fix` does; None if only a person can do it.
        path: the file that `--fix` changes.
    """

    text: str
    command: str | None = None
    setting: tuple[str, str | None] | None = None
    fix: Fix | None = None
    path: Path | None = None

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
    """A fault, or a consequence of one.

    Attributes:
        summary: one short sentence, without the provider's name.
        provider: None if it is about all of them or none.
        agents: names of the agents it is about.
        agent_ids: their ids, for `--fix`.
        evidence: the observations it rests on, one per line.
        facts: numbers of the facts about Letta that it rests on.
        explained_by: codes of findings that explain this one if they are reported for the same provider.
    """

    code: str
    layer: Layer
    severity: Severity
    summary: str
    cause: str
    remedy: Remedy
    provider: str | None = None
    agents: tuple[str, ...] = ()
    agent_ids: tuple[str, ...] = field(default=(), repr=False)
    evidence: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    explained_by: frozenset[str] = frozenset()

    @property
    def sentence(self) -> str:
        """The provider and the summary."""
        return self.summary if self.provider is None else f"{self.provider}: {self.summary}"

    @property
    def reason(self) -> str:
        """The summary as the rest of a sentence that begins with "because"."""
        begins_with_article = self.summary.startswith(("A ", "No ", "The "))
        first = self.summary[0].lower() if begins_with_article else self.summary[0]
        return first + self.summary[1:].rstrip(".")

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--json` shows."""
        return {
            "code": self.code,
            "layer": self.layer.value,
            "severity": self.severity.value,
            "provider": self.provider,
            "agents": list(self.agents),
            "summary": self.summary,
            "evidence": list(self.evidence),
            "cause": self.cause,
            "remedy": self.remedy.as_json(),
            "facts": list(self.facts),
        }


@dataclass(frozen=True)
class Unknown:
    """A question that could not be answered.

    Attributes:
        what: the question, as "whether …" or "which …".
        because: the reason, as the rest of a sentence.
        provider: None if it is about all of them.
    """

    layer: Layer
    what: str
    because: str
    provider: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--json` shows."""
        return {
            "layer": self.layer.value,
            "provider": self.provider,
            "what": self.what,
            "because": self.because,
        }


@dataclass(frozen=True)
class PassedCheck:
    """A check without a finding."""

    layer: Layer
    text: str


#: What a check yields.
Outcome = Finding | Unknown | PassedCheck


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

    Args:
        code: a code of the table.
        cases: special cases of that entry that apply, in ascending order of precedence.
        provider: see `Finding`, as for the next three.
        agents: names.
        agent_ids: their ids.
        evidence: one observation per line.
        path: the file that `--fix` changes.
        values: for the placeholders in the texts.

    Raises:
        KeyError: the table has no such code or case, or a text needs a value that is not given.
    """
    table = finding_table()[code]
    entry = dict(table)
    for case in cases:
        entry |= table["cases"][case]
    known = {"provider": provider, "agents": name_some(agents), "path": path, **values}
    remedy = {name: text.format_map(known) for name, text in entry["remedy"].items()}
    variable = remedy.get("setting")
    return Finding(
        code=code,
        layer=Layer(entry["layer"]),
        severity=Severity(entry["severity"]),
        summary=entry["summary"].format_map(known),
        cause=entry["cause"].format_map(known),
        remedy=Remedy(
            remedy["text"],
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


def name_some(names: tuple[str, ...], most: int = 3) -> str:
    """Return the first few names, and how many more there are."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
