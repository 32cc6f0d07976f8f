"""The memory of agents, read and edited by people: core memory (blocks) and archival memory (passages).

Letta does not enforce the limit of a block, and the last of two concurrent writers wins. This module checks limits,
and refuses an edit that was made to an older text. The version of a text is its digest, because Letta's REST API has
no version numbers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio

from isabella.agents.block_history import BlockHistory, BlockVersion, NoStore, Writing, by_person, digest
from isabella.agents.embedder import MODELS
from isabella.agents.relevance import RelevanceFilter
from isabella.errors import LettaRefused, MemoryChanged, MemoryRefused, MemoryTooLong, MemoryUnknown
from isabella.letta.client import LettaClient
from isabella.system import audit
from isabella.system.english import english

#: Returns a context manager that delays the turns of an agent, given its id, while its memory is written.
Hold = Callable[[str], AbstractAsyncContextManager[None]]

#: Returns the id of the last user message with this text, given the id of the agent and the text; None without one.
FindMessage = Callable[[str, str], Awaitable[str | None]]

ANY_VERSION = "*"  # the version for an edit that overwrites any text

_PAGE_SIZE = 50  # Passages that are requested at once. Each row has its whole vector, about 40 kB.
_TOO_LONG = "exceeds token limit"

Result = TypeVar("Result")


@dataclass(frozen=True)
class MemoryBlock:
    """A memory block."""

    id: str  # agents that share a block have the same one
    label: str
    value: str
    limit: int
    description: str
    read_only: bool

    @property
    def version(self) -> str:
        """A digest of the text."""
        return digest(self.value)


@dataclass(frozen=True)
class ArchivalPassage:
    """A passage of archival memory."""

    id: str
    text: str
    tags: tuple[str, ...] = ()
    created_at: str | None = None  # ISO 8601
    near: bool = True  # False if a search returned it only because nothing is nearer


class CoreMemory:
    """The memory blocks of agents. Every method raises `LettaError`.

    `hold` delays an agent's turns while a block is written, so that the agent does not write at that moment.
    """

    def __init__(
        self,
        letta: LettaClient,
        hold: Hold | None = None,
        history: BlockHistory | None = None,
        find_message: FindMessage | None = None,
    ) -> None:
        self._letta = letta
        self.hold = hold or in_process_holds()
        self.history = history or BlockHistory(NoStore())
        self._find_message = find_message

    async def blocks(self, agent_id: str) -> list[MemoryBlock]:
        """Return all blocks of an agent, by label."""
        rows = await self._letta.blocks.of_agent(agent_id)
        return sorted(map(_block, rows), key=lambda block: block.label)

    async def block(self, agent_id: str, label: str) -> MemoryBlock:
        """Return the block with this label; `MemoryUnknown` names the others."""
        blocks = await self.blocks(agent_id)
        for block in blocks:
            if block.label == label:
                return block
        labels = ", ".join(block.label for block in blocks)
        remedy = english("Available: %(labels)s.", labels=labels) if labels else None
        raise MemoryUnknown(english("There is no memory block %(label)s.", label=repr(label[:100])), remedy=remedy)

    async def observe(self, agent_id: str) -> list[MemoryBlock]:
        """Record the current texts of an agent's blocks in their histories, and return the blocks."""
        calls = self.history.written(agent_id)
        writings = [await self._with_message(agent_id, call) for call in calls]
        blocks = await self.blocks(agent_id)
        for block in blocks:
            self.history.note(block.id, block.label, block.value, agent_id, writings=writings)
        self.history.settle(agent_id, calls)
        return blocks

    async def _with_message(self, agent_id: str, writing: Writing) -> Writing:
        if self._find_message is None or not writing.text:
            return writing
        return replace(writing, message=await self._find_message(agent_id, writing.text) or "")

    async def versions(self, agent_id: str, label: str) -> tuple[MemoryBlock, list[BlockVersion]]:
        """Return a block and the stored versions of its text, oldest first; the last one is its current text."""
        await self.observe(agent_id)
        block = await self.block(agent_id, label)
        return block, self.history.versions(block.id)

    async def restore(self, agent_id: str, label: str, number: int, *, seen: str) -> MemoryBlock:
        """Restore an earlier version of a block's text; `MemoryUnknown` if it is not stored. See `write`."""
        _, versions = await self.versions(agent_id, label)
        version = next((version for version in versions if version.number == number), None)
        if version is None:
            raise MemoryUnknown(
                english(
                    "The version %(number)s of the memory block %(label)s is not kept.",
                    number=number,
                    label=repr(label),
                ),
                remedy=english("Choose a version from the block's history."),
            )
        return await self.write(agent_id, label, version.value, seen=seen, restored=number)

    @audit.recorded(
        "memory.written",
        lambda self, agent_id, label, value, *, seen, restored=None: {
            "subject": agent_id,
            "block": label,
            "characters": len(value),
            "restored": restored,
        },
    )
    async def write(
        self, agent_id: str, label: str, value: str, *, seen: str, restored: int | None = None
    ) -> MemoryBlock:
        """Replace a block's text if `seen` is its current version, or `ANY_VERSION`.

        `restored` is the number of the version that is restored, if one is. Raises `MemoryChanged`, `MemoryTooLong`,
        and what `block` and `check_text` raise; then nothing is written.
        """
        async with self.hold(agent_id):
            if self.history.written(agent_id):
                await self.observe(agent_id)
            block = await self.block(agent_id, label)
            self.history.note(block.id, label, block.value, agent_id)
            if seen not in (ANY_VERSION, block.version):
                raise MemoryChanged(
                    english("The memory block %(label)s has changed in the meantime.", label=repr(label)),
                    version=block.version,
                    remedy=english("Read it again, and make your change to the current text."),
                )
            check_text(value)
            if len(value) > block.limit:
                raise MemoryTooLong(
                    english(
                        "The text has %(count)s characters; the memory block %(label)s holds %(limit)s.",
                        count=len(value),
                        label=repr(label),
                        limit=block.limit,
                    ),
                    remedy=english("Shorten it, or move a part of it to archival memory."),
                )
            if value == block.value:
                return block
            written = _block(await self._letta.blocks.update(block.id, {"value": value}))
            self.history.note(block.id, label, written.value, agent_id, by_person(restored))
            return written


