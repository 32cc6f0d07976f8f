"""Checks of the providers in Letta and their stored keys, against the configuration."""

from __future__ import annotations

from collections.abc import Iterator

from isabella.config.choices import Strategy
from isabella.doctor.evidence import AgentEvidence, Evidence, LettaEvidence, ProviderEvidence
from isabella.doctor.findings import Finding, Outcome, PassedCheck, Unknown, finding, name_some
from isabella.doctor.layers import Layer
from isabella.letta import paths, releases
from isabella.letta.encryption import KeyMatch, KeyReading
from isabella.letta.releases import GENERIC, Capabilities
from isabella.letta.store import StoredProvider
from isabella.providers.desired import Desired
from isabella.providers.plan import Action, plan
from isabella.system.english import english
from isabella.system.redaction import mask
from isabella.system.urls import is_gateway_url, is_placeholder_url, same_address

_ALWAYS_BASE = frozenset({"letta"})  # every release makes a base provider of this name


def check_providers(evidence: Evidence) -> Iterator[Outcome]:
    """Check that Letta has each configured provider as configured, and no second one for the same vendor."""
    letta, abilities = evidence.letta, evidence.letta.abilities
    if letta.rows is None or abilities is None:
        return
    for desired in evidence.configuration.desired:
        row = letta.row(desired.name)
        if desired.obstacle is not None and row is not None:
            because = english("no usable key is configured to compare it with")
            yield Unknown(Layer.STORED, english("whether Letta holds the right key"), because, desired.name)
        elif desired.configured and desired.obstacle is None:
            if not releases.supports_type(abilities.release, desired.type):
                yield _type_unknown(desired, abilities)
            elif row is None:
                yield _absent(desired, evidence, abilities)
            else:
                yield from _present(desired, row, evidence, abilities)
    for desired in evidence.configuration.desired:
        for stored in (row.stored for row in letta.rows if evidence.configuration.provider(row.stored.name) is None):
            if desired.configured and stored.base_url in (desired.base_url, desired.upstream):
                yield _duplicate(desired, stored, evidence)


def _type_unknown(desired: Desired, abilities: Capabilities) -> Finding:
    variable = desired.vendor.type_env
    return finding(
        "provider-type-unknown",
        provider=desired.name,
        release=abilities.release,
        type=repr(desired.type),
        place=variable or english("type in isabella.toml"),
        types=", ".join(releases.supported_types(abilities.release)),
        vendor=desired.vendor.title,
        default_type=desired.vendor.type,
        type_variable=variable,
    )


def _absent(desired: Desired, evidence: Evidence, abilities: Capabilities) -> Finding:
    letta = evidence.letta
    bound = letta.bound_to(desired.name)
    lines = [f"{desired.name} is not among the {len(letta.rows or ())} providers that Letta lists"]
    if bound:
        names = tuple(agent.name for agent in bound)
        lines.append(f"agents bound to it: {name_some(names)}; {_without_provider(bound, letta)}")
    cases = ["in-use"] if bound else []
    if desired.name in letta.base | _ALWAYS_BASE:
        code = "name-taken-by-base"
    elif desired.name in (letta.deleted or ()):
        code = "provider-deleted"
        cases += [] if abilities.recreates else ["cannot-restore"]
    else:
        code = "provider-absent"
    return finding(
        code,
        *cases,
        provider=desired.name,
        evidence=tuple(lines),
        sync=evidence.configuration.sync_command(desired.name),
        release=abilities.release,
    )


def _without_provider(bound: tuple[AgentEvidence, ...], letta: LettaEvidence) -> str:
    """Describe the behaviour of agents while their provider is missing."""
    if letta.process is not None and "OPENAI_API_KEY" in letta.process.base_keys:
        return "they send the OPENAI_API_KEY of Letta's own environment to that vendor"
    if all(agent.llm.endpoint_type == GENERIC for agent in bound):
        return "they answer 500"
    return "they send DUMMY_API_KEY, or the OPENAI_API_KEY of Letta's own environment if it has one"


def _present(
    desired: Desired, row: ProviderEvidence, evidence: Evidence, abilities: Capabilities
) -> Iterator[Outcome]:
    stored, reading = row.stored, row.reading
    outcomes: list[Outcome] = []
    if stored.type != desired.type:
        outcomes.append(_mistyped(desired, row, evidence, abilities))
    if reading is not None:
        outcomes += _key(desired, row, reading, evidence, abilities)
    if stored.base_url != desired.base_url:
        outcomes.append(
            finding(
                "base-url-moved",
                *_gateway_case(stored.base_url, desired),
                provider=desired.name,
                evidence=(f"{stored.base_url} in Letta", f"{desired.base_url} configured"),
                sync=evidence.configuration.sync_command(desired.name),
                stored_base_url=stored.base_url,
            )
        )
    yield from outcomes
    if not outcomes:
        form = "encrypted" if reading is not None and reading.sealed else "in plaintext"
        accepted = "; Letta decrypts it, and the vendor accepts it" if row.accepted else ""
        yield PassedCheck(Layer.STORED, f"{desired.name}: the stored key is the configured one, {form}{accepted}")


