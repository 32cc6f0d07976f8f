"""Checks of the configuration: the settings as written, and the vendors' answers to the configured keys."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from isabella.config.settings import MAKE_MASTER_KEY
from isabella.doctor.evidence import (
    ConfigurationEvidence,
    ConfigurationProblem,
    ConflictingVariable,
    Evidence,
    LettaEvidence,
    VendorEvidence,
)
from isabella.doctor.findings import Finding, Outcome, PassedCheck, Unknown, finding
from isabella.doctor.layers import Layer
from isabella.letta.encryption import KeyMatch
from isabella.providers.desired import Desired, Remark, RemarkKind
from isabella.system.english import english
from isabella.vendors.client import KeyVerdict, Trouble

_WORLD_READABLE = 0o004
_VERDICTS = {KeyVerdict.OUT_OF_FUNDS: "vendor-out-of-funds", KeyVerdict.RATE_LIMITED: "vendor-rate-limited"}
_TROUBLES: Mapping[Trouble | None, str] = {
    Trouble.DNS: "vendor-dns",
    Trouble.TLS: "vendor-tls",
    Trouble.TIMEOUT: "vendor-timeout",
    Trouble.CONNECTION: "vendor-unreachable",
}


def check_configuration(evidence: Evidence) -> Iterator[Outcome]:
    """Check the configuration by itself, and against what Letta has."""
    configuration, letta = evidence.configuration, evidence.letta
    yield from map(_problem, configuration.problems)
    yield from map(_conflict, configuration.conflicts)
    yield from _env_file(configuration)
    if configuration.unreadable_file is not None:
        because = english("%(file)s could not be read", file=configuration.unreadable_file)
        yield Unknown(Layer.CONFIGURATION, english("which keys are configured"), because)
        return
    for desired in configuration.desired:
        yield from _key(desired, letta)
    yield from _master_key(configuration, letta)
    yield from _any_key(configuration, letta)


def _problem(problem: ConfigurationProblem) -> Finding:
    origin = "" if problem.origin is None else f" ({problem.origin})"
    has_default = problem.code == "setting-malformed" and problem.subject.startswith("ISABELLA_")
    return finding(
        problem.code,
        *(["has-default"] if has_default else []),
        evidence=(f"{problem.subject}{origin}: {problem.what}",),
        subject=problem.subject,
        problem=problem.what,
        origin=problem.origin,
        remedy=problem.remedy or english("Correct %(subject)s, or remove it.", subject=problem.subject),
    )


def _conflict(conflict: ConflictingVariable) -> Finding:
    if conflict.provider is not None:
        code = "key-contradiction"
    else:
        code = "letta-contradiction" if conflict.variable.startswith("LETTA_") else "setting-contradiction"
    return finding(
        code,
        provider=conflict.provider,
        evidence=(
            f"{conflict.variable} in the environment: takes precedence",
            f"{conflict.variable} in {conflict.file}, line {conflict.line}: a different value",
        ),
        variable=conflict.variable,
        file=conflict.file,
        line=conflict.line,
    )


def _env_file(configuration: ConfigurationEvidence) -> Iterator[Outcome]:
    path, mode = configuration.env_file, configuration.env_mode
    if path is None or mode is None or not configuration.secrets_in_file:
        return
    if not mode & _WORLD_READABLE:
        yield PassedCheck(Layer.EXPOSURE, f"other users cannot read {path} ({mode:o})")
        return
    yield finding(
        "env-file-readable",
        evidence=(f"{path}: mode {mode:o}",),
        path=path,
        quoted_path=shlex.quote(str(path)),
        mode=f"{mode:o}",
    )


def _key(desired: Desired, letta: LettaEvidence) -> Iterator[Outcome]:
    for remark in desired.remarks:
        yield _remark(desired, remark)
    if desired.obstacle is not None:
        yield _remark(desired, desired.obstacle)
    elif desired.key is None and letta.row(desired.name) is not None:
        evidence = (f"{desired.key_source} anywhere",)
        yield finding("key-unset", provider=desired.name, evidence=evidence, variable=desired.vendor.api_key_env)
    elif desired.key is not None and not desired.remarks:
        held = f"{desired.key_source} holds a key ({desired.masked_key})"
        yield PassedCheck(Layer.CONFIGURATION, f"{desired.name}: {'no key is needed' if desired.keyless else held}")


def _remark(desired: Desired, remark: Remark) -> Finding:
    """Return the finding for a remark: its kind is the code."""
    page = desired.vendor.keys_page
    return finding(
        remark.kind.value,
        provider=desired.name,
        evidence=(remark.text,),
        path=remark.path if remark.kind is RemarkKind.KEY_FILE_READABLE else None,
        quoted_path=shlex.quote(str(remark.path)),
        problem=remark.text,
        remedy=desired.remedy or english("Correct it."),
        variable=remark.variable,
        vendor=desired.vendor.title,
        keys_page=english("; create one at %(page)s", page=page) if page else "",
    )


def _master_key(configuration: ConfigurationEvidence, letta: LettaEvidence) -> Iterator[Outcome]:
    if configuration.has_master_key:
        own = "LETTA_ENCRYPTION_KEY is 64 hexadecimal characters"
        text = own if configuration.sets_master_key else "the embedded Letta has a master key"
        yield PassedCheck(Layer.CONFIGURATION, text)
        return
    if any(problem.code == "master-key-malformed" for problem in configuration.problems):
        return
    readings = [row.reading for row in letta.rows or () if row.reading is not None and row.stored.key_text]
    encrypted = sum(reading.match is KeyMatch.HIDDEN for reading in readings)
    if readings:
        plaintext = len(readings) - encrypted
        yield finding(
            "master-key-missing",
            *(["encrypted"] if encrypted else []),
            evidence=(f"configured providers in Letta: {encrypted} encrypted and {plaintext} plaintext keys",),
            encrypted=encrypted,
            keys=len(readings),
            make_master_key=MAKE_MASTER_KEY,
        )


def _any_key(configuration: ConfigurationEvidence, letta: LettaEvidence) -> Iterator[Outcome]:
    desired = configuration.desired
    if not desired or any(one.configured or letta.row(one.name) is not None for one in desired):
        return
    reachable = letta.rows is not None or bool(letta.agents)
    yield finding(
        "no-key-configured",
        *(["letta-reachable"] if reachable else []),
        variables=", ".join(one.vendor.api_key_env for one in desired),
    )


def check_vendors(evidence: Evidence) -> Iterator[Outcome]:
    """Check the vendors' answers to the configured keys."""
    for desired in evidence.configuration.desired:
        vendor = evidence.vendors.get(desired.name)
        if vendor is not None:
            yield from _vendor(desired, vendor, evidence)


