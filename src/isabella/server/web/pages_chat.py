"""The chat page: an agent's history, the exchanges in progress, and its model."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from isabella.agents.history import HistoryEntry, HistoryPage
from isabella.agents.registry import AgentRecord
from isabella.errors import AgentUnknown
from isabella.providers.health import HealthState, current_health
from isabella.server import ROOT
from isabella.server.event_log import MessageModel
from isabella.server.runtime import Runtime
from isabella.server.web.conversations import AnswerPart, Conversation, Exchange, ExchangePhase
from isabella.server.web.markdown import Block
from isabella.server.web.rendering import Page, Renderer, stream
from isabella.system.redaction import redact

_PAGE = 40
_LONGEST_HISTORY = 1500
_REFRESH_SECONDS = 20.0
#: The least time between two updates of an open page, and as a multiple of the time that rendering one took.
_PACE_SECONDS = 0.04
_REST = 10
_AGENT_ID = re.compile(r"agent-[0-9a-f-]{36}")
_MESSAGE_ID = re.compile(r"message-[0-9a-f-]{36}")


@dataclass(frozen=True)
class ChatLine:
    """An entry of the history as the page shows it."""

    entry: HistoryEntry
    next: str  #: the id of the message after it, from which the whole text can be fetched
    message_model: MessageModel | None = None  #: the model that wrote it, if known
    result: HistoryEntry | None = None


@dataclass(frozen=True)
class SentPart:
    """The state of a part of an answer when an open page was last updated."""

    length: int = 0  #: of its text
    result: str | None = None  #: of a tool
    blocks: tuple[Block, ...] = ()  #: of an answer's text
    announced: int = 0  #: the number of its blocks that were announced to screen readers

    @classmethod
    def of(cls, part: AnswerPart) -> SentPart:
        """Return the present state of a part."""
        if part.kind != "text":
            return cls(len(part.text), part.result)
        return cls(len(part.text), None, part.rendered.blocks, part.rendered.complete)


@dataclass(frozen=True)
class SentExchange:
    """The state of an exchange when an open page was last updated."""

    progress: tuple[object, ...]  #: everything that its progress line shows
    parts: tuple[SentPart, ...]

    @classmethod
    def of(cls, exchange: Exchange) -> SentExchange:
        """Return the present state of an exchange."""
        return cls(
            (exchange.phase, exchange.wait_reason, exchange.handle),
            tuple(SentPart.of(part) for part in exchange.parts),
        )


def routes(runtime: Runtime, renderer: Renderer) -> list[Route]:
    """Return the routes of the page."""
    page = _Page(runtime, renderer)
    below = "/chat/{agent}"
    return [
        Route("/chat", page.first),
        Route(below, page.show),
        Route(f"{below}/live", page.live),
        Route(f"{below}/before", page.before),
        Route(f"{below}/whole", page.whole),
        Route(f"{below}/models", page.models),
        Route(f"{below}/conversation.md", page.export),
        Route(f"{below}/send", page.send, methods=["POST"]),
        Route(f"{below}/stop", page.stop, methods=["POST"]),
        Route(f"{below}/dismiss", page.dismiss, methods=["POST"]),
        Route(f"{below}/switch", page.switch, methods=["POST"]),
    ]


def sort_agents(agents: Sequence[AgentRecord]) -> list[AgentRecord]:
    """Sort agents for display: managed ones first, those that only reflect after the others."""
    return sorted(
        agents,
        key=lambda agent: (not agent.managed, bool(agent.definition and agent.definition.reflects_on), agent.name),
    )


async def redirect_to_first(runtime: Runtime, page: str) -> Response:
    """Redirect to the first agent's page."""
    agents = sort_agents(await runtime.agents.registry.all())
    if not agents:
        raise AgentUnknown(
            "There is no agent yet.", remedy="Isabella creates one at the next start with a working provider."
        )
    return RedirectResponse(f"{ROOT}/{page}/{agents[0].id}", status_code=303)


def agent_id_of(request: Request) -> str:
    """Return the id of the agent in a request's path."""
    id = str(request.path_params["agent"])
    if not _AGENT_ID.fullmatch(id):
        raise AgentUnknown("There is no such agent.")
    return id


def find_agent(agents: Sequence[AgentRecord], id: str) -> AgentRecord:
    """Return the agent of an id."""
    agent = next((agent for agent in agents if agent.id == id), None)
    if agent is None:
        raise AgentUnknown("This agent does not exist any more.", remedy="Choose another one.")
    return agent


