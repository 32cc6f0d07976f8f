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
from isabella.server.idempotency import RequestRegistry
from isabella.server.metrics import Metrics
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
    async with open_agent_service(settings, connection, backend=address) as agent_service:
        agent_service.models.on_event = app.state.readiness.heard
        for ensured in await agent_service.ensure():
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
        app.state.agent_service = agent_service
        try:
            yield agent_service
        finally:
            app.state.agent_service = None


def agent_service(request: Request) -> AgentService:
    """The agents, for routes.

    Raises:
        NotReady: the backend has not come up.
    """
    found = getattr(request.app.state, "agent_service", None)
    if not isinstance(found, AgentService):
        raise NotReady("The agents are not there yet.", remedy="`GET /ready` says how far the start has come.")
    return found


Agents = Annotated[AgentService, Depends(agent_service)]


@asynccontextmanager
async def open_turns(app: FastAPI, agent_service: AgentService, locks: TurnLocks) -> AsyncIterator[TurnService]:
    """Open the desk where turns are taken on, count what happens there, and let the routes have it.

    Args:
        app: the application whose routes need it.
        agent_service: the agents.
        locks: what holds turns and changes of providers apart.
    """
    metrics = Metrics()

    def watch(turn: Turn, event: Event) -> None:
        metrics.see(turn, event)
        app.state.event_log.see(turn, event)

    async with (
        open_turn_service(
            agent_service, locks=locks, watch=watch, vendors=app.state.readiness.vendors
        ) as turn_service,
        anyio.create_task_group() as tasks,
    ):

        def forgive(report: Report) -> None:
            # With another key, what a vendor refused before says nothing any more.
            for provider in report.ours:
                if provider.proof is not Proof.FAILED and provider.action in WRITES:
                    turn_service.deps.breaker.forgive(provider.name)

        metrics.of(turn_service, app.state.readiness)
        app.state.readiness.tell.append(forgive)
        await tasks.start(_watch_gate, locks)
        app.state.turn_service, app.state.metrics, app.state.repeats = (
            turn_service,
            metrics,
            RequestRegistry(turn_service, tasks),
        )
        try:
            yield turn_service
        finally:
            app.state.readiness.tell.remove(forgive)
            app.state.turn_service = app.state.metrics = app.state.repeats = None
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
    on_event: Tell = lambda _event: None,
) -> AsyncIterator[Watcher]:
    """Keep watch, and let the backend know what comes of it.

    Args:
        readiness: is told every report.
        settings: what the backend was started with.
        work: what is done.
        models: go by the changed configuration as soon as Letta does.
        schedule: when things are due; by default as the settings say.
        on_event: is told everything that happens, too.
    """

    def tell(event: WatchEvent) -> None:
        for sentence in sentences(event):
            (log.warning if sentence.warning else log.info)(sentence.text)
        match event:
            case Synced(report=report, part=part):
                readiness.settle(report, part, quiet=True)
                _renew(models, watcher, report)
            case ModelsRefreshed(census=census):
                readiness.counted(census)
        on_event(event)

    watcher = Watcher(settings, work, tell, report=readiness.report, schedule=schedule)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run)
        yield watcher
        tasks.cancel_scope.cancel()


def _renew(models: ModelCatalog, watcher: Watcher, report: Report) -> None:
    """Ask vendors with the keys that Letta has now. Where it keeps the former one, so do we."""
    try:
        # As the sync has read them: a key file may be another one by now.
        desired = desired_providers(watcher.settings)
    except ConfigurationError:
        # `isabella.toml` is being changed at this moment.
        desired = watcher.desired
    proven = {entry.name for entry in report.ours if entry.proof is Proof.PROVEN}
    former = {provider.name: provider for provider in models.providers}
    models.renew(
        provider if provider.name in proven or provider.name not in former else former[provider.name]
        for provider in desired
    )


_LOOK_EVERY = 60.0
_LONGEST_PAUSE = 3600.0


@asynccontextmanager
async def run_reflection(agent_service: AgentService, turn_service: TurnService) -> AsyncIterator[None]:
    """Let agents reflect, in their order, and let edits of memory wait for turns under way.

    Args:
        agent_service: the agents.
        turn_service: where turns are taken on.
    """
    agent_service.memory.hold = hold_queue(turn_service)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            _keep_reflecting, agent_service, say_in_turn(turn_service), agent_service.settings.reflect_after
        )
        yield
        tasks.cancel_scope.cancel()


def hold_queue(turn_service: TurnService) -> Hold:
    """Takes a place in an agent's order, as a turn does, so that no turn of it runs meanwhile."""

    @asynccontextmanager
    async def hold(agent_id: str) -> AsyncIterator[None]:
        async with turn_service.queue.take(agent_id).reached():
            yield

    return hold


def say_in_turn(turn_service: TurnService) -> Say:
    """Says something to an agent in a turn of its own, with all that turns have: order, gate and failover."""

    async def say(agent_id: str, text: str) -> None:
        turn = await turn_service.open(agent_id, text)
        why, end = "", Reason.BROKEN
        async with aclosing(turn_service.events(turn)) as events:
            async for event in events:
                if isinstance(event, TurnFailed):
                    why = event.message
                if isinstance(event, Ended):
                    end = event.reason
        if end not in (Reason.COMPLETED, Reason.MAX_STEPS):
            raise TurnError(f"The turn ended {end.value}: {why or 'nothing more is known'}.")

    return say


async def _keep_reflecting(agent_service: AgentService, say: Say, after: float) -> None:
    if after <= 0:
        return
    usual = min(_LOOK_EVERY, max(1.0, after / 4))
    pause = usual
    while True:
        await anyio.sleep(pause)
        try:
            await _look_around(agent_service, say, after)
            pause = usual
        except IsabellaError as error:
            # What was said is read again next time; a vendor that refuses is not asked every minute.
            pause = min(pause * 2, _LONGEST_PAUSE)
            log.warning("reflection failed", error=error.what, again_in=pause)


async def _look_around(agent_service: AgentService, say: Say, after: float) -> None:
    for record in await agent_service.registry.all():
        if record.definition is None or record.definition.reflects_on is None:
            continue
        done = await reflect(agent_service, record, say, quiet_for=after)
        if done.outcome is ReflectionOutcome.DONE:
            log.info(
                "reflected",
                agent=record.name,
                read=done.read,
                archived=done.archived,
                restored=list(done.restored),
            )
