"""The third layer: what Letta holds, compared with the configuration. Pure."""

from __future__ import annotations

from isabella.config.strategy import Strategy
from isabella.doctor.checks.connection import unreachable_findings
from isabella.doctor.checks.master_key import judge_master_key
from isabella.doctor.evidence import AgentEvidence, Evidence, LettaEvidence, ProviderEvidence
from isabella.doctor.findings import (
    Finding,
    Fix,
    Layer,
    LayerResult,
    PassedCheck,
    Remedy,
    Severity,
    Unknown,
    env_option,
    name_some,
    sync_command,
)
from isabella.letta import paths, releases
from isabella.letta.encryption import KeyMatch, KeyReading
from isabella.letta.releases import GENERIC, Capabilities
from isabella.providers.desired import Desired
from isabella.providers.plan import Action, plan
from isabella.system.redaction import mask
from isabella.system.urls import is_placeholder_url

#: A base provider of this name is made by every release.
_ALWAYS_BASE = frozenset({"letta"})
#: Where the base URL itself is wrong, Letta's having another one says nothing.
_ADDRESS_IN_DOUBT = frozenset(
    {"base-url-wrong", "vendor-dns", "vendor-tls", "vendor-unreachable", "base-url-malformed"}
)
_KEY_IN_DOUBT = frozenset({"key-of-another-vendor", "key-refused", "key-contradiction"})


def judge(evidence: Evidence) -> LayerResult:
    """Judge what Letta holds."""
    seen = evidence.seen
    if seen.rows is None or seen.abilities is None:
        return unreachable_findings(evidence)
    release = seen.abilities.release
    total = LayerResult(fine=(PassedCheck(Layer.STORED, f"Letta {release} answers at {seen.base_url}"),))
    total += _release(seen.abilities)
    total += judge_master_key(evidence)
    for desired in evidence.configured.desired:
        if desired.wanted and desired.obstacle is None:
            total += _one(desired, evidence, seen.abilities)
        elif desired.obstacle is not None and seen.row(desired.name) is not None:
            what, because = "whether Letta holds the right key", "no usable key is configured to compare it with"
            total += LayerResult(unknowns=(Unknown(Layer.STORED, what, because, desired.name),))
    return total + _duplicates(evidence)


def _release(abilities: Capabilities) -> LayerResult:
    release = abilities.release
    if not abilities.known:
        return LayerResult(
            (
                Finding(
                    code="release-not-measured",
                    layer=Layer.STORED,
                    severity=Severity.WARNING,
                    summary=f"Letta {release} is not a release that was measured.",
                    cause="What is said here about Letta was measured on 0.12 to 0.16.8, its last release.",
                    remedy=Remedy("Pin letta==0.16.8, or `isabella letta up`; later versions are another program."),
                    evidence=(f"the health check says {release}",),
                    facts=("R1",),
                ),
            )
        )
    if abilities.recreates:
        return LayerResult()
    return LayerResult(
        (
            Finding(
                code="release-cannot-recreate",
                layer=Layer.STORED,
                severity=Severity.NOTE,
                summary=f"Letta {release} can never bring back a provider that was deleted.",
                cause="Before 0.16.2 a deleted provider blocks its name for good, and its key is gone.",
                remedy=Remedy("Never DELETE a provider there; upgrade to 0.16.2 or later."),
                facts=("O1",),
            ),
        )
    )


def _one(desired: Desired, evidence: Evidence, abilities: Capabilities) -> LayerResult:
    if not releases.supports_type(abilities.release, desired.type):
        return LayerResult((_type_unknown(desired, abilities),))
    row = evidence.seen.row(desired.name)
    if row is None:
        return LayerResult((_absent(desired, evidence, abilities),))
    return _present(desired, row, evidence, abilities)


def _type_unknown(desired: Desired, abilities: Capabilities) -> Finding:
    variable = desired.vendor.type_env
    place = variable or "type in isabella.toml"
    return Finding(
        code="provider-type-unknown",
        layer=Layer.STORED,
        severity=Severity.ERROR,
        summary=f"Letta {abilities.release} has no provider type {desired.type!r}.",
        cause=f"{place} asks for it, and Letta refuses to register it (422).",
        remedy=Remedy(
            f"Correct {place}: {', '.join(releases.supported_types(abilities.release))}; "
            f"without it {desired.vendor.title} is registered as {desired.vendor.type}.",
            setting=(variable, "") if variable else None,
        ),
        provider=desired.name,
        facts=("P10",),
    )


