"""The page of memory: what an agent keeps in mind, and its archive; read, edited, and never overwritten unseen."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from isabella.agents.archive import ArchivalPassage
from isabella.agents.history import History, HistoryEntry
from isabella.agents.memory import MemoryBlock
from isabella.agents.registry import AgentRecord
from isabella.errors import AgentUnknown, IsabellaError, MemoryChanged, MemoryRefused, MemoryTooLong
from isabella.server.auth import read_form
from isabella.server.web.context import ConsoleContext
from isabella.server.web.pages_chat import agent_of, first_agent, sort_agents
from isabella.server.web.rendering import ROOT, Renderer, stream
from isabella.system.tasks import gather

#: How far back the conversation is read for it, in messages.
_DEPTH = 1000
_HISTORY_PAGE = 200
_SHORTEST = 4


@dataclass(frozen=True)
class Provenance:
    """What caused something to be remembered.

    Attributes:
        said: the line of the conversation.
        written: what a memory tool wrote because of it.
    """

    said: HistoryEntry
    written: tuple[str, ...]


async def list_provenance(history: History, agent_id: str) -> list[Provenance]:
    """What an agent has written into its memory, newest first, as far back as is reasonable.

    Raises:
        LettaError: the history cannot be read.
    """
    entries: list[HistoryEntry] = []
    before: str | None = None
    while len(entries) < _DEPTH:
        page = await history.page(agent_id, limit=_HISTORY_PAGE, before=before)
        entries = [*page.entries, *entries]
        before = page.before
        if before is None:
            break
    return provenance_in(entries)


def provenance_in(entries: Sequence[HistoryEntry]) -> list[Provenance]:
    """The same, in entries that are there; oldest first, as the history has them."""
    found: list[Provenance] = []
    said: HistoryEntry | None = None
    for entry in entries:
        if entry.kind == "user":
            said = entry
        elif entry.kind == "tool_call" and said is not None and _writes(entry.tool or ""):
            found.append(Provenance(said, tuple(_texts(entry.text))))
    return found[::-1]


def provenance_of(text: str, known: Sequence[Provenance]) -> Provenance | None:
    """What caused a line of memory, or a passage; None where that is not known."""
    wanted = text.strip().lstrip("-*• ").strip()
    if len(wanted) < _SHORTEST:
        return None
    return next((one for one in known if any(wanted in written for written in one.written)), None)


def _writes(tool: str) -> bool:
    return "memory" in tool and "search" not in tool


def _texts(arguments: str) -> list[str]:
    try:
        found = json.loads(arguments)
    except ValueError:
        return []
    if not isinstance(found, dict):
        return []
    return [value for name, value in found.items() if isinstance(value, str) and not name.startswith("old")]


_PAGE = 20
_FOUND = 20
_QUIET = 20.0


@dataclass(frozen=True)
class MemoryLine:
    """A line of a block, or a passage, with what caused it.

    Attributes:
        text: what is remembered.
        origin: what caused it, where that is known.
    """

    text: str
    origin: Provenance | None


def routes(context: ConsoleContext, renderer: Renderer) -> list[Route]:
    """The routes of the page."""
    page = _Page(context, renderer)
    below = "/memory/{agent}"
    return [
        Route("/memory", page.first),
        Route(below, page.show),
        Route(f"{below}/live", page.live),
        Route(f"{below}/origins", page.origins),
        Route(f"{below}/block", page.block),
        Route(f"{below}/edit", page.edit),
        Route(f"{below}/save", page.save, methods=["POST"]),
        Route(f"{below}/passages", page.passages),
        Route(f"{below}/add", page.add, methods=["POST"]),
        Route(f"{below}/asked", page.asked),
        Route(f"{below}/delete", page.delete, methods=["POST"]),
    ]


class _Page:
    def __init__(self, context: ConsoleContext, renderer: Renderer) -> None:
        self._premises = context
        self._press = renderer

    async def first(self, request: Request) -> Response:
        if not self._premises.up:
            return self._press.page(request, "starting.html", here="memory")
        found = await first_agent(self._premises)
        if found is None:
            raise AgentUnknown("There is no agent yet.", remedy="Isabella makes hers as soon as one provider works.")
        return RedirectResponse(f"{ROOT}/memory/{found.id}", status_code=303)

    async def show(self, request: Request) -> Response:
        if not self._premises.up:
            return self._press.page(request, "starting.html", here="memory")
        id = agent_of(request)
        # Before the blocks are read: what is written meanwhile is shown by the live part of the page.
        spoke = self._premises.event_log.spoke_at.get(id, 0.0)
        registry, blocks, passages = await self._read(id)
        record = next((one for one in registry if one.id == id), None)
        if record is None:
            raise AgentUnknown("There is no such agent any more.", remedy="Choose another one.")
        return self._press.page(
            request,
            "memory.html",
            here="memory",
            registry=registry,
            record=record,
            blocks=blocks,
            passages=passages,
            after=passages[-1].id if len(passages) >= _PAGE else None,
            spoke=spoke,
        )

    async def _read(self, id: str) -> tuple[list[AgentRecord], list[MemoryBlock], list[ArchivalPassage]]:
        """All agents, and what this one remembers, asked for at once: Letta takes its time for each of the three."""
        agent_service = self._premises.agent_service
        registry: list[AgentRecord] = []
        blocks: list[MemoryBlock] = []
        passages: list[ArchivalPassage] = []

        async def read_residents() -> None:
            registry.extend(sort_agents(await agent_service.registry.all()))

        async def read_blocks() -> None:
            blocks.extend(await agent_service.memory.blocks(id))

        async def read_passages() -> None:
            passages.extend(await agent_service.archive.passages(id, limit=_PAGE))

        await gather([read_residents, read_blocks, read_passages])
        return registry, blocks, passages

    async def live(self, request: Request) -> Response:
        return stream(self._changes(agent_of(request), request.query_params.get("v", "")))

    async def _changes(self, id: str, seen: str) -> AsyncGenerator[str, None]:
        """The blocks anew, whenever the agent has spoken: it may have written."""
        event_log = self._premises.event_log
        while True:
            count = event_log.notifier.count
            spoke = str(event_log.spoke_at.get(id, 0.0))
            if spoke != seen:
                try:
                    blocks = await self._premises.agent_service.memory.blocks(id)
                except IsabellaError:
                    # The page says by itself that Letta does not answer, as soon as something is asked of it.
                    blocks = []
                else:
                    seen = spoke
                if blocks:
                    parts = [self._part("block", block=block, agent=id, oob=True) for block in blocks]
                    parts += [self._part("elsewhere", block=block) for block in blocks]
                    yield "\n".join(parts)
            await event_log.notifier.after(count, _QUIET)

    async def origins(self, request: Request) -> Response:
        """What caused the lines of a block, or the passages that are shown."""
        id, label = agent_of(request), request.query_params.get("label")
        known = await list_provenance(self._premises.agent_service.history, id)
        if label is not None:
            block = await self._premises.agent_service.memory.block(id, label)
            lines = [line for line in block.value.splitlines() if line.strip()]
        else:
            lines = [one.text for one in await self._premises.agent_service.archive.passages(id, limit=_PAGE)]
        found = [MemoryLine(line, origin) for line in lines if (origin := provenance_of(line, known)) is not None]
        return self._press.fragment(self._part("origins", found=found, agent=id))

    async def block(self, request: Request) -> Response:
        id = agent_of(request)
        block = await self._premises.agent_service.memory.block(id, request.query_params.get("label", ""))
        return self._press.fragment(self._part("block", block=block, agent=id))

    async def edit(self, request: Request) -> Response:
        id = agent_of(request)
        block = await self._premises.agent_service.memory.block(id, request.query_params.get("label", ""))
        return self._press.fragment(self._part("editor", block=block, agent=id, value=block.value))

    async def save(self, request: Request) -> Response:
        """Write a block; where it was changed meanwhile, show both texts and overwrite neither."""
        fields = await read_form(request, self._premises.csrf)
        id, memory = agent_of(request), self._premises.agent_service.memory
        label, value, seen = fields.get("label", ""), fields.get("value", ""), fields.get("version", "")
        before = await memory.block(id, label)
        try:
            if not seen or seen == "*":
                raise MemoryRefused(
                    "The form does not say which text it was made from.", remedy="Load the page again."
                )
            written = await memory.write(id, label, value, seen=seen)
        except MemoryChanged:
            theirs = await memory.block(id, label)
            return self._press.fragment(
                self._part("editor", block=theirs, agent=id, value=value, conflict=True, focus=True)
            )
        except (MemoryTooLong, MemoryRefused) as error:
            problem = f"{error.what} {error.remedy or ''}".strip()
            seen_block = MemoryBlock(before.id, label, value, before.limit, before.description, before.read_only)
            return self._press.fragment(
                self._part(
                    "editor", block=seen_block, agent=id, value=value, version=seen, problem=problem, focus=True
                )
            )
        previous = before.value if before.value != written.value else None
        undone = fields.get("undo") == "yes"
        return self._press.fragment(
            self._part("block", block=written, agent=id, previous=previous, saved="Undone." if undone else "Saved.")
        )

    async def passages(self, request: Request) -> Response:
        """A page of the archive, or what a search in it finds."""
        id, archive = agent_of(request), self._premises.agent_service.archive
        query = request.query_params.get("q", "").strip()
        if query:
            found = await archive.search(id, query[:1000], limit=_FOUND)
            return self._press.fragment(self._part("passages", passages=found, agent=id, after=None, query=query))
        found = await archive.passages(id, limit=_PAGE, after=request.query_params.get("after") or None)
        after = found[-1].id if len(found) >= _PAGE else None
        more = "after" in request.query_params
        return self._press.fragment(
            self._part("more_passages" if more else "passages", passages=found, agent=id, after=after)
        )

    async def add(self, request: Request) -> Response:
        fields = await read_form(request, self._premises.csrf)
        id = agent_of(request)
        tags = [tag.strip()[:200] for tag in fields.get("tags", "").split(",") if tag.strip()][:50]
        added = await self._premises.agent_service.archive.add(id, fields.get("text", ""), tags)
        return self._press.fragment(self._part("passage", passage=added, agent=id, fresh=True))

    async def asked(self, request: Request) -> Response:
        """The question before a passage is deleted, or the passage again where the answer was no."""
        id = agent_of(request)
        query = request.query_params
        passage = ArchivalPassage(query.get("id", ""), query.get("text", ""))
        return self._press.fragment(
            self._part("actions", passage=passage, agent=id, asking=query.get("sure") == "ask", focus=True)
        )

    async def delete(self, request: Request) -> Response:
        fields = await read_form(request, self._premises.csrf)
        id = agent_of(request)
        await self._premises.agent_service.archive.delete(id, fields.get("id", ""))
        return self._press.fragment(self._part("deleted"))

    def _part(self, name: str, /, **values: object) -> str:
        return self._press.part("memory_parts.html", name, **values)
