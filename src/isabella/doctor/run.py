"""A run of the doctor, in four steps: collect evidence, check it, explain the findings, and fix them on request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from isabella.config.settings import Settings
from isabella.doctor.checks import check
from isabella.doctor.checks.agents import new_binding
from isabella.doctor.collect import DoctorOptions, collect
from isabella.doctor.evidence import AgentEvidence, Evidence
from isabella.doctor.findings import Diagnosis, Fix, explain
from isabella.errors import IsabellaError, LettaError
from isabella.letta.client import Connection
from isabella.system import audit

__all__ = ["DoctorOptions", "DoctorRun", "apply_fixes", "run_doctor"]


@dataclass(frozen=True)
class DoctorRun:
    """A finished run: its diagnosis, and what it rests on."""

    diagnosis: Diagnosis
    evidence: Evidence
    settings: Settings  # as far as they can be used
    connection: Connection | None  # None if the address of Letta is not known


async def run_doctor(
    env_file: Path | None = None,
    *,
    settings: Settings | None = None,
    connection: Connection | None = None,
    options: DoctorOptions | None = None,
) -> DoctorRun:
    """Collect evidence, check it, and explain the findings. Changes nothing; see `apply_fixes`.

    `env_file` replaces `.env`. With the `settings` of a running backend, neither it nor the environment is read.
    `connection` replaces the configured Letta. A file, provider or agent that is named and does not exist is a
    `ConfigurationError` or `AgentUnknown`.
    """
    options = options or DoctorOptions()
    evidence, settings, connection = await collect(options, env_file, settings, connection)
    return DoctorRun(explain(evidence, check(evidence)), evidence, settings, connection)


async def apply_fixes(doctor_run: DoctorRun) -> AsyncIterator[str]:
    """Fix the root causes that need no person, providers before agents, and yield one line for each fix."""
    causes = [cause.finding for cause in doctor_run.diagnosis.causes]
    findings = {fix: [finding for finding in causes if finding.remedy.fix is fix] for fix in Fix}
    for finding in findings[Fix.CHMOD]:
        if finding.remedy.path is not None:
            yield _make_private(finding.remedy.path)
    for provider in dict.fromkeys(finding.provider for finding in findings[Fix.SYNC]):
        if provider is not None:
            yield await _sync(provider, doctor_run)
    to_bind = {id for finding in findings[Fix.REBIND] for id in finding.agent_ids}
    for agent in doctor_run.evidence.letta.agents or ():
        if agent.id in to_bind:
            yield await _rebind(agent, doctor_run)


def _make_private(path: Path) -> str:
    try:
        path.chmod(0o600)
    except OSError as error:
        return f"{path}: cannot change its permissions: {error.strerror}"
    return f"{path}: only its owner can read it now (600)"


async def _sync(name: str, doctor_run: DoctorRun) -> str:
    from isabella.api import ensure_providers
    from isabella.providers.report import Proof

    if doctor_run.connection is None:
        raise AssertionError("a sync needs a Letta")
    try:
        report = await ensure_providers(doctor_run.settings, connection=doctor_run.connection, only=[name])
    except IsabellaError as error:
        return f"{name}: {error}"
    entry = next(entry for entry in report.providers if entry.name == name)
    if entry.proof is Proof.PROVEN:
        return f"{name}: {entry.action.value}, read back and proven"
    return f"{name}: {entry.reason}. {entry.remedy or ''}".rstrip()


async def _rebind(agent: AgentEvidence, doctor_run: DoctorRun) -> str:
    """Change the agent's binding; all its other settings stay."""
    from isabella.agents.registry import AgentRegistry
    from isabella.letta.client import LettaClient

    binding = new_binding(agent, doctor_run.evidence)
    if binding is None or doctor_run.connection is None:
        return f"{agent.name}: no provider is available for it"
    async with LettaClient.open(doctor_run.connection) as letta:
        try:
            # After a failed sync the provider still has its former base URL; its key must be sent nowhere else.
            with audit.change("agent.repaired", agent.name, to=binding.handle):
                bound = await AgentRegistry(letta).bind(agent.id, binding)
        except LettaError as error:
            return f"{agent.name}: cannot be bound: {error.what}"
    binding = bound.binding
    line = f"{agent.name}: bound to {binding.handle} at {binding.base_url}, window {binding.window}"
    return ". ".join([line, *bound.notes])
