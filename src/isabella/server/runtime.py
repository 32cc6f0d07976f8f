"""The agents for as long as the backend lives: opened after the sync, brought in line, and handed to the routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Annotated

import anyio
import structlog
from fastapi import Depends, FastAPI, Request

from isabella.agents.memory import Hold
from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.reconcile import EnsureOutcome
from isabella.agents.reflection import ReflectionOutcome, Say, reflect
from isabella.agents.service import AgentService, open_agent_service
from isabella.config.settings import Settings
from isabella.errors import ConfigurationError, IsabellaError, NotReady, TurnError
from isabella.letta.connection import Connection
from isabella.locks.provider_lock import TurnLocks
from isabella.providers.desired import desired_providers
from isabella.providers.plan import WRITES
from isabella.providers.report import Proof, Report
from isabella.server.api.metrics import Metrics
from isabella.server.idempotency import RequestRegistry
from isabella.server.readiness import Readiness
from isabella.turns.events import Ended, Event, Reason, TurnFailed
from isabella.turns.service import TurnService, open_turn_service
from isabella.turns.turn import Turn
from isabella.watch.events import ModelsRefreshed, Synced, Tell, WatchEvent, sentences
from isabella.watch.schedule import Schedule
from isabella.watch.watcher import WatchActions, Watcher

log = structlog.get_logger()


@asynccontextmanager
async def open_agents(
    app: FastAPI, settings: Settings, connection: Connection, address: str | None
) -> AsyncIterator[AgentService]:
    """Open the agents, bring them in line, and let the routes have them.

    Args:
        app: the application whose routes need them.
        settings: where everything comes from.
        connection: which Letta.
        address: the backend's own address, as Letta reaches it; None where it does not.

    Raises:
        ConfigurationError: the agents' file is malformed, or the settings ask for vectors that are not to be had.
        LettaError: Letta cannot be read.
    """
    async with open_agent_service(settings, connection, backend=address) as agency:
        agency.models.hear = app.state.readiness.heard
        for ensured in await agency.ensure():
            failed = ensured.done is EnsureOutcome.FAILED
            (log.warning if failed else log.info)(
                "agent",
                name=ensured.name,
                done=ensured.done.value,
                handle=ensured.handle,
                changes=list(ensured.changes),
                reason=ensured.reason,
                remedy=ensured.remedy,
            )
        app.state.agency = agency
        try:
            yield agency
        finally:
            app.state.agency = None


def agency(request: Request) -> AgentService:
    """The agents, for routes.

    Raises:
        NotReady: the backend has not come up.
    """
    found = getattr(request.app.state, "agency", None)
    if not isinstance(found, AgentService):
        raise NotReady("The agents are not there yet.", remedy="`GET /ready` says how far the start has come.")
    return found


Agents = Annotated[AgentService, Depends(agency)]


@asynccontextmanager
async def open_turns(app: FastAPI, agency: AgentService, locks: TurnLocks) -> AsyncIterator[TurnService]:
    """Open the desk where turns are taken on, count what happens there, and let the routes have it.

    Args:
        app: the application whose routes need it.
        agency: the agents.
        locks: what holds turns and changes of providers apart.
    """
    metrics = Metrics()

    def watch(turn: Turn, event: Event) -> None:
        metrics.see(turn, event)
        app.state.chronicle.see(turn, event)

    async with (
        open_turn_service(agency, locks=locks, watch=watch, vendors=app.state.readiness.vendors) as desk,
        anyio.create_task_group() as tasks,
    ):

        def forgive(report: Report) -> None:
            # With another key, what a vendor refused before says nothing any more.
            for provider in report.ours:
                if provider.proof is not Proof.FAILED and provider.action in WRITES:
                    desk.house.breaker.forgive(provider.name)

        metrics.of(desk, app.state.readiness)
        app.state.readiness.tell.append(forgive)
        await tasks.start(_watch_gate, locks)
        app.state.desk, app.state.metrics, app.state.repeats = desk, metrics, RequestRegistry(desk, tasks)
        try:
            yield desk
        finally:
            app.state.readiness.tell.remove(forgive)
            app.state.desk = app.state.metrics = app.state.repeats = None
            tasks.cancel_scope.cancel()


async def _watch_gate(locks: TurnLocks, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    await locks.gate.watch(task_status=task_status)


@asynccontextmanager
async def run_watcher(
    readiness: Readiness,
    settings: Settings,
    work: WatchActions,
    models: ModelCatalog,
    *,
    schedule: Schedule | None = None,
    hear: Tell = lambda _event: None,
) -> AsyncIterator[Watcher]:
    """Keep watch, and let the backend know what comes of it.

    Args:
        readiness: is told every report.
        settings: what the backend was started with.
        work: what is done.
        models: go by the changed configuration as soon as Letta does.
        schedule: when things are due; by default as the settings say.
        hear: is told everything that happens, too.
    """

    def tell(event: WatchEvent) -> None:
        for sentence in sentences(event):
            (log.warning if sentence.warning else log.info)(sentence.text)
        match event:
            case Synced(report=report, part=part):
                readiness.settle(report, part, quiet=True)
                _renew(models, keeper, report)
            case ModelsRefreshed(census=census):
                readiness.counted(census)
        hear(event)

    keeper = Watcher(settings, work, tell, report=readiness.report, schedule=schedule)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        yield keeper
        tasks.cancel_scope.cancel()


def _renew(models: ModelCatalog, keeper: Watcher, report: Report) -> None:
    """Ask vendors with the keys that Letta has now. Where it keeps the former one, so do we."""
    try:
        # As the sync has read them: a key file may be another one by now.
        desired = desired_providers(keeper.settings)
    except ConfigurationError:
        # `isabella.toml` is being changed at this moment.
        desired = keeper.desired
    proven = {entry.name for entry in report.ours if entry.proof is Proof.PROVEN}
    former = {provider.name: provider for provider in models.providers}
    models.renew(
        provider if provider.name in proven or provider.name not in former else former[provider.name]
        for provider in desired
    )


_LOOK_EVERY = 60.0
_LONGEST_PAUSE = 3600.0


@asynccontextmanager
async def run_reflection(agency: AgentService, desk: TurnService) -> AsyncIterator[None]:
    """Let agents reflect, in their order, and let edits of memory wait for turns under way.

    Args:
        agency: the agents.
        desk: where turns are taken on.
    """
    agency.memory.hold = hold_queue(desk)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_keep_reflecting, agency, say_in_turn(desk), agency.settings.reflect_after)
        yield
        tasks.cancel_scope.cancel()


def hold_queue(desk: TurnService) -> Hold:
    """Takes a place in an agent's order, as a turn does, so that no turn of it runs meanwhile."""

    @asynccontextmanager
    async def hold(agent_id: str) -> AsyncIterator[None]:
        async with desk.order.take(agent_id).reached():
            yield

    return hold


