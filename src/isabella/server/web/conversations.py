"""The console's conversations: they run in the backend, independent of open pages, one message at a time."""

from __future__ import annotations

import re
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import takewhile

import structlog
from starlette.requests import Request

from isabella.errors import AgentUnknown, IsabellaError, MessageRefused, QueueFull
from isabella.letta.conversations import DEFAULT
from isabella.letta.messages import Image
from isabella.server.answer_log import AnswerRecord
from isabella.server.event_log import Notifier
from isabella.server.runtime import Runtime
from isabella.server.web.languages import current
from isabella.server.web.markdown import MarkdownStream
from isabella.system.english import clause, english
from isabella.system.redaction import redact
from isabella.turns import events
from isabella.turns.events import Ended, EndReason, ErrorCode, Event, Failover, TurnFailed
from isabella.turns.message import UserMessage
from isabella.turns.service import check_message
from isabella.turns.turn import Turn

log = structlog.get_logger()

_ADDRESS = re.compile(r"(agent-[0-9a-f-]{36})(?::(conv-[0-9a-f-]{36}))?")
_EXCHANGES_KEPT = 30
_LONGEST_QUEUE = 8


class ExchangePhase(StrEnum):
    """The phase of an exchange."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass
class AnswerPart:
    """A part of an answer."""

    index: int  #: its position in the exchange
    kind: str  #: `text`, `reasoning`, `tool`, `failover` or `note`
    text: str = ""  #: the text, or the arguments of a tool call
    message_id: str = ""  #: the id of its message in Letta
    tool: str = ""
    call: str = ""
    result: str | None = None  #: the result of the tool; None while it runs
    ok: bool = True
    failover: Failover | None = None  #: the vendor that did not answer
    complete: bool = False  #: whether its text is complete
    _streams: dict[str, MarkdownStream] = field(default_factory=dict, repr=False)

    @property
    def rendered(self) -> MarkdownStream:
        """The text as Markdown, rendered when it is needed, with words of the current language."""
        stream = self._streams.setdefault(current().tag, MarkdownStream())
        stream.write(self.text, ended=self.complete)
        return stream


@dataclass
class Exchange:
    """A message and its answer."""

    seq: int  #: the number of the exchange in its conversation
    message: str
    replaces: str | None = None  #: the id of the earlier message of the user that this one replaces
    wanted: str | None = None  #: the model that is asked first, in this turn only
    images: tuple[Image, ...] = field(default=(), repr=False)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    phase: ExchangePhase = ExchangePhase.WAITING
    parts: list[AnswerPart] = field(default_factory=list)
    #: the id in Letta of the last message before it; None if there is none, or it is not known yet
    after: str | None = None
    handle: str = ""  #: the model that was asked or has answered
    wait_reason: str = ""  #: why there is no answer yet
    failed: TurnFailed | None = None
    record: AnswerRecord = field(default_factory=AnswerRecord)
    #: once it is stored: the ids in Letta of its message, and of the messages of the answer
    message_id: str = ""
    answer_ids: tuple[str, ...] = ()
    turn: Turn | None = field(default=None, repr=False)

    @property
    def ended(self) -> Ended | None:
        """Its end; None if it has not ended."""
        return self.record.ended

    @property
    def stored(self) -> bool:
        """Whether it is in the agent's history, so that pages show it from there."""
        return self.ended is not None and self.ended.stored is True

    @property
    def repeatable(self) -> bool:
        """Whether it can be sent again as it was: it has ended, and nothing of it is known to be in the history."""
        return self.phase is ExchangePhase.ENDED and not self.stored

    def apply(self, event: Event) -> None:
        """Apply an event of its turn."""
        self.wait_reason = ""
        self.record.apply(event)
        match event:
            case events.Queued(ahead=ahead):
                self.wait_reason = _waiting_for(ahead)
            case events.Held(reason=reason):
                self.wait_reason = english("Waiting: %(reason)s.", reason=clause(redact(reason)))
            case events.VendorAsked(handle=handle):
                self.handle = handle
            case Failover():
                self._add_part("failover", failover=event, text=event.message)
            case events.ReasoningText(text=text, message_id=id):
                self._add_text("reasoning", text, id)
            case events.AnswerText(text=text, message_id=id):
                self._add_text("text", text, id)
            case events.ToolCalled():
                self._add_part("tool", tool=event.name, call=event.id, text=event.arguments)
            case events.ToolReturned():
                call = (part for part in reversed(self.parts) if part.kind == "tool" and part.call == event.id)
                if (part := next(call, None)) is not None:
                    part.result, part.ok = event.text, event.ok
            case events.HistorySummarized():
                self._add_part(
                    "note", text=english("Older messages were summarised to make room in the context window.")
                )
            case TurnFailed():
                self.failed = event
            case Ended(handle=handle):
                self.handle = handle or ""
                self._complete_part()

    def fail(self, error: IsabellaError) -> None:
        """End it with an error."""
        self.failed = TurnFailed(ErrorCode.INTERNAL, error.what, error.remedy)
        self.end(Ended(EndReason.FAILED, None, False, 0.0))

    def end(self, ended: Ended) -> None:
        """End it."""
        self.apply(ended)
        self.phase = ExchangePhase.ENDED

    def _complete_part(self) -> None:
        if self.parts:
            self.parts[-1].complete = True

    def _add_part(self, kind: str, **fields: object) -> None:
        self._complete_part()
        self.parts.append(AnswerPart(len(self.parts), kind, **fields))  # type: ignore[arg-type]

    def _add_text(self, kind: str, text: str, message_id: str) -> None:
        # Vendors should never send a secret of ours; if one does, it is masked here.
        text = redact(text)
        last = self.parts[-1] if self.parts else None
        if last is None or last.kind != kind or last.message_id != message_id:
            self._add_part(kind, text=text, message_id=message_id)
        else:
            last.text += text


