"""The examination: evidence from all layers, gathered side by side, then judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from isabella.config.settings import Settings
from isabella.doctor.checks.agent_bindings import passing_binding
from isabella.doctor.collect import vendors as asking
from isabella.doctor.collect.configuration import read_configuration, with_settings
from isabella.doctor.collect.letta import LettaCollector
from isabella.doctor.diagnosis import Diagnosis, diagnose
from isabella.doctor.evidence import AgentEvidence, ConfigurationEvidence, Evidence, LettaEvidence, VendorEvidence
from isabella.embedded.connection import connect
from isabella.errors import AgentUnknown, ConfigurationError, IsabellaError, LettaUnreachable
from isabella.letta.connection import Connection
from isabella.system.tasks import gather
from isabella.system.urls import same_address

if TYPE_CHECKING:
    from isabella.turns.probe import ProbeResult

#: Seconds for finding out which Letta is meant, and for the receipts.
_TO_CONNECT, _FOR_RECEIPTS = 4.0, 60.0


@dataclass(frozen=True)
class DoctorOptions:
    """What is to be looked at.

    Attributes:
        providers: names; all where empty.
        agent: name or id of one agent; all where None.
        probe: have an agent on each provider say one line through Letta, too.
    """

    providers: tuple[str, ...] = ()
    agent: str | None = None
    probe: bool = False


@dataclass(frozen=True)
class DoctorRun:
    """What was looked at, what was seen, and what it means.

    Attributes:
        verdict: what it means.
        evidence: what was seen.
        settings: the settings, as far as they can be used.
        connection: the Letta; None where none could be named.
    """

    verdict: Diagnosis
    evidence: Evidence
    settings: Settings
    connection: Connection | None


async def run_doctor(
    env_file: Path | None = None,
    *,
    settings: Settings | None = None,
    connection: Connection | None = None,
    options: DoctorOptions | None = None,
    environment: Mapping[str, str] | None = None,
) -> DoctorRun:
    """Look at everything, and say what is wrong. Changes nothing.

    Args:
        env_file: another file in place of `.env`.
        settings: in place of reading any.
        connection: another Letta than the one that the settings name.
        options: what is to be looked at; by default everything but receipts.
        environment: in place of the process environment.

    Raises:
        ConfigurationError: `env_file` does not exist, or a name in the wishes is not known.
    """
    options = options or DoctorOptions()
    configured, settings = read_configuration(env_file, settings=settings, environment=environment)
    configured, settings = await _practising(configured, settings)
    configured = _selected(configured, options.providers)
    asked: dict[str, VendorEvidence] = {}
    seen, found = LettaEvidence(), connection

    async def ask() -> None:
        nonlocal asked
        asked = await asking.ask_vendors(configured.desired)

    async def look() -> None:
        nonlocal seen, found
        if configured.incomplete or any(problem.subject == "LETTA_BASE_URL" for problem in configured.problems):
            # Whichever Letta would be looked at now need not be the one that is meant.
            return
        try:
            found = connection or await _connected(settings)
        except IsabellaError as error:
            seen = LettaEvidence(embedded=settings.letta_base_url is None, error=error)
            return
        seen = await LettaCollector(found).look(configured.desired)

    await gather([ask, look])
    if found is not None and seen.rows is not None:
        looker, rows = LettaCollector(found), seen.rows
        asked = await asking.ask_with_stored_keys(configured.desired, asked, rows)
        seen = await looker.check(seen, asked)
        configured = replace(configured, master_key=found.master_key is not None)
    evidence = _narrowed(Evidence(configured, asked, seen), options)
    if options.probe and found is not None and seen.rows is not None:
        evidence = replace(evidence, receipts=await _receipts(evidence, found))
    return DoctorRun(diagnose(evidence), evidence, settings, found)


async def _practising(
    configured: ConfigurationEvidence, settings: Settings
) -> tuple[ConfigurationEvidence, Settings]:
    """Practice vendors in place of the real ones, where `isabella up` would take them as well."""
    if settings.sources.overlay:
        return replace(configured, practice=True), settings
    if configured.problems:
        return configured, settings
    from isabella.practice.overlay import as_served

    served = await anyio.to_thread.run_sync(as_served, settings)
    return (configured, settings) if served is settings else (with_settings(configured, served), served)


async def _connected(settings: Settings) -> Connection:
    """The Letta that is meant; finding the embedded one must not take for ever, whatever state it is in."""
    found: Connection | None = None
    with anyio.move_on_after(_TO_CONNECT):
        found = await connect(settings)
    if found is None:
        raise LettaUnreachable(
            f"The embedded Letta did not answer within {_TO_CONNECT:g} s.",
            remedy="See `isabella letta status` and `isabella letta logs`.",
            sent=True,
        )
    return found


def _selected(configured: ConfigurationEvidence, names: Sequence[str]) -> ConfigurationEvidence:
    if not names:
        return configured
    known = {one.name: one for one in configured.desired}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigurationError(
            f"No provider named {unknown[0]!r} is declared.", remedy=f"Declared are: {', '.join(known)}."
        )
    return replace(configured, desired=tuple(known[name] for name in dict.fromkeys(names)))


def _narrowed(evidence: Evidence, options: DoctorOptions) -> Evidence:
    """Only the agents, and with them the providers, that are asked about."""
    seen, configured = evidence.seen, evidence.configured
    if seen.agents is None:
        return evidence
    agents = seen.agents
    if options.providers:
        addresses = {one.base_url for one in configured.desired}
        agents = tuple(one for one in agents if _concerns(one, {*options.providers, *addresses}))
    if options.agent is not None:
        agents = _named(options.agent, agents)
        concerned = {one.llm.provider for one in agents} | {one.llm.endpoint for one in agents}
        desired = tuple(one for one in configured.desired if {one.name, one.base_url} & concerned)
        configured = replace(configured, desired=desired)
    return replace(evidence, seen=replace(seen, agents=agents), configured=configured)


def _concerns(agent: AgentEvidence, names: set[str]) -> bool:
    return agent.llm.provider in names or agent.llm.endpoint in names


def _named(name: str, agents: Sequence[AgentEvidence]) -> tuple[AgentEvidence, ...]:
    found = tuple(one for one in agents if name in (one.name, one.id))
    if not found:
        names = ", ".join(sorted({one.name for one in agents})[:10])
        raise AgentUnknown(
            f"There is no agent {name!r}.", remedy=f"There are: {names}." if names else "There are none."
        )
    return found


async def _receipts(evidence: Evidence, connection: Connection) -> Mapping[str, ProbeResult]:
    """One line through Letta for each provider that is there, at its address: its key belongs nowhere else (M6)."""
    from isabella.turns.probe import probe_bindings

    present = [
        one
        for one in evidence.configured.desired
        if one.key is not None
        and (row := evidence.seen.row(one.name)) is not None
        and same_address(row.stored.base_url, one.base_url)
    ]
    bindings = [passing_binding(one, evidence) for one in present]
    with anyio.move_on_after(_FOR_RECEIPTS):
        proceeds = await probe_bindings(connection, bindings)
        return {one.name: found for one, found in zip(present, proceeds, strict=True)}
    return {}
