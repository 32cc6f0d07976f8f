"""The public API: ensure, compare and verify that one Letta holds the configured keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from isabella.config.choices import Strategy
from isabella.config.settings import Settings, load_settings
from isabella.connect import connect
from isabella.letta.client import Connection, LettaClient
from isabella.letta.encryption import ProofMemo
from isabella.letta.llm_config import Binding
from isabella.letta.store import Store
from isabella.locks.postgres import AdvisoryLocks
from isabella.locks.provider_lock import ProviderLock
from isabella.locks.sync_lock import sync_lock
from isabella.providers.apply import Options
from isabella.providers.bound_agents import LettaBoundAgents
from isabella.providers.desired import Desired, desired_providers, select_providers
from isabella.providers.health import HealthFile, update_health, with_health
from isabella.providers.report import GatewayStatus, ProviderReport, Receipt, Report
from isabella.providers.sync import compare, sync_providers
from isabella.system.english import english
from isabella.system.tasks import gather
from isabella.system.urls import same_address
from isabella.vendors.client import VendorObservation, ask_vendor

if TYPE_CHECKING:
    from isabella.turns.probe import ProbeResult

_VENDOR_SECONDS = 10.0


async def ensure_providers(
    settings: Settings | None = None,
    *,
    connection: Connection | None = None,
    only: Sequence[str] = (),
    strategy: Strategy | None = None,
    probe: bool = True,
    count_models: bool = False,
    gate: ProviderLock | None = None,
) -> Report:
    """Make Letta hold exactly the configured keys, and prove it by reading them back.

    If everything is in sync already, this costs one listing, and no request to any vendor.

    Args:
        settings: the configuration; by default the environment and `.env`.
        connection: a Letta other than the one in the settings.
        only: names of providers; by default all that are declared.
        strategy: overrides the strategy in the settings.
        probe: ask the vendor whether it accepts a key that Letta does not hold yet.
        count_models: count the models that Letta has of each provider, which costs a request for each.
        gate: the lock that turns of this process pass; without it, only turns of other processes can be held.

    Raises:
        ConfigurationError: a setting is malformed, or no Letta is configured and no embedded one is running.
        LettaError: Letta cannot be reached or read; nothing was changed.
        LockTimeout: another process has held the lock for too long.
    """
    async with _open_session(
        settings, connection, only, strategy=strategy, probe=probe, count_models=count_models, gate=gate
    ) as session:
        return session.finish(await sync_providers(session.store, session.desired, session.options), synced=True)


async def compare_providers(
    settings: Settings | None = None,
    *,
    connection: Connection | None = None,
    only: Sequence[str] = (),
    strategy: Strategy | None = None,
    probe: bool = False,
    count_models: bool = False,
) -> Report:
    """Compare Letta with the configuration, and predict what a sync would do. Changes nothing.

    With `probe`, vendors are asked about new keys. Arguments and errors are those of `ensure_providers`.
    """
    async with _open_session(
        settings, connection, only, strategy=strategy, probe=probe, count_models=count_models
    ) as session:
        return session.finish(await compare(session.store, session.desired, session.options))


async def verify_providers(
    settings: Settings | None = None,
    *,
    connection: Connection | None = None,
    only: Sequence[str] = (),
    count_models: bool = False,
) -> Report:
    """Read every provider back as `compare_providers`, and get a completion through Letta on each: the receipt."""
    async with _open_session(settings, connection, only, count_models=count_models) as session:
        report = session.finish(await compare(session.store, session.desired, session.options))
        return await add_receipts(report, session.connection, session.desired)


async def add_receipts(report: Report, connection: Connection, desired: Sequence[Desired]) -> Report:
    """Return the report with the result of a completion through each provider.

    A provider with another base URL in Letta is not used: the stored key belongs there (fact M6).
    """
    from isabella.turns.probe import ProbeResult, probe_bindings

    present = [entry for entry in report.configured if same_address(entry.stored_base_url, entry.base_url)]
    by_name = {provider.name: provider for provider in desired}
    bindings = await gather([partial(_binding, by_name[entry.name], connection.timeout) for entry in present])
    results = await probe_bindings(connection, bindings)
    probed = dict(zip((entry.name for entry in present), results, strict=True))
    entries = []
    for entry in report.providers:
        if not entry.configured:
            entries.append(entry)
            continue
        why = english("Letta has another base URL for it") if entry.in_letta else english("it is not in Letta")
        result = probed.get(entry.name, ProbeResult(Receipt.FAILED, why))
        reason = (
            entry.reason
            if not result.said
            else english("%(reason)s; no receipt: %(said)s", reason=entry.reason, said=result.said)
        )
        status = _vendor_status(entry, result)
        entries.append(replace(entry, receipt=result.receipt, reason=reason, vendor_status=status))
    return replace(report, providers=entries)


def _vendor_status(entry: ProviderReport, result: ProbeResult) -> VendorObservation | None:
    """Return the vendor's state by a receipt. A stored key that works does not make up for a refused new one."""
    if result.vendor is None or entry.refused_by_vendor:
        return entry.vendor_status
    return VendorObservation(
        result.vendor, result.said or english("a completion through Letta was accepted"), datetime.now(UTC)
    )


