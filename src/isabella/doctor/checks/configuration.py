"""The first layer: what the configuration says, judged by itself. Pure."""

from __future__ import annotations

import shlex

from isabella.config.settings import MAKE_MASTER_KEY
from isabella.doctor.evidence import (
    ConfigurationEvidence,
    ConfigurationProblem,
    ConflictingVariable,
    Evidence,
    LettaEvidence,
)
from isabella.doctor.findings import Finding, Fix, Layer, LayerResult, PassedCheck, Remedy, Severity, Unknown
from isabella.letta.encryption import KeyMatch
from isabella.providers.desired import Desired, Remark, RemarkKind

_SUMMARIES = {
    RemarkKind.KEY_EMPTY: "its key is set, but empty.",
    RemarkKind.KEY_PLACEHOLDER: "a placeholder stands where its key should.",
    RemarkKind.KEY_MALFORMED: "its key has characters that no key has.",
    RemarkKind.KEY_FILE_UNREADABLE: "the file with its key cannot be read.",
    RemarkKind.BASE_URL_MALFORMED: "its base URL is no address.",
    RemarkKind.KEY_CLEANED: "its key stands there with something around it.",
    RemarkKind.KEY_SET_TWICE: "its key is set twice.",
    RemarkKind.KEY_FILE_READABLE: "every user of this machine can read its key file.",
    RemarkKind.KEY_OF_ANOTHER_VENDOR: "its key looks like another vendor's.",
}


def judge(evidence: Evidence) -> LayerResult:
    """Judge the configuration."""
    configured = evidence.configured
    total = LayerResult(tuple(_problem(problem) for problem in configured.problems))
    total += LayerResult(tuple(_contradiction(found) for found in configured.contradictions))
    if configured.incomplete is not None:
        because = f"{configured.incomplete} could not be read"
        return total + LayerResult(unknowns=(Unknown(Layer.CONFIGURATION, "which keys are configured", because),))
    for desired in configured.desired:
        total += _provider(desired, evidence.seen)
    return total + _master_key(configured, evidence.seen) + _no_key_at_all(evidence)


def _problem(problem: ConfigurationProblem) -> Finding:
    place = "" if problem.origin is None else f" ({problem.origin})"
    return Finding(
        code=problem.code,
        layer=Layer.CONFIGURATION,
        severity=Severity.ERROR,
        summary=f"{problem.subject} cannot be used.",
        cause=problem.what,
        remedy=Remedy(
            problem.remedy or f"Correct {problem.subject}{place}, or remove it.",
            # A setting of Isabella's has a default to fall back on; what is Letta's only the reader knows.
            setting=None
            if problem.origin is None
            else (problem.subject, "" if problem.subject.startswith("ISABELLA_") else None),
        ),
        evidence=(f"{problem.subject}{place}: {problem.what}",),
    )


def _contradiction(found: ConflictingVariable) -> Finding:
    return Finding(
        code=_contradiction_code(found),
        layer=Layer.CONFIGURATION,
        severity=Severity.ERROR,
        summary=f"{found.variable} is set twice, differently; the environment wins.",
        cause=f"{found.variable} of the environment hides the one in {found.file}, line {found.line}: "
        "a variable that an old shell still has is a classic cause of a 401.",
        remedy=Remedy(
            f"If {found.file} is right, run `unset {found.variable}` in the shell that starts Isabella; "
            f"otherwise put the environment's value into {found.file}.",
            command=f"unset {found.variable}",
        ),
        provider=found.provider,
        evidence=(
            f"{found.variable} in the environment: wins",
            f"{found.variable} in {found.file}, line {found.line}: another value",
        ),
    )


def _contradiction_code(found: ConflictingVariable) -> str:
    if found.provider is not None:
        return "key-contradiction"
    return "letta-contradiction" if found.variable.startswith("LETTA_") else "setting-contradiction"


def _provider(desired: Desired, seen: LettaEvidence) -> LayerResult:
    findings = [_remark(desired, remark) for remark in desired.remarks]
    if desired.obstacle is not None:
        findings.append(_obstacle(desired, desired.obstacle))
    elif desired.key is None and seen.row(desired.name) is not None:
        findings.append(_unset(desired))
    elif desired.key is not None and not findings:
        text = f"{desired.name}: {desired.key_source} holds a key ({desired.masked_key})"
        return LayerResult(fine=(PassedCheck(Layer.CONFIGURATION, text),))
    return LayerResult(tuple(findings))


def _obstacle(desired: Desired, obstacle: Remark) -> Finding:
    # A file that cannot be read is mended where it is, not in a variable.
    in_file = obstacle.kind is RemarkKind.KEY_FILE_UNREADABLE
    return Finding(
        code=obstacle.kind.value,
        layer=Layer.CONFIGURATION,
        severity=Severity.ERROR,
        summary=_SUMMARIES[obstacle.kind],
        cause=f"{obstacle.text}. So the provider is not registered, and what Letta has of it is left as it is.",
        remedy=Remedy(desired.remedy or "Correct it.", setting=None if in_file else (obstacle.variable, None)),
        provider=desired.name,
        evidence=(obstacle.text,),
    )


