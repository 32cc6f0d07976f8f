"""Reflecting while nobody speaks, for as long as the backend lives."""

from __future__ import annotations

import anyio
import structlog

from isabella.agents.agency import Agency
from isabella.agents.reflection import Outcome, Say, reflect
from isabella.errors import IsabellaError

log = structlog.get_logger()

_LOOK_EVERY = 60.0
_LONGEST_PAUSE = 3600.0


async def keep_reflecting(agency: Agency, say: Say, *, after: float) -> None:
    """Let every agent that reflects do so when nothing has been said for a while. Ends when it is cancelled.

    Args:
        agency: the agents.
        say: says something to an agent, by its id, in its order.
        after: seconds of silence; 0 for never.
    """
    if after <= 0:
        return
    usual = min(_LOOK_EVERY, max(1.0, after / 4))
    pause = usual
    while True:
        await anyio.sleep(pause)
        try:
            for resident in await agency.residents.all():
                if resident.definition is None or resident.definition.reflects_on is None:
                    continue
                done = await reflect(agency, resident, say, quiet_for=after)
                if done.outcome is Outcome.DONE:
                    log.info("reflected", agent=resident.name, read=done.read, archived=done.archived)
            pause = usual
        except IsabellaError as error:
            # What was said is read again next time; a vendor that refuses is not asked every minute.
            pause = min(pause * 2, _LONGEST_PAUSE)
            log.warning("reflection failed", error=error.what, again_in=pause)
