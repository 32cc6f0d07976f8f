"""The memory page: an agent's core memory and archival memory, to read and edit, their provenance and history."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.agents.block_history import BlockVersion
from isabella.agents.history import History, HistoryEntry
from isabella.agents.memory import ArchivalPassage, MemoryBlock
from isabella.agents.service import AgentService
from isabella.errors import IsabellaError, MemoryChanged, MemoryRefused, MemoryUnknown
from isabella.letta.conversations import DEFAULT
from isabella.server import ROOT
from isabella.server.runtime import Runtime
from isabella.server.web.pages_chat import agent_id_of, find_agent, redirect_to_first, sort_agents
from isabella.server.web.rendering import Page, Renderer
from isabella.system.english import english, joined

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
_VERSIONS_SHOWN = 20
_MOST_SELECTED = 500
_PASSAGE_ID = re.compile(r"passage-[0-9a-f-]{36}")
_REFRESH_SECONDS = 20.0


@dataclass(frozen=True)
class Provenance:
    """A user message, and the texts that the agent's memory tools wrote in answer to it."""

    message: HistoryEntry
    written: tuple[str, ...]
    conversation: str | None = None  #: the id of a conversation other than the default one


async def list_provenance(service: AgentService, agent_id: str) -> list[Provenance]:
    """Return an agent's recent changes of its memory, newest first, in its latest conversations."""
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
        Route(f"{below}/history", page.history),
        Route(f"{below}/restore", page.restore, methods=["POST"]),
        Route(f"{below}/passages", page.passages),
        Route(f"{below}/add", page.add, methods=["POST"]),
        Route(f"{below}/confirm", page.confirm),
        Route(f"{below}/delete", page.delete, methods=["POST"]),
        Route(f"{below}/selected", page.selected, methods=["POST"]),
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
        query = _query(request)
        passages = await self._found(id, query)
        near = [passage for passage in passages if passage.near]
        return self._renderer.page(
            request,
            "memory.html",
            here="memory",
            agents=agents,
            agent=find_agent(agents, id),
            blocks=blocks,
            query=query,
            passages=near,
            far=[passage for passage in passages if not passage.near],
            show_far=request.query_params.get("far") == "yes",
            after=None if query else _next_page(passages),
            version=version,
        )

    async def _found(self, id: str, query: str) -> list[ArchivalPassage]:
        """Return the passages nearest to a query; without one, the first page of all."""
        archive = self._runtime.agents.archive
        if query:
            return await archive.search(id, query, limit=_PASSAGES_SHOWN)
        return await archive.passages(id, limit=_PASSAGES_SHOWN)

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
            texts = [passage.text for passage in await self._found(id, _query(request))]
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
                raise MemoryRefused(
                    english("The form does not say which version was edited."), remedy=english("Reload the page.")
                )
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
                problem=joined([error.what, *([error.remedy] if error.remedy else [])]),
                focus=True,
            )
        return self._fragment(
            "block",
            block=written,
            agent_id=id,
            previous=before.value if before.value != written.value else None,
            saved="undone" if fields.get("undo") == "yes" else "saved",
        )

    async def history(self, request: Request) -> Response:
        """Show the versions of a block, newest first, each with its difference to the one before."""
        id, label = agent_id_of(request), request.query_params.get("label", "")
        service = self._runtime.agents
        agent = await service.registry.get(id)
        block, versions = await service.memory.versions(id, label)
        if not versions:
            raise MemoryUnknown(
                english("The history of memory blocks is switched off."),
                remedy=english("Set ISABELLA_BLOCK_HISTORY_DAYS to the number of days to keep it."),
            )
        before = request.query_params.get("before", "")
        last = int(before) if before.isdigit() and len(before) < 10 else versions[-1].number + 1
        steps = [step for step in steps_of(versions) if step.version.number < last][::-1]
        return self._renderer.page(
            request,
            "memory_history.html",
            here="memory",
            agent=agent,
            block=block,
            steps=steps[:_VERSIONS_SHOWN],
            before=steps[_VERSIONS_SHOWN - 1].version.number if len(steps) > _VERSIONS_SHOWN else None,
            first=versions[0],
            limits=service.memory.history.limits,
        )

    async def restore(self, request: Request) -> Response:
        """Give a block the text of one of its versions again, and show its history."""
        fields = await self._form(request)
        id, label, number = agent_id_of(request), fields.get("label", ""), fields.get("number", "")
        if not number.isdigit() or len(number) > 9 or fields.get("version", "*") == "*":
            raise MemoryRefused(
                english("The form does not say which version to restore."), remedy=english("Reload the page.")
            )
        await self._runtime.agents.memory.restore(id, label, int(number), seen=fields["version"])
        location = f"{ROOT}/memory/{id}/history?label={quote(label, safe='')}"
        return Response(status_code=204, headers={"HX-Redirect": location})

    async def passages(self, request: Request) -> Response:
        """Return the next page of passages."""
        id, archive = agent_id_of(request), self._runtime.agents.archive
        found = await archive.passages(id, limit=_PASSAGES_SHOWN, after=request.query_params.get("after") or None)
        return self._fragment("more_passages", passages=found, agent_id=id, after=_next_page(found))

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

    async def selected(self, request: Request) -> Response:
        """Delete the selected passages, after one confirmation for all of them."""
        fields = await self._form(request)
        id = agent_id_of(request)
        ids = [name for name in fields if _PASSAGE_ID.fullmatch(name)][:_MOST_SELECTED]
        if fields.get("sure") != "yes":
            asking = bool(ids) and fields.get("cancel") != "yes"
            return self._fragment("bulk", agent_id=id, ids=ids if asking else (), empty=not ids, focus=True)
        deleted, problem = [], ""
        for passage in ids:
            try:
                await self._runtime.agents.archive.delete(id, passage)
            except MemoryUnknown:
                # Another user or program has deleted it.
                pass
            except IsabellaError as error:
                problem = error.what
                break
            deleted.append(passage)
        return self._fragment("bulk", agent_id=id, deleted=deleted, left=len(ids) - len(deleted), problem=problem)


@dataclass(frozen=True)
class BlockStep:
    """A version of a block, and its difference to the version before."""

    version: BlockVersion
    lines: tuple[tuple[str, str], ...]  #: `+` or `-`, and the line; empty for the first version that is kept
    current: bool = False


def steps_of(versions: Sequence[BlockVersion]) -> list[BlockStep]:
    """Return the versions with their differences, in their order."""
    former = (None, *versions)
    return [
        BlockStep(
            version, () if before is None else _difference(before.value, version.value), version is versions[-1]
        )
        for before, version in zip(former, versions, strict=False)
    ]


def _difference(before: str, after: str) -> tuple[tuple[str, str], ...]:
    """Return the lines that were removed and added, in the order of the text."""
    old, new = before.splitlines(), after.splitlines()
    found: list[tuple[str, str]] = []
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            found += [("-", line) for line in old[i1:i2]] + [("+", line) for line in new[j1:j2]]
    return tuple(found)


def _query(request: Request) -> str:
    return request.query_params.get("q", "").strip()[:1000]


def _next_page(passages: Sequence[ArchivalPassage]) -> str | None:
    return passages[-1].id if len(passages) >= _PASSAGES_SHOWN else None
