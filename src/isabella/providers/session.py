"""One session with a Letta: the configuration read, the connection made, the first look taken."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

import anyio

from isabella.config.settings import Settings
from isabella.config.strategy import Strategy
from isabella.errors import IsabellaError
from isabella.letta.client import LettaClient
from isabella.letta.connection import Connection
from isabella.letta.encryption import ProofMemo
from isabella.letta.store import Store, StoreSnapshot, read_store
from isabella.locks.postgres import AdvisoryLocks
from isabella.locks.provider_lock import ProviderLock
from isabella.locks.sync_lock import sync_lock
from isabella.providers.bound_agents import LettaBoundAgents
from isabella.providers.desired import Desired, desired_providers, select
from isabella.providers.health import Conditions, HealthFile, ProviderHealth, update_health, with_health
from isabella.providers.report import Report
from isabella.providers.sync import Options
from isabella.system.tasks import gather
from isabella.vendors.client import ask_vendor

#: Returns the connection to the Letta that is meant. It may have to look whether the embedded one runs.
Connect = Callable[[], Awaitable[Connection]]

# Seconds after which the requests for the listing are on their way. What is read meanwhile is not read in threads:
# each would take the interpreter away from the listing for 5 ms at every step.
_HEAD_START = 0.003


@dataclass(frozen=True, kw_only=True)
class ProviderSession:
    """A look at one Letta, and what may be done about what was seen.

    Attributes:
        settings: where everything comes from.
        connection: which Letta it is.
        store: its providers.
        desired: what the configuration asks for.
        options: how a run is to go.
        health_file: where it is kept how the providers stand.
        stood: how they stood before.
        looks: whether nothing is to be changed.
        notices: what is worth saying about the configuration as a whole.
        stand: how they stand now.
    """

    settings: Settings
    connection: Connection
    store: Store
    desired: tuple[Desired, ...]
    options: Options
    health_file: HealthFile
    stood: Conditions
    looks: bool
    notices: tuple[str, ...] = ()
    stand: dict[str, ProviderHealth] = field(default_factory=dict)

    def finish(self, report: Report) -> Report:
        """The report, with how each provider stands, and with what is worth saying about the configuration."""
        now = datetime.now(UTC)
        self.stand.update(update_health(self.stood, report, now, whole=self.options.foreign, looks=self.looks))
        report = with_health(report, self.stand, unless=now if self.looks else None)
        return replace(report, notices=(*self.notices, *report.notices))

    def write_down(self) -> None:
        """Keep how the providers stand. A mere look does not: it would hide when a drift really began."""
        if self.stand != self.stood:
            self.health_file.write(self.stand)


@asynccontextmanager
async def open_provider_session(
    settings: Settings,
    connect: Connect,
    only: Sequence[str],
    strategy: Strategy | None,
    probe: bool,
    count_models: bool,
    looks: bool = True,
    gate: ProviderLock | None = None,
) -> AsyncIterator[ProviderSession]:
    """Read the configuration, reach Letta and look at it.

    Args:
        settings: where everything comes from.
        connect: returns the connection to the Letta that is meant.
        only: names of providers; by default all that are declared.
        strategy: in place of the settings' own.
        probe: whether vendors are asked about keys that Letta does not hold yet.
        count_models: whether Letta is asked how many models each provider has.
        looks: whether nothing is to be changed.
        gate: the one that turns of this process pass.

    Raises:
        ConfigurationError: a setting is malformed, or no Letta is named and none runs here.
        LettaError: Letta cannot be reached or read.
    """
    asked_for, letta = await _configuration_and_letta(settings, connect, only)
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
        advisory = None if connection.database_url is None else AdvisoryLocks(connection.database_url)
        gate = ProviderLock(advisory, patience=settings.gate_timeout)
    options = replace(
        options,
        closed=gate.closed,
        held_everywhere=gate.holds_everywhere,
        bound_agents=LettaBoundAgents(letta.client),
    )
    async with letta.client:
        yield ProviderSession(
            settings=settings,
            connection=connection,
            store=letta.client.providers,
            desired=asked_for.desired,
            options=options,
            health_file=letta.health_file,
            stood=letta.stood,
            looks=looks,
            notices=asked_for.notices,
        )


@dataclass(frozen=True)
class _AskedFor:
    desired: tuple[Desired, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Letta:
    connection: Connection
    client: LettaClient
    seen: StoreSnapshot
    memo: ProofMemo | None
    health_file: HealthFile
    stood: Conditions


async def _configuration_and_letta(
    settings: Settings, connect: Connect, only: Sequence[str]
) -> tuple[_AskedFor, _Letta]:
    """Read the configuration and look at Letta side by side: with a thousand providers both take their time.

    What is wrong with the configuration is told first. It may well be the reason for what is wrong with Letta.
    """
    asked_for: _AskedFor | None = None
    reached: _Letta | IsabellaError | None = None

    async def read_configuration() -> None:
        nonlocal asked_for
        await anyio.sleep(_HEAD_START)
        desired = select(desired_providers(settings), tuple(only))
        # What the report will say of them waits for nothing either.
        for one in desired:
            _ = one.masked_key, one.notes
        asked_for = _AskedFor(desired, tuple(settings.contradictions(tuple(one.vendor for one in desired))))

    async def reach_letta() -> None:
        nonlocal reached
        try:
            reached = await _reach(await connect(), only)
        except IsabellaError as error:
            reached = error

    try:
        await gather([read_configuration, reach_letta])
    except BaseException:
        if isinstance(reached, _Letta):
            await reached.client.close()
        raise
    if asked_for is None or not isinstance(reached, _Letta):
        raise (reached if isinstance(reached, IsabellaError) else None) or AssertionError("neither read nor reached")
    return asked_for, reached


async def _reach(connection: Connection, only: Sequence[str]) -> _Letta:
    """Look at Letta, and at what is remembered of it while it answers."""
    client = LettaClient.open(connection)
    health_file = HealthFile(connection.home, connection.base_url)
    memo: ProofMemo | None = None
    stood: Conditions = {}
    seen: list[StoreSnapshot] = []

    async def look_at_it() -> None:
        seen.append(await read_store(client.providers, only))

    async def recall() -> None:
        nonlocal memo, stood
        await anyio.sleep(_HEAD_START)
        stood = health_file.read()
        if connection.master_key is not None:
            memo = ProofMemo.of(connection.home, connection.base_url, connection.master_key)

    try:
        await gather([look_at_it, recall])
    except BaseException:
        await client.close()
        raise
    return _Letta(connection, client, seen[0], memo, health_file, stood)
