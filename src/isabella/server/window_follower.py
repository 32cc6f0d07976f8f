"""Agents whose models got another context window: while the backend runs, they follow it between two of their turns.

A local server is restarted with another window, a vendor changes its list, or `isabella.toml` is edited.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import structlog

from isabella.agents.registry import AgentRecord
from isabella.agents.service import AgentService
from isabella.errors import IsabellaError
from isabella.letta.llm_config import Binding
from isabella.server.event_log import EventLog
from isabella.system import audit
from isabella.system.english import english
from isabella.turns.queue import TurnQueue
from isabella.vendors.client import VendorAnswer

log = structlog.get_logger()

#: How often the vendors are asked for their lists.
_INTERVAL = 300.0


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
    """Look at the windows when a vendor has listed its models, when the configuration has changed, and regularly."""
    follower = _WindowFollower(agent_service, queue, events)
    async with anyio.create_task_group() as tasks:
        with audit.acting(audit.Actor(audit.ActorKind.JOB, "models' windows")):
            tasks.start_soon(follower.run)
        yield
        tasks.cancel_scope.cancel()


class _WindowFollower:
    def __init__(self, agent_service: AgentService, queue: TurnQueue, events: EventLog) -> None:
        self._service = agent_service
        self._queue = queue
        self._events = events
        self._changed = asyncio.Event()
        self._ask = False
        self._listens = agent_service.models.on_event
        self._former: Mapping[str, int] = {}
        self._limits: Mapping[str, int] = {}

    async def run(self) -> None:
        """Follow until cancelled."""
        models = self._service.models
        self._limits = await models.limits(ask=False)
        models.on_event, models.on_renewed = self._on_answer, self._on_renewed
        while True:
            with anyio.move_on_after(_INTERVAL) as waited:
                await self._changed.wait()
            ask, self._ask = self._ask or waited.cancelled_caught, False
            self._changed.clear()
            try:
                self._former, self._limits = self._limits, await models.limits(ask=ask)
                for record in await self._service.registry.overview():
                    if self._wanted(record) is not None:
                        await self._bind(record.id)
            except IsabellaError as error:
                log.info("windows not followed", error=error.what)

    def _on_answer(self, provider: str, answer: VendorAnswer) -> None:
        self._listens(provider, answer)
        self._changed.set()

    def _on_renewed(self) -> None:
        self._ask = True
        self._changed.set()

    def _wanted(self, record: AgentRecord) -> Binding | None:
        binding = followed(record, self._former, self._limits)
        if binding is None or record.binding is None:
            return None
        window = self._service.models.capped(binding.provider, binding.model, binding.window)
        return None if window == record.binding.window else replace(binding, window=window)

    async def _bind(self, agent_id: str) -> None:
        async with self._queue.take(agent_id).reached():
            # A turn binds its agent to other vendors, so it is read again.
            record = await self._service.registry.get(agent_id)
            binding = self._wanted(record)
            if binding is None:
                return
            with audit.change("agent.window", record.name, model=binding.handle, tokens=binding.window):
                await self._service.registry.bind(record.id, binding)
        log.info("window followed", agent=record.name, handle=binding.handle, tokens=binding.window)
        sentence = english(
            "%(handle)s has a window of %(tokens)s tokens, which %(agent)s uses now.",
            handle=binding.handle,
            tokens=binding.window,
            agent=record.name,
        )
        self._events.add_notice(sentence, binding.provider)
