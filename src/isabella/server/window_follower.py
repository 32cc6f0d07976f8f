"""Agents whose models got another context window: while the backend runs, they follow it between two of their turns.

A local server is restarted with another window, a vendor changes its list, `isabella.toml` is edited, or the gateway
has learned that the vendor takes less in one request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import anyio
import structlog
from anyio.abc import TaskGroup

from isabella.agents.registry import AgentRecord
from isabella.agents.service import AgentService
from isabella.errors import IsabellaError, LettaUnreachable
from isabella.letta.llm_config import Binding
from isabella.server.event_log import EventLog
from isabella.system import audit
from isabella.system.english import english
from isabella.turns.queue import TurnQueue
from isabella.vendors.client import VendorAnswer

log = structlog.get_logger()

#: How often the vendors are asked for their lists.
_INTERVAL = 300.0
#: The pause after Letta has failed.
_RETRY_SECONDS = 5.0
#: The most agents that are being bound, or whose turns are waited for, at once.
_AT_ONCE = 4
#: How long Letta, one process for all turns, is left to them after an agent, in times of what its binding took.
_REST = 1.0


def followed(record: AgentRecord, former: Mapping[str, int], limits: Mapping[str, int]) -> Binding | None:
    """Return the binding of an agent whose model has another window by now; None if its own is right. Pure.

    A window that is smaller than the model's was chosen, unless it is just the one that the model had before.
    """
    binding = record.binding
    limit = None if binding is None else limits.get(binding.handle)
    if binding is None or limit is None:
        return None
    chosen = None if record.definition is None else record.definition.window
    most = min(limit, chosen or limit)
    grew = binding.window == former.get(binding.handle) and binding.window < most
    return replace(binding, window=most) if binding.window > most or grew else None


@asynccontextmanager
async def run_window_follower(agent_service: AgentService, queue: TurnQueue, events: EventLog) -> AsyncIterator[None]:
    """Look at the windows when a vendor has listed its models, or the limits have changed, and regularly."""
    async with anyio.create_task_group() as tasks:
        follower = _WindowFollower(agent_service, queue, events, tasks)
        with audit.acting(audit.Actor(audit.ActorKind.JOB, "models' windows")):
            tasks.start_soon(follower.run)
        yield
        tasks.cancel_scope.cancel()


class _WindowFollower:
    def __init__(self, agent_service: AgentService, queue: TurnQueue, events: EventLog, tasks: TaskGroup) -> None:
        self._service = agent_service
        self._queue = queue
        self._events = events
        self._tasks = tasks
        self._changed = asyncio.Event()
        self._ask = False
        models = agent_service.models
        self._listens = models.on_event
        models.on_event, models.on_renewed, models.on_capped = self._on_answer, self._on_renewed, self._changed.set
        self._limits: Mapping[str, int] = {}
        self._places = anyio.CapacityLimiter(_AT_ONCE)
        self._waiting: set[str] = set()  # the ids of agents whose turns are waited for
        self._binding = anyio.Lock()
        self._rested = 0.0  # when the next agent may be bound, on the clock of the event loop

    async def run(self) -> None:
        """Follow until cancelled."""
        self._limits = await self._service.models.limits(ask=False)
        while True:
            with anyio.move_on_after(_INTERVAL) as waited:
                await self._changed.wait()
            ask, self._ask = self._ask or waited.cancelled_caught, False
            self._changed.clear()
            try:
                await self._follow(ask=ask)
            except IsabellaError as error:
                log.info("windows not followed", error=error.what)
                self._tasks.start_soon(self._look_again)

    async def _look_again(self) -> None:
        await anyio.sleep(_RETRY_SECONDS)
        self._changed.set()

    async def _follow(self, *, ask: bool) -> None:
        limits = await self._service.models.limits(ask=ask)
        records = await self._service.registry.overview()
        wanted = partial(self._wanted, self._limits, limits)
        self._limits = limits
        in_use = self._queue.in_use
        # Agents in use come first: their next requests may be too large for the vendor.
        for record in sorted(records, key=lambda record: record.id not in in_use):
            if record.id not in self._waiting and wanted(record) is not None:
                self._waiting.add(record.id)
                self._tasks.start_soon(self._bind, record.id, wanted)

    def _on_answer(self, provider: str, answer: VendorAnswer) -> None:
        self._listens(provider, answer)
        self._changed.set()

    def _on_renewed(self) -> None:
        self._ask = True
        self._changed.set()

    def _wanted(self, former: Mapping[str, int], limits: Mapping[str, int], record: AgentRecord) -> Binding | None:
        if record.binding is None:
            return None
        binding = followed(record, former, limits) or record.binding
        window = self._service.models.capped(binding.provider, binding.model, binding.window)
        return None if window == record.binding.window else replace(binding, window=window)

    async def _bind(self, agent_id: str, wanted: Callable[[AgentRecord], Binding | None]) -> None:
        """Bind an agent to its new window between two of its turns: a turn binds its agent to other vendors."""
        try:
            async with self._places, self._queue.take(agent_id).reached():
                self._waiting.discard(agent_id)
                async with self._paced():
                    record = await self._service.registry.get(agent_id)
                    binding = wanted(record)
                    if binding is None:
                        return
                    with audit.change("agent.window", record.name, model=binding.handle, tokens=binding.window):
                        await self._service.registry.bind(record.id, binding)
        except IsabellaError as error:
            log.warning("window not changed", agent=agent_id, error=error.what)
            if isinstance(error, LettaUnreachable):
                self._tasks.start_soon(self._look_again)
            return
        finally:
            self._waiting.discard(agent_id)
        sentence = self._sentence(binding, record.name)
        log.info("window changed", agent=record.name, sentence=sentence)
        self._events.add_notice(sentence, binding.provider)

    @asynccontextmanager
    async def _paced(self) -> AsyncIterator[None]:
        """Bind one agent at a time, with pauses: a window may change for thousands of agents at once."""
        async with self._binding:
            await anyio.sleep_until(self._rested)
            began = anyio.current_time()
            try:
                yield
            finally:
                now = anyio.current_time()
                self._rested = now + _REST * (now - began)

    def _sentence(self, binding: Binding, agent: str) -> str:
        cap = self._service.models.cap_of(binding.provider, binding.model)
        if cap is not None and cap.tokens == binding.window:
            return english(
                "%(reason)s The context window of %(agent)s has %(tokens)s tokens now.",
                reason=cap.reason,
                agent=agent,
                tokens=cap.tokens,
            )
        return english(
            "%(handle)s has a window of %(tokens)s tokens, which %(agent)s uses now.",
            handle=binding.handle,
            tokens=binding.window,
            agent=agent,
        )
