"""Turns for as long as the backend lives: opened after the agents, and handed to the routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI

from isabella.agents.agency import AgentService
from isabella.backend.metrics import Metrics
from isabella.backend.repeats import RequestRegistry
from isabella.gate import TurnLocks
from isabella.providers.plan import WRITES
from isabella.providers.report import Proof, Report
from isabella.turns.desk import TurnService, open_turn_service
from isabella.turns.events import Event
from isabella.turns.turn import Turn


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