def _absent(desired: Desired, evidence: Evidence, abilities: Capabilities) -> Finding:
    seen = evidence.seen
    bound = [agent for agent in seen.agents or () if agent.llm.provider == desired.name]
    lines = [f"{desired.name} is not among the {len(seen.rows or ())} providers that Letta lists"]
    if bound:
        lines.append(f"bound to it: {name_some(tuple(agent.name for agent in bound))}; {_gap(bound, seen)}")
    facts = ["P7"] if bound else []
    if desired.name in seen.base | _ALWAYS_BASE:
        return Finding(
            code="name-taken-by-base",
            layer=Layer.STORED,
            severity=Severity.ERROR,
            summary="Letta has a base provider of this name, so it cannot be registered.",
            cause="Letta makes base providers from its own environment, and refuses their names (400). A name stays "
            "taken when its key has gone from there.",
            remedy=Remedy("Give the provider another name."),
            provider=desired.name,
            evidence=tuple(lines),
            facts=("P10", "P15", *facts),
        )
    deleted = seen.deleted is not None and desired.name in seen.deleted
    if deleted and not abilities.recreates:
        remedy = Remedy("Upgrade Letta to 0.16.2 or later, then run `isabella providers sync`.")
        cause = f"Letta {abilities.release} keeps the names of what was deleted: no request brings it back."
    else:
        remedy = _sync(desired, evidence)
        cause = (
            "It was deleted: Letta keeps the row, without its key, and a POST restores it under the same id."
            if deleted
            else "It was never registered in this Letta, or in another one."
        )
    return Finding(
        code="provider-deleted" if deleted else "provider-absent",
        layer=Layer.STORED,
        severity=Severity.ERROR,
        summary="it was deleted in Letta." if deleted else "Letta does not have it.",
        cause=cause,
        remedy=remedy,
        provider=desired.name,
        evidence=tuple(lines),
        facts=(*(("P6", "O1") if deleted else ()), *facts),
    )


def _gap(bound: list[AgentEvidence], seen: LettaEvidence) -> str:
    keys = seen.process.base_keys if seen.process is not None else None
    if keys and "OPENAI_API_KEY" in keys:
        return "they send the OPENAI_API_KEY of Letta's own environment to that vendor"
    if all(agent.llm.endpoint_type == GENERIC for agent in bound):
        return "they answer 500"
    return "they send DUMMY_API_KEY, or the OPENAI_API_KEY of Letta's own environment where it has one"


def _present(desired: Desired, row: ProviderEvidence, evidence: Evidence, abilities: Capabilities) -> LayerResult:
    found: list[Finding | Unknown | None] = []
    stored, reading = row.stored, row.reading
    if stored.type != desired.type:
        found.append(_mistyped(desired, row, evidence, abilities))
    if reading is not None:
        found.append(_key(desired, row, reading, evidence, abilities))
    if stored.base_url != desired.base_url:
        found.append(_moved(desired, row, evidence))
    findings = tuple(one for one in found if isinstance(one, Finding))
    unknowns = tuple(one for one in found if isinstance(one, Unknown))
    if findings or unknowns:
        return LayerResult(findings, unknowns)
    sealed = "sealed" if reading is not None and reading.sealed else "in plaintext"
    checked = "; Letta opens it, and the vendor takes it" if row.accepted else ""
    return LayerResult(fine=(PassedCheck(Layer.STORED, f"{desired.name}: read back and equal, {sealed}{checked}"),))


def _key(
    desired: Desired, row: ProviderEvidence, reading: KeyReading, evidence: Evidence, abilities: Capabilities
) -> Finding | Unknown | None:
    sealing = evidence.configured.master_key
    match reading.match:
        case KeyMatch.DIFFERENT:
            return (
                _cut_off(desired, evidence)
                if is_placeholder_url(row.stored.base_url)
                else _stale(desired, reading, evidence)
            )
        case KeyMatch.NOTHING:
            return _nothing(desired, row, evidence)
        case KeyMatch.UNREADABLE:
            return _unreadable(desired, row, evidence, abilities)
        case KeyMatch.HIDDEN:
            because = "LETTA_ENCRYPTION_KEY is not known here" if reading.sealed else "this server does not show keys"
            return Unknown(Layer.STORED, "whether Letta holds the right key", because, desired.name)
        case KeyMatch.EQUAL if sealing and not reading.sealed:
            return Finding(
                code="key-plaintext",
                layer=Layer.STORED,
                severity=Severity.WARNING,
                summary="its key stands in Letta in plaintext, though a master key is set.",
                cause="It was stored before Letta had a master key; writing the same key again does not seal it.",
                remedy=_sync(desired, evidence),
                provider=desired.name,
                evidence=(f"Letta shows {desired.masked_key} as it is",),
                facts=("P5", "P2"),
                explained_by=frozenset({"letta-without-master-key"}),
            )
        case _:
            return None