class ArchivalMemory:
    """The archival memory of agents. Every method raises `LettaError`."""

    def __init__(self, letta: LettaClient, relevance: RelevanceFilter | None = None) -> None:
        self._letta = letta
        self._relevance = relevance

    async def passages(
        self, agent_id: str, *, limit: int = _PAGE_SIZE, after: str | None = None
    ) -> list[ArchivalPassage]:
        """Return a page of passages, oldest first, after the passage with the id `after`."""
        return [_passage(row) for row in await self._letta.passages.page(agent_id, limit=limit, after=after)]

    async def every(self, agent_id: str) -> AsyncIterator[ArchivalPassage]:
        """Yield all passages, oldest first. Only one page is in memory at a time."""
        seen: set[str] = set()
        after: str | None = None
        while True:
            page = await self.passages(agent_id, after=after)
            fresh = {passage.id: passage for passage in page if passage.id not in seen}
            seen |= fresh.keys()
            for passage in fresh.values():
                yield passage
            if len(page) < _PAGE_SIZE or not fresh:
                return
            after = page[-1].id

    @audit.recorded(
        "memory.added", lambda self, agent_id, text, *_, **__: {"subject": agent_id, "characters": len(text)}
    )
    async def add(
        self, agent_id: str, text: str, tags: Sequence[str] = (), *, created_at: str | None = None
    ) -> ArchivalPassage:
        """Add a passage: `MemoryRefused` if it is empty (see also `check_text`), `MemoryTooLong` if Letta says so."""
        for part in (text, *tags):
            check_text(part)
        if not text.strip():
            raise MemoryRefused(english("A passage cannot be empty."), remedy=english("Enter a text."))
        try:
            return _passage(await self._letta.passages.add(agent_id, text, tags=tags, created_at=created_at))
        except LettaRefused as refused:
            if _TOO_LONG in refused.detail:
                raise MemoryTooLong(
                    english("The passage is longer than archival memory accepts (8192 tokens)."),
                    remedy=english("Divide it into several."),
                ) from None
            raise

    @audit.recorded("memory.deleted", lambda self, agent_id, passage_id: {"subject": agent_id, "passage": passage_id})
    async def delete(self, agent_id: str, passage_id: str) -> None:
        """Delete a passage of this agent; `MemoryUnknown` if it has no such passage."""
        if not await self._letta.passages.delete(agent_id, passage_id):
            raise MemoryUnknown(
                english("There is no passage %(id)s in this agent's archival memory.", id=repr(passage_id[:100])),
                remedy=english("It may have been deleted: list the passages again."),
            )

    async def search(self, agent_id: str, query: str, *, limit: int = 10) -> list[ArchivalPassage]:
        """Return the passages nearest to a query, best first: by meaning if the agent has vectors, else by text.

        `near` is False for passages that are returned only because nothing is nearer. Also raises
        `VectorsUnavailable` or `VectorsRefused`.
        """
        check_text(query)
        if not query.strip():
            return []
        model = await self._vector_model(agent_id)
        if model is not None and self._relevance is not None:
            return await self._judged(agent_id, self._relevance, model, query, limit)
        return [
            ArchivalPassage(row["id"], row["content"], tuple(row.get("tags") or ()), row.get("timestamp"))
            for row in await self._letta.passages.search(agent_id, query, limit=limit)
        ]

    async def _vector_model(self, agent_id: str) -> str | None:
        """Return the model of an agent's vectors; None if there is none, or it is not Isabella's."""
        config = (await self._letta.agents.get(agent_id)).embedding_config or {}
        model = config.get("embedding_model")
        return model if model in MODELS else None

    async def _judged(
        self, agent_id: str, relevance: RelevanceFilter, model: str, query: str, limit: int
    ) -> list[ArchivalPassage]:
        rows = await self._letta.passages.nearest(agent_id, query, limit=limit)
        near = await relevance.relevant(model, query, [(row["text"], row.get("embedding") or ()) for row in rows])
        found = [replace(_passage(row), near=each) for row, each in zip(rows, near, strict=True)]
        return sorted(found, key=lambda passage: not passage.near)