class _Page(Page):
    parts_template = "chat_parts.html"

    def __init__(self, runtime: Runtime, renderer: Renderer) -> None:
        super().__init__(runtime, renderer)
        self._conversations: dict[str, Conversation] = {}

    async def first(self, _request: Request) -> Response:
        return await redirect_to_first(self._runtime, "chat")

    async def show(self, request: Request) -> Response:
        id = agent_id_of(request)
        agents = sort_agents(await self._runtime.agents.registry.all())
        agent = find_agent(agents, id)
        conversation = self._conversation(id)
        # Read before the history, so that an exchange that ends meanwhile is shown as one in progress.
        ended = conversation.in_phase(ExchangePhase.ENDED)
        since, running = max((exchange.seq for exchange in ended), default=0), conversation.running
        anchor = request.query_params.get("at", "")
        if not _MESSAGE_ID.fullmatch(anchor):
            anchor = ""
        page = await self._history(id, anchor)
        return self._renderer.page(
            request,
            "chat.html",
            here="chat",
            agents=agents,
            agent=agent,
            lines=self._lines(_without_running(page.entries, running)),
            earlier=page.before,
            anchor=anchor,
            since=since,
            exchanges=list(conversation.visible(since)),
        )

    async def _history(self, id: str, anchor: str) -> HistoryPage:
        """Return the newest page of the history, extended to the message `anchor`, if any."""
        history = self._runtime.agents.history
        page = await history.page(id, limit=_PAGE)
        while anchor and page.before is not None and all(entry.id != anchor for entry in page.entries):
            earlier = await history.page(id, limit=100, before=page.before)
            page = HistoryPage((*earlier.entries, *page.entries), earlier.before)
            if len(page.entries) > _LONGEST_HISTORY:
                break
        return page

    async def before(self, request: Request) -> Response:
        id, before = agent_id_of(request), request.query_params.get("before", "")
        page = await self._runtime.agents.history.page(id, limit=_PAGE, before=before)
        lines = self._lines(page.entries, following=before)
        return self._fragment("history", lines=lines, earlier=page.before, agent_id=id)

    async def whole(self, request: Request) -> Response:
        id, message_id = agent_id_of(request), request.query_params.get("message", "")
        before = request.query_params.get("before") or None
        page = await self._runtime.agents.history.page(id, limit=2, before=before)
        text = "\n\n".join(redact(entry.text) for entry in page.entries if entry.id == message_id)
        return Response(text, media_type="text/plain; charset=utf-8")

    async def models(self, request: Request) -> Response:
        """Return the menu of models: those of providers in sync whose vendor accepts the key."""
        agent = await self._runtime.agents.registry.get(agent_id_of(request))
        report = self._runtime.readiness.report
        in_sync = {
            entry.name
            for entry in (report.configured if report else [])
            if current_health(entry) is HealthState.IN_SYNC
        }
        handles = await self._runtime.agents.models.handles()
        by_provider = {
            provider: list(group)
            for provider, group in groupby(handles, key=lambda handle: handle.partition("/")[0])
            if provider in in_sync
        }
        return self._fragment("switch", agent=agent, handles=by_provider)

    async def switch(self, request: Request) -> Response:
        fields = await self._form(request)
        agents, id = self._runtime.agents, agent_id_of(request)
        agent = await agents.registry.get(id)
        async with agents.memory.hold(id):
            binding = await agents.registry.switch(agent, fields.get("handle", ""), agents.models)
        self._runtime.turns.deps.agent_cache.forget(id)
        switched = await agents.registry.get(id)
        return self._fragment("model", agent=switched, switched=True, notes=binding.notes)

    async def send(self, request: Request) -> Response:
        conversation, fields = await self._posted(request)
        conversation.send(fields.get("message", ""))
        return Response(status_code=204)

    async def stop(self, request: Request) -> Response:
        conversation, fields = await self._posted(request)
        conversation.stop(_number(fields.get("seq")))
        return Response(status_code=204)

    async def dismiss(self, request: Request) -> Response:
        conversation, fields = await self._posted(request)
        conversation.dismiss(_number(fields.get("seq")))
        return Response(status_code=204)

    async def _posted(self, request: Request) -> tuple[Conversation, dict[str, str]]:
        fields = await self._form(request)
        return self._conversation(agent_id_of(request)), fields

    async def export(self, request: Request) -> Response:
        agent = await self._runtime.agents.registry.get(agent_id_of(request))
        return StreamingResponse(
            self._markdown(agent),
            media_type="text/markdown; charset=utf-8",
            headers={"Content-Disposition": 'attachment; filename="conversation.md"'},
        )

    async def _markdown(self, agent: AgentRecord) -> AsyncIterator[str]:
        yield f"# A conversation with {agent.name}\n"
        entries, _ = await self._runtime.agents.history.since(agent.id, None)
        for entry in entries:
            author = {"user": "You", "assistant": agent.name}.get(entry.kind)
            if author is not None:
                yield f"\n**{author}** ({entry.at[:16].replace('T', ' ')})\n\n{redact(entry.text)}\n"

    async def live(self, request: Request) -> Response:
        since = _number(request.query_params.get("since"))
        return stream(self._changes(agent_id_of(request), since))

    async def _changes(self, agent_id: str, since: int) -> AsyncGenerator[str, None]:
        """Yield the exchanges after exchange `since`, and then what changes in them."""
        conversation = self._conversation(agent_id)
        sent = {exchange.seq: SentExchange.of(exchange) for exchange in conversation.visible(since)}
        yield self._part("live", exchanges=list(conversation.visible(since)), agent_id=agent_id, oob=True)
        while True:
            count, began = conversation.notifier.count, time.perf_counter()
            exchanges = {
                exchange.seq: exchange
                for exchange in conversation.exchanges
                if exchange.seq in sent or exchange.seq > since
            }
            html = [self._part("exchange_removed", seq=seq) for seq in sent.keys() - exchanges.keys()]
            for exchange in exchanges.values():
                if exchange.seq in sent:
                    html += exchange_updates(self._renderer, exchange, sent[exchange.seq], agent_id)
                else:
                    html.append(self._part("exchange_added", exchange=exchange, agent_id=agent_id))
                    html += _announcements(self._renderer, (), SentExchange.of(exchange).parts)
            sent = {seq: SentExchange.of(exchange) for seq, exchange in exchanges.items()}
            took = time.perf_counter() - began
            if html:
                yield "\n".join(html)
                # A long text takes longer to render; most of the time is left for everything else.
                await anyio.sleep(max(_PACE_SECONDS, _REST * took))
            await conversation.notifier.wait(count, _REFRESH_SECONDS)

    def _conversation(self, agent_id: str) -> Conversation:
        if agent_id not in self._conversations:
            self._conversations[agent_id] = Conversation(self._runtime, agent_id)
        return self._conversations[agent_id]

    def _lines(self, entries: Sequence[HistoryEntry], following: str = "") -> list[ChatLine]:
        """Return entries as lines, each tool result joined to its call; `following` is the message after them."""
        lines: list[ChatLine] = []
        for index, entry in enumerate(entries):
            if entry.kind == "tool_return":
                call = next(
                    (i for i, line in enumerate(lines) if line.entry.kind == "tool_call" and not line.result), None
                )
                if call is not None:
                    lines[call] = ChatLine(lines[call].entry, lines[call].next, None, entry)
                    continue
            next_id = next((later.id for later in entries[index + 1 :] if later.id != entry.id), following)
            model = self._runtime.event_log.message_model(entry.id) if entry.kind == "assistant" else None
            lines.append(ChatLine(entry, next_id, model))
        return lines


