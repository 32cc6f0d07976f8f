"""Reflecting while nobody speaks, for as long as the backend lives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import anyio
import structlog

from isabella.agents.agency import AgentService
from isabella.agents.memory import Hold
from isabella.agents.reflection import ReflectionOutcome, Say, reflect
from isabella.errors import IsabellaError, TurnError
from isabella.turns.desk import TurnService
from isabella.turns.events import Ended, Reason, TurnFailed

log = structlog.get_logger()

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
