"""Checks of the Letta server: whether it answers, its release, its master key, and who else can read the keys."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from isabella.doctor.evidence import Evidence, LettaEvidence, ProviderEvidence
from isabella.doctor.findings import Finding, Outcome, PassedCheck, Unknown, finding, name_some
from isabella.doctor.layers import Layer
from isabella.embedded.confine import BROKEN, MISSING, WORKS
from isabella.errors import (
    ConfigurationError,
    EmbeddedError,
    IsabellaError,
    LettaBroken,
    LettaUnauthorized,
    LettaUnreachable,
    NotLetta,
)
from isabella.letta import paths
from isabella.letta.encryption import KeyMatch, looks_encrypted
from isabella.letta.releases import Capabilities
from isabella.system.english import english
from isabella.system.urls import is_loopback


def check_server(evidence: Evidence) -> Iterator[Outcome]:
    """Check that Letta answers, its release, and its master key."""
    letta = evidence.letta
    if letta.rows is None or letta.abilities is None:
        yield from _unreachable(letta)
        return
    yield PassedCheck(Layer.STORED, f"Letta {letta.abilities.release} answers at {letta.base_url}")
    yield from _release(letta.abilities)
    yield from _master_key(evidence)


def _unreachable(letta: LettaEvidence) -> Iterator[Outcome]:
    """Yield why Letta could not be examined, and what is unknown for that reason."""
    # Without an error the configuration has a finding: its file cannot be read, or its address is malformed.
    because = english("the configuration does not say which Letta to use")
    if letta.error is not None:
        reported = _connection(letta.error, letta)
        because = reported.reason
        yield reported
    yield Unknown(Layer.STORED, english("which providers and keys Letta holds"), because)
    yield Unknown(Layer.USE, english("which agents use the providers, and how"), because)
    yield Unknown(Layer.EXPOSURE, english("whether Letta shows its keys"), because)


def _connection(error: IsabellaError, letta: LettaEvidence) -> Finding:
    cases: list[str] = []
    match error:
        case LettaUnauthorized():
            code = "letta-password-wrong" if letta.password_sent else "letta-password-missing"
        case NotLetta():
            code = "not-letta"
        case LettaUnreachable():
            code = "letta-silent" if error.sent else "letta-unreachable"
        case LettaBroken():
            code = "letta-failing"
        case EmbeddedError() if "another master key" in error.what:
            code, cases = "master-key-not-lettas", ["embedded"]
        case ConfigurationError():
            code = "letta-not-running"
        case _:
            code, cases = "letta-unreachable", ["not-asked"]
    return finding(
        code,
        *cases,
        evidence=(error.what,),
        problem=error.what,
        remedy=error.remedy or english("See the log of Letta."),
        letta_url=letta.base_url or "localhost",
        letta_variable="" if letta.embedded else "LETTA_BASE_URL",
    )


def _release(abilities: Capabilities) -> Iterator[Outcome]:
    release = abilities.release
    if not abilities.known:
        evidence = (f"the health check reports {release}",)
        yield finding("release-not-measured", evidence=evidence, release=release)
    elif not abilities.recreates:
        yield finding("release-cannot-recreate", release=release)


def _master_key(evidence: Evidence) -> Iterator[Outcome]:
    """Check whether Letta encrypts and decrypts keys with the configured master key."""
    letta = evidence.letta
    if not evidence.configuration.has_master_key or letta.rows is None:
        return
    process = letta.process
    refused = tuple(row.stored.name for row in letta.rows if _refused_only_from_letta(row, evidence))
    unreadable = tuple(row.stored.name for row in letta.rows if row.opens and _match(row) is KeyMatch.UNREADABLE)
    if refused or (process is not None and not process.has_master_key):
        yield _without_master_key(letta, refused)
    elif unreadable or (process is not None and process.same_master_key is False):
        yield _another_master_key(letta, unreadable)
    elif process is not None and process.same_master_key:
        yield PassedCheck(Layer.STORED, "Letta runs with the configured master key")


def _match(row: ProviderEvidence) -> KeyMatch | None:
    return None if row.reading is None else row.reading.match


def _refused_only_from_letta(row: ProviderEvidence, evidence: Evidence) -> bool:
    """Whether the vendor accepts the key from Isabella, and refuses the same key from Letta."""
    sealed = row.reading is not None and row.reading.match is KeyMatch.EQUAL and row.reading.sealed
    return row.accepted is False and sealed and evidence.vendor_accepts(row.stored.name)


def _without_master_key(letta: LettaEvidence, refused: tuple[str, ...]) -> Finding:
    process = letta.process
    stored = [row.stored for row in letta.rows or () if row.stored.key_text]
    encrypted = tuple(row.name for row in stored if looks_encrypted(row.key_text or ""))
    plaintext = tuple(row.name for row in stored if row.name not in encrypted)
    lines = []
    if process is not None and not process.has_master_key:
        lines.append(f"LETTA_ENCRYPTION_KEY is not in the environment of Letta's process (pid {process.pid})")
    if refused:
        lines.append(f"the vendor refuses the key from Letta and accepts it from Isabella: {name_some(refused)}")
    if encrypted:
        lines.append(f"encrypted, and not usable for Letta: {name_some(encrypted)}")
    if plaintext:
        lines.append(f"in plaintext: {name_some(plaintext)}")
    cases = [*(["embedded"] if letta.embedded else []), *([] if encrypted else ["plaintext"])]
    return finding("letta-without-master-key", *cases, evidence=tuple(lines))


def _another_master_key(letta: LettaEvidence, unreadable: tuple[str, ...]) -> Finding:
    process = letta.process
    lines = []
    if process is not None and process.same_master_key is False:
        lines.append(f"Letta's process (pid {process.pid}) has a different LETTA_ENCRYPTION_KEY in its environment")
    if unreadable:
        lines.append(f"Letta decrypts keys that the configured master key does not: {name_some(unreadable)}")
    return finding("master-key-not-lettas", evidence=tuple(lines))


def check_exposure(evidence: Evidence) -> Iterator[Outcome]:
    """Check who else can reach Letta and read its keys."""
    letta = evidence.letta
    yield from _password(letta)
    yield from _network(letta)
    yield from _base_keys(letta)
    yield from _tools(letta)


def _password(letta: LettaEvidence) -> Iterator[Outcome]:
    if letta.open is False:
        yield PassedCheck(Layer.EXPOSURE, "Letta requires its password")
    if not letta.open:
        return
    request = f"GET {paths.PROVIDERS} without a password: 200"
    stored = [row.stored for row in letta.rows or () if row.stored.key_text]
    plaintext = tuple(row.name for row in stored if not looks_encrypted(row.key_text or ""))
    if plaintext:
        names = name_some(plaintext)
        yield finding("keys-readable", evidence=(request, f"in plaintext: {names}"), providers=names)
    else:
        yield finding("letta-open", evidence=(request,))


def _network(letta: LettaEvidence) -> Iterator[Outcome]:
    process = letta.process
    if process is not None:
        addresses = name_some(tuple(address for address in process.listens if not is_loopback(address)))
        if addresses:
            evidence = (f"pid {process.pid} listens on {addresses}",)
            yield finding("letta-beyond-loopback", evidence=evidence, addresses=addresses)
    if letta.base_url is not None and letta.rows is not None:
        url = urlsplit(letta.base_url)
        if url.scheme == "http" and not is_loopback(url.hostname or ""):
            evidence = (f"LETTA_BASE_URL is {letta.base_url}",)
            yield finding("letta-over-plain-http", evidence=evidence, letta_url=letta.base_url)


def _tools(letta: LettaEvidence) -> Iterator[Outcome]:
    if letta.tool_sandbox == WORKS:
        yield PassedCheck(Layer.EXPOSURE, "Tools that Letta runs see its own folder and the system's programs only")
    elif letta.tool_sandbox is not None:
        problem = english("bubblewrap is not installed")
        if letta.tool_sandbox != MISSING:
            problem = english("bubblewrap does not work: %(why)s", why=letta.tool_sandbox.removeprefix(BROKEN))
        yield finding("tools-without-sandbox", evidence=(letta.tool_sandbox,), problem=problem)


def _base_keys(letta: LettaEvidence) -> Iterator[Outcome]:
    process = letta.process
    if process is not None and process.base_keys:
        variables = name_some(process.base_keys)
        evidence = (f"in the environment of pid {process.pid}: {variables}",)
        yield finding("base-keys-in-letta", evidence=evidence, keys=variables)
    elif process is not None:
        yield PassedCheck(Layer.EXPOSURE, "Letta's own environment contains no vendor's key")
    # Letta keeps a base provider after its key is gone, so the environment is the better evidence.
    elif letta.base - {"letta"}:
        names = name_some(tuple(sorted(letta.base - {"letta"})))
        yield finding(
            "base-keys-in-letta",
            evidence=(f"base providers: {names}",),
            keys=english("the keys of %(names)s", names=names),
        )
