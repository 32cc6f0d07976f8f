"""Memory blocks, read and edited from outside: limits enforced, concurrent edits detected rather than lost.

Letta enforces no limit of a block, and takes the last writer's word. So the limit is checked here, and an editor says
which version it saw: the version is a digest of the text, because Letta keeps none that its REST API shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from isabella.errors import LettaRefused, MemoryChanged, MemoryRefused, MemoryTooLong, MemoryUnknown
from isabella.letta.client import LettaClient

#: Holds an agent's turns back while somebody else writes its memory.
Hold = Callable[[str], AbstractAsyncContextManager[None]]

#: Says that an edit may overwrite whatever there is.
ANY_VERSION = "*"

_DIGITS = 16


@dataclass(frozen=True)
class MemoryBlock:
    """A memory block as it stands.

    Attributes:
        id: Letta's id of it; agents that share it see the same one.
        label: its name.
        value: its text.
        limit: how many characters it may hold.
        description: what it is for.
        read_only: whether its agent may not change it.
    """

    id: str
    label: str
    value: str
    limit: int
    description: str
    read_only: bool

    @property
    def version(self) -> str:
        """Changes whenever the text does."""
        return hashlib.sha256(self.value.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


class CoreMemory:
    """The memory blocks of agents.

    Args:
        letta: a client of their Letta.
        hold: holds an agent's turns back while a block is written, so that the agent does not write at that moment.
    """

    def __init__(self, letta: LettaClient, hold: Hold | None = None) -> None:
        self._letta = letta
        self.hold = hold or in_process_holds()

    async def blocks(self, agent_id: str) -> list[MemoryBlock]:
        """All blocks of an agent.

        Raises:
            LettaError: they cannot be read.
        """
        rows = await self._letta.blocks.of_agent(agent_id)
        return sorted(map(_block, rows), key=lambda block: block.label)

    async def block(self, agent_id: str, label: str) -> MemoryBlock:
        """One block.

        Raises:
            MemoryUnknown: the agent has none of this label.
            LettaError: it cannot be read.
        """
        found = await self.blocks(agent_id)
        for block in found:
            if block.label == label:
                return block
        labels = ", ".join(block.label for block in found)
        raise MemoryUnknown(
            f"There is no memory block {label[:100]!r}.", remedy=f"There are: {labels}." if labels else None
        )

    async def write(self, agent_id: str, label: str, value: str, *, seen: str) -> MemoryBlock:
        """Replace a block's text, if it is still the one that the editor saw.

        Args:
            agent_id: whose.
            label: which block.
            value: the new text.
            seen: the version that the editor saw; `*` overwrites whatever there is.

        Raises:
            MemoryUnknown: the agent has no such block.
            MemoryTooLong: the text is longer than the block's limit.
            MemoryChanged: the block is not what the editor saw; nothing was written.
            MemoryRefused: the text holds what is no text.
            LettaError: Letta refuses or fails.
        """
        async with self.hold(agent_id):
            block = await self.block(agent_id, label)
            if seen not in (ANY_VERSION, block.version):
                raise MemoryChanged(
                    f"The memory block {label!r} has been changed meanwhile.",
                    version=block.version,
                    remedy="Read it again, and make your change to what stands there now.",
                )
            check_text(value)
            if len(value) > block.limit:
                raise MemoryTooLong(
                    f"The text has {len(value)} characters; the memory block {label!r} holds {block.limit}.",
                    remedy="Shorten it, or move a part of it to archival memory.",
                )
            if value == block.value:
                return block
            return _block(await self._letta.blocks.update(block.id, {"value": value}))


def check_text(text: str) -> None:
    """Refuse what Letta would drop silently, or fail on.

    Raises:
        MemoryRefused: the text has a NUL character or half a surrogate pair.
    """
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise MemoryRefused(
            "The text holds a NUL character or half of a surrogate pair, which is no text.", remedy="Take it out."
        )


def in_process_holds() -> Hold:
    """Holds by a lock in this process, one for each agent: for programs that run no turns themselves."""
    locks: dict[str, anyio.Lock] = {}

    @asynccontextmanager
    async def hold(agent_id: str) -> Any:
        async with locks.setdefault(agent_id, anyio.Lock()):
            yield

    return hold


async def unless_unknown(reading: Any, what: str) -> Any:
    """Await a reading; Letta's 404 and 422 about an id become `MemoryUnknown`."""
    try:
        return await reading
    except LettaRefused as refused:
        if refused.status in (404, 422):
            raise MemoryUnknown(what) from None
        raise


def _block(row: dict[str, Any]) -> MemoryBlock:
    return MemoryBlock(
        id=row["id"],
        label=row.get("label") or "",
        value=row.get("value") or "",
        limit=row.get("limit") or 0,
        description=row.get("description") or "",
        read_only=bool(row.get("read_only")),
    )