def exchange_updates(renderer: Renderer, exchange: Exchange, sent: SentExchange, agent_id: str) -> list[str]:
    """Return fragments for what has changed in an exchange: its parts, and its progress."""
    seq, now = exchange.seq, SentExchange.of(exchange)
    html = [_part(renderer, "part_added", seq=seq, part=part) for part in exchange.parts[len(sent.parts) :]]
    for part, before, after in zip(exchange.parts, sent.parts, now.parts, strict=False):
        if part.kind == "text":
            html += _block_updates(renderer, f"x{seq}-{part.index}", before.blocks, after.blocks)
        elif after.length > before.length:
            html.append(_part(renderer, "text_added", seq=seq, index=part.index, text=part.text[before.length :]))
        if after.result != before.result:
            html.append(_part(renderer, "result", seq=seq, part=part))
    html += _announcements(renderer, sent.parts, now.parts)
    if now.progress != sent.progress:
        html.append(_part(renderer, "state", exchange=exchange, agent_id=agent_id, oob=True))
    return html


def _block_updates(renderer: Renderer, id: str, before: Sequence[Block], after: Sequence[Block]) -> Iterator[str]:
    """Yield fragments for the blocks of a text that have changed: only the last ones do."""
    for index in range(len(after), len(before)):
        yield _part(renderer, "block_removed", id=id, index=index)
    for index, block in enumerate(after):
        if index >= len(before):
            yield _part(renderer, "block_added", id=id, index=index, block=block)
        elif block != before[index]:
            yield _part(renderer, "block_changed", id=id, index=index, block=block)


def _announcements(renderer: Renderer, before: Sequence[SentPart], now: Sequence[SentPart]) -> Iterator[str]:
    """Yield what screen readers are told: each block of the answer when it is complete."""
    for index, after in enumerate(now):
        announced = before[index].announced if index < len(before) else 0
        for block in after.blocks[announced : after.announced]:
            if block.spoken:
                yield _part(renderer, "announcement", text=block.spoken)


def _part(renderer: Renderer, macro: str, /, **values: Any) -> str:
    return renderer.part(_Page.parts_template, macro, **values)


def _without_running(entries: Sequence[HistoryEntry], running: Exchange | None) -> Sequence[HistoryEntry]:
    """Return entries without those of the running exchange, which the page shows separately."""
    if running is None:
        return entries
    if running.after is None:
        # Either the history was empty before it, or it has not read the history yet and has stored nothing.
        return entries if running.turn is None else ()
    found = [index for index, entry in enumerate(entries) if entry.id == running.after]
    return entries[: found[-1] + 1] if found else entries


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() and len(text) < 12 else 0
