"""Part of the third layer: why Letta could not be looked at at all. Pure."""

from __future__ import annotations

from isabella.doctor.evidence import Evidence
from isabella.doctor.findings import Finding, Layer, LayerResult, Remedy, Severity, Unknown
from isabella.errors import (
    ConfigurationError,
    EmbeddedError,
    IsabellaError,
    LettaBroken,
    LettaUnauthorized,
    LettaUnreachable,
    NotLetta,
)


def unreachable_findings(evidence: Evidence) -> LayerResult:
    """What is known where Letta could not be looked at: why, and what stays open for that reason."""
    seen = evidence.seen
    error = seen.error
    if error is None:
        # The configuration's layer has said why: its file cannot be read, or its address is malformed.
        because = "the configuration does not say which Letta is meant"
        return LayerResult(unknowns=_unknowns(because))
    code, summary, setting = _meaning(error, seen.base_url, evidence)
    finding = Finding(
        code=code,
        layer=Layer.CONFIGURATION if code == "master-key-not-lettas" else Layer.STORED,
        severity=Severity.ERROR,
        summary=summary,
        cause=error.what,
        remedy=Remedy(error.remedy or "Look at Letta's log.", setting=setting, command=_command(code)),
        evidence=(error.what,),
        facts=("R6",) if "password" in code else (),
        explained_by=frozenset({"letta-contradiction"}),
    )
    return LayerResult((finding,), _unknowns(summary.rstrip(".")))


def _unknowns(because: str) -> tuple[Unknown, ...]:
    return (
        Unknown(Layer.STORED, "what Letta holds", because),
        Unknown(Layer.USE, "which agents use it, and how", because),
        Unknown(Layer.EXPOSURE, "whether Letta shows its keys", because),
    )


def _meaning(
    error: IsabellaError, base_url: str | None, evidence: Evidence
) -> tuple[str, str, tuple[str, str | None] | None]:
    """Code, summary, and the variable to correct."""
    address: tuple[str, str | None] | None = None if evidence.seen.embedded else ("LETTA_BASE_URL", None)
    match error:
        case LettaUnauthorized() if "another password" in error.what:
            return "letta-password-wrong", "Letta refuses the password in LETTA_API_KEY.", ("LETTA_API_KEY", None)
        case LettaUnauthorized():
            return "letta-password-missing", "Letta wants a password.", ("LETTA_API_KEY", None)
        case NotLetta():
            return "not-letta", f"what answers at {base_url} is not a Letta server.", address
        case LettaUnreachable() if error.sent:
            return "letta-silent", f"Letta at {base_url} does not answer in time.", None
        case LettaUnreachable():
            return "letta-unreachable", f"no Letta answers at {base_url}.", address
        case LettaBroken():
            return "letta-failing", f"Letta at {base_url} is failing.", None
        case EmbeddedError() if "another master key" in error.what:
            return (
                "master-key-not-lettas",
                "LETTA_ENCRYPTION_KEY is not the one that Letta runs with.",
                ("LETTA_ENCRYPTION_KEY", None),
            )
        case ConfigurationError():
            return "letta-not-running", "no Letta is named, and none runs here.", None
        case _:
            return "letta-unreachable", "Letta cannot be looked at.", None


def _command(code: str) -> str | None:
    return "isabella letta up" if code == "letta-not-running" else None
