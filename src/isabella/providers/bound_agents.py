"""The agents that are bound to a provider, and how they move to its new base URL.

Letta sends a provider's key to the base URL in the agent (fact M6), not to the one in the provider. So no key is
written while an agent of its provider has another base URL than the key is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import anyio

from isabella.errors import LettaBroken, LettaError, LettaRefused
from isabella.letta.agents import AgentRow
from isabella.letta.client import LettaClient
from isabella.providers.safe_writes import SafeWriter
from isabella.system.english import english
from isabella.system.tasks import gather

_CONCURRENCY = 8
#: A turn that ends at this moment may bind its agent to the former base URL again.
_PASSES = 3


@dataclass(frozen=True)
class MovedAgent:
    """An agent whose base URL changes; `former` is the one before."""

    id: str
    name: str
    former: str | None


#: Is called with an agent before it is changed, because the answer to that request may be lost.
Note = Callable[[MovedAgent], None]


class BoundAgents(Protocol):
    """The agents of one Letta."""

    async def any_elsewhere(self, provider: str, base_url: str) -> bool:
        """Return whether any agent of this provider had another base URL when this was first asked."""

    async def move_to(self, provider: str, base_url: str, note: Note) -> None:
        """Change the base URL of every agent of this provider; raise `LettaError` if some could not be changed."""

    async def move_back(self, provider: str, moved: Sequence[MovedAgent]) -> None:
        """Restore the former base URL of these agents; raise `LettaError` if any failed."""


@dataclass(frozen=True)
class AgentMoves:
    """The agents that were moved with a provider."""

    moved: tuple[MovedAgent, ...] = ()  #: the agents with the new base URL; if `error` is set, those that may have it
    error: LettaError | None = None  #: why some agents may still have the former one


class AgentMover:
    """Moves the agents of providers, as patiently as `writer`, and remembers which ones it moved in this run."""

    def __init__(self, agents: BoundAgents | None, writer: SafeWriter) -> None:
        self._agents = agents
        self._writer = writer
        #: By provider and agent id. Kept for the whole run: an update that fails may be followed by a put-back.
        self._moved: dict[str, dict[str, MovedAgent]] = {}

    async def any_elsewhere(self, provider: str, base_url: str) -> bool:
        """Return whether any agent of the provider has another base URL."""
        return self._agents is not None and await self._agents.any_elsewhere(provider, base_url)

    async def move(self, provider: str, base_url: str) -> AgentMoves:
        """Change the base URL of the provider's agents. Return all agents that were moved in this run.

        Called while Letta holds no key that an agent could send elsewhere, and again after the key was written: an
        agent that is bound in between gets the placeholder base URL.
        """
        if self._agents is None:
            return AgentMoves()
        agents, moved = self._agents, self._moved.setdefault(provider, {})

        def note(agent: MovedAgent) -> None:
            # If an agent is changed more than once, its first base URL is the former one.
            moved.setdefault(agent.id, agent)

        error: LettaError | None = None
        try:
            await self._writer.patiently(lambda: agents.move_to(provider, base_url, note))
        except LettaError as failure:
            error = failure
        return AgentMoves(tuple(moved.values()), error)

    async def move_back(self, provider: str, moved: Sequence[MovedAgent]) -> None:
        """Restore the former base URL of agents; raise `LettaError` if some may still have the other one."""
        if moved and self._agents is not None:
            agents = self._agents
            await self._writer.patiently(lambda: agents.move_back(provider, moved))


class LettaBoundAgents:
    """The agents of a Letta server."""

    def __init__(self, letta: LettaClient) -> None:
        self._letta = letta
        self._lock = anyio.Lock()
        self._first: list[AgentRow] | None = None

    async def any_elsewhere(self, provider: str, base_url: str) -> bool:
        """Return whether any agent of this provider has another base URL, according to the first list of agents."""
        async with self._lock:
            if self._first is None:
                # To count agents costs Letta next to nothing.
                self._first = await self._all() if await self._letta.agents.count() else []
            return any(row.llm is not None and row.llm.calls_elsewhere(provider, base_url) for row in self._first)

    async def move_to(self, provider: str, base_url: str, note: Note) -> None:
        """Change the base URL of every agent of this provider. One that fails does not stop the others."""
        failed: dict[str, LettaError] = {}

        def before(row: AgentRow) -> None:
            note(MovedAgent(row.id, row.name or row.id, None if row.llm is None else row.llm.endpoint))

        async def left_behind() -> list[str]:
            return [
                row.id
                for row in await self._all()
                if row.id not in failed and row.llm is not None and row.llm.calls_elsewhere(provider, base_url)
            ]

        for _ in range(_PASSES):
            if not (behind := await left_behind()):
                break
            failed |= await self._point(provider, dict.fromkeys(behind, base_url), before)
        else:
            # The response to a change does not prove it; only the list is.
            if behind := await left_behind():
                raise LettaBroken(
                    english("Letta keeps pointing agents at another address: %(url)s.", url=behind[0]),
                    remedy=english("Stop the program that changes these agents, then sync again."),
                )
        for error in failed.values():
            raise error

    async def move_back(self, provider: str, moved: Sequence[MovedAgent]) -> None:
        """Restore the former base URL of these agents. One that fails does not stop the others."""
        failed = await self._point(provider, {agent.id: agent.former for agent in moved})
        for error in failed.values():
            raise error

    async def _point(
        self,
        provider: str,
        base_urls: Mapping[str, str | None],
        before: Callable[[AgentRow], None] = lambda _row: None,
    ) -> dict[str, LettaError]:
        """Set the base URL of each agent by id, and return the errors. An agent that was deleted is not an error."""
        failed: dict[str, LettaError] = {}

        async def point(agent_id: str, base_url: str | None) -> None:
            try:
                await self._letta.agents.point_to(agent_id, provider, base_url, before)
            except LettaError as error:
                if not (isinstance(error, LettaRefused) and error.status == 404):
                    failed[agent_id] = error

        await gather([partial(point, *target) for target in base_urls.items()], at_once=_CONCURRENCY)
        return failed

    async def _all(self) -> list[AgentRow]:
        """Return all agents, hidden ones included: those use their provider as well."""
        return await self._letta.agents.all(hidden=True)
