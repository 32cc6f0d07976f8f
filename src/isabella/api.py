"""The public functions: have Letta hold the configured keys, compare them, and verify them through Letta."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from isabella.config.settings import Settings, load_settings
from isabella.config.strategy import Strategy
from isabella.connect import connect
from isabella.letta.connection import Connection
from isabella.letta.llm_config import Binding
from isabella.locks.provider_lock import ProviderLock
from isabella.providers.desired import Desired
from isabella.providers.report import ProviderReport, Receipt, Report
from isabella.providers.session import open_provider_session
from isabella.providers.sync import compare, sync_providers
from isabella.system.urls import same_address
from isabella.vendors.client import ask_vendor
from isabella.vendors.status import VendorObservation

if TYPE_CHECKING:
    from isabella.turns.probe import ProbeResult


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
    """Make Letta hold exactly the keys that the configuration has, and prove it by reading back.

    If Letta holds them already, this costs one list of its providers, and no request to any vendor.

    Args:
        settings: the settings; by default the environment and `.env`.
        connection: the connection to Letta; by default the one of the settings.
        only: names of providers; by default all configured ones.
        strategy: replaces the strategy of the settings.
        probe: whether a vendor is asked if it accepts a key that Letta does not hold yet.
        count_models: whether the report has the number of models, which costs a request for each provider.
        gate: the lock that turns of this process use; by default only turns of other processes are held, if Letta's
            database is known.

    Returns:
        What was found and done; `report.all_proven` is whether every provider is proven.

    Raises:
        ConfigurationError: a setting is malformed, or there is no Letta to connect to.
        LettaError: Letta cannot be reached or read; nothing was changed.
        LockTimeout: another process has held the lock for too long.
    """
    settings = settings or load_settings()
    async with open_provider_session(
        settings, _connect(settings, connection), only, strategy, probe, count_models, looks=False, gate=gate
    ) as run:
        report = run.finish(await sync_providers(run.store, run.desired, run.options))
        run.write_down()
        return report


async def compare_providers(
    settings: Settings | None = None,
    *,
    connection: Connection | None = None,
    only: Sequence[str] = (),
    strategy: Strategy | None = None,
    probe: bool = False,
    count_models: bool = False,
) -> Report:
    """Compare what Letta holds with the configuration, and return what a sync would do. Nothing is changed.

    With `probe`, vendors are asked about keys that Letta does not hold yet, as in `ensure_providers`: a dry run.
    Arguments and errors are those of `ensure_providers`.
    """
    settings = settings or load_settings()
    async with open_provider_session(
        settings, _connect(settings, connection), only, strategy, probe, count_models
    ) as run:
        return run.finish(await compare(run.store, run.desired, run.options))


async def verify_providers(
    settings: Settings | None = None,
    *,
    connection: Connection | None = None,
    only: Sequence[str] = (),
    count_models: bool = False,
) -> Report:
    """Read every provider back, and send one completion through each: the receipt.

    Arguments and errors are those of `ensure_providers`.
    """
    settings = settings or load_settings()
    async with open_provider_session(
        settings, _connect(settings, connection), only, None, False, count_models
    ) as run:
        report = run.finish(await compare(run.store, run.desired, run.options))
        return await add_receipts(report, run.connection, run.desired)


async def add_receipts(report: Report, connection: Connection, desired: Sequence[Desired]) -> Report:
    """Return the report with the result of a completion through each provider in Letta.

    A provider that has another base URL in Letta is left out: the key in Letta belongs there (fact M6).
    """
    from isabella.turns.probe import ProbeResult, probe_bindings

    present = [entry for entry in report.ours if same_address(entry.stored_base_url, entry.base_url)]
    by_name = {provider.name: provider for provider in desired}
    bindings = [await _binding(by_name[entry.name], connection.timeout) for entry in present]
    found = await probe_bindings(connection, bindings)
    proceeds = dict(zip((entry.name for entry in present), found, strict=True))
    entries = []
    for entry in report.providers:
        if not entry.ours:
            entries.append(entry)
            continue
        why = "Letta has it at another address" if entry.in_letta else "it is not in Letta"
        proof = proceeds.get(entry.name, ProbeResult(Receipt.FAILED, why))
        reason = entry.reason if not proof.said else f"{entry.reason}; no receipt: {proof.said}"
        entries.append(replace(entry, receipt=proof.receipt, reason=reason, vendor_status=_seen(entry, proof)))
    return replace(report, providers=entries)


def _connect(settings: Settings, connection: Connection | None) -> Callable[[], Awaitable[Connection]]:
    async def connected() -> Connection:
        return connection or await connect(settings)

    return connected


def _seen(entry: ProviderReport, proof: ProbeResult) -> VendorObservation | None:
    """Return the observation of the vendor. A refused configured key counts, even if the stored one works."""
    if proof.vendor is None or entry.refused_by_vendor:
        return entry.vendor_status
    return VendorObservation(proof.vendor, proof.said or "a line through Letta was accepted", datetime.now(UTC))


async def _binding(desired: Desired, timeout: float) -> Binding:
    """Return a binding to the vendor's default model, or to the first one that it lists."""
    vendor = desired.vendor
    model, window = vendor.default_model, vendor.default_window
    if model is None and desired.key is not None:
        answer = await ask_vendor(desired.base_url, desired.key, timeout=timeout)
        model = next(iter(answer.models), None)
        window = (answer.models.get(model) if model else None) or window
    return Binding(desired.name, model or "default", desired.base_url, vendor.models.get(model or "", window))
