"""What `--fix` does: only what the findings have named, each in a way of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

from isabella.api import ensure_providers
from isabella.doctor.checks.agent_bindings import new_binding
from isabella.doctor.evidence import AgentEvidence
from isabella.doctor.findings import Finding, Fix
from isabella.doctor.run import DoctorRun
from isabella.errors import IsabellaError, LettaError
from isabella.letta.connection import Connection
from isabella.letta.llm_config import Binding
from isabella.providers.report import Proof


async def apply_fixes(doctor_run: DoctorRun) -> AsyncIterator[str]:
    """Treat the causes that were found, where that can be done without a person; a line for each.

    Providers come before agents: an agent is bound to a provider that is in order.
    """
    found = [cause.finding for cause in doctor_run.verdict.causes]
    treated: set[tuple[str, str | None]] = set()
    for treatment in (Fix.CHMOD, Fix.SYNC, Fix.REBIND):
        for finding in found:
            if finding.remedy.treatment is not treatment:
                continue
            match treatment:
                case Fix.CHMOD:
                    yield _make_private(finding)
                case Fix.SYNC if (finding.provider or "", None) not in treated:
                    treated.add((finding.provider or "", None))
                    yield await _sync(finding, doctor_run)
                case Fix.REBIND:
                    async for line in _rebind(finding, doctor_run, treated):
                        yield line


def _make_private(finding: Finding) -> str:
    path = finding.remedy.path
    if path is None:
        raise AssertionError("chmod needs a path")
    try:
        path.chmod(0o600)
    except OSError as error:
        return f"{path}: cannot be made private: {error.strerror}"
    return f"{path}: only its owner can read it now (600)"


async def _sync(finding: Finding, doctor_run: DoctorRun) -> str:
    name = finding.provider
    if name is None or doctor_run.connection is None:
        raise AssertionError("a sync needs a provider and a Letta")
    try:
        report = await ensure_providers(doctor_run.settings, connection=doctor_run.connection, only=[name])
    except IsabellaError as error:
        return f"{name}: {error}"
    entry = next(entry for entry in report.providers if entry.name == name)
    if entry.proof is Proof.PROVEN:
        return f"{name}: {entry.action.value}, read back and proven"
    return f"{name}: {entry.reason}. {entry.remedy or ''}".rstrip()


async def _rebind(
    finding: Finding, doctor_run: DoctorRun, treated: set[tuple[str, str | None]]
) -> AsyncIterator[str]:
    evidence, connection = doctor_run.evidence, doctor_run.connection
    if connection is None:
        return
    by_id = {agent.id: agent for agent in evidence.seen.agents or ()}
    for id in finding.agent_ids:
        agent = by_id.get(id)
        if agent is None or ("agent", id) in treated:
            continue
        treated.add(("agent", id))
        binding = new_binding(agent, evidence)
        if binding is None:
            yield f"{agent.name}: there is no provider to bind it to"
            continue
        yield await _bind(agent, binding, connection)


async def _bind(agent: AgentEvidence, binding: Binding, connection: Connection) -> str:
    """Change the agent's binding; every other setting of it stays."""
    from isabella.agents.registry import AgentRegistry
    from isabella.letta.client import LettaClient

    async with LettaClient.open(connection) as letta:
        registry = AgentRegistry(letta)
        try:
            # Where a sync has failed, the provider is still where it was: its key belongs there, and nowhere else.
            bound = await registry.bind(agent.id, binding)
        except LettaError as error:
            return f"{agent.name}: cannot be bound: {error.what}"
    binding = bound.binding
    line = f"{agent.name}: bound to {binding.handle} at {binding.base_url}, window {binding.window}"
    return ". ".join([line, *bound.notes])