async def _binding(desired: Desired, timeout: float) -> Binding:
    """Return a binding to a model that the vendor lists."""
    from isabella.agents.model_catalog import probe_binding

    answer = None
    if desired.key is not None:
        answer = await ask_vendor(desired.reached_at, desired.key, timeout=min(timeout, _VENDOR_SECONDS))
    return probe_binding(desired, answer)


@dataclass(frozen=True)
class _Session:
    """An open Letta, the desired providers, and their health before."""

    connection: Connection
    store: Store
    desired: tuple[Desired, ...]
    options: Options
    health_file: HealthFile
    notices: Sequence[str]
    gateway: GatewayStatus | None = None

    def finish(self, report: Report, *, synced: bool = False) -> Report:
        """Return the report with the health of each provider, and with notices about the configuration."""
        former, now = self.health_file.read(), datetime.now(UTC)
        health = update_health(former, report, now, whole=self.options.foreign, read_only=not synced)
        # Not saved after a comparison: that would hide when a drift really began.
        if synced and health != former:
            self.health_file.write(health)
        # A comparison that finds a change does not know when it happened.
        report = with_health(report, health, unless=None if synced else now)
        return replace(report, notices=(*self.notices, *report.notices), gateway=self.gateway)


@asynccontextmanager
async def _open_session(
    settings: Settings | None,
    connection: Connection | None,
    only: Sequence[str],
    *,
    strategy: Strategy | None = None,
    probe: bool = False,
    count_models: bool = False,
    gate: ProviderLock | None = None,
) -> AsyncIterator[_Session]:
    """Read the configuration and open the Letta. Arguments and errors are those of `ensure_providers`."""
    settings = settings or load_settings()
    # The configuration first: if it is wrong, this may well be the cause of an error of Letta.
    desired = select_providers(desired_providers(settings), tuple(only))
    notices = settings.contradictions(tuple(provider.vendor for provider in desired))
    letta = connection or await connect(settings)
    if gate is None:
        url = letta.database_url
        advisory = None if url is None else AdvisoryLocks(url, several=settings.several_backends)
        gate = ProviderLock(advisory, patience=settings.gate_timeout)
    async with LettaClient.open(letta) as client:
        options = Options(
            strategy=strategy or settings.strategy,
            master_key=letta.master_key,
            ask=partial(ask_vendor, timeout=min(letta.timeout, _VENDOR_SECONDS)) if probe else None,
            memo=None if letta.master_key is None else ProofMemo.of(letta.home, letta.base_url, letta.master_key),
            lock=partial(sync_lock, letta.base_url, home=letta.home, database_url=letta.database_url),
            patience=letta.timeout,
            foreign=not only,
            count_models=count_models,
            closed=gate.closed,
            held_everywhere=gate.advisory is not None,
            bound_agents=LettaBoundAgents(client),
        )
        health_file, gateway = HealthFile(letta.home, letta.base_url), await _gateway(settings)
        yield _Session(letta, client.providers, desired, options, health_file, notices, gateway)


async def _gateway(settings: Settings) -> GatewayStatus | None:
    if not settings.uses_gateway:
        return None
    # Imported late: without a gateway, nothing of it is needed.
    from isabella.gateway.client import gateway_status

    return await gateway_status(settings)
