"""The agents of one Letta, for a sync. The official SDK is loaded only where there is an agent to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio

from isabella.connection import Connection
from isabella.providers.followers import MovedAgent, Note
from isabella.stores.letta_server import LettaProviders

if TYPE_CHECKING:
    from isabella.agents.engine import LlmConfig


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
            return any(engine.strays_from(provider, base_url) for engine in self._engines)

    async def follow(self, provider: str, base_url: str, note: Note) -> None:
        """Have every agent of this provider call this address."""
        from isabella.agents.following import move_agents

        await move_agents(self._connection, provider, base_url, note)

    async def send_back(self, provider: str, moved: Sequence[MovedAgent]) -> None:
        """Have these agents call what they called before."""
        from isabella.agents.following import restore_agents

        await restore_agents(self._connection, provider, moved)

    async def _look(self) -> list[LlmConfig]:
        if await self._store.count_agents() == 0:
            return []
        from isabella.agents.following import list_llm_configs

        return await list_llm_configs(self._connection)
