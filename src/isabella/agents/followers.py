"""The agents of one Letta, for a sync. The official SDK is loaded only where there is an agent to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio

from isabella.connection import Connection
from isabella.providers.followers import Moved, Note
from isabella.stores.letta_server import LettaServer

if TYPE_CHECKING:
    from isabella.agents.engine import Engine


class LettaFollowers:
    """Those of a Letta server.

    Args:
        connection: which Letta.
        store: the same, open; it counts agents, which costs next to nothing.
    """

    def __init__(self, connection: Connection, store: LettaServer) -> None:
        self._connection = connection
        self._store = store
        self._lock = anyio.Lock()
        self._engines: list[Engine] | None = None

    async def astray(self, provider: str, base_url: str) -> bool:
        """Whether any agent of this provider calls another address, as it was when this was first asked."""
        async with self._lock:
            if self._engines is None:
                self._engines = await self._look()
            return any(engine.strays_from(provider, base_url) for engine in self._engines)

    async def follow(self, provider: str, base_url: str, note: Note) -> None:
        """Have every agent of this provider call this address."""
        from isabella.agents.following import follow

        await follow(self._connection, provider, base_url, note)

    async def send_back(self, provider: str, moved: Sequence[Moved]) -> None:
        """Have these agents call what they called before."""
        from isabella.agents.following import send_back

        await send_back(self._connection, provider, moved)

    async def _look(self) -> list[Engine]:
        if await self._store.count_agents() == 0:
            return []
        from isabella.agents.following import engines

        return await engines(self._connection)
