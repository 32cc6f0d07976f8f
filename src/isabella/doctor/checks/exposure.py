"""The sixth layer: who else can read the keys. Pure."""

from __future__ import annotations

import shlex
from urllib.parse import urlsplit

from isabella.doctor.evidence import Evidence, LettaProcess
from isabella.doctor.findings import Finding, Fix, Layer, LayerResult, PassedCheck, Remedy, Severity, name_some
from isabella.letta import paths
from isabella.letta.encryption import looks_encrypted
from isabella.system.urls import is_loopback

_WORLD_READABLE = 0o004


def judge(evidence: Evidence) -> LayerResult:
    """Judge who else can read the keys."""
    return _env_file(evidence) + _open(evidence) + _reachable(evidence) + _base_keys(evidence)


def _env_file(evidence: Evidence) -> LayerResult:
    configured = evidence.configured
    path, mode = configured.env_file, configured.env_mode
    if path is None or mode is None or not configured.secrets_in_file:
        return LayerResult()
    if not mode & _WORLD_READABLE:
        return LayerResult(fine=(PassedCheck(Layer.EXPOSURE, f"{path} is not for everybody ({mode:o})"),))
    command = f"chmod 600 {shlex.quote(str(path))}"
    return LayerResult(
        (
            Finding(
                code="env-file-readable",
                layer=Layer.EXPOSURE,
                severity=Severity.WARNING,
                summary=f"every user of this machine can read {path}.",
                cause=f"Its permissions are {mode:o}, and secrets stand in it.",
                remedy=Remedy(f"Run `{command}`.", command=command, treatment=Fix.CHMOD, path=path),
                evidence=(f"{path}: mode {mode:o}",),
            ),
        )
    )


def _open(evidence: Evidence) -> LayerResult:
    seen = evidence.seen
    if not seen.open:
        fine = PassedCheck(Layer.EXPOSURE, "Letta shows nothing without its password")
        return LayerResult(fine=(fine,) if seen.open is False else ())
    shown = [row.stored for row in seen.rows or () if row.stored.key_text]
    plain = tuple(stored.name for stored in shown if not looks_encrypted(stored.key_text or ""))
    cause = "Whoever can reach Letta's port reads and changes everything in it, agents and providers included."
    if plain:
        cause += " Keys are among it, in plaintext, because Letta has no master key."
    return LayerResult(
        (
            Finding(
                code="keys-readable" if plain else "letta-open",
                layer=Layer.EXPOSURE,
                severity=Severity.ERROR if plain else Severity.WARNING,
                summary=f"Letta shows {len(plain)} keys to anyone, without a password."
                if plain
                else "Letta asks for no password.",
                cause=cause,
                remedy=Remedy(
                    "Start it with `letta server --secure` and LETTA_SERVER_PASSWORD, put the same into LETTA_API_KEY"
                    + ("; give it a LETTA_ENCRYPTION_KEY; and change the keys that stood open." if plain else ".")
                ),
                evidence=(
                    f"GET {paths.PROVIDERS} without a password: 200",
                    *((f"in plaintext: {name_some(plain)}",) if plain else ()),
                ),
                facts=("P2", "R6"),
            ),
        )
    )


def _reachable(evidence: Evidence) -> LayerResult:
    seen = evidence.seen
    findings = []
    if seen.process is not None:
        beyond = tuple(address for address in seen.process.listens if not is_loopback(address))
        if beyond:
            findings.append(
                Finding(
                    code="letta-beyond-loopback",
                    layer=Layer.EXPOSURE,
                    severity=Severity.WARNING,
                    summary=f"Letta listens beyond this machine ({name_some(beyond)}).",
                    cause="Its own protection is one password, over plain http.",
                    remedy=Remedy("Start it with --host 127.0.0.1, and put a proxy with TLS in front for others."),
                    evidence=(f"pid {seen.process.pid} listens on {name_some(beyond)}",),
                    facts=("P2",),
                )
            )
    if seen.base_url is not None and seen.rows is not None:
        parts = urlsplit(seen.base_url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            findings.append(
                Finding(
                    code="letta-over-plain-http",
                    layer=Layer.EXPOSURE,
                    severity=Severity.WARNING,
                    summary=f"the way to Letta ({seen.base_url}) is not encrypted.",
                    cause="Its password, every message, and the keys that are written travel as they are.",
                    remedy=Remedy("Reach it over https, a tunnel, or a private network that nobody else is on."),
                    evidence=(f"LETTA_BASE_URL is {seen.base_url}",),
                )
            )
    return LayerResult(tuple(findings))


def _base_keys(evidence: Evidence) -> LayerResult:
    seen = evidence.seen
    variables = seen.process.base_keys if isinstance(seen.process, LettaProcess) else ()
    # Letta keeps a base provider when its key is gone: where the environment can be seen, that alone counts.
    names = tuple(sorted(seen.base - {"letta"})) if seen.process is None else ()
    if not names and not variables:
        known = seen.process is not None
        fine = PassedCheck(Layer.EXPOSURE, "no vendor's key is in Letta's own environment")
        return LayerResult(fine=(fine,) if known else ())
    what = name_some(variables) if variables else f"the keys of {name_some(names)}"
    return LayerResult(
        (
            Finding(
                code="base-keys-in-letta",
                layer=Layer.EXPOSURE,
                severity=Severity.WARNING,
                summary=f"{what} in Letta's own environment.",
                cause="While a provider is missing, even for the moment between DELETE and POST, Letta sends its own "
                "OPENAI_API_KEY to whatever address an agent is bound to.",
                remedy=Remedy(
                    "Take vendors' keys out of Letta's environment, restart it, and register them as providers."
                ),
                evidence=(
                    *(
                        (f"in the environment of pid {seen.process.pid}: {name_some(variables)}",)
                        if variables and seen.process
                        else ()
                    ),
                    *((f"base providers: {name_some(names)}",) if names else ()),
                ),
                facts=("P7", "P8", "P10"),
            ),
        )
    )