def _vendor(desired: Desired, vendor: VendorEvidence, evidence: Evidence) -> Iterator[Outcome]:
    answer, title, base_url = vendor.answer, desired.vendor.title, desired.upstream
    if answer.verdict is KeyVerdict.ACCEPTED:
        yield PassedCheck(Layer.VENDOR, f"{desired.name}: {title} accepts the key ({answer.said})")
        return
    code, cases = _vendor_code(vendor)
    status = "" if answer.status is None else f" answered {answer.status}"
    observations = [f"GET {base_url}/models{status}: {answer.said}"]
    if code == "key-refused":
        observations.append(f"asked with {desired.masked_key} of {desired.key_source}")
    if vendor.working_url is not None:
        observations.append(f"GET {vendor.working_url}/models returns the model list of {title}")
    page, variable = desired.vendor.keys_page, desired.vendor.base_url_env
    values: dict[str, Any] = {
        "vendor": title,
        "status": answer.status,
        "answer": answer.said,
        "wait": ""
        if answer.retry_after is None
        else english(" It asks to wait %(seconds)s s.", seconds=format(answer.retry_after, "g")),
        "base_url": base_url,
        "base_url_variable": variable,
        "place": variable or english("base_url in isabella.toml"),
        "default_base_url": desired.vendor.base_url,
        "working_url": vendor.working_url,
        "variable": desired.key_source.split(" ", 1)[0],
        "key_source": desired.key_source,
        "keys_page": english(" (create it at %(page)s)", page=page) if page else "",
        "sync": evidence.configuration.sync_command(desired.name),
    }
    reported = finding(code, *cases, provider=desired.name, evidence=tuple(observations), **values)
    yield reported
    if answer.takes_key is None:
        what = english("whether %(vendor)s accepts the key", vendor=title)
        yield Unknown(Layer.VENDOR, what, reported.reason, desired.name)


def _vendor_code(vendor: VendorEvidence) -> tuple[str, list[str]]:
    """Return the code and the cases for an answer other than acceptance."""
    answer = vendor.answer
    if answer.verdict is KeyVerdict.REFUSED:
        stored_key_works = vendor.stored_answer is not None and bool(vendor.stored_answer.takes_key)
        return "key-refused", ["stored-key-works"] if stored_key_works else []
    if code := _VERDICTS.get(answer.verdict) or _TROUBLES.get(answer.trouble):
        return code, []
    if vendor.working_url is not None:
        return "base-url-wrong", ["another-works"]
    if answer.trouble is Trouble.HTML:
        return "vendor-html", []
    if answer.verdict is KeyVerdict.WRONG_ADDRESS:
        return ("vendor-not-a-model-list" if answer.status == 200 else "base-url-wrong"), []
    return "vendor-failing", []