def _waiting_for(ahead: int) -> str:
    if ahead == 1:
        return english("Waiting for another turn of this agent.")
    return english("Waiting for %(count)s other turns of this agent.", count=ahead)


@dataclass(frozen=True)
class ChatAddress:
    """An agent, and one of its conversations, as the paths of the console have them."""

    agent_id: str
    conversation: str | None = None  #: the id of a conversation other than the default one

    @classmethod
    def of(cls, text: str) -> ChatAddress | None:
        """Return the address that a part of a path stands for; None if it is none."""
        match = _ADDRESS.fullmatch(text)
        return None if match is None else cls(match[1], match[2])

    def __str__(self) -> str:
        return self.agent_id if self.conversation is None else f"{self.agent_id}:{self.conversation}"


def address_of(request: Request) -> ChatAddress:
    """Return the address in a request's path."""
    address = ChatAddress.of(str(request.path_params["address"]))
    if address is None:
        raise AgentUnknown(english("There is no such agent."), remedy=english("Choose another one."))
    return address


class Conversation:
    """A conversation with one agent."""

    def __init__(self, runtime: Runtime, address: ChatAddress) -> None:
        self._runtime = runtime
        self._agent_id, self._id = address.agent_id, address.conversation
        self._running = False
        self.last_seq = 0  #: the number of the newest exchange
        self._last_message: str | None = None  #: the id in Letta of the last message that is known
        self.notifier = Notifier()
        self.exchanges: list[Exchange] = []

    def in_phase(self, phase: ExchangePhase) -> list[Exchange]:
        """Return the exchanges in a phase, in order."""
        return [exchange for exchange in self.exchanges if exchange.phase is phase]

    @property
    def running(self) -> Exchange | None:
        """The exchange that is being answered."""
        return next(iter(self.in_phase(ExchangePhase.RUNNING)), None)

    def after(self, since: int) -> list[Exchange]:
        """Return the exchanges that a page shows below its history, which reaches to exchange `since`."""
        return [exchange for exchange in self.exchanges if exchange.seq > since]

    def unsent(self, since: int) -> list[Exchange]:
        """Return the exchanges up to exchange `since` that are not in the history."""
        return [exchange for exchange in self.exchanges if exchange.seq <= since and not exchange.stored]

    def send(
        self,
        message: str,
        images: tuple[Image, ...] = (),
        *,
        replaces: str | None = None,
        wanted: str | None = None,
    ) -> None:
        """Send a message once all earlier ones are answered; raise `MessageRefused`, `QueueFull` or `NotReady`.

        `replaces` and `wanted` are those of `Exchange`.
        """
        message = message.strip("\n")
        check_message(message)
        if len(self.in_phase(ExchangePhase.WAITING)) >= _LONGEST_QUEUE:
            raise QueueFull(
                english("%(count)s messages are already waiting.", count=_LONGEST_QUEUE),
                retry_after=5.0,
                remedy=english("Wait for an answer, or stop one."),
            )
        if not self._running:
            self._runtime.start_task(self._answer_all)
            self._running = True
        self.last_seq += 1
        self.exchanges.append(Exchange(self.last_seq, message, replaces, wanted, images))
        for exchange in self.in_phase(ExchangePhase.ENDED)[:-_EXCHANGES_KEPT]:
            self.exchanges.remove(exchange)
        self.notifier.notify()

    def find(self, seq: int) -> Exchange | None:
        """Return the exchange of this number, if it is still kept."""
        return next((exchange for exchange in self.exchanges if exchange.seq == seq), None)

    def stop(self, seq: int) -> None:
        """Stop an exchange, or cancel it if its turn has not begun."""
        for exchange in self.exchanges:
            if exchange.seq != seq or exchange.phase is ExchangePhase.ENDED:
                continue
            if exchange.turn is not None:
                exchange.turn.stop()
            else:
                exchange.end(Ended(EndReason.STOPPED, None, False, 0.0))
        self.notifier.notify()

    def dismiss(self, seq: int) -> None:
        """Remove an exchange that has ended."""
        ended = self.in_phase(ExchangePhase.ENDED)
        self.exchanges = [exchange for exchange in self.exchanges if exchange.seq != seq or exchange not in ended]
        self.notifier.notify()

    def retry(self, seq: int) -> None:
        """Send the message of an exchange of which nothing is in the history again; raises as `send` does."""
        for exchange in self.exchanges:
            if exchange.seq == seq and exchange.repeatable:
                self.send(exchange.message, exchange.images, replaces=exchange.replaces, wanted=exchange.wanted)
                self.dismiss(seq)
                return

    async def _answer_all(self) -> None:
        try:
            while waiting := self.in_phase(ExchangePhase.WAITING):
                await self._answer(waiting[0])
        finally:
            self._running = False

    async def _answer(self, exchange: Exchange) -> None:
        exchange.phase, exchange.after = ExchangePhase.RUNNING, self._last_message
        self.notifier.notify()
        try:
            newest = await self._runtime.agents.history.page(self._agent_id, limit=1, conversation=self._id)
            exchange.after = newest.entries[-1].id if newest.entries else None
            message = UserMessage(exchange.message, exchange.images, exchange.replaces, exchange.wanted)
            turn = exchange.turn = await self._runtime.turns.open(self._agent_id, message, self._id)
            if exchange.phase is ExchangePhase.ENDED:
                turn.stop()
            async with aclosing(turn.events()) as answer:
                async for event in answer:
                    exchange.apply(event)
                    self.notifier.notify()
            if exchange.stored:
                await self._locate(exchange)
        except IsabellaError as error:
            if exchange.ended is None:
                exchange.fail(error)
            else:
                log.info("answer not found in the history", agent=self._agent_id, error=error.what)
        finally:
            if exchange.ended is None:
                stopped = english("The backend was stopped.")
                remedy = english("Restart it. If the history lacks the message, send it again.")
                exchange.fail(MessageRefused(stopped, remedy=remedy))
            exchange.phase, exchange.turn = ExchangePhase.ENDED, None
            self.notifier.notify()

    async def _locate(self, exchange: Exchange) -> None:
        """Learn under which ids Letta has stored an exchange."""
        entries, self._last_message = await self._runtime.agents.history.since(
            self._agent_id, exchange.after, conversation=self._id or DEFAULT
        )
        sent = [i for i, entry in enumerate(entries) if entry.kind == "user" and entry.text == exchange.message]
        if not sent:
            return
        exchange.message_id = entries[sent[-1]].id
        answer = takewhile(lambda entry: entry.kind != "user", entries[sent[-1] + 1 :])
        exchange.answer_ids = tuple(dict.fromkeys(entry.id for entry in answer if entry.kind == "assistant"))
        if exchange.answer_ids:
            # Of an answer that was stopped, Isabella has stored the part that came, under a separate id.
            exchange.record.first_message, exchange.record.last_message = (
                exchange.answer_ids[0],
                exchange.answer_ids[-1],
            )
            answers = self._runtime.event_log.answers
            for id in exchange.answer_ids:
                answers.add(self._agent_id, id, exchange.record)
            answers.save(self._agent_id)