def _cut_off(desired: Desired, evidence: Evidence) -> Finding:
    return Finding(
        code="key-stale",
        layer=Layer.STORED,
        severity=Severity.ERROR,
        summary="Letta holds no key for it: a move to another address was cut off.",
        cause="What takes a key's place while its provider is between two addresses stands there still.",
        remedy=_sync(desired, evidence),
        provider=desired.name,
        facts=("M6",),
    )


def _stale(desired: Desired, reading: KeyReading, evidence: Evidence) -> Finding:
    asked = evidence.asked.get(desired.name)
    held = "…" if reading.key is None else mask(reading.key.get_secret_value())
    lines = [f"Letta holds {held}; configured is {desired.masked_key} ({desired.key_source})"]
    in_doubt = False
    if asked is not None and asked.stored_answer is not None:
        in_doubt = asked.stored_answer.takes_key is not False
        lines.append(
            f"asked with the key that Letta holds, {desired.vendor.title} "
            f"{'takes it' if asked.stored_answer.takes_key else f'answers: {asked.stored_answer.said}'}"
        )
    return Finding(
        code="key-stale",
        layer=Layer.STORED,
        severity=Severity.ERROR,
        summary="Letta holds another key than the configured one.",
        cause="The key was changed here and never reached Letta: agents go on with the one that is stored there.",
        remedy=_sync(desired, evidence),
        provider=desired.name,
        evidence=tuple(lines),
        facts=("P2", "P3"),
        # Whether ours or Letta's is the right one cannot be said where ours is in doubt itself.
        explained_by=_KEY_IN_DOUBT if in_doubt else frozenset(),
    )


def _nothing(desired: Desired, row: ProviderEvidence, evidence: Evidence) -> Finding:
    erased = row.stored.key_text is None and row.stored.synced
    bare = desired.name in evidence.seen.bare
    if erased or bare:
        cause = (
            "It once had a key: its models were read with it. An upgrade from a release that kept keys in plaintext "
            "erases them, though nobody touched them."
        )
        if bare:
            cause = "Its key stands in the old plaintext column, which this release does not read, and will erase."
    else:
        cause = "An empty key was written: Letta takes it without a word."
    return Finding(
        code="key-erased" if erased or bare else "key-empty-in-letta",
        layer=Layer.STORED,
        severity=Severity.ERROR,
        summary="Letta has lost its key." if erased or bare else "an empty key is stored in Letta.",
        cause=cause,
        remedy=_sync(desired, evidence),
        provider=desired.name,
        evidence=("there is no key in Letta's record; agents send DUMMY_API_KEY",),
        facts=("O4",) if erased or bare else ("P10", "O9"),
    )


def _unreadable(
    desired: Desired, row: ProviderEvidence, evidence: Evidence, abilities: Capabilities
) -> Finding | Unknown:
    process = evidence.seen.process
    elsewhere = process is not None and process.same_master_key is False and process.has_master_key
    if row.opens or (elsewhere and row.opens is None):
        return Unknown(
            Layer.STORED, "which key Letta holds", "it is sealed under Letta's master key, not ours", desired.name
        )
    remedy = _sync(desired, evidence)
    if not abilities.recreates:
        text = "Give Letta its former LETTA_ENCRYPTION_KEY back, or upgrade it to 0.16.2 or later and sync."
        remedy = Remedy(text)
    seals = "Letta itself cannot open it either" if row.opens is False else "our master key does not open it"
    return Finding(
        code="key-sealed-otherwise",
        layer=Layer.STORED,
        severity=Severity.ERROR,
        summary="its key is sealed under another master key.",
        cause="LETTA_ENCRYPTION_KEY was changed, or the database came from elsewhere. Agents answer 500, an update "
        "answers 400, and only DELETE then POST heals it.",
        remedy=remedy,
        provider=desired.name,
        evidence=(f"the stored value is sealed, and {seals}",),
        facts=("P4", "O5"),
        explained_by=frozenset({"letta-without-master-key", "letta-contradiction"}),
    )


