"""The console's conversations: they run in the backend, independent of open pages, one message at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from isabella.errors import IsabellaError, MessageRefused, QueueFull
from isabella.server.event_log import Notifier
from isabella.server.runtime import Runtime
from isabella.server.web.markdown import MarkdownStream
from isabella.system.redaction import redact
from isabella.turns import events
from isabella.turns.events import Ended, EndReason, ErrorCode, Event, Failover, TurnFailed
from isabella.turns.service import check_message
from isabella.turns.turn import Turn

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
    complete: bool = False  #: whether nothing is added to its text any more
    _stream: MarkdownStream = field(default_factory=MarkdownStream, repr=False)

    @property
    def rendered(self) -> MarkdownStream:
        """The text as Markdown, rendered when it is needed."""
        self._stream.write(self.text, ended=self.complete)
        return self._stream


@dataclass
class Exchange:
    """A message and its answer."""

    seq: int  #: the number of the exchange in its conversation
    message: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    phase: ExchangePhase = ExchangePhase.WAITING
    parts: list[AnswerPart] = field(default_factory=list)
    #: the id in Letta of the last message before it; None if there is none, or it is not known yet
    after: str | None = None
    handle: str = ""  #: the model that was asked or has answered
    wait_reason: str = ""  #: why there is no answer yet
    failed: TurnFailed | None = None
    ended: Ended | None = None
    turn: Turn | None = field(default=None, repr=False)

    @property
    def stored(self) -> bool:
        """Whether it is in the agent's history, so that pages show it from there."""
        return self.ended is not None and self.ended.stored

    def apply(self, event: Event) -> None:
        """Apply an event of its turn."""
        self.wait_reason = ""
        match event:
            case events.Queued(ahead=ahead):
                self.wait_reason = f"Waiting for {ahead} other turn{'s' if ahead != 1 else ''} of this agent"
            case events.Held(reason=reason):
                self.wait_reason = f"Waiting: {redact(reason)}"
            case events.VendorAsked(handle=handle):
                self.handle = handle
            case Failover():
                self._add_part("failover", failover=event, text=redact(event.message))
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
                self._add_part("note", text="Older messages were summarised to make room in the context window.")
            case TurnFailed():
                self.failed = event
            case Ended(handle=handle):
                self.handle = handle or ""
                self.end(event)

    def fail(self, error: IsabellaError) -> None:
        """End it with an error."""
        self.failed = TurnFailed(ErrorCode.INTERNAL, error.what, error.remedy)
        self.end(Ended(EndReason.FAILED, None, False, 0.0))

    def end(self, ended: Ended) -> None:
        """End it."""
        self.ended, self.phase = ended, ExchangePhase.ENDED
        self._complete_part()

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


class Conversation:
    """The conversation with one agent."""

    def __init__(self, runtime: Runtime, agent_id: str) -> None:
        self._runtime = runtime
        self._agent_id = agent_id
        self._running = False
        self._last_seq = 0
        self.notifier = Notifier()
        self.exchanges: list[Exchange] = []

    def in_phase(self, phase: ExchangePhase) -> list[Exchange]:
        """Return the exchanges in a phase, in order."""
        return [exchange for exchange in self.exchanges if exchange.phase is phase]

    @property
    def running(self) -> Exchange | None:
        """The exchange that is being answered."""
        return next(iter(self.in_phase(ExchangePhase.RUNNING)), None)

    def visible(self, since: int) -> Iterator[Exchange]:
        """Yield the exchanges that a page shows whose history reaches to exchange `since`."""
        return (exchange for exchange in self.exchanges if exchange.seq > since or not exchange.stored)

    def send(self, message: str) -> None:
        """Send a message once all earlier ones are answered; raise `MessageRefused`, `QueueFull` or `NotReady`."""
        message = message.strip("\n")
        check_message(message)
        if len(self.in_phase(ExchangePhase.WAITING)) >= _LONGEST_QUEUE:
            raise QueueFull(
                f"{_LONGEST_QUEUE} messages wait already.", retry_after=5.0, remedy="Wait for an answer, or stop one."
            )
        if not self._running:
            self._runtime.start_task(self._answer_all)
            self._running = True
        self._last_seq += 1
        self.exchanges.append(Exchange(self._last_seq, message))
        for exchange in self.in_phase(ExchangePhase.ENDED)[:-_EXCHANGES_KEPT]:
            self.exchanges.remove(exchange)
        self.notifier.notify()

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

    async def _answer_all(self) -> None:
        try:
            while waiting := self.in_phase(ExchangePhase.WAITING):
                await self._answer(waiting[0])
        finally:
            self._running = False

    async def _answer(self, exchange: Exchange) -> None:
        exchange.phase = ExchangePhase.RUNNING
        self.notifier.notify()
        try:
            turn_service, history = self._runtime.turns, self._runtime.agents.history
            newest = await history.page(self._agent_id, limit=1)
            exchange.after = newest.entries[-1].id if newest.entries else None
            turn = exchange.turn = await turn_service.open(self._agent_id, exchange.message)
            if exchange.phase is ExchangePhase.ENDED:
                turn.stop()
            async with aclosing(turn.events()) as answer:
                async for event in answer:
                    exchange.apply(event)
                    self.notifier.notify()
        except IsabellaError as error:
            exchange.fail(error)
        finally:
            if exchange.phase is not ExchangePhase.ENDED:
                exchange.fail(MessageRefused("The backend was stopped."))
            exchange.turn = None
            self.notifier.notify()
