"""The page of conversations: what was said, what is being said, and which model says it."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from isabella.agents.history import HistoryEntry, HistoryPage
from isabella.agents.registry import AgentRecord
from isabella.errors import AgentUnknown
from isabella.providers.health import HealthState, stands
from isabella.server.auth import read_form
from isabella.server.event_log import MessageModel
from isabella.server.web.context import ConsoleContext
from isabella.server.web.conversations import Conversation, Conversations, Exchange, ExchangePhase, ExchangeUpdate
from isabella.server.web.rendering import ROOT, Renderer, stream
from isabella.system.redaction import redact

_WINDOW = 40
_QUIET = 20.0
_ID = re.compile(r"agent-[0-9a-f-]{36}")
_MESSAGE = re.compile(r"message-[0-9a-f-]{36}")


@dataclass(frozen=True)
class ChatLine:
    """An entry of the history as the page shows it.

    Attributes:
        entry: what was said or done.
        next: the id of the message after it, by which it is found again.
        message_model: who spoke it, where that is known.
        result: what the tool gave back, for a call.
    """

    entry: HistoryEntry
    next: str
    message_model: MessageModel | None = None
    result: HistoryEntry | None = None


def routes(context: ConsoleContext, renderer: Renderer, conversations: Conversations) -> list[Route]:
    """The routes of the page."""
    page = _Page(context, renderer, conversations)
    below = "/chat/{agent}"
    return [
        Route("/chat", page.first),
        Route(below, page.show),
        Route(f"{below}/live", page.live),
        Route(f"{below}/before", page.before),
        Route(f"{below}/whole", page.whole),
        Route(f"{below}/models", page.models),
        Route(f"{below}/conversation.md", page.export),
        Route(f"{below}/say", page.say, methods=["POST"]),
        Route(f"{below}/stop", page.stop, methods=["POST"]),
        Route(f"{below}/forget", page.forget, methods=["POST"]),
        Route(f"{below}/switch", page.switch, methods=["POST"]),
    ]


async def first_agent(context: ConsoleContext) -> AgentRecord | None:
    """The agent that a page begins with: one of ours that speaks with people."""
    return next(iter(sort_agents(await context.agent_service.registry.all())), None)


def sort_agents(registry: Sequence[AgentRecord]) -> list[AgentRecord]:
    """The agents as they are listed: ours first, those that only tidy up after the others."""
    return sorted(
        registry, key=lambda one: (not one.ours, bool(one.definition and one.definition.reflects_on), one.name)
    )


def agent_of(request: Request) -> str:
    """Letta's id of the agent that a request is about.

    Raises:
        AgentUnknown: it is none.
    """
    id = str(request.path_params["agent"])
    if not _ID.fullmatch(id):
        raise AgentUnknown("There is no such agent.")
    return id


class _Page:
    def __init__(self, context: ConsoleContext, renderer: Renderer, conversations: Conversations) -> None:
        self._premises = context
        self._press = renderer
        self._talks = conversations

    async def first(self, request: Request) -> Response:
        if not self._premises.up:
            return self._press.page(request, "starting.html", here="chat")
        found = await first_agent(self._premises)
        if found is None:
            return self._press.page(
                request,
                "failure.html",
                here="chat",
                what="There is no agent yet.",
                remedy="Isabella makes hers as soon as one provider works.",
            )
        return RedirectResponse(f"{ROOT}/chat/{found.id}", status_code=303)

    async def show(self, request: Request) -> Response:
        if not self._premises.up:
            return self._press.page(request, "starting.html", here="chat")
        id = agent_of(request)
        registry = sort_agents(await self._premises.agent_service.registry.all())
        record = next((one for one in registry if one.id == id), None)
        if record is None:
            raise AgentUnknown("There is no such agent any more.", remedy="Choose another one.")
        conversation = self._talks.of(record)
        # Before the history is read: what ends meanwhile is shown as what is being said.
        since, running = conversation.last, conversation.running
        anchor = request.query_params.get("at", "")
        page = await self._history(id, anchor)
        entries = _before(page.entries, running)
        return self._press.page(
            request,
            "chat.html",
            here="chat",
            registry=registry,
            record=record,
            lines=self._lines(entries),
            earlier=page.before,
            anchor=anchor if _MESSAGE.fullmatch(anchor) else "",
            since=since,
            exchanges=list(conversation.shown(since)),
        )

    async def _history(self, id: str, anchor: str) -> HistoryPage:
        """The newest window, or as much as reaches back to the message that is asked for."""
        history = self._premises.agent_service.history
        page = await history.page(id, limit=_WINDOW)
        wanted = _MESSAGE.fullmatch(anchor) is not None
        while wanted and page.before is not None and all(entry.id != anchor for entry in page.entries):
            earlier = await history.page(id, limit=100, before=page.before)
            page = HistoryPage((*earlier.entries, *page.entries), earlier.before)
            if len(page.entries) > 1500:
                break
        return page

    async def before(self, request: Request) -> Response:
        id, before = agent_of(request), request.query_params.get("before", "")
        page = await self._premises.agent_service.history.page(id, limit=_WINDOW, before=before)
        lines = self._lines(page.entries, following=before)
        return self._press.fragment(
            self._press.part("chat_parts.html", "stretch", lines=lines, earlier=page.before, agent=id)
        )

    async def whole(self, request: Request) -> Response:
        """One message as it is, however long."""
        id, wanted = agent_of(request), request.query_params.get("message", "")
        before = request.query_params.get("before") or None
        page = await self._premises.agent_service.history.page(id, limit=2, before=before)
        text = "\n\n".join(redact(entry.text) for entry in page.entries if entry.id == wanted)
        return Response(text, media_type="text/plain; charset=utf-8")

    async def models(self, request: Request) -> Response:
        """What the agent may be switched to: models of vendors that take their key and are in line."""
        id = agent_of(request)
        record = await self._premises.agent_service.registry.get(id)
        report = self._premises.readiness.report
        proven = {one.name for one in (report.ours if report else []) if stands(one) is HealthState.IN_SYNC}
        handles = [
            one for one in await self._premises.agent_service.models.handles() if one.partition("/")[0] in proven
        ]
        grouped = {
            provider: list(found) for provider, found in groupby(handles, key=lambda one: one.partition("/")[0])
        }
        html = self._press.part("chat_parts.html", "switch", record=record, handles=grouped)
        return self._press.fragment(html)

    async def switch(self, request: Request) -> Response:
        fields = await read_form(request, self._premises.csrf)
        agent_service, id = self._premises.agent_service, agent_of(request)
        record = await agent_service.registry.get(id)
        async with agent_service.memory.hold(id):
            bound = await agent_service.registry.switch(record, fields.get("handle", ""), agent_service.models)
        self._premises.turn_service.deps.agent_cache.forget(id)
        fresh = await agent_service.registry.get(id)
        html = self._press.part("chat_parts.html", "model", record=fresh, switched=True, notes=bound.notes)
        return self._press.fragment(html)

    async def say(self, request: Request) -> Response:
        fields = await read_form(request, self._premises.csrf)
        self._talk(request).say(fields.get("message", ""))
        return Response(status_code=204)

    async def stop(self, request: Request) -> Response:
        fields = await read_form(request, self._premises.csrf)
        self._talk(request).stop(_number(fields.get("seq")))
        return Response(status_code=204)

    async def forget(self, request: Request) -> Response:
        fields = await read_form(request, self._premises.csrf)
        self._talk(request).forget(_number(fields.get("seq")))
        return self._press.fragment("")

    async def live(self, request: Request) -> Response:
        since = _number(request.query_params.get("since"))
        return stream(self._changes(self._talk(request), agent_of(request), since))

    async def export(self, request: Request) -> Response:
        """The conversation as Markdown, from its beginning, however long it is."""
        record = await self._premises.agent_service.registry.get(agent_of(request))
        return StreamingResponse(
            self._told(record),
            media_type="text/markdown; charset=utf-8",
            headers={"Content-Disposition": 'attachment; filename="conversation.md"'},
        )

    async def _told(self, record: AgentRecord) -> AsyncIterator[str]:
        yield f"# A conversation with {record.name}\n"
        entries, _ = await self._premises.agent_service.history.since(record.id, None)
        for entry in entries:
            who = {"user": "You", "assistant": record.name}.get(entry.kind)
            if who is not None:
                yield f"\n**{who}** ({entry.at[:16].replace('T', ' ')})\n\n{redact(entry.text)}\n"

    # --- live -----------------------------------------------------------------------------------------------------

    async def _changes(self, conversation: Conversation, agent: str, since: int) -> AsyncGenerator[str, None]:
        """What is being said, from the last exchange that the page has the history of."""
        seen: dict[int, int] = {one.seq: len(one.changes) for one in conversation.shown(since)}
        yield self._part("live", exchanges=list(conversation.shown(since)), agent=agent, oob=True)
        while True:
            count = conversation.notifier.count
            html: list[str] = []
            shown = {one.seq: one for one in conversation.exchanges}
            for gone in seen.keys() - shown.keys():
                html.append(self._part("gone", seq=gone))
                del seen[gone]
            for one in shown.values():
                if one.seq not in seen and one.seq > since:
                    seen[one.seq] = len(one.changes)
                    html.append(self._part("added", exchange=one, agent=agent))
                elif one.seq in seen:
                    fresh = one.changes[seen[one.seq] :]
                    seen[one.seq] = len(one.changes)
                    html += self._anew(one, fresh, agent)
            if html:
                yield "\n".join(html)
            await conversation.notifier.after(count, _QUIET)

    def _anew(self, one: Exchange, changes: Sequence[ExchangeUpdate], agent: str) -> list[str]:
        """The fragments for what has changed in an exchange; much that came at once is one fragment."""
        html: list[str] = []
        whole: set[int] = set()
        more: dict[int, str] = {}
        state = False
        for change in changes:
            part = change.part
            if change.kind == "state" or part is None:
                state = True
            elif change.kind == "part":
                whole.add(part.index)
                html.append(self._part("part_added", seq=one.seq, part=part))
            elif part.index in whole:
                continue
            elif change.kind == "more":
                more[part.index] = more.get(part.index, "") + change.text
            else:
                html.append(self._part("result", seq=one.seq, part=part, oob=True))
        html += [self._part("more", seq=one.seq, index=index, text=text) for index, text in more.items()]
        if state or one.phase is ExchangePhase.ENDED:
            html.append(self._part("state", exchange=one, agent=agent, oob=True))
        if one.phase is ExchangePhase.ENDED and state:
            html += [
                self._part("finished", seq=one.seq, part=part) for part in one.parts if part.kind in ("text", "tool")
            ]
        return html

    def _part(self, name: str, /, **values: object) -> str:
        return self._press.part("chat_parts.html", name, **values)

    def _talk(self, request: Request) -> Conversation:
        return self._talks.at(agent_of(request))

    def _lines(self, entries: Sequence[HistoryEntry], following: str = "") -> list[ChatLine]:
        """The entries with what belongs to each; a tool's result stands with its call."""
        lines: list[ChatLine] = []
        for index, entry in enumerate(entries):
            if entry.kind == "tool_return":
                caller = next(
                    (i for i, one in enumerate(lines) if one.entry.kind == "tool_call" and not one.result), None
                )
                if caller is not None:
                    lines[caller] = ChatLine(lines[caller].entry, lines[caller].next, None, entry)
                    continue
            after = next((one.id for one in entries[index + 1 :] if one.id != entry.id), following)
            message_model = self._premises.event_log.message_model(entry.id) if entry.kind == "assistant" else None
            lines.append(ChatLine(entry, after, message_model))
        return lines


def _before(entries: Sequence[HistoryEntry], running: Exchange | None) -> Sequence[HistoryEntry]:
    """Without what the exchange that is under way has put into the history already."""
    if running is None:
        return entries
    if running.after is None:
        # It has not asked yet what was before it, or nothing was.
        return entries if running.turn is None else ()
    found = [index for index, entry in enumerate(entries) if entry.id == running.after]
    return entries[: found[-1] + 1] if found else entries


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() and len(text) < 12 else 0