def _remark(desired: Desired, remark: Remark) -> Finding:
    match remark.kind:
        case RemarkKind.KEY_FILE_READABLE:
            command = f"chmod 600 {shlex.quote(str(remark.path))}"
            remedy = Remedy(f"Run `{command}`.", command=command, treatment=Fix.CHMOD, path=remark.path)
            cause = f"The permissions of {remark.path} let everybody read it."
        case RemarkKind.KEY_SET_TWICE:
            remedy = Remedy(f"Remove {remark.variable}, or the variable itself.", setting=(remark.variable, ""))
            cause = f"{remark.text}. A change of the file has no effect."
        case RemarkKind.KEY_OF_ANOTHER_VENDOR:
            page = desired.vendor.keys_page
            where = f"; its keys are made at {page}" if page else ""
            remedy = Remedy(
                f"Put a key of {desired.vendor.title} into {remark.variable}{where}.", setting=(remark.variable, None)
            )
            cause = remark.text
        case _:
            remedy = Remedy(
                f"Write {remark.variable} as the bare key: no quotes, no spaces, no Bearer.",
                setting=(remark.variable, None),
            )
            cause = f"{remark.text}. Isabella does so; another program that reads the same variable may not."
    return Finding(
        code=remark.kind.value,
        layer=Layer.CONFIGURATION,
        severity=Severity.WARNING,
        summary=_SUMMARIES[remark.kind],
        cause=cause,
        remedy=remedy,
        provider=desired.name,
        evidence=(remark.text,),
    )


def _unset(desired: Desired) -> Finding:
    variable = desired.vendor.api_key_env
    return Finding(
        code="key-unset",
        layer=Layer.CONFIGURATION,
        severity=Severity.WARNING,
        summary=f"Letta has it, but {variable} is not set.",
        cause="Without a configured key there is nothing to compare Letta's with, and nothing is brought in line.",
        remedy=Remedy(
            f"Put the key into {variable} in .env. If the provider is no longer wanted, remove it from Letta.",
            setting=(variable, None),
        ),
        provider=desired.name,
        evidence=(f"{desired.key_source} anywhere",),
    )


def _master_key(configured: ConfigurationEvidence, seen: LettaEvidence) -> LayerResult:
    malformed = any(problem.code == "master-key-malformed" for problem in configured.problems)
    if configured.master_key:
        text = "LETTA_ENCRYPTION_KEY is 64 hexadecimal characters" if configured.ours else "the master key is kept"
        return LayerResult(fine=(PassedCheck(Layer.CONFIGURATION, text),))
    if malformed or not seen.rows:
        return LayerResult()
    read = [row.reading for row in seen.rows if row.reading is not None and row.stored.key_text]
    hidden = [reading for reading in read if reading.match is KeyMatch.HIDDEN]
    if hidden:
        cause = (
            f"Letta seals its keys ({len(hidden)} of {len(read)} here), and without its master key nobody can tell "
            "what is in them."
        )
        text = "Put the LETTA_ENCRYPTION_KEY that Letta itself runs with into .env."
    elif read:
        cause = (
            "Letta runs without a master key, so it stores keys in plaintext: in its database, and in what it shows."
        )
        text = (
            f"Make one with {MAKE_MASTER_KEY}, start Letta with it as LETTA_ENCRYPTION_KEY, put the same into .env, "
            "and run `isabella providers sync`."
        )
    else:
        return LayerResult()
    return LayerResult(
        (
            Finding(
                code="master-key-missing",
                layer=Layer.CONFIGURATION,
                severity=Severity.WARNING,
                summary="LETTA_ENCRYPTION_KEY is not set.",
                cause=cause,
                remedy=Remedy(text, setting=("LETTA_ENCRYPTION_KEY", None)),
                evidence=(f"{len(hidden)} sealed and {len(read) - len(hidden)} plaintext keys among ours in Letta",),
                facts=("P2",),
            ),
        )
    )


def _no_key_at_all(evidence: Evidence) -> LayerResult:
    configured, seen = evidence.configured, evidence.seen
    declared = {desired.name for desired in configured.desired}
    present = [row for row in seen.rows or () if row.stored.name in declared]
    if not configured.desired or any(desired.wanted for desired in configured.desired) or present:
        return LayerResult()
    variables = [desired.vendor.api_key_env for desired in configured.desired]
    # Somebody who only wants a look at a Letta of his own need not have configured anything here.
    looks_on = seen.rows is not None or bool(seen.agents)
    return LayerResult(
        (
            Finding(
                code="no-key-configured",
                layer=Layer.CONFIGURATION,
                severity=Severity.NOTE if looks_on else Severity.WARNING,
                summary="No vendor key is configured.",
                cause=f"None of {', '.join(variables)} is set.",
                remedy=Remedy("Put a key into .env (see .env.example), or try `isabella up --practice`."),
            ),
        )
    )