def say_in_turn(desk: TurnService) -> Say:
    """Says something to an agent in a turn of its own, with all that turns have: order, gate and failover."""

    async def say(agent_id: str, text: str) -> None:
        turn = await desk.open(agent_id, text)
        why, end = "", Reason.BROKEN
        async with aclosing(desk.events(turn)) as events:
            async for event in events:
                if isinstance(event, TurnFailed):
                    why = event.message
                if isinstance(event, Ended):
                    end = event.reason
        if end not in (Reason.COMPLETED, Reason.MAX_STEPS):
            raise TurnError(f"The turn ended {end.value}: {why or 'nothing more is known'}.")

    return say


async def _keep_reflecting(agency: AgentService, say: Say, after: float) -> None:
    if after <= 0:
        return
    usual = min(_LOOK_EVERY, max(1.0, after / 4))
    pause = usual
    while True:
        await anyio.sleep(pause)
        try:
            await _look_around(agency, say, after)
            pause = usual
        except IsabellaError as error:
            # What was said is read again next time; a vendor that refuses is not asked every minute.
            pause = min(pause * 2, _LONGEST_PAUSE)
            log.warning("reflection failed", error=error.what, again_in=pause)


async def _look_around(agency: AgentService, say: Say, after: float) -> None:
    for resident in await agency.residents.all():
        if resident.definition is None or resident.definition.reflects_on is None:
            continue
        done = await reflect(agency, resident, say, quiet_for=after)
        if done.outcome is ReflectionOutcome.DONE:
            log.info(
                "reflected",
                agent=resident.name,
                read=done.read,
                archived=done.archived,
                restored=list(done.restored),
            )
