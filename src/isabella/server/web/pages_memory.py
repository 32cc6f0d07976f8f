"""The memory page: an agent's core memory and archival memory, for reading and editing, and their provenance."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.agents.history import History, HistoryEntry
from isabella.agents.memory import ArchivalPassage, MemoryBlock
from isabella.agents.service import AgentService
from isabella.errors import IsabellaError, MemoryChanged, MemoryRefused
from isabella.letta.conversations import DEFAULT
from isabella.server.runtime import Runtime
from isabella.server.web.pages_chat import agent_id_of, find_agent, redirect_to_first, sort_agents
from isabella.server.web.rendering import Page, Renderer

#: How many messages of the history are searched for provenance.
_HISTORY_SEARCHED = 1000
_HISTORY_PAGE = 200
#: In how many conversations, the default one and the latest.
_CONVERSATIONS_SEARCHED = 10
#: Shorter lines are too ambiguous for a provenance.
_SHORTEST_LINE = 4

#: The names of tools that write memory.
_MEMORY_TOOL = re.compile(r"^(?!.*search).*memory")
_PASSAGES_SHOWN = 20
_REFRESH_SECONDS = 20.0


@dataclass(frozen=True)
class Provenance:
    """A user message, and the texts that the agent's memory tools wrote in answer to it."""

    message: HistoryEntry
    written: tuple[str, ...]
    conversation: str | None = None  #: the id of another conversation than the default one


async def list_provenance(service: AgentService, agent_id: str) -> list[Provenance]:
    """Return what an agent has written into its memory recently, newest first, in its latest conversations."""
    known = await service.conversations.all(agent_id, None)
    found: list[Provenance] = []
    for each in known[:_CONVERSATIONS_SEARCHED]:
        id = None if each.id == DEFAULT else each.id
        found += provenance_in(await _recent(service.history, agent_id, id), id)
    return sorted(found, key=lambda provenance: provenance.message.at, reverse=True)


async def _recent(history: History, agent_id: str, conversation: str | None) -> list[HistoryEntry]:
    entries: list[HistoryEntry] = []
    before: str | None = None
    while len(entries) < _HISTORY_SEARCHED:
        page = await history.page(agent_id, limit=_HISTORY_PAGE, before=before, conversation=conversation)
        entries = [*page.entries, *entries]
        before = page.before
        if before is None:
            break
    return entries


def provenance_in(entries: Sequence[HistoryEntry], conversation: str | None = None) -> list[Provenance]:
    """Return the provenance in entries of a history, newest first; the entries are oldest first."""
    found: list[Provenance] = []
    message: HistoryEntry | None = None
    for entry in entries:
        if entry.kind == "user":
            message = entry
        elif message is not None and entry.kind == "tool_call" and _MEMORY_TOOL.search(entry.tool or ""):
            found.append(Provenance(message, tuple(_written_texts(entry.text)), conversation))
    return found[::-1]


def provenance_of(text: str, known: Sequence[Provenance]) -> Provenance | None:
    """Return the provenance of a line of memory or a passage; None if it is unknown."""
    line = text.strip().lstrip("-*• ").strip()
    if len(line) < _SHORTEST_LINE:
        return None
    return next((entry for entry in known if any(line in written for written in entry.written)), None)


def _written_texts(arguments: str) -> list[str]:
    try:
        values = json.loads(arguments)
    except ValueError:
        return []
    if not isinstance(values, dict):
        return []
    return [value for name, value in values.items() if isinstance(value, str) and not name.startswith("old")]


def routes(runtime: Runtime, renderer: Renderer) -> list[Route]:
    """Return the routes of the page."""
    page = _Page(runtime, renderer)
    below = "/memory/{agent}"
    return [
        Route("/memory", page.first),
        Route(below, page.show),
        Route(f"{below}/live", page.live),
        Route(f"{below}/provenance", page.provenance),
        Route(f"{below}/block", page.block),
        Route(f"{below}/edit", page.edit),
        Route(f"{below}/save", page.save, methods=["POST"]),
        Route(f"{below}/passages", page.passages),
        Route(f"{below}/add", page.add, methods=["POST"]),
        Route(f"{below}/confirm", page.confirm),
        Route(f"{below}/delete", page.delete, methods=["POST"]),
    ]


