"""What the routes and pages of a running backend share, and the lifespans that open and close its services."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup
from fastapi import Depends, Request
from pydantic import SecretStr

from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.reconcile import EnsureOutcome, EnsureResult
from isabella.agents.reflection import ReflectionOutcome, SendMessage, reflect
from isabella.agents.service import AgentService, open_agent_service
from isabella.config.settings import Settings
from isabella.errors import (
    ConfigurationError,
    Interrupted,
    IsabellaError,
    LettaError,
    LettaRefused,
    LettaUnreachable,
    NotReady,
    TurnError,
)
from isabella.gateway.client import GatewayTraffic
from isabella.letta.client import Connection
from isabella.locks.postgres import leads
from isabella.locks.provider_lock import ProviderLock
from isabella.providers.desired import desired_providers
from isabella.providers.health import StatusHeadline
from isabella.providers.plan import WRITE_ACTIONS
from isabella.providers.report import Proof, Report
from isabella.server.answer_log import AnswerLog
from isabella.server.event_log import EventLog
from isabella.server.idempotency import RequestRegistry
from isabella.server.memory_observer import MemoryObserver
from isabella.server.metrics import Metrics
from isabella.server.provider_monitor import ProviderMonitor, status_line
from isabella.server.readiness import Readiness
from isabella.server.sessions import Sessions
from isabella.server.startup_app import NOT_READY
from isabella.system import audit
from isabella.system.english import english, joined
from isabella.turns.events import Ended, EndReason, Event, TurnFailed
from isabella.turns.service import TurnService, new_turn_service
from isabella.turns.turn import Turn
from isabella.watch.events import ModelsRefreshed, SyncCause, Synced, WatchEvent, WatchListener, log_sentences
from isabella.watch.model_refresh import BoundAgent
from isabella.watch.watcher import Schedule, WatchActions, Watcher

log = structlog.get_logger()

_T = TypeVar("_T")

_REFLECTION_INTERVAL = 60.0
_LONGEST_REFLECTION_PAUSE = 3600.0


@dataclass
class Runtime:
    """The services that the routes and pages of one backend share.

    A field is None until its service is open. The properties of the same services raise `NotReady` instead.
    """

    #: required of clients; None disables authentication, for applications that authenticate by themselves
    token: SecretStr | None = None
    start_settings: Settings | None = None  #: the settings at the start, including practice vendors
    start_connection: Connection | None = None  #: the Letta server that `start_settings` name
    sessions: Sessions = field(default_factory=lambda: Sessions(SecretStr(secrets.token_urlsafe(32))))
    readiness: Readiness = field(default_factory=Readiness)
    event_log: EventLog = field(default_factory=EventLog)
    metrics: Metrics = field(default_factory=Metrics)
    agent_service: AgentService | None = None  #: set by `open_agents`
    turn_service: TurnService | None = None  #: set by `open_turns`
    request_registry: RequestRegistry | None = None  #: set by `open_turns`
    #: set while `run_watcher` runs; None in a backend that does not watch its configuration
    watcher: Watcher | None = None
    gateway: GatewayTraffic | None = None  #: what the gateway last reported; None without one
    tasks: TaskGroup | None = None  #: runs work that outlives a request; set while the application serves
    syncs: int = 0  #: how many syncs of pages are under way
    exporting: anyio.Lock = field(default_factory=anyio.Lock, repr=False)  #: held while an agent is exported
    monitor: ProviderMonitor = field(init=False, repr=False)  #: polls the providers while a page is open
    csrf: str = field(init=False, repr=False)  #: the secret that every form of the console contains

    def __post_init__(self) -> None:
        # Derived from the token, so that forms of open pages stay valid across a restart.
        secret = self.token.get_secret_value() if self.token else secrets.token_urlsafe(32)
        self.csrf = hmac.new(secret.encode(), b"isabella csrf", hashlib.sha256).hexdigest()
        self.monitor = ProviderMonitor(self)
        self.readiness.on_start_sync = self.event_log.add_sync
        self.readiness.on_sync.append(self.metrics.record_sync)
        self.readiness.vendors.changed = self.event_log.notifier.notify

    @property
    def up(self) -> bool:
        """Whether the agents are open."""
        return self.agent_service is not None

    @property
    def agents(self) -> AgentService:
        """The agent service. Raises `NotReady` before it is open."""
        return _opened(self.agent_service)

    @property
    def turns(self) -> TurnService:
        """The turn service. Raises `NotReady` before it is open."""
        return _opened(self.turn_service)

    @property
    def requests(self) -> RequestRegistry:
        """The requests that may be repeated. Raises `NotReady` before turns are open."""
        return _opened(self.request_registry)

    @property
    def settings(self) -> Settings:
        """The settings in force now. Raises `NotReady` before the agents are open."""
        return self.agents.settings if self.watcher is None else self.watcher.settings

    @property
    def latest_settings(self) -> Settings | None:
        """The settings in force now, or those of the start before the watcher runs."""
        return self.start_settings if self.watcher is None else self.watcher.settings

    @property
    def connection(self) -> Connection:
        """The Letta server in use. Raises `NotReady` before the agents are open."""
        return self.agents.connection

    @property
    def status_line(self) -> StatusHeadline:
        """The status of the whole backend: the worst problem, with the next step."""
        return status_line(self, self.monitor.states)

    @contextmanager
    def syncing(self) -> Iterator[None]:
        """Note that providers are being written while the block runs."""
        self.syncs += 1
        try:
            yield
        finally:
            self.syncs -= 1

    def move(self, connection: Connection) -> None:
        """Use another connection to the same Letta: it, or its Postgres, has another port or key."""
        self.start_connection = connection
        if self.agent_service is not None:
            self.agent_service.connection = connection
            self.agent_service.letta.move(connection)
        if self.turn_service is not None and connection.database_url is not None:
            advisory = self.turn_service.deps.gate.advisory
            if advisory is not None:
                advisory.move(connection.database_url)

    async def explain(self, error: IsabellaError) -> IsabellaError:
        """Return an error of Letta as `Interrupted`, if it comes from a process that is being restarted."""
        supervisor = self.readiness.supervisor
        if supervisor is None or not isinstance(error, LettaError) or isinstance(error, LettaRefused):
            return error
        await supervisor.confirm()
        if not supervisor.down:
            return error
        unknown = isinstance(error, LettaUnreachable) and error.sent
        return Interrupted(
            joined([part.reason for part in supervisor.down]),
            remedy=english("It is being restarted; then check whether the request was carried out.")
            if unknown
            else english("It is being restarted; repeat the request in a few seconds."),
        )

    def on_watch_event(self, event: WatchEvent) -> None:
        """Record an event of the watcher; after a change of the configuration, make the agents follow it."""
        self.event_log.on_watch_event(event)
        self.metrics.record_watch_event(event)
        if isinstance(event, Synced) and event.cause is SyncCause.CHANGE and self.up:
            self.start_task(self._ensure_agents)

    async def _ensure_agents(self) -> None:
        try:
            self.record_agents(await self.agents.ensure())
        except IsabellaError as error:
            log.warning("agents not updated", error=error.what, sentence=f"Agents were not updated: {error.what}")

    def record_agents(self, ensured: Sequence[EnsureResult]) -> None:
        """Note the models of the agents, and log what was done about them."""
        handles = ((result.name, *(result.handle or "").partition("/")[::2]) for result in ensured)
        self.readiness.agents = tuple(BoundAgent(*one) for one in handles)
        for result in ensured:
            failed = result.done is EnsureOutcome.FAILED
            (log.warning if failed else log.info)(
                "agent",
                name=result.name,
                done=result.done.value,
                handle=result.handle,
                changes=list(result.changes),
                reason=result.reason,
                remedy=result.remedy,
                sentence=result.sentence,
            )

    def start_task(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        """Run an async function in the background. Raises `NotReady` if the application is not serving."""
        _opened(self.tasks).start_soon(function, *arguments)


def _opened(service: _T | None) -> _T:
    if service is None:
        what, remedy = NOT_READY
        raise NotReady(what, remedy=remedy)
    return service


async def get_runtime(request: Request) -> Runtime:
    """Return the runtime of the application that a request belongs to."""
    runtime: Runtime = request.app.state.runtime
    return runtime


CurrentRuntime = Annotated[Runtime, Depends(get_runtime)]


def _service(name: str) -> Any:
    # Not a dependency on the runtime: FastAPI resolves each level of dependencies again for each request.
    async def get(request: Request) -> Any:
        return getattr(await get_runtime(request), name)

    return Depends(get)


#: Parameters of routes; FastAPI fills them in, or answers 503 before the service is open.
CurrentReadiness = Annotated[Readiness, _service("readiness")]
Agents = Annotated[AgentService, _service("agents")]
Turns = Annotated[TurnService, _service("turns")]
Requests = Annotated[RequestRegistry, _service("requests")]


@asynccontextmanager
async def open_agents(
    runtime: Runtime, settings: Settings, connection: Connection, base_url: str | None
) -> AsyncIterator[AgentService]:
    """Open the agent service, create or update the agents of the agents file, and publish it in the runtime.

    `base_url` is the backend's own URL as Letta reaches it; None if Letta cannot reach it.
    """
    async with open_agent_service(settings, connection, backend=base_url) as agent_service:
        runtime.event_log.answers = AnswerLog(connection.home / "answers")
        agent_service.models.on_event = runtime.readiness.record_answer
        agent_service.models.on_replaced = lambda text: runtime.event_log.add_notice(text, warning=True)
        runtime.record_agents(await agent_service.ensure())
        runtime.agent_service = agent_service
        try:
            yield agent_service
        finally:
            runtime.agent_service = None


@asynccontextmanager
async def open_turns(
    runtime: Runtime, agent_service: AgentService, locks: ProviderLock
) -> AsyncIterator[TurnService]:
    """Open the turn service, feed its events to metrics and event log, and publish it in the runtime."""

    def on_event(turn: Turn, event: Event) -> None:
        runtime.metrics.record(event)
        runtime.event_log.on_turn_event(turn, event)
        observer.on_turn_event(turn, event)

    turn_service = new_turn_service(
        agent_service, locks, on_event, runtime.readiness.vendors, runtime.readiness.supervisor
    )
    if runtime.readiness.supervisor is not None:
        await turn_service.deps.agent_cache.warm()
    async with anyio.create_task_group() as tasks:

        def start_task(function: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
            # Turns that are ended by the stop of the backend are observed at its next start.
            if runtime.turn_service is not None:
                tasks.start_soon(function, *arguments)

        def reset_breaker(report: Report) -> None:
            # Failures with the former key say nothing about the new one.
            for provider in report.configured:
                if provider.proof is not Proof.FAILED and provider.action in WRITE_ACTIONS:
                    turn_service.deps.breaker.forgive(provider.name)

        runtime.readiness.on_sync.append(reset_breaker)
        await tasks.start(locks.watch)
        observer = MemoryObserver(agent_service, start_task)
        tasks.start_soon(observer.begin)
        runtime.turn_service, runtime.request_registry = turn_service, RequestRegistry(turn_service, tasks)
        try:
            yield turn_service
        finally:
            runtime.turn_service = runtime.request_registry = None
            runtime.readiness.on_sync.remove(reset_breaker)
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def run_watcher(
    readiness: Readiness,
    settings: Settings,
    actions: WatchActions,
    models: ModelCatalog,
    *,
    schedule: Schedule | None = None,
    on_event: WatchListener = lambda _event: None,
) -> AsyncIterator[Watcher]:
    """Run the watcher in the background; pass its reports to `readiness`, and its provider keys to `models`."""

    def handle(event: WatchEvent) -> None:
        for sentence in log_sentences(event):
            (log.warning if sentence.warning else log.info)(sentence.text)
        match event:
            case Synced(report=report, part=part):
                readiness.record(report, part, quiet=True)
                _update_keys(models, watcher, report)
            case ModelsRefreshed(refresh=model_refresh):
                readiness.record_model_refresh(model_refresh)
        on_event(event)

    watcher = Watcher(settings, actions, handle, report=readiness.report, schedule=schedule)
    async with anyio.create_task_group() as tasks:
        with audit.acting(audit.Actor(audit.ActorKind.WATCHER)):
            tasks.start_soon(watcher.run)
        yield watcher
        tasks.cancel_scope.cancel()


def _update_keys(models: ModelCatalog, watcher: Watcher, report: Report) -> None:
    """Give the model catalog the keys that Letta holds now.

    A provider that is not proven keeps its former key, unless it no longer has one.
    """
    try:
        # The settings of the sync: a key file may have changed again since.
        desired = desired_providers(watcher.settings)
    except ConfigurationError:
        # `isabella.toml` is being written at this moment.
        desired = watcher.desired
    proven = {entry.name for entry in report.configured if entry.proof is Proof.PROVEN}
    former = {provider.name: provider for provider in models.providers}
    models.renew(
        former[provider.name]
        if provider.configured and provider.name not in proven and provider.name in former
        else provider
        for provider in desired
    )


@asynccontextmanager
async def run_reflection(agent_service: AgentService, turn_service: TurnService) -> AsyncIterator[None]:
    """Run reflections in the background, as turns; edits of memory wait for the turns in progress."""
    agent_service.memory.hold = lambda agent_id: turn_service.queue.take(agent_id).reached()
    send = send_as_turn(turn_service)
    async with anyio.create_task_group() as tasks:
        with audit.acting(audit.Actor(audit.ActorKind.JOB, "reflection")):
            leading = partial(leads, turn_service.deps.gate.advisory, "reflection")
            tasks.start_soon(_reflect_forever, agent_service, send, agent_service.settings.reflect_after, leading)
        yield
        tasks.cancel_scope.cancel()


def send_as_turn(turn_service: TurnService) -> SendMessage:
    """Return a function that sends a message to an agent in a separate turn, with queue, locks and failover."""

    async def send(agent_id: str, text: str) -> None:
        turn = await turn_service.open(agent_id, text)
        why, end = "", EndReason.BROKEN
        async with aclosing(turn.events()) as events:
            async for event in events:
                if isinstance(event, TurnFailed):
                    why = event.message
                if isinstance(event, Ended):
                    end = event.reason
        if end not in (EndReason.COMPLETED, EndReason.MAX_STEPS, EndReason.LENGTH):
            raise TurnError(
                english(
                    "The turn ended with `%(end)s`: %(reason)s.",
                    end=end.value,
                    reason=why or english("no reason is known"),
                )
            )

    return send


async def _reflect_forever(
    agent_service: AgentService, send: SendMessage, idle_seconds: float, leading: Callable[[], Awaitable[bool]]
) -> None:
    """Reflect from time to time, as long as this backend is the one that does it."""
    if idle_seconds <= 0:
        return
    usual = min(_REFLECTION_INTERVAL, max(1.0, idle_seconds / 4))
    pause = usual
    while True:
        await anyio.sleep(pause)
        try:
            if await leading():
                await _reflect_once(agent_service, send, idle_seconds)
            pause = usual
        except IsabellaError as error:
            # The next reflection reads the same messages again. The pause grows, so that a vendor that refuses is
            # not asked every minute.
            pause = min(pause * 2, _LONGEST_REFLECTION_PAUSE)
            sentence = english(
                "The reflection failed, and is retried in %(seconds)s s: %(what)s",
                seconds=format(pause, ".0f"),
                what=error.what,
            )
            log.warning("reflection failed", error=error.what, again_in=pause, sentence=sentence)


async def _reflect_once(agent_service: AgentService, send: SendMessage, idle_seconds: float) -> None:
    reflecting = [one for one in agent_service.definitions if one.reflects_on is not None]
    for agent in await agent_service.registry.defined(reflecting):
        result = await reflect(agent_service, agent, send, quiet_for=idle_seconds)
        if result.outcome is ReflectionOutcome.DONE:
            log.info(
                "reflected",
                agent=agent.name,
                read=result.read,
                archived=result.archived,
                restored=list(result.restored),
                sentence=f"{agent.name}: read {result.read} messages, and archived {result.archived} facts",
            )
