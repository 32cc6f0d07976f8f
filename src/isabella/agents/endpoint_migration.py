"""Agents go along with their provider to another address, over REST (`providers/followers.py` says why)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from isabella.agents.bindings import point_to
from isabella.errors import LettaBroken, LettaError, LettaRefused
from isabella.letta.client import LettaClient, open_sdk_client
from isabella.letta.connection import Connection
from isabella.letta.llm_config import LlmConfig
from isabella.letta.providers import LettaProviders
from isabella.providers.bound_agents import MovedAgent, Note
from isabella.system.tasks import gather

if TYPE_CHECKING:
    from isabella.letta.llm_config import LlmConfig

_AT_ONCE = 8
#: A turn that is just ending may bind its agent back to what was true when it looked.
_PASSES = 3


async def list_llm_configs(connection: Connection) -> list[LlmConfig]:
    """What every agent speaks through.

    Raises:
        LettaError: they cannot be listed as a whole.
    """
    async with _opened(connection) as wire:
        return [*(await _everybody(wire)).values()]


async def move_agents(connection: Connection, provider: str, base_url: str, note: Note) -> None:
    """Have every agent of a provider call this address, with nothing else about it changed.

    Args:
        connection: which Letta.
        provider: its name in Letta.
        base_url: where its vendor answers now.
        note: is told of each agent before it is changed.

    Raises:
        LettaError: they cannot be listed, or some of them cannot be changed; all others have been.
    """
    trouble: dict[str, LettaError] = {}
    async with _opened(connection) as wire:

        def told(row: Mapping[str, Any], former: str | None) -> None:
            note(MovedAgent(row["id"], str(row.get("name") or row["id"]), former))

        async def one(agent_id: str) -> None:
            async with _noted(trouble, agent_id):
                await point_to(wire, agent_id, provider, base_url, told)

        async def behind() -> list[str]:
            found = await _everybody(wire)
            return [id for id, llm in found.items() if id not in trouble and llm.strays_from(provider, base_url)]

        for _ in range(_PASSES):
            if not (left := await behind()):
                break
            await gather([partial(one, agent_id) for agent_id in left], at_once=_AT_ONCE)
        else:
            # An answer is no proof of a change; only this is.
            if left := await behind():
                raise LettaBroken(f"Letta has agents call another address again and again: {left[0]}.")
    for error in trouble.values():
        raise error


async def restore_agents(connection: Connection, provider: str, moved: Sequence[MovedAgent]) -> None:
    """Have these agents call what they called before.

    Raises:
        LettaError: some may still call the other address; all others have been sent back.
    """
    trouble: dict[str, LettaError] = {}
    async with _opened(connection) as wire:

        async def one(agent: MovedAgent) -> None:
            async with _noted(trouble, agent.id):
                await point_to(wire, agent.id, provider, agent.former)

        calls: list[Callable[[], Awaitable[None]]] = [partial(one, agent) for agent in moved]
        await gather(calls, at_once=_AT_ONCE)
    for error in trouble.values():
        raise error


@asynccontextmanager
async def _opened(connection: Connection) -> AsyncIterator[LettaClient]:
    async with open_sdk_client(connection) as client:
        yield LettaClient(client)


async def _everybody(wire: LettaClient) -> dict[str, LlmConfig]:
    """All agents by id, without blocks, tools and tags: of a thousand agents those take Letta most of the time.

    Those that Letta hides speak as all others do.
    """
    rows = await wire.every("/v1/agents/", order_by="created_at", include_relationships="", show_hidden_agents="true")
    return {row["id"]: LlmConfig.of(config) for row in rows if (config := row.get("llm_config"))}


@asynccontextmanager
async def _noted(trouble: dict[str, LettaError], agent_id: str) -> AsyncIterator[None]:
    """What goes wrong with one agent holds up no other. One that is gone calls nobody any more."""
    try:
        yield
    except LettaError as error:
        if not (isinstance(error, LettaRefused) and error.status == 404):
            trouble[agent_id] = error


class LettaBoundAgents:
    """Those of a Letta server.

    Args:
        connection: which Letta.
        store: the same, open; it counts agents, which costs next to nothing.
    """

    def __init__(self, connection: Connection, store: LettaProviders) -> None:
        self._connection = connection
        self._store = store
        self._lock = anyio.Lock()
        self._engines: list[LlmConfig] | None = None

    async def astray(self, provider: str, base_url: str) -> bool:
        """Whether any agent of this provider calls another address, as it was when this was first asked."""
        async with self._lock:
            if self._engines is None:
                self._engines = await self._look()
            return any(llm.strays_from(provider, base_url) for llm in self._engines)

    async def follow(self, provider: str, base_url: str, note: Note) -> None:
        """Have every agent of this provider call this address."""
        await move_agents(self._connection, provider, base_url, note)

    async def send_back(self, provider: str, moved: Sequence[MovedAgent]) -> None:
        """Have these agents call what they called before."""
        await restore_agents(self._connection, provider, moved)

    async def _look(self) -> list[LlmConfig]:
        if await self._store.count_agents() == 0:
            return []

        return await list_llm_configs(self._connection)