class _Page(Page):
    parts_template = "memory_parts.html"

    async def first(self, _request: Request) -> Response:
        return await redirect_to_first(self._runtime, "memory")

    async def show(self, request: Request) -> Response:
        id = agent_id_of(request)
        # Read before the blocks, so that the live updates include what is written meanwhile.
        version = self._runtime.event_log.last_turn_at.get(id, 0.0)
        service = self._runtime.agents
        agents = sort_agents(await service.registry.all())
        blocks = await service.memory.blocks(id)
        passages = await service.archive.passages(id, limit=_PASSAGES_SHOWN)
        return self._renderer.page(
            request,
            "memory.html",
            here="memory",
            agents=agents,
            agent=find_agent(agents, id),
            blocks=blocks,
            passages=passages,
            after=_next_page(passages),
            version=version,
        )

    async def live(self, request: Request) -> Response:
        return self._stream(self._changes(agent_id_of(request), request.query_params.get("v", "")))

    async def _changes(self, id: str, version: str) -> AsyncGenerator[str, None]:
        """Yield the blocks after every turn of the agent, because it may have changed them."""
        event_log = self._runtime.event_log
        while True:
            count = event_log.notifier.count
            current = str(event_log.last_turn_at.get(id, 0.0))
            if current != version:
                try:
                    blocks = await self._runtime.agents.memory.blocks(id)
                except IsabellaError:
                    # Tried again later; the page reports the error as soon as it is used.
                    blocks = []
                else:
                    version = current
                if blocks:
                    parts = [self._part("block", block=block, agent_id=id, oob=True) for block in blocks]
                    parts += [self._part("changed_elsewhere", block=block) for block in blocks]
                    yield "\n".join(parts)
            await event_log.notifier.wait(count, _REFRESH_SECONDS)

    async def provenance(self, request: Request) -> Response:
        """Return the provenance of the lines of a block, or of the passages shown."""
        id, label = agent_id_of(request), request.query_params.get("label")
        service = self._runtime.agents
        known = await list_provenance(service, id)
        if label is not None:
            block = await service.memory.block(id, label)
            texts = [line for line in block.value.splitlines() if line.strip()]
        else:
            texts = [passage.text for passage in await service.archive.passages(id, limit=_PASSAGES_SHOWN)]
        found = [(text, provenance_of(text, known)) for text in texts]
        lines = [(text, provenance) for text, provenance in found if provenance is not None]
        return self._fragment("provenance", lines=lines, agent_id=id)

    async def block(self, request: Request) -> Response:
        id, block = await self._requested_block(request)
        return self._fragment("block", block=block, agent_id=id)

    async def edit(self, request: Request) -> Response:
        id, block = await self._requested_block(request)
        return self._fragment("editor", block=block, agent_id=id, value=block.value)

    async def _requested_block(self, request: Request) -> tuple[str, MemoryBlock]:
        id = agent_id_of(request)
        return id, await self._runtime.agents.memory.block(id, request.query_params.get("label", ""))

    async def save(self, request: Request) -> Response:
        """Write a block. If it has changed since it was edited, overwrite nothing and show both texts."""
        fields = await self._form(request)
        id, memory = agent_id_of(request), self._runtime.agents.memory
        label, value, version = fields.get("label", ""), fields.get("value", ""), fields.get("version", "")
        before = await memory.block(id, label)
        try:
            if not version or version == "*":
                raise MemoryRefused("The form does not say which version was edited.", remedy="Reload the page.")
            written = await memory.write(id, label, value, seen=version)
        except MemoryChanged:
            current = await memory.block(id, label)
            return self._fragment("editor", block=current, agent_id=id, value=value, conflict=True, focus=True)
        except MemoryRefused as error:
            return self._fragment(
                "editor",
                block=replace(before, value=value),
                agent_id=id,
                value=value,
                version=version,
                problem=f"{error.what} {error.remedy or ''}".strip(),
                focus=True,
            )
        return self._fragment(
            "block",
            block=written,
            agent_id=id,
            previous=before.value if before.value != written.value else None,
            saved="Undone." if fields.get("undo") == "yes" else "Saved.",
        )

    async def passages(self, request: Request) -> Response:
        id, archive = agent_id_of(request), self._runtime.agents.archive
        query = request.query_params.get("q", "").strip()
        if query:
            found = await archive.search(id, query[:1000], limit=_PASSAGES_SHOWN)
            return self._fragment("passages", passages=found, agent_id=id, after=None, query=query)
        found = await archive.passages(id, limit=_PASSAGES_SHOWN, after=request.query_params.get("after") or None)
        macro = "more_passages" if "after" in request.query_params else "passages"
        return self._fragment(macro, passages=found, agent_id=id, after=_next_page(found))

    async def add(self, request: Request) -> Response:
        fields = await self._form(request)
        id = agent_id_of(request)
        tags = [tag.strip()[:200] for tag in fields.get("tags", "").split(",") if tag.strip()][:50]
        added = await self._runtime.agents.archive.add(id, fields.get("text", ""), tags)
        return self._fragment("passage", passage=added, agent_id=id, fresh=True)

    async def confirm(self, request: Request) -> Response:
        """Ask for confirmation before a passage is deleted, or withdraw the question."""
        query = request.query_params
        passage = ArchivalPassage(query.get("id", ""), "")
        asking = query.get("ask") == "yes"
        return self._fragment("actions", passage=passage, agent_id=agent_id_of(request), asking=asking, focus=True)

    async def delete(self, request: Request) -> Response:
        fields = await self._form(request)
        await self._runtime.agents.archive.delete(agent_id_of(request), fields.get("id", ""))
        return self._fragment("deleted")


def _next_page(passages: Sequence[ArchivalPassage]) -> str | None:
    return passages[-1].id if len(passages) >= _PASSAGES_SHOWN else None
