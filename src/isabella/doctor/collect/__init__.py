"""The collection of evidence: configuration, vendors, Letta and gateway at once, each with its own time limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from isabella.agents.model_catalog import probe_binding
from isabella.config.settings import Settings
from isabella.connect import connect
from isabella.doctor.collect import configuration as collect_configuration
from isabella.doctor.collect.letta import LettaCollector
from isabella.doctor.evidence import (
    AgentEvidence,
    ConfigurationEvidence,
    Evidence,
    GatewayEvidence,
    LettaEvidence,
    VendorEvidence,
)
from isabella.embedded.instance import InstancePaths
from isabella.errors import AgentUnknown, GatewayError, IsabellaError, LettaUnreachable
from isabella.letta.client import Connection
from isabella.letta.llm_config import Binding
from isabella.providers.desired import Desired, select_providers
from isabella.providers.report import GatewayState
from isabella.system.english import english
from isabella.system.files import read
from isabella.system.tasks import gather
from isabella.system.urls import same_address

if TYPE_CHECKING:
    from isabella.turns.probe import ProbeResult

#: Time limits in seconds: for finding the embedded Letta, and for all probes together.
_CONNECT_TIMEOUT, _PROBES_TIMEOUT = 4.0, 60.0


@dataclass(frozen=True)
class DoctorOptions:
    """The scope of an examination."""

    providers: tuple[str, ...] = ()  # names of providers; all if empty
    agent: str | None = None  # name or id of one agent; all if None
    probe: bool = False  # whether to run a completion through Letta for each provider


async def collect(
    options: DoctorOptions,
    env_file: Path | None,
    settings: Settings | None,
    connection: Connection | None,
) -> tuple[Evidence, Settings, Connection | None]:
    """Collect the evidence, with the arguments of `run_doctor`. Changes nothing but the temporary agents of probes.

    Return it with the settings as far as they can be used, and the Letta; None if its address is not known.
    """
    read = collect_configuration.read_configuration(env_file, settings=settings)
    configuration, usable = await anyio.to_thread.run_sync(collect_configuration.use_practice_vendors, *read)
    configuration = replace(configuration, desired=select_providers(configuration.desired, options.providers))
    vendors: dict[str, VendorEvidence] = {}
    letta = LettaEvidence()

    async def ask_vendors() -> None:
        nonlocal vendors
        vendors = await collect_configuration.ask_vendors(configuration.desired)

    async def ask_letta() -> None:
        nonlocal letta, connection
        if _letta_is_ambiguous(configuration):
            return
        try:
            connection = connection or await _connect(usable)
        except IsabellaError as error:
            letta = LettaEvidence(embedded=usable.letta_base_url is None, error=error)
            return
        letta = await LettaCollector(connection).collect(configuration.desired)
        letta = replace(letta, tool_sandbox=_tool_sandbox(connection))

    gateway: GatewayEvidence | None = None

    async def ask_gateway() -> None:
        nonlocal gateway
        gateway = await collect_gateway(usable)

    await gather([ask_vendors, ask_letta, ask_gateway])
    if connection is not None and letta.rows is not None:
        vendors = await collect_configuration.ask_with_stored_keys(configuration.desired, vendors, letta.rows)
        letta = await LettaCollector(connection).check_keys(letta, vendors)
        configuration = replace(configuration, has_master_key=connection.master_key is not None)
    evidence = _narrow(Evidence(configuration, vendors, letta, gateway=gateway), options)
    if options.probe and connection is not None and letta.rows is not None:
        evidence = replace(evidence, probes=await _probe(evidence, connection))
    return evidence, usable, connection


async def collect_gateway(settings: Settings) -> GatewayEvidence | None:
    """Return the state of the gateway, and its providers; None if none is configured. Never raises."""
    if not settings.uses_gateway:
        return None
    # Imported late: without a gateway, nothing of it is needed.
    from isabella.gateway import process
    from isabella.gateway.client import gateway_status, read_traffic

    status = await gateway_status(settings)
    if status is None:
        return None
    evidence = GatewayEvidence(status, here=process.starts_here(settings))
    running = process.daemon(settings.home).recorded()
    if status.state is not GatewayState.RUNS or not evidence.here or running is None:
        return evidence
    try:
        traffic = await anyio.to_thread.run_sync(read_traffic, settings.home, running)
    except GatewayError as error:
        return GatewayEvidence(status, unread=error.what)
    return GatewayEvidence(status, providers=traffic.providers)


def _tool_sandbox(connection: Connection) -> str | None:
    if not connection.embedded:
        return None
    try:
        return read(InstancePaths(connection.home.absolute()).tool_sandbox_file, largest=1024).text.strip() or None
    except IsabellaError:
        return None


def _letta_is_ambiguous(configuration: ConfigurationEvidence) -> bool:
    """Whether the configured address of Letta cannot be read, so that any other one may be the wrong Letta."""
    malformed = any(problem.subject == "LETTA_BASE_URL" for problem in configuration.problems)
    return malformed or configuration.unreadable_file is not None


async def _connect(settings: Settings) -> Connection:
    """Return the Letta to examine. The embedded one may hang in any state, hence the time limit."""
    with anyio.move_on_after(_CONNECT_TIMEOUT):
        return await connect(settings)
    raise LettaUnreachable(
        english("The embedded Letta did not answer within %(seconds)s s.", seconds=format(_CONNECT_TIMEOUT, "g")),
        remedy=english("See `isabella letta status` and `isabella letta logs`."),
        sent=True,
    )


def _narrow(evidence: Evidence, options: DoctorOptions) -> Evidence:
    """Return the evidence of the requested agents and their providers only."""
    letta, configuration = evidence.letta, evidence.configuration
    if letta.agents is None:
        return evidence
    agents = letta.agents
    if options.providers:
        wanted = {text for desired in configuration.desired for text in (desired.name, desired.base_url)}
        agents = tuple(one for one in agents if {one.llm.provider, one.llm.endpoint} & wanted)
    if options.agent is not None:
        agents = _agents_named(options.agent, agents)
        used = {one.llm.provider for one in agents} | {one.llm.endpoint for one in agents}
        desired = tuple(one for one in configuration.desired if {one.name, one.base_url} & used)
        configuration = replace(configuration, desired=desired)
    return replace(evidence, letta=replace(letta, agents=agents), configuration=configuration)


def _agents_named(name: str, agents: Sequence[AgentEvidence]) -> tuple[AgentEvidence, ...]:
    matching = tuple(agent for agent in agents if name in (agent.name, agent.id))
    if not matching:
        names = ", ".join(sorted({agent.name for agent in agents})[:10])
        remedy = f"Its agents: {names}." if names else "It has no agents."
        raise AgentUnknown(f"Letta has no agent {name!r}.", remedy=remedy)
    return matching


async def _probe(evidence: Evidence, connection: Connection) -> Mapping[str, ProbeResult]:
    """Run a completion through Letta for each provider that is at its configured base URL (fact M6)."""
    from isabella.turns.probe import probe_bindings

    present = [
        desired
        for desired in evidence.configuration.desired
        if desired.key is not None
        and (row := evidence.letta.row(desired.name)) is not None
        and same_address(row.stored.base_url, desired.base_url)
    ]
    bindings = [_binding(desired, evidence) for desired in present]
    with anyio.move_on_after(_PROBES_TIMEOUT):
        results = await probe_bindings(connection, bindings)
        return {desired.name: result for desired, result in zip(present, results, strict=True)}
    return {}


def _binding(desired: Desired, evidence: Evidence) -> Binding:
    """Return the binding of a temporary agent to a provider, with a model that its vendor is known to have."""
    asked = evidence.vendors.get(desired.name)
    return probe_binding(desired, None if asked is None else asked.answer, client=evidence.letta.client)
