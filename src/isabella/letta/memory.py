"""Letta's memory blocks and archival memory over REST."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isabella.errors import LettaRefused
from isabella.letta import paths
from isabella.letta.http import LettaHttp


class Blocks:
    """The memory blocks of one Letta. Every method raises `LettaError`."""

    def __init__(self, http: LettaHttp) -> None:
        self._http = http

    async def of_agent(self, agent_id: str) -> list[dict[str, Any]]:
        """Return the blocks that are attached to an agent."""
        return await self._http.list_all(paths.agent(agent_id, "core-memory", "blocks"))

    async def labelled(self, label: str) -> list[dict[str, Any]]:
        """Return up to a hundred blocks of one label, attached or not."""
        rows: list[dict[str, Any]] = await self._http.get(paths.BLOCKS, label=label, limit=100)
        return rows

    async def create(self, fields: Mapping[str, Any]) -> str:
        """Create a block that is attached to no agent, and return its id."""
        return str((await self._http.post(paths.BLOCKS, fields))["id"])

    async def update(self, block_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Change fields of a block and return it. A label may hold a slash, which Letta's route by label refuses."""
        row: dict[str, Any] = await self._http.patch(paths.block(block_id), fields)
        return row

    async def attach(self, agent_id: str, block_id: str) -> None:
        """Attach a block to an agent."""
        await self._http.patch(paths.agent(agent_id, "core-memory", "blocks", "attach", block_id), {})

    async def delete(self, block_id: str) -> None:
        """Delete a block."""
        await self._http.delete(paths.block(block_id))


class Passages:
    """The archival memory of agents. Every method raises `LettaError`."""

    def __init__(self, http: LettaHttp) -> None:
        self._http = http

    async def page(self, agent_id: str, *, limit: int, after: str | None = None) -> list[dict[str, Any]]:
        """Return passages of an agent, oldest first. Each row has its whole vector, about 40 kB."""
        rows: list[dict[str, Any]] = await self._http.get(
            paths.agent(agent_id, "archival-memory"), limit=limit, after=after, ascending=True
        )
        return rows

    async def search(self, agent_id: str, query: str, *, limit: int) -> list[dict[str, Any]]:
        """Return the passages nearest to a query, best first."""
        found = await self._http.get(paths.agent(agent_id, "archival-memory", "search"), query=query, top_k=limit)
        rows: list[dict[str, Any]] = found["results"]
        return rows

    async def add(
        self, agent_id: str, text: str, *, tags: Sequence[str] = (), created_at: str | None = None
    ) -> dict[str, Any]:
        """Add a passage and return it."""
        body: dict[str, Any] = {"text": text}
        if tags:
            body["tags"] = list(tags)
        if created_at is not None:
            body["created_at"] = created_at
        rows = await self._http.post(paths.agent(agent_id, "archival-memory"), body)
        row: dict[str, Any] = rows[0]
        return row

    async def delete(self, agent_id: str, passage_id: str) -> bool:
        """Delete a passage of an agent, and return whether it had it. Letta's route by agent deletes any agent's."""
        for archive in await self._http.get(paths.ARCHIVES, agent_id=agent_id):
            try:
                await self._http.delete(paths.archived_passage(archive["id"], passage_id))
            except LettaRefused as refused:
                # 400: it belongs to another archive.
                if refused.status not in (400, 404, 422):
                    raise
            else:
                return True
        return False
