"""Runs and answers that other backends, or an earlier process of this one, have left at Letta.

Letta continues a run whose client has gone (measured on 0.16.8). If a backend is killed in a turn, its lock in
Postgres ends with it, and the next turn of the agent, in another backend or after a restart, would overlap with that
run. A run whose Letta was killed stays active for ever. So before a turn the active runs of its agent are waited for,
and then ended: by several backends before every turn, by a single one before the first turn of each agent.

The client of the killed backend may send its request again, with the same `Idempotency-Key`, to another backend. The
id of the request is stored with the message, as Letta's `otid`, so the answer is found there.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import structlog

from isabella.errors import LettaRefused
from isabella.letta.client import LettaClient
from isabella.system.peers import Peer
from isabella.system.processes import ChildProcess
from isabella.turns.events import AnswerText

log = structlog.get_logger()

_LOOK_EVERY = 0.25
#: Letta notices a cancelled run with the vendor's next chunk.
_END_SECONDS = 1.0
#: A repeated request finds its message among the latest rows of the history.
_LATEST = 100


async def end_runs(
    letta: LettaClient,
    agent_id: str,
    *,
    wait: float,
    alive_since: float = 0.0,
    on_wait: Callable[[], Awaitable[None]] | None = None,
    end_calls: Callable[[str], Awaitable[None]] | None = None,
) -> None:
    """Wait `wait` seconds for the active runs of an agent, then cancel them; the caller holds the agent's lock.

    Runs that began before `alive_since`, a Unix time, are not waited for: the Letta that had them has ended.
    `on_wait` is called if there are any to wait for; `end_calls` ends the requests of all at the vendor. Raises
    `LettaError`.
    """
    deadline = time.monotonic() + wait
    while runs := await letta.messages.active_runs_of(agent_id):
        if time.monotonic() >= deadline or all(run.began is not None and run.began < alive_since for run in runs):
            break
        if on_wait is not None:
            await on_wait()
            on_wait = None
        await anyio.sleep(_LOOK_EVERY)
    if not runs:
        return
    for run in runs:
        sentence = f"The run {run.id} of an earlier turn was cancelled."
        log.warning("run ended", agent=agent_id, run=run.id, sentence=sentence)
        try:
            await letta.messages.cancel(agent_id, run.id)
        except LettaRefused:
            # 409: it has ended meanwhile.
            log.info("nothing cancelled", agent=agent_id, run=run.id)
    if end_calls is not None:
        await end_calls(agent_id)
    await anyio.sleep(_END_SECONDS)


class FirstTurns:
    """The turns before which a single backend looks for runs: the first one of each agent after a start.

    A backend ends the runs of its own turns. Those of an earlier process of it, and those of a Letta that was killed,
    are found by the first turn of their agent after the start of the backend or of Letta. Later turns cost nothing.

    Args:
        peer: identifies the process of Letta.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._looked: dict[str, ChildProcess | None] = {}

    @property
    def alive_since(self) -> float:
        """The Unix time at which the present process of Letta was started; 0 if it is not known."""
        return 0.0 if self._peer.verified is None else self._peer.verified.started

    def is_next(self, agent_id: str) -> bool:
        """Return whether no turn of the agent has looked yet."""
        return agent_id not in self._looked or self._looked[agent_id] != self._peer.verified

    def note(self, agent_id: str) -> None:
        """Record that a turn of the agent has looked."""
        self._looked[agent_id] = self._peer.verified


@dataclass(frozen=True)
class EarlierTurn:
    """An earlier turn in the history whose request is repeated, with its answer, which may be incomplete."""

    answer: tuple[AnswerText, ...]


async def earlier_turn(
    letta: LettaClient, agent_id: str, request_id: str, conversation: str | None
) -> EarlierTurn | None:
    """Return the turn with the message of this request; None if it is not in the history. Raises `LettaError`."""
    rows = await letta.messages.page(agent_id, limit=_LATEST, order="desc", conversation_id=conversation or "default")
    return found_turn(rows, request_id)


def found_turn(rows: Sequence[dict[str, Any]], request_id: str) -> EarlierTurn | None:
    """Return the turn with the message of this request in rows of the history, the oldest first. Pure."""
    at = next((index for index, row in enumerate(rows) if _is_message(row) and row.get("otid") == request_id), None)
    if at is None:
        return None
    answer = []
    for row in rows[at + 1 :]:
        if _is_message(row):
            break
        if row.get("message_type") == "assistant_message" and isinstance(row.get("content"), str):
            answer.append(AnswerText(row["content"], str(row.get("id"))))
    return EarlierTurn(tuple(answer))


def _is_message(row: dict[str, Any]) -> bool:
    return row.get("message_type") == "user_message"