def check_text(text: str) -> None:
    """Raise `MemoryRefused` for text that Letta cannot store: it drops some silently, and fails on the rest."""
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise MemoryRefused(
            english("The text contains a NUL character or half of a surrogate pair, which cannot be stored."),
            remedy=english("Remove it."),
        )


def in_process_holds() -> Hold:
    """Return a hold by a lock in this process for each agent, for programs that run no turns."""
    locks: dict[str, anyio.Lock] = {}

    @asynccontextmanager
    async def hold(agent_id: str) -> Any:
        async with locks.setdefault(agent_id, anyio.Lock()):
            yield

    return hold


async def unless_unknown(reading: Awaitable[Result], message: str) -> Result:
    """Await a read. Letta's 404 or 422 for an id becomes `MemoryUnknown` with this message."""
    try:
        return await reading
    except LettaRefused as refused:
        if refused.status in (404, 422):
            raise MemoryUnknown(message, remedy=english("It may have been deleted: load the list again.")) from None
        raise


def _block(row: Mapping[str, Any]) -> MemoryBlock:
    return MemoryBlock(
        id=row["id"],
        label=row.get("label") or "",
        value=row.get("value") or "",
        limit=row.get("limit") or 0,
        description=row.get("description") or "",
        read_only=bool(row.get("read_only")),
    )


def _passage(row: Mapping[str, Any]) -> ArchivalPassage:
    return ArchivalPassage(row["id"], row["text"], tuple(row.get("tags") or ()), row.get("created_at"))