def _gateway_case(base_url: str | None, desired: Desired) -> list[str]:
    """Return the case of a base URL that another state of `ISABELLA_GATEWAY` has left."""
    if desired.behind_gateway is not None and same_address(base_url, desired.upstream):
        return ["past-gateway"]
    if is_gateway_url(base_url):
        return ["gateway-off" if desired.behind_gateway is None else "other-gateway"]
    return []


def _mistyped(desired: Desired, row: ProviderEvidence, evidence: Evidence, abilities: Capabilities) -> Finding:
    sealing = evidence.configuration.has_master_key
    change = plan(desired, row.stored, row.reading, strategy=Strategy.AUTO, abilities=abilities, sealing=sealing)
    refused = change.action is Action.REFUSE and change.remedy is not None
    return finding(
        "provider-mistyped",
        *(["refused"] if refused else []),
        provider=desired.name,
        evidence=(f"type {row.stored.type} in Letta",),
        sync=evidence.configuration.sync_command(desired.name),
        remedy=change.remedy,
        type=desired.type,
        stored_type=row.stored.type,
    )


def _key(
    desired: Desired, row: ProviderEvidence, reading: KeyReading, evidence: Evidence, abilities: Capabilities
) -> Iterator[Outcome]:
    """Yield what is wrong with a stored key, or why it cannot be compared."""
    code, cases, lines = "", [], []
    match reading.match:
        case KeyMatch.HIDDEN:
            because = (
                english("LETTA_ENCRYPTION_KEY is not known here")
                if reading.sealed
                else english("this server does not show keys")
            )
            yield Unknown(Layer.STORED, english("whether Letta holds the right key"), because, desired.name)
        case KeyMatch.UNREADABLE if _encrypted_by_letta(row, evidence.letta):
            because = english("it is encrypted with Letta's master key, not with the configured one")
            yield Unknown(Layer.STORED, english("which key Letta holds"), because, desired.name)
        case KeyMatch.UNREADABLE:
            code, cases = "key-sealed-otherwise", [] if abilities.recreates else ["cannot-restore"]
            who = "Letta itself" if row.opens is False else "the configured master key"
            lines = [f"the stored value is encrypted, and {who} cannot decrypt it"]
        case KeyMatch.DIFFERENT if is_placeholder_url(row.stored.base_url):
            code, cases = "key-stale", ["move-interrupted"]
        case KeyMatch.DIFFERENT:
            code = "key-stale"
            cases, lines = _stale(desired, reading, evidence)
        case KeyMatch.NOTHING:
            in_old_column = desired.name in evidence.letta.bare
            erased = in_old_column or (row.stored.key_text is None and row.stored.synced)
            code = "key-erased" if erased else "key-empty-in-letta"
            cases = ["plaintext-column"] if in_old_column else []
            lines = ["Letta's record has no key; agents send DUMMY_API_KEY"]
        case KeyMatch.EQUAL if evidence.configuration.has_master_key and not reading.sealed:
            code, lines = "key-plaintext", [f"Letta shows {desired.masked_key} in plaintext"]
    if code:
        sync = evidence.configuration.sync_command(desired.name)
        yield finding(code, *cases, provider=desired.name, evidence=tuple(lines), sync=sync)


def _encrypted_by_letta(row: ProviderEvidence, letta: LettaEvidence) -> bool:
    """Whether the configured master key is the wrong one, rather than the one the key was encrypted with."""
    process = letta.process
    differs = process is not None and process.has_master_key and process.same_master_key is False
    return bool(row.opens) or (differs and row.opens is None)


def _stale(desired: Desired, reading: KeyReading, evidence: Evidence) -> tuple[list[str], list[str]]:
    """Return the cases and the evidence for a stored key that is not the configured one."""
    stored = "…" if reading.key is None else mask(reading.key.get_secret_value())
    lines = [f"Letta holds {stored}; the configured key is {desired.masked_key} ({desired.key_source})"]
    vendor = evidence.vendors.get(desired.name)
    answer = None if vendor is None else vendor.stored_answer
    if answer is None:
        return [], lines
    outcome = "accepts it" if answer.takes_key else f"answers: {answer.said}"
    lines.append(f"asked with the key that Letta holds, {desired.vendor.title} {outcome}")
    return ([] if answer.takes_key is False else ["stored-key-may-work"]), lines


def _duplicate(desired: Desired, stored: StoredProvider, evidence: Evidence) -> Finding:
    letta = evidence.letta
    bound = letta.bound_to(stored.name)
    names = tuple(agent.name for agent in bound)
    lines = [f"{stored.name} ({stored.type}) has a base URL of {desired.name}: {stored.base_url}"]
    url = f"{letta.base_url}{paths.provider(stored.id)}"
    if bound:
        lines.append(f"agents bound to it: {name_some(names)}")
    return finding(
        "provider-duplicate",
        *(["in-use"] if bound else []),
        provider=desired.name,
        agents=names,
        agent_ids=tuple(agent.id for agent in bound),
        evidence=tuple(lines),
        duplicate=stored.name,
        delete=f'curl -X DELETE -H "Authorization: Bearer $LETTA_API_KEY" {url}',
        env_option=evidence.configuration.env_option,
    )
