"""What the doctor can find: frozen data, with the evidence, the cause and the remedy."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Layer(StrEnum):
    """Where a fault lies, in the order in which a key travels."""

    CONFIGURATION = "configuration"
    VENDOR = "vendor"
    STORED = "stored"
    USE = "use"
    RECEIPT = "receipt"
    EXPOSURE = "exposure"

    @property
    def heading(self) -> str:
        """The layer as people read it."""
        return _HEADINGS[self]


_HEADINGS = {
    Layer.CONFIGURATION: "Configuration",
    Layer.VENDOR: "The vendor itself",
    Layer.STORED: "What Letta holds",
    Layer.USE: "Letta's use of it",
    Layer.RECEIPT: "Receipt",
    Layer.EXPOSURE: "Exposure",
}


class Severity(StrEnum):
    """How much it matters."""

    #: Agents fail, or will at the next start.
    ERROR = "error"
    #: It works, but something is not as it should be, or will bite later.
    WARNING = "warning"
    #: Worth knowing; no finding, and it does not count for the exit code.
    NOTE = "note"


class Fix(StrEnum):
    """What `--fix` can do about a finding."""

    #: Make a file its owner's alone.
    CHMOD = "chmod"
    #: Bring a provider in line, as `isabella providers sync --only NAME` does.
    SYNC = "sync"
    #: Bind agents to a provider explicitly (fact M6).
    REBIND = "rebind"


@dataclass(frozen=True)
class Remedy:
    """What to do about it.

    Attributes:
        text: one or two sentences for people; where there is a command, it stands in them.
        setting: a variable to set in `.env` and its new value, where that is the first step; the value is None where
            only the reader knows it (a key), and empty where the line has to go.
        command: a literal command, where one does it; after the setting, where there is one.
        treatment: what `--fix` does about it; None where only a person can.
        path: the file that `--fix` would treat.
    """

    text: str
    command: str | None = None
    setting: tuple[str, str | None] | None = None
    treatment: Fix | None = None
    path: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """The form that `--json` shows."""
        return {
            "text": self.text,
            "command": self.command,
            "setting": None if self.setting is None else dict(zip(("variable", "value"), self.setting, strict=True)),
            "fix": None if self.treatment is None else self.treatment.value,
        }


@dataclass(frozen=True)
class Finding:
    """One fault, or what follows from one.

    Attributes:
        code: a stable name for programs.
        layer: where it lies.
        severity: how much it matters.
        summary: one short sentence for the verdict, without its subject.
        cause: why it is so.
        remedy: what to do about it.
        provider: the provider it is about; None where it is about all of them or none.
        agents: the names of the agents it is about.
        agent_ids: their ids, for `--fix`.
        evidence: what was seen, a line each.
        facts: the numbers of the facts about Letta that it rests on.
        explained_by: codes of findings that explain this one, when they are there for the same provider.
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
    def subject(self) -> str | None:
        """What it is about, for people."""
        if self.agents and self.provider is None:
            return name_some(self.agents)
        return self.provider

    @property
    def sentence(self) -> str:
        """Subject and summary."""
        return self.summary if self.subject is None else f"{self.subject}: {self.summary}"

    def as_json(self) -> dict[str, Any]:
        """The form that `--json` shows."""
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
    """Something that could not be found out, and what stands in the way.

    Attributes:
        layer: where it lies.
        what: the question that stays open.
        because: why it does.
        provider: the provider it is about; None where it is about all of them.
    """

    layer: Layer
    what: str
    because: str
    provider: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The form that `--json` shows."""
        return {
            "layer": self.layer.value,
            "provider": self.provider,
            "what": self.what,
            "because": self.because,
        }


@dataclass(frozen=True)
class PassedCheck:
    """Something that was looked at and is as it should be."""

    layer: Layer
    text: str


@dataclass(frozen=True)
class LayerResult:
    """What a layer, or all of them, came to."""

    findings: tuple[Finding, ...] = ()
    unknowns: tuple[Unknown, ...] = ()
    fine: tuple[PassedCheck, ...] = ()

    def __add__(self, other: LayerResult) -> LayerResult:
        return LayerResult(self.findings + other.findings, self.unknowns + other.unknowns, self.fine + other.fine)


def name_some(names: tuple[str, ...], most: int = 3) -> str:
    """Some of the names, and how many more there are."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def sync_command(provider: str, env_file: str | None) -> str:
    """The command that brings one provider in line."""
    return f"isabella providers sync --only {provider}{env_option(env_file)}"


def env_option(env_file: str | None) -> str:
    """The option by which a command reads the same `.env` as the doctor did."""
    return "" if env_file is None else f" --env-file {shlex.quote(env_file)}"
