"""What is promised: the stored keys are the configured ones. Ensured, compared and verified, on one Letta."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import anyio

from isabella.agents.binding import Binding
from isabella.concurrency import together
from isabella.connection import Connection, connect
from isabella.errors import IsabellaError
from isabella.locks import sync_lock
from isabella.providers.desired import Desired, desired_providers, select
from isabella.providers.report import Receipt, Report
from isabella.providers.sealing import ProofMemo
from isabella.providers.sync import Options, Seen, bring_in_line, look, read_store
from isabella.settings import Settings, load_settings
from isabella.stores.letta_server import LettaServer
from isabella.strategy import Strategy
from isabella.vendors.inquiry import ask_vendor

# Seconds after which the requests for the listing are on their way, and Letta is at work on them.
_HEAD_START = 0.003


async def ensure_providers(
    settings: Settings | None = None,
    *,
    connection: Connection | None = None,
    only: Sequence[str] = (),
    strategy: Strategy | None = None,
    probe: bool = True,
    count_models: bool = False,
) -> Report:
    """Make Letta hold exactly the keys that the configuration has, and prove it by reading back.

    A start where everything is in line already costs one listing, and no request to any vendor.

    Args:
        settings: where everything comes from; by default the environment and `.env`.
        connection: another Letta than the one that the settings name.
        only: names of providers; by default all that are declared.
        strategy: in place of the settings' own.
        probe: ask a vendor whether it takes a key that Letta does not hold yet.
        count_models: tell how many models Letta has of each provider, which costs a request for each.

    Returns:
        What was found and done. `report.all_proven` tells whether every provider is proven.

    Raises:
        ConfigurationError: a setting is malformed, or no Letta is named and none runs here.
        LettaError: Letta cannot be reached or read; nothing was changed.
        LockTimeout: another process has been syncing it for too long.
    """
    async with _opened(settings, connection, only, strategy, probe, count_models) as run:
        return run.finish(await bring_in_line(run.store, run.desired, run.options))


async def compare_providers(
    settings: Settings | None = None,
    *,
    connection: Connection | None = None,
    only: Sequence[str] = (),
    strategy: Strategy | None = None,
    count_models: bool = False,
) -> Report:
    """Tell what Letta holds, compared with the configuration, and what would be done. Changes nothing.

    Arguments and errors are those of `ensure_providers`.
    """
    async with _opened(settings, connection, only, strategy, False, count_models) as run:
        return run.finish(await look(run.store, run.desired, run.options))


async def verify_providers(
    settings: Settings | None = None,
    *,
    connection: Connection | None = None,
    only: Sequence[str] = (),
    count_models: bool = False,
) -> Report:
    """Read every provider back, and have an agent on each say one line through Letta: the receipt.

    Arguments and errors are those of `ensure_providers`.
    """
    async with _opened(settings, connection, only, None, False, count_models) as run:
        report = run.finish(await look(run.store, run.desired, run.options))
        return await add_receipts(report, run.connection, run.desired)


async def add_receipts(report: Report, connection: Connection, desired: Sequence[Desired]) -> Report:
    """The report, with what a completion through each provider in Letta has shown."""
    from isabella.agents.client import open_client
    from isabella.agents.receipts import Proceeds, get_receipts

    present = [entry for entry in report.ours if entry.in_letta]
    by_name = {provider.name: provider for provider in desired}
    bindings = [await _binding(by_name[entry.name], connection.timeout) for entry in present]
    async with open_client(connection) as client:
        found = await get_receipts(client, bindings)
    proceeds = dict(zip((entry.name for entry in present), found, strict=True))
    missing = Proceeds(Receipt.FAILED, "it is not in Letta")
    entries = []
    for entry in report.providers:
        if not entry.ours:
            entries.append(entry)
            continue
        proof = proceeds.get(entry.name, missing)
        reason = entry.reason if not proof.said else f"{entry.reason}; no receipt: {proof.said}"
        entries.append(replace(entry, receipt=proof.receipt, reason=reason))
    return replace(report, providers=entries)


async def _binding(desired: Desired, timeout: float) -> Binding:
    """A binding to the vendor's default model, or to the first that it lists."""
    vendor = desired.vendor
    model, window = vendor.default_model, vendor.default_window
    if model is None and desired.key is not None:
        answer = await ask_vendor(desired.base_url, desired.key, timeout=timeout)
        model = next(iter(answer.models), None)
        window = (answer.models.get(model) if model else None) or window
    return Binding(desired.name, model or "default", desired.base_url, vendor.models.get(model or "", window))


@dataclass(frozen=True)
class _Opened:
    settings: Settings
    connection: Connection
    store: LettaServer
    desired: tuple[Desired, ...]
    options: Options

    def finish(self, report: Report) -> Report:
        vendors = tuple(provider.vendor for provider in self.desired)
        return replace(report, notices=(*self.settings.contradictions(vendors), *report.notices))


@asynccontextmanager
async def _opened(
    settings: Settings | None,
    connection: Connection | None,
    only: Sequence[str],
    strategy: Strategy | None,
    probe: bool,
    count_models: bool,
) -> AsyncIterator[_Opened]:
    settings = settings or load_settings()
    desired, letta = await _configuration_and_letta(settings, connection, only)
    connection = letta.connection
    memo = None
    if connection.master_key is not None:
        name = hashlib.sha256(connection.base_url.encode()).hexdigest()[:16]
        memo = ProofMemo(connection.home / "proofs" / f"{name}.json", connection.master_key)
    options = Options(
        strategy=strategy or settings.strategy,
        master_key=connection.master_key,
        ask=partial(ask_vendor, timeout=min(connection.timeout, 10.0)) if probe else None,
        memo=memo,
        lock=lambda: sync_lock(connection.base_url, home=connection.home, database_url=connection.database_url),
        patience=connection.timeout,
        foreign=not only,
        count_models=count_models,
        seen=letta.seen,
    )
    async with letta.store:
        yield _Opened(settings, connection, letta.store, desired, options)


@dataclass(frozen=True)
class _Letta:
    connection: Connection
    store: LettaServer
    seen: Seen


async def _configuration_and_letta(
    settings: Settings, connection: Connection | None, only: Sequence[str]
) -> tuple[tuple[Desired, ...], _Letta]:
    """Read the configuration and look at Letta side by side: with a thousand providers both take their time.

    What is wrong with the configuration is told first. It may well be the reason for what is wrong with Letta.
    """
    desired: tuple[Desired, ...] = ()
    reached: _Letta | IsabellaError | None = None

    async def read_configuration() -> None:
        nonlocal desired
        # Not in a thread: it would take the interpreter away from the listing, 5 ms at each of its steps.
        await anyio.sleep(_HEAD_START)
        desired = select(desired_providers(settings), tuple(only))

    async def reach_letta() -> None:
        nonlocal reached
        try:
            reached = await _reach(connection or await connect(settings))
        except IsabellaError as error:
            reached = error

    try:
        await together([read_configuration, reach_letta])
    except BaseException:
        if isinstance(reached, _Letta):
            await reached.store.close()
        raise
    if not isinstance(reached, _Letta):
        raise reached or AssertionError("Letta was neither reached nor not")
    return desired, reached


async def _reach(connection: Connection) -> _Letta:
    store = LettaServer(connection.base_url, password=connection.password, timeout=connection.timeout)
    try:
        return _Letta(connection, store, await read_store(store))
    except BaseException:
        await store.close()
        raise
