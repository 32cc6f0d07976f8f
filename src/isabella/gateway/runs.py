"""Ends requests whose turn is over at Letta.

Letta stops reading the answer of a turn that was cancelled, but never closes its connection to the vendor, which goes
on generating (fact G1). So the gateway looks whether the runs of its requests are still active.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import structlog

from isabella.errors import IsabellaError
from isabella.gateway.traffic import Traffic
from isabella.letta.client import Connection, LettaClient

log = structlog.get_logger()

_INTERVAL = 0.4
_LETTA_SECONDS = 5.0
#: The latest runs of an agent that are looked at.
_LATEST = 5
_ACTIVE = ("created", "running")


class RunMonitor:
    """Compares the requests that are under way with Letta's runs.

    Args:
        traffic: the requests.
        find: finds the Letta; raises `IsabellaError` if there is none now.
    """

    def __init__(self, traffic: Traffic, find: Callable[[], Awaitable[Connection]]) -> None:
        self._traffic = traffic
        self._find = find

    async def run(self) -> None:
        """Look every 0.4 s, as long as requests are under way, until cancelled."""
        while True:
            await anyio.sleep(_INTERVAL)
            if not self._waiting():
                continue
            try:
                async with LettaClient.open(await self._find(), timeout=_LETTA_SECONDS) as letta:
                    await self._watch(letta)
            except IsabellaError as error:
                # Letta's own end closes its connections.
                log.info("runs not read", error=error.what)

    async def _watch(self, letta: LettaClient) -> None:
        while began := self._waiting():
            active = {str(run.get("agent_id")) for run in await letta.messages.active_runs()}
            for agent in began.keys() - active:
                if _is_over(await letta.messages.latest_runs(agent, _LATEST), began[agent]):
                    log.info("turn over", agent=agent, ended=self._traffic.end(agent))
            await anyio.sleep(_INTERVAL)

    def _waiting(self) -> dict[str, float]:
        """Return the agents with requests under way, and when the first of each began."""
        began: dict[str, float] = {}
        now = time.time()
        for call in self._traffic.calls:
            if call.agent is not None and not call.over and now - call.began >= _INTERVAL:
                began[call.agent] = min(call.began, began.get(call.agent, call.began))
        return began


def _is_over(runs: list[dict[str, Any]], began: float) -> bool:
    """Return whether no run is active, and one ended after the request began.

    A request that belongs to no run, such as one for a requested summary, is left alone.
    """
    if any(run.get("status") in _ACTIVE for run in runs):
        return False
    return any(_seconds(run.get("completed_at")) > began for run in runs)


def _seconds(text: object) -> float:
    """Return a time of Letta's in seconds since the epoch; 0 if there is none."""
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return 0.0
    # Letta leaves the time zone out of some times, which are nevertheless UTC.
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
