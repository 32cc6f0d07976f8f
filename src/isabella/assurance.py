"""What is promised: the stored keys are the configured ones. Ensured, compared and verified, on one Letta."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

import anyio

from isabella.advisory import Advisory
from isabella.agents.binding import Binding
from isabella.concurrency import together
from isabella.connection import Connection, connect
from isabella.errors import IsabellaError
from isabella.gate import Gate
from isabella.locks import sync_lock
from isabella.providers.condition import Condition, Conditions, after, with_conditions
from isabella.providers.desired import Desired, desired_providers, select
from isabella.providers.ledger import Ledger
from isabella.providers.report import Receipt, Report
from isabella.providers.sealing import ProofMemo
from isabella.providers.sync import Options, Seen, bring_in_line, look, read_store
from isabella.settings import Settings, load_settings
from isabella.stores.letta_server import LettaServer
from isabella.strategy import Strategy
from isabella.vendors.inquiry import ask_vendor

# Seconds after which the requests for the listing are on their way. What is read meanwhile is not read in threads:
# each would take the interpreter away from the listing for 5 ms at every step.
_HEAD_START = 0.003


async def ensure_providers(
    settings: Settings | None = None,
    *,
    connection: Connection | None = None,
    only: Sequence[str] = (),
    strategy: Strategy | None = None,
    probe: bool = True,
    count_models: bool = False,
    gate: Gate | None = None,
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
        gate: the one that turns of this process pass; by default turns of other processes are held where Letta's
            database is known.

    Returns:
        What was found and done. `report.all_proven` tells whether every provider is proven.

    Raises:
        ConfigurationError: a setting is malformed, or no Letta is named and none runs here.
        LettaError: Letta cannot be reached or read; nothing was changed.
        LockTimeout: another process has been syncing it for too long.
    """
    async with _opened(settings, connection, only, strategy, probe, count_models, looks=False, gate=gate) as run:
        report = run.finish(await bring_in_line(run.store, run.desired, run.options))
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
    """Tell what Letta holds, compared with the configuration, and what would be done. Changes nothing.

    With `probe`, vendors are asked about keys that Letta does not hold yet, as `ensure_providers` would: a rehearsal.
    Arguments and errors are those of `ensure_providers`.
    """
    async with _opened(settings, connection, only, strategy, probe, count_models) as run:
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
    ledger: Ledger
    stood: Conditions
    looks: bool
    stand: dict[str, Condition] = field(default_factory=dict)

    def finish(self, report: Report) -> Report:
        vendors = tuple(provider.vendor for provider in self.desired)
        now = datetime.now(UTC)
        self.stand.update(after(self.stood, report, now, whole=self.options.foreign))
        report = with_conditions(report, self.stand, unless=now if self.looks else None)
        return replace(report, notices=(*self.settings.contradictions(vendors), *report.notices))

    def write_down(self) -> None:
        """Keep how the providers stand. A mere look does not: it would hide when a drift really began."""
        if self.stand != self.stood:
            self.ledger.write(self.stand)


@asynccontextmanager
async def _opened(
    settings: Settings | None,
    connection: Connection | None,
    only: Sequence[str],
    strategy: Strategy | None,
    probe: bool,
    count_models: bool,
    looks: bool = True,
    gate: Gate | None = None,
) -> AsyncIterator[_Opened]:
    settings = settings or load_settings()
    desired, letta = await _configuration_and_letta(settings, connection, only)
    connection = letta.connection
    options = Options(
        strategy=strategy or settings.strategy,
        master_key=connection.master_key,
        ask=partial(ask_vendor, timeout=min(connection.timeout, 10.0)) if probe else None,
        memo=letta.memo,
        lock=lambda: sync_lock(connection.base_url, home=connection.home, database_url=connection.database_url),
        patience=connection.timeout,
        foreign=not only,
        count_models=count_models,
        seen=letta.seen,
    )
    if gate is None:
        advisory = None if connection.database_url is None else Advisory(connection.database_url)
        gate = Gate(advisory, patience=settings.gate_timeout)
    options = replace(options, closed=gate.closed, held_everywhere=gate.holds_everywhere)
    async with letta.store:
        yield _Opened(settings, connection, letta.store, desired, options, letta.ledger, letta.stood, looks)


@dataclass(frozen=True)
class _Letta:
    connection: Connection
    store: LettaServer
    seen: Seen
    memo: ProofMemo | None
    ledger: Ledger
    stood: Conditions


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
    """Look at Letta, and at what is remembered of it while it answers."""
    store = LettaServer(connection.base_url, password=connection.password, timeout=connection.timeout)
    ledger = Ledger(connection.home, connection.base_url)
    memo: ProofMemo | None = None
    stood: Conditions = {}
    seen: list[Seen] = []

    async def look_at_it() -> None:
        seen.append(await read_store(store))

    async def recall() -> None:
        nonlocal memo, stood
        await anyio.sleep(_HEAD_START)
        stood = ledger.read()
        if connection.master_key is not None:
            name = hashlib.sha256(connection.base_url.encode()).hexdigest()[:16]
            memo = ProofMemo(connection.home / "proofs" / f"{name}.json", connection.master_key)

    try:
        await together([look_at_it, recall])
    except BaseException:
        await store.close()
        raise
    return _Letta(connection, store, seen[0], memo, ledger, stood)
