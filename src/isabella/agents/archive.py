"""Archival memory: passages added, listed, searched and deleted from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from isabella.agents.memory import check_text
from isabella.errors import LettaRefused, MemoryRefused, MemoryTooLong, MemoryUnknown
from isabella.letta.client import LettaClient

#: Passages that Letta is asked for at once. It shows the whole vector of each, some 40 kB.
_PAGE = 50
_TOO_LONG = "exceeds token limit"


@dataclass(frozen=True)
class ArchivalPassage:
    """A passage of archival memory.

    Attributes:
        id: Letta's id of it.
        text: what it says.
        tags: words to find it by.
        created_at: when it was written; ISO 8601.
    """

    id: str
    text: str
    tags: tuple[str, ...] = ()
    created_at: str | None = None


class ArchivalMemory:
    """The archival memory of agents.

    Args:
        letta: a client of their Letta.
    """

    def __init__(self, letta: LettaClient) -> None:
        self._letta = letta

    async def passages(self, agent_id: str, *, limit: int = _PAGE, after: str | None = None) -> list[ArchivalPassage]:
        """A page of passages, oldest first.

        Args:
            agent_id: whose.
            limit: how many at most.
            after: the id of the last one of the page before.

        Raises:
            LettaError: they cannot be read.
        """
        return [_passage(row) for row in await self._letta.passages.page(agent_id, limit=limit, after=after)]

    async def every(self, agent_id: str) -> list[ArchivalPassage]:
        """All passages, oldest first.

        Raises:
            LettaError: they cannot be read.
        """
        found: dict[str, ArchivalPassage] = {}
        after: str | None = None
        while True:
            page = await self.passages(agent_id, after=after)
            fresh = [passage for passage in page if passage.id not in found]
            found |= {passage.id: passage for passage in fresh}
            if len(page) < _PAGE or not fresh:
                return [*found.values()]
            after = page[-1].id

    async def add(
        self, agent_id: str, text: str, tags: Sequence[str] = (), *, created_at: str | datetime | None = None
    ) -> ArchivalPassage:
        """Write a passage.

        Raises:
            MemoryRefused: it is empty, or holds what is no text.
            MemoryTooLong: it is longer than Letta takes.
            LettaError: Letta refuses or fails, or the vectors could not be had.
        """
        for part in (text, *tags):
            check_text(part)
        if not text.strip():
            raise MemoryRefused("A passage cannot be empty.")
        at = created_at.isoformat() if isinstance(created_at, datetime) else created_at
        try:
            return _passage(await self._letta.passages.add(agent_id, text, tags=tags, created_at=at))
        except LettaRefused as refused:
            if _TOO_LONG in refused.detail:
                raise MemoryTooLong(
                    "The passage is longer than archival memory takes (8192 tokens).",
                    remedy="Divide it into several.",
                ) from None
            raise

    async def delete(self, agent_id: str, passage_id: str) -> None:
        """Delete a passage. Letta's own route deletes any agent's; this one looks whose it is.

        Raises:
            MemoryUnknown: the agent has no such passage.
            LettaError: Letta refuses or fails.
        """
        if not await self._letta.passages.delete(agent_id, passage_id):
            raise MemoryUnknown(f"There is no passage {passage_id[:100]!r} in this agent's archival memory.")

    async def search(self, agent_id: str, query: str, *, limit: int = 10) -> list[ArchivalPassage]:
        """The passages nearest to a query, best first: by meaning where the agent has vectors, by text otherwise.

        Raises:
            MemoryRefused: the query holds what is no text.
            LettaError: Letta refuses or fails, or the vectors could not be had.
        """
        check_text(query)
        if not query.strip():
            return []
        return [
            ArchivalPassage(row["id"], row["content"], tuple(row.get("tags") or ()), row.get("timestamp"))
            for row in await self._letta.passages.search(agent_id, query, limit=limit)
        ]


def _passage(row: dict[str, Any]) -> ArchivalPassage:
    return ArchivalPassage(row["id"], row["text"], tuple(row.get("tags") or ()), row.get("created_at"))
