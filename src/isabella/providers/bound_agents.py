"""The agents that speak through a provider, as far as its address concerns them.

Letta sends the key that is stored for a provider to the address that stands in the agent (fact M6), not to the one
that stands in the provider. So no key is written while an agent of its provider calls another address than the key
is for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import anyio

from isabella.errors import LettaBroken, LettaError, LettaRefused
from isabella.letta.agents import AgentRow
from isabella.letta.client import LettaClient
from isabella.system.tasks import gather

_AT_ONCE = 8
#: A turn that ends at this moment may bind its agent to the former base URL again.
_PASSES = 3


@dataclass(frozen=True)
class MovedAgent:
    """An agent that is to call another address.

    Attributes:
        id: Letta's id of it.
        name: what it is called.
        former: the address that it called before.
    """

    id: str
    name: str
    former: str | None


#: Is told of an agent before it is changed, because the answer to that may be lost.
Note = Callable[[MovedAgent], None]


class BoundAgents(Protocol):
    """The agents of one Letta."""

    async def astray(self, provider: str, base_url: str) -> bool:
        """Whether any agent of this provider calls another address, as it was when this was first asked.

        Raises:
            LettaError: they cannot be looked at.
        """

    async def follow(self, provider: str, base_url: str, note: Note) -> None:
        """Have every agent of this provider call this address, with nothing else about it changed.

        Raises:
            LettaError: some may still call another one; all that could be changed have been.
        """

    async def send_back(self, provider: str, moved: Sequence[MovedAgent]) -> None:
        """Have these agents call what they called before.

        Raises:
            LettaError: some may still call the other address; all that could be changed have been.
        """


class LettaBoundAgents:
    """The agents of a Letta server.

    Args:
        letta: an open client of that server.
    """

    def __init__(self, letta: LettaClient) -> None:
        self._letta = letta
        self._lock = anyio.Lock()
        self._first: list[AgentRow] | None = None

    async def astray(self, provider: str, base_url: str) -> bool:
        """Return whether an agent of this provider calls another base URL, according to the first list of agents."""
        async with self._lock:
            if self._first is None:
                # To count agents costs Letta next to nothing.
                self._first = await self._all() if await self._letta.agents.count() else []
            return any(row.llm is not None and row.llm.calls_elsewhere(provider, base_url) for row in self._first)

    async def follow(self, provider: str, base_url: str, note: Note) -> None:
        """Have every agent of this provider call this base URL. One that fails does not stop the others."""
        failed: dict[str, LettaError] = {}

        def before(row: AgentRow) -> None:
            note(MovedAgent(row.id, row.name or row.id, None if row.llm is None else row.llm.endpoint))

        async def move(agent_id: str) -> None:
            async with _collected(failed, agent_id):
                await self._letta.agents.point_to(agent_id, provider, base_url, before)

        async def left_behind() -> list[str]:
            return [
                row.id
                for row in await self._all()
                if row.id not in failed and row.llm is not None and row.llm.calls_elsewhere(provider, base_url)
            ]

        for _ in range(_PASSES):
            if not (behind := await left_behind()):
                break
            await gather([partial(move, agent_id) for agent_id in behind], at_once=_AT_ONCE)
        else:
            # The response to a change is no proof of it; only the list is.
            if behind := await left_behind():
                raise LettaBroken(f"Letta has agents call another address again and again: {behind[0]}.")
        for error in failed.values():
            raise error

    async def send_back(self, provider: str, moved: Sequence[MovedAgent]) -> None:
        """Have these agents call their former base URLs. One that fails does not stop the others."""
        failed: dict[str, LettaError] = {}

        async def move(agent: MovedAgent) -> None:
            async with _collected(failed, agent.id):
                await self._letta.agents.point_to(agent.id, provider, agent.former)

        calls: list[Callable[[], Awaitable[None]]] = [partial(move, agent) for agent in moved]
        await gather(calls, at_once=_AT_ONCE)
        for error in failed.values():
            raise error

    async def _all(self) -> list[AgentRow]:
        """Return all agents, hidden ones included: those use their provider as well."""
        return await self._letta.agents.all(hidden=True)


@asynccontextmanager
async def _collected(failed: dict[str, LettaError], agent_id: str) -> AsyncIterator[None]:
    """Keep the error of one agent for later. An agent that was deleted is no error."""
    try:
        yield
    except LettaError as error:
        if not (isinstance(error, LettaRefused) and error.status == 404):
            failed[agent_id] = error
