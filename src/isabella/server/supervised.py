"""The processes that a backend supervises: Postgres and Letta, if they are the embedded ones, and the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.to_thread
import structlog

from isabella.config.gateway_address import gateway_address
from isabella.config.settings import Settings
from isabella.connect import embedded_connection
from isabella.embedded import Server
from isabella.embedded.supervised_parts import LettaPart, OwnPostgresPart, PostgresPart
from isabella.gateway.process import GatewayPart
from isabella.server.runtime import Runtime
from isabella.system.english import english
from isabella.system.supervision import Part, PartState, PartStatus, Supervisor, Timing
from isabella.watch.watcher import Watcher

log = structlog.get_logger()


@dataclass(frozen=True)
class Supervised:
    """The supervisor of a backend, and the embedded server that it supervises, if there is one."""

    supervisor: Supervisor
    server: Server | None = None

    @classmethod
    def of(cls, server: Server | None, gateway: GatewayPart | None, timing: Timing | None = None) -> Supervised:
        """Return the supervisor of the parts that Isabella runs, in the order in which they are started."""
        parts: list[Part] = []
        if server is not None:
            database = PostgresPart(server) if server.own is None else OwnPostgresPart(server.own)
            parts += [database, LettaPart(server)]
        if gateway is not None:
            parts.append(gateway)
        return cls(Supervisor(parts, timing=timing), server)


@asynccontextmanager
async def run_supervisor(runtime: Runtime, supervised: Supervised, settings: Settings) -> AsyncIterator[None]:
    """Supervise in the background: report every change, and follow a part to another port or key."""
    runtime.readiness.supervisor = supervisor = supervised.supervisor
    known: dict[str, PartStatus] = {status.word: status for status in supervisor.statuses}
    address = gateway_address(settings)

    def on_change(status: PartStatus) -> None:
        former, known[status.word] = known[status.word], status
        if former.runs or status.runs or status.state is PartState.GIVEN_UP:
            sentence = english("%(name)s works again.", name=status.name) if status.runs else status.reason
            (log.info if status.runs else log.warning)(sentence)
            runtime.event_log.add_notice(sentence, warning=not status.runs)
        runtime.event_log.notifier.notify()

    async def follow(word: str) -> None:
        nonlocal address
        moved = False
        if word == "gateway":
            former, address = address, gateway_address(settings)
            moved = former != address
        elif supervised.server is not None:
            moved = await _follow_letta(runtime, supervised.server, settings)
        if moved and runtime.watcher is not None:
            tasks.start_soon(sync, runtime.watcher)

    async def sync(watcher: Watcher) -> None:
        await watcher.reread()
        await watcher.resync()

    async with anyio.create_task_group() as tasks:
        supervisor.on_change, supervisor.on_answer = on_change, follow
        tasks.start_soon(supervisor.run)
        yield
        tasks.cancel_scope.cancel()


async def _follow_letta(runtime: Runtime, server: Server, settings: Settings) -> bool:
    """Use the present port and key of Letta and Postgres. Return whether the port of Letta is another one."""
    letta = await anyio.to_thread.run_sync(server.running)
    former = runtime.start_connection
    if letta is None or former is None:
        return False
    connection = embedded_connection(settings, letta)
    if connection == former:
        return False
    runtime.move(connection)
    if connection.base_url == former.base_url:
        return False
    sentence = english(
        "Letta has a new port because its former one was taken: %(base_url)s.", base_url=connection.base_url
    )
    log.warning(sentence)
    runtime.event_log.add_notice(sentence, warning=True)
    return True


async def repeat_after_outage(
    supervisor: Supervisor, function: Callable[[], Awaitable[None]], *, seconds: float, until: Callable[[], bool]
) -> None:
    """Run a function; again, if it failed while a part was down, as long as `until` is false.

    It waits up to `seconds` for the part.
    """
    while True:
        outages = await supervisor.confirm()
        try:
            await function()
        except Exception:
            if until() or (await supervisor.confirm() == outages and not supervisor.down):
                raise
            await supervisor.wait(seconds)
        else:
            return
