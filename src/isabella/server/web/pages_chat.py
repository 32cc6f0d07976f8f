"""The chat page: an agent's history, the exchanges in progress, and its model."""

from __future__ import annotations

import json
import re
import time
from base64 import b64decode
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from isabella.agents.history import HistoryEntry, HistoryPage
from isabella.agents.registry import AgentRecord
from isabella.agents.transcript import transcript
from isabella.errors import AgentUnknown, MemoryUnknown
from isabella.letta.conversations import DEFAULT
from isabella.letta.messages import Image
from isabella.providers.health import HealthState, current_health
from isabella.server import ROOT
from isabella.server.answer_log import AnswerRecord
from isabella.server.auth import read_form
from isabella.server.runtime import Runtime
from isabella.server.web.attachments import LARGEST_FORM, read_attachments
from isabella.server.web.conversations import (
    AnswerPart,
    ChatAddress,
    Conversation,
    Exchange,
    ExchangePhase,
    address_of,
)
from isabella.server.web.markdown import Block
from isabella.server.web.pages_conversations import list_conversations
from isabella.server.web.rendering import Page, Renderer
from isabella.system.english import english
from isabella.system.redaction import redact
from isabella.turns.message import IMAGE_TYPES

_PAGE = 40
_HITS = 50
_MESSAGES_AT_ONCE = 20
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
    record: AnswerRecord | None = None  #: what is known of the answer that it belongs to
    result: HistoryEntry | None = None  #: the result of a tool call
    in_context: bool = True  #: whether the agent's model sees it
    border: bool = False  #: whether that differs from the message before it
    answers: str = ""  #: the id of the message of the user that it answers
    unsent: tuple[Exchange, ...] = ()  #: the exchanges after it that are not in the history

    @property
    def first(self) -> bool:
        """Whether it is the first message of its answer, as far as that is known."""
        return self.record is not None and self.record.first_message == self.entry.id

    @property
    def last(self) -> bool:
        """Whether it is the last message of its answer, as far as that is known."""
        return self.record is None or self.record.last_message == self.entry.id


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


_NOTHING_SENT = SentExchange((), ())


def routes(runtime: Runtime, renderer: Renderer) -> list[Route]:
    """Return the routes of the page."""
    page = _Page(runtime, renderer)
    below = "/chat/{address}"
    return [
        Route("/chat", page.first),
        Route(below, page.show),
        Route(f"{below}/live", page.live),
        Route(f"{below}/before", page.before),
        Route(f"{below}/after", page.following),
        Route(f"{below}/search", page.search),
        Route(f"{below}/whole", page.whole),
        Route(f"{below}/models", page.models),
        Route(f"{below}/conversation.md", page.export_markdown),
        Route(f"{below}/conversation.json", page.export_json),
        Route(f"{below}/send", page.send, methods=["POST"]),
        Route(f"{below}/again", page.again, methods=["POST"]),
        Route(f"{below}/retry", page.retry, methods=["POST"]),
        Route(f"{below}/image", page.image),
        Route(f"{below}/sees", page.sees),
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
            english("There is no agent yet."),
            remedy=english("Create one on the page Agents. Those of the agents file are created at the next start."),
        )
    return RedirectResponse(f"{ROOT}/{page}/{agents[0].id}", status_code=303)


async def usable_handles(runtime: Runtime) -> dict[str, list[str]]:
    """Return the handles, by provider, of providers in sync whose vendor accepts the key."""
    report = runtime.readiness.report
    in_sync = {
        entry.name for entry in (report.configured if report else []) if current_health(entry) is HealthState.IN_SYNC
    }
    handles = await runtime.agents.models.handles()
    return {
        provider: list(group)
        for provider, group in groupby(handles, key=lambda handle: handle.partition("/")[0])
        if provider in in_sync
    }


def agent_id_of(request: Request) -> str:
    """Return the id of the agent in a request's path."""
    id = str(request.path_params["agent"])
    if not _AGENT_ID.fullmatch(id):
        raise AgentUnknown(english("There is no such agent."), remedy=english("Choose another one."))
    return id


def find_agent(agents: Sequence[AgentRecord], id: str) -> AgentRecord:
    """Return the agent of an id."""
    agent = next((agent for agent in agents if agent.id == id), None)
    if agent is None:
        raise AgentUnknown(english("This agent no longer exists."), remedy=english("Choose another one."))
    return agent