def _mistyped(desired: Desired, row: ProviderEvidence, evidence: Evidence, abilities: Capabilities) -> Finding:
    return Finding(
        code="provider-mistyped",
        layer=Layer.STORED,
        severity=Severity.ERROR,
        summary=f"in Letta it is of type {row.stored.type}, configured is {desired.type}.",
        cause="A type cannot be changed in place; handles and model lists follow from it.",
        remedy=_sync(desired, evidence, row, abilities),
        provider=desired.name,
        evidence=(f"type {row.stored.type} in Letta",),
        facts=("P3", "M5"),
    )


def _moved(desired: Desired, row: ProviderEvidence, evidence: Evidence) -> Finding:
    return Finding(
        code="base-url-moved",
        layer=Layer.STORED,
        severity=Severity.ERROR,
        summary="Letta has another base URL for it than the configured one.",
        cause=f"Letta reads its models at {row.stored.base_url}; agents keep a copy of the address of their own.",
        remedy=_sync(desired, evidence),
        provider=desired.name,
        evidence=(f"{row.stored.base_url} in Letta", f"{desired.base_url} configured"),
        facts=("M6",),
        explained_by=_ADDRESS_IN_DOUBT,
    )


def _sync(
    desired: Desired, evidence: Evidence, row: ProviderEvidence | None = None, abilities: Capabilities | None = None
) -> Remedy:
    """`providers sync` for this one; or what stands in the way of it, where the plan itself would refuse."""
    if row is not None and abilities is not None:
        sealing = evidence.configured.master_key
        change = plan(desired, row.stored, row.reading, strategy=Strategy.AUTO, abilities=abilities, sealing=sealing)
        if change.action is Action.REFUSE and change.remedy is not None:
            return Remedy(change.remedy)
    command = sync_command(desired.name, evidence.configured.named)
    if evidence.configured.practice:
        # Other commands do not put the practice vendors in the real ones' place.
        command = f"isabella doctor --fix{env_option(evidence.configured.named)}"
    return Remedy(f"Run `{command}`.", command=command, treatment=Fix.SYNC)


def _duplicates(evidence: Evidence) -> LayerResult:
    seen = evidence.seen
    declared = {desired.name for desired in evidence.configured.desired}
    findings = []
    for desired in evidence.configured.desired:
        if not desired.wanted:
            continue
        for row in seen.rows or ():
            stored = row.stored
            if stored.name in declared or stored.base_url != desired.base_url:
                continue
            findings.append(_duplicate(desired, row, evidence))
    return LayerResult(tuple(findings))


def _duplicate(desired: Desired, row: ProviderEvidence, evidence: Evidence) -> Finding:
    seen, stored = evidence.seen, row.stored
    bound = [agent for agent in seen.agents or () if agent.llm.provider == stored.name]
    url = f"{seen.base_url}{paths.provider(stored.id)}"
    command = f'curl -X DELETE -H "Authorization: Bearer $LETTA_API_KEY" {url}'
    lines = [f"{stored.name} ({stored.type}) has the base URL of {desired.name}: {stored.base_url}"]
    if bound:
        names = tuple(agent.name for agent in bound)
        lines.append(f"bound to it: {name_some(names)}")
        option = env_option(evidence.configured.named)
        remedy = Remedy(
            f"Bind its agents to {desired.name}: `isabella doctor --fix{option}`. Then remove it: `{command}`.",
            command=f"isabella doctor --fix{option}",
            treatment=Fix.REBIND,
        )
    else:
        remedy = Remedy(f"Remove it, if nobody needs it: `{command}`.", command=command)
    return Finding(
        code="provider-duplicate",
        layer=Layer.STORED,
        severity=Severity.WARNING,
        summary=f"{stored.name} is a second provider for the same vendor, which nobody declared.",
        cause="Its key is nobody's business here, so it grows stale unseen; of two providers of type openai with the "
        "same model, Letta lists only the first.",
        remedy=remedy,
        provider=desired.name,
        agents=tuple(agent.name for agent in bound),
        agent_ids=tuple(agent.id for agent in bound),
        evidence=tuple(lines),
        facts=("M4",),
    )