class _Page(Page):
    parts_template = "chat_parts.html"

    def __init__(self, runtime: Runtime, renderer: Renderer) -> None:
        super().__init__(runtime, renderer)
        self._conversations: dict[ChatAddress, Conversation] = {}

    async def first(self, _request: Request) -> Response:
        return await redirect_to_first(self._runtime, "chat")

    async def show(self, request: Request) -> Response:
        address = address_of(request)
        agents = sort_agents(await self._runtime.agents.registry.all())
        agent = find_agent(agents, address.agent_id)
        listed = await list_conversations(self._runtime, agent, address)
        conversation = self._conversation(address)
        # Read before the history, so that an exchange that ends meanwhile is shown as one in progress.
        ended = conversation.in_phase(ExchangePhase.ENDED)
        since, running = max((exchange.seq for exchange in ended), default=0), conversation.running
        anchor = request.query_params.get("at", "")
        if not _MESSAGE_ID.fullmatch(anchor):
            anchor = ""
        page = await self._history(address, anchor)
        entries = _without_running(page.entries, running)
        unsent = placed(conversation.unsent(since), entries, newest=page.after is None)
        return self._renderer.page(
            request,
            "chat.html",
            here="chat",
            agents=agents,
            agent=agent,
            address=str(address),
            conversations=listed,
            page=page,
            lines=await self._lines(address, entries, unsent),
            first=unsent.get("", ()),
            anchor=anchor,
            since=since,
            exchanges=conversation.after(since),
        )

    async def _history(self, address: ChatAddress, anchor: str) -> HistoryPage:
        """Return the newest page of the history, or the one around the message `anchor`, if it exists."""
        history, id, within = self._runtime.agents.history, address.agent_id, address.conversation
        if anchor:
            with suppress(MemoryUnknown):
                return await history.around(id, anchor, limit=_PAGE // 2, conversation=within)
        return await history.page(id, limit=_PAGE, conversation=within)

    async def before(self, request: Request) -> Response:
        address, before = address_of(request), request.query_params.get("before", "")
        page = await self._runtime.agents.history.page(
            address.agent_id, limit=_PAGE, before=before, conversation=address.conversation
        )
        return await self._page_of(address, replace(page, after=None))

    async def following(self, request: Request) -> Response:
        address, after = address_of(request), request.query_params.get("after", "")
        page = await self._runtime.agents.history.following(
            address.agent_id, after, limit=_PAGE, conversation=address.conversation
        )
        return await self._page_of(address, replace(page, before=None))

    async def _page_of(self, address: ChatAddress, page: HistoryPage) -> Response:
        conversation = self._conversation(address)
        entries = _without_running(page.entries, conversation.running)
        unsent = placed(conversation.unsent(conversation.last_seq), entries)
        lines = await self._lines(address, entries, unsent)
        return self._fragment("history", lines=lines, page=page, agent_id=str(address))

    async def whole(self, request: Request) -> Response:
        """Return the whole text of one or more messages."""
        address, texts = address_of(request), []
        for message_id in request.query_params.getlist("message")[:_MESSAGES_AT_ONCE]:
            if _MESSAGE_ID.fullmatch(message_id):
                entries = await self._runtime.agents.history.message(
                    address.agent_id, message_id, conversation=address.conversation
                )
                texts += [redact(entry.text) for entry in entries if entry.kind != "reasoning"] or [
                    redact(entry.text) for entry in entries
                ]
        return Response("\n\n".join(texts), media_type="text/plain; charset=utf-8")

    async def search(self, request: Request) -> Response:
        address, query = address_of(request), request.query_params.get("q", "").strip()
        hits = await self._runtime.agents.history.search(
            address.agent_id, query, limit=_HITS, conversation=address.conversation
        )
        agent = await self._runtime.agents.registry.get(address.agent_id)
        return self._fragment("hits", agent=agent, address=str(address), query=query, hits=hits, most=_HITS)

    async def models(self, request: Request) -> Response:
        """Return the models of providers in sync whose vendor accepts the key: to switch, or to answer again."""
        address = address_of(request)
        agent = await self._runtime.agents.registry.get(address.agent_id)
        message_id, by_provider = request.query_params.get("again", ""), await usable_handles(self._runtime)
        if message_id:
            return self._fragment(
                "again_form", agent=agent, address=str(address), handles=by_provider, message_id=message_id
            )
        return self._fragment("switch", agent=agent, handles=by_provider)

    async def switch(self, request: Request) -> Response:
        fields = await self._form(request)
        agents, id = self._runtime.agents, address_of(request).agent_id
        agent = await agents.registry.get(id)
        async with agents.memory.hold(id):
            binding = await agents.registry.switch(agent, fields.get("handle", ""), agents.models)
        self._runtime.turns.deps.agent_cache.forget(id)
        switched = await agents.registry.get(id)
        return self._fragment("model", agent=switched, switched=True, notes=binding.notes)

    async def send(self, request: Request) -> Response:
        address = address_of(request)
        fields = await read_form(request, self._runtime.csrf, largest=LARGEST_FORM)
        attached, replaces = read_attachments(fields.get("attachments", "")), _message_id(fields.get("replaces"))
        images = attached.images
        if replaces is not None and not images:
            # An edited message keeps its pictures, unless others are attached.
            images = await self._runtime.agents.history.images(replaces)
        if images:
            turn_service = self._runtime.turns
            if (problem := turn_service.blind(await turn_service.find(address.agent_id))) is not None:
                raise problem
        message = attached.told(fields.get("message", "").strip("\n"))
        self._conversation(address).send(message, images, replaces=replaces)
        return Response(status_code=204)

    async def sees(self, request: Request) -> Response:
        """Return a notice to the user before sending pictures, if anything."""
        turn_service = self._runtime.turns
        agent_ref = await turn_service.find(address_of(request).agent_id)
        seeing, problem = turn_service.seeing(agent_ref), turn_service.blind(agent_ref)
        html = self._renderer.part(
            "attachments_parts.html", "sight", agent_ref=agent_ref, seeing=seeing, problem=problem
        )
        return HTMLResponse(html)

    async def image(self, request: Request) -> Response:
        """Return a picture of a message in the history, or of an exchange."""
        query = request.query_params
        images: Sequence[Image] = ()
        if message_id := _message_id(query.get("message")):
            images = await self._runtime.agents.history.images(message_id)
        elif exchange := self._conversation(address_of(request)).find(_number(query.get("seq"))):
            images = exchange.images
        index = _number(query.get("index"))
        if index >= len(images) or images[index].media_type not in IMAGE_TYPES:
            raise MemoryUnknown(english("There is no such picture."))
        return Response(b64decode(images[index].data), media_type=images[index].media_type)

    async def again(self, request: Request) -> Response:
        """Send a message of the user again, in its own place, to the chosen model."""
        conversation, fields = await self._posted(request)
        message_id = _message_id(fields.get("message"))
        address, history = address_of(request), self._runtime.agents.history
        entries = await history.message(address.agent_id, message_id or "", conversation=address.conversation)
        text = next((entry.text for entry in entries if entry.kind == "user"), "")
        images = await history.images(message_id or "")
        conversation.send(text, images, replaces=message_id, wanted=fields.get("handle") or None)
        return Response(status_code=204)

    async def retry(self, request: Request) -> Response:
        conversation, fields = await self._posted(request)
        conversation.retry(_number(fields.get("seq")))
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
        return self._conversation(address_of(request)), fields

    async def export_markdown(self, request: Request) -> Response:
        agent, entries = await self._exported(request)
        return _download(agent, "md", "text/markdown; charset=utf-8", self._markdown(agent, entries))

    async def export_json(self, request: Request) -> Response:
        agent, entries = await self._exported(request)
        return _download(agent, "json", "application/json", self._json(agent, entries))

    async def _exported(self, request: Request) -> tuple[AgentRecord, Sequence[HistoryEntry]]:
        address = address_of(request)
        agent = await self._runtime.agents.registry.get(address.agent_id)
        within = address.conversation or DEFAULT
        entries, _ = await self._runtime.agents.history.since(agent.id, None, conversation=within)
        return agent, entries

    def _markdown(self, agent: AgentRecord, entries: Sequence[HistoryEntry]) -> Iterator[str]:
        yield f"# A conversation with {agent.name}\n"
        yield from transcript(entries, agent.name, handle=lambda entry: self._handle(agent, entry))

    def _json(self, agent: AgentRecord, entries: Sequence[HistoryEntry]) -> Iterator[str]:
        yield f'{{"agent": {json.dumps(agent.name)}, "agent_id": "{agent.id}", "messages": ['
        for index, entry in enumerate(entries):
            fields = {**asdict(entry), "text": redact(entry.text), "model": self._handle(agent, entry)}
            yield (",\n" if index else "\n") + json.dumps(fields, ensure_ascii=False)
        yield "\n]}\n"

    def _handle(self, agent: AgentRecord, entry: HistoryEntry) -> str | None:
        record = self._runtime.event_log.answers.find(agent.id, entry.id) if entry.kind == "assistant" else None
        return None if record is None else record.handle

    async def live(self, request: Request) -> Response:
        since = _number(request.query_params.get("since"))
        return self._stream(self._changes(address_of(request), since))

    async def _changes(self, address: ChatAddress, since: int) -> AsyncGenerator[str, None]:
        """Yield the exchanges after exchange `since`, and then what changes in them."""
        conversation, agent_id = self._conversation(address), str(address)
        shown = [*conversation.unsent(since), *conversation.after(since)]
        sent = {exchange.seq: SentExchange.of(exchange) for exchange in shown}
        yield self._part("live", exchanges=conversation.after(since), agent_id=agent_id, oob=True)
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
                    html += _announcements(self._renderer, exchange, _NOTHING_SENT, SentExchange.of(exchange))
            sent = {seq: SentExchange.of(exchange) for seq, exchange in exchanges.items()}
            took = time.perf_counter() - began
            if html:
                yield "\n".join(html)
                # A long text takes longer to render; most of the time is left for everything else.
                await anyio.sleep(max(_PACE_SECONDS, _REST * took))
            await conversation.notifier.wait(count, _REFRESH_SECONDS)

    def _conversation(self, address: ChatAddress) -> Conversation:
        if address not in self._conversations:
            self._conversations[address] = Conversation(self._runtime, address)
        return self._conversations[address]

    async def _lines(
        self, address: ChatAddress, entries: Sequence[HistoryEntry], unsent: Mapping[str, Sequence[Exchange]]
    ) -> list[ChatLine]:
        """Return entries as lines, each tool result joined to its call, each unsent exchange behind its place."""
        history, answers = self._runtime.agents.history, self._runtime.event_log.answers
        context = await history.in_context(address.agent_id, conversation=address.conversation)
        last_of = {entry.id: index for index, entry in enumerate(entries)}
        lines: list[ChatLine] = []
        before: bool | None = None
        asked = ""
        for index, entry in enumerate(entries):
            behind = tuple(unsent.get(entry.id, ())) if last_of[entry.id] == index else ()
            called = _caller(lines) if entry.kind == "tool_return" else None
            if called is not None:
                lines[called] = replace(lines[called], result=entry)
                lines[-1] = replace(lines[-1], unsent=(*lines[-1].unsent, *behind))
                continue
            seen = not context or entry.id in context
            said = entry.kind in ("user", "assistant", "summary")
            border = said and before not in (None, seen)
            before = seen if said else before
            asked = entry.id if entry.kind == "user" else asked
            record = answers.find(address.agent_id, entry.id) if entry.kind == "assistant" else None
            lines.append(ChatLine(entry, record, None, seen, border, asked, behind))
        return lines


def _caller(lines: Sequence[ChatLine]) -> int | None:
    """Return the index of the first tool call that has no result yet."""
    return next((i for i, line in enumerate(lines) if line.entry.kind == "tool_call" and not line.result), None)


def placed(
    exchanges: Sequence[Exchange], entries: Sequence[HistoryEntry], *, newest: bool = False
) -> dict[str, list[Exchange]]:
    """Return exchanges that are not in the history by the id of the message behind which they belong.

    One whose place is not known goes by its time, if these are the newest entries: before all of them under "".
    """
    ids = {entry.id for entry in entries}
    by_place: dict[str, list[Exchange]] = {}
    for exchange in exchanges:
        place = exchange.after
        if place not in ids:
            if not newest or (place is not None and entries and exchange.at.isoformat() < _utc(entries[0].at)):
                continue
            place = next((entry.id for entry in reversed(entries) if _utc(entry.at) <= exchange.at.isoformat()), "")
        by_place.setdefault(place or "", []).append(exchange)
    return by_place


def _utc(at: str) -> str:
    """Return a time of Letta's in UTC, in the form that sorts as text."""
    try:
        return datetime.fromisoformat(at).astimezone(UTC).isoformat()
    except ValueError:
        return at


def _download(agent: AgentRecord, kind: str, media_type: str, content: Iterator[str]) -> Response:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", agent.name).strip("-") or "agent"
    disposition = f'attachment; filename="conversation-{name}.{kind}"'
    return StreamingResponse(content, media_type=media_type, headers={"Content-Disposition": disposition})


def _message_id(text: str | None) -> str | None:
    return text if text and _MESSAGE_ID.fullmatch(text) else None


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
    html += _announcements(renderer, exchange, sent, now)
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


def _announcements(renderer: Renderer, exchange: Exchange, sent: SentExchange, now: SentExchange) -> Iterator[str]:
    """Yield what screen readers are told: each block of the answer when it is complete, and why there is none."""
    for index, after in enumerate(now.parts):
        announced = sent.parts[index].announced if index < len(sent.parts) else 0
        for block in after.blocks[announced : after.announced]:
            if block.spoken:
                yield _part(renderer, "announcement", text=block.spoken)
    if exchange.phase is ExchangePhase.ENDED and ExchangePhase.ENDED not in sent.progress:
        yield _part(renderer, "end_announcement", exchange=exchange)


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
