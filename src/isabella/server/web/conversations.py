"""Conversations as the console carries them on: in the backend, whichever pages are open, one message at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from isabella.agents.registry import AgentRecord
from isabella.errors import IsabellaError, MessageRefused, QueueFull
from isabella.server.event_log import Notifier
from isabella.server.web.context import ConsoleContext
from isabella.system.redaction import redact
from isabella.turns.events import (
    Called,
    Code,
    Condensed,
    Ended,
    Event,
    Failover,
    Held,
    Queued,
    Reason,
    Returned,
    Said,
    Thought,
    TurnFailed,
    VendorAsked,
)
from isabella.turns.service import check_message
from isabella.turns.turn import Turn

_KEPT = 30
_LONGEST_QUEUE = 8


class ExchangePhase(StrEnum):
    """How far an exchange has come."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass
class AnswerPart:
    """A piece of an answer.

    Attributes:
        index: its place in the exchange.
        kind: `text`, `reasoning`, `tool`, `failover` or `note`.
        text: the words, or what a tool was called with.
        message_id: Letta's id of the message it belongs to.
        tool: the tool's name.
        call: ties a call to its result.
        result: what the tool gave back; None while it is at work.
        ok: whether the tool worked.
        failover: who did not answer.
    """

    index: int
    kind: str
    text: str = ""
    message_id: str = ""
    tool: str = ""
    call: str = ""
    result: str | None = None
    ok: bool = True
    failover: Failover | None = None


@dataclass(frozen=True)
class ExchangeUpdate:
    """What a page that is open has to show anew.

    Attributes:
        kind: `part` (a new one), `more` (text of one), `result` (of a tool), or `state`.
        part: which part.
        text: the text that came.
    """

    kind: str
    part: AnswerPart | None = None
    text: str = ""


@dataclass
class Exchange:
    """A message, and all that came of it.

    Attributes:
        seq: counts the exchanges of this backend.
        message: what is said to the agent.
        at: when it was typed.
        phase: how far it has come.
        parts: what came, in order.
        after: Letta's id of the last message before it; None where there is none, or it is not known.
        handle: who is asked, or has answered.
        waits: why nothing comes yet.
        failed: what went wrong.
        ended: how it ended.
        changes: what happened, for the pages that are open.
    """

    seq: int
    message: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    phase: ExchangePhase = ExchangePhase.WAITING
    parts: list[AnswerPart] = field(default_factory=list)
    after: str | None = None
    handle: str = ""
    waits: str = ""
    failed: TurnFailed | None = None
    ended: Ended | None = None
    changes: list[ExchangeUpdate] = field(default_factory=list)
    turn: Turn | None = field(default=None, repr=False)

    @property
    def kept(self) -> bool:
        """Whether the agent's history has it, so that no page has to show it beside that."""
        return self.ended is not None and self.ended.stored

    def take(self, event: Event) -> None:
        """Take in an event of its turn."""
        match event:
            case Queued(ahead=ahead):
                self._state(waits=f"Waits for {ahead} other turn{'s' if ahead != 1 else ''} of this agent")
            case Held(provider=provider):
                self._state(waits=f"Waits: {provider} is being changed")
            case VendorAsked(handle=handle):
                self.handle = handle
                self._state()
            case Failover():
                self._new("failover", failover=event, text=redact(event.message))
            case Thought(text=text, message_id=id):
                self._more("reasoning", text, id)
            case Said(text=text, message_id=id):
                self._more("text", text, id)
            case Called():
                self._new("tool", tool=event.name, call=event.id, text=event.arguments)
            case Returned():
                self._returned(event)
            case Condensed():
                self._new("note", text="Older messages were summed up, so that the conversation fits again.")
            case TurnFailed():
                self.failed = event
            case Ended(handle=handle):
                self.ended, self.phase = event, ExchangePhase.ENDED
                self.handle = handle or ""
                self._state()

    def fail(self, error: IsabellaError) -> None:
        """It could not even begin."""
        self.failed = TurnFailed(Code.INTERNAL, error.what, error.remedy)
        self.ended = Ended(Reason.FAILED, None, False, 0.0)
        self.phase = ExchangePhase.ENDED
        self._state()

    def give_up(self) -> None:
        """It was taken back before it was said."""
        self.ended = Ended(Reason.STOPPED, None, False, 0.0)
        self.phase = ExchangePhase.ENDED
        self._state()

    def begin(self) -> None:
        """Its turn has come."""
        self.phase = ExchangePhase.RUNNING
        self._state()

    def _state(self, *, waits: str = "") -> None:
        self.waits = waits
        self.changes.append(ExchangeUpdate("state"))

    def _new(self, kind: str, **fields: object) -> AnswerPart:
        part = AnswerPart(len(self.parts), kind, **fields)  # type: ignore[arg-type]
        self.parts.append(part)
        self.changes.append(ExchangeUpdate("part", part))
        return part

    def _more(self, kind: str, text: str, message_id: str) -> None:
        # What a vendor sends may hold our own secrets only by a mistake of somebody's; it never goes on from here.
        text = redact(text)
        last = self.parts[-1] if self.parts else None
        if last is None or last.kind != kind or last.message_id != message_id:
            self._new(kind, text=text, message_id=message_id)
            return
        last.text += text
        self.changes.append(ExchangeUpdate("more", last, text))

    def _returned(self, event: Returned) -> None:
        for part in reversed(self.parts):
            if part.kind == "tool" and part.call == event.id:
                part.result, part.ok = event.text, event.ok
                self.changes.append(ExchangeUpdate("result", part))
                return


class Conversation:
    """The conversation with one agent.

    Args:
        context: the backend.
        agent_id: Letta's id of the agent.
    """

    def __init__(self, context: ConsoleContext, agent_id: str) -> None:
        self._premises = context
        self._agent_id = agent_id
        self._running = False
        self.notifier = Notifier()
        self.exchanges: list[Exchange] = []
        self._last = 0

    @property
    def waiting(self) -> list[Exchange]:
        """Those whose turn has not come."""
        return [one for one in self.exchanges if one.phase is ExchangePhase.WAITING]

    @property
    def running(self) -> Exchange | None:
        """The one that is being answered."""
        return next((one for one in self.exchanges if one.phase is ExchangePhase.RUNNING), None)

    @property
    def last(self) -> int:
        """The number of the last exchange that is over, with all before it."""
        over = [one.seq for one in self.exchanges if one.phase is ExchangePhase.ENDED]
        return max(over, default=0)

    def shown(self, since: int) -> Iterator[Exchange]:
        """What a page has to show that has the history up to an exchange."""
        return (one for one in self.exchanges if one.seq > since or not one.kept)

    def say(self, message: str) -> Exchange:
        """Say something, as soon as everything before it is answered.

        Raises:
            MessageRefused: it cannot be said.
            QueueFull: too much waits already.
            NotReady: the backend has not come up.
        """
        message = message.strip("\n")
        check_message(message)
        if len(self.waiting) >= _LONGEST_QUEUE:
            raise QueueFull(
                f"{_LONGEST_QUEUE} messages wait already.", retry_after=5.0, remedy="Wait for an answer, or stop one."
            )
        self._last += 1
        exchange = Exchange(self._last, message)
        if not self._running:
            self._premises.start(self._answer)
            self._running = True
        self.exchanges.append(exchange)
        for old in [one for one in self.exchanges if one.phase is ExchangePhase.ENDED][:-_KEPT]:
            self.exchanges.remove(old)
        self.notifier.ring()
        return exchange

    def stop(self, seq: int) -> None:
        """Stop an exchange, or take it back where its turn has not come."""
        for one in self.exchanges:
            if one.seq != seq or one.phase is ExchangePhase.ENDED:
                continue
            if one.turn is not None:
                one.turn.stop()
            else:
                one.give_up()
        self.notifier.ring()

    def forget(self, seq: int) -> None:
        """Take an exchange that came to nothing off the page."""
        self.exchanges = [one for one in self.exchanges if one.seq != seq or one.phase is not ExchangePhase.ENDED]
        self.notifier.ring()

    async def _answer(self) -> None:
        try:
            while waiting := self.waiting:
                await self._run(waiting[0])
        finally:
            self._running = False

    async def _run(self, exchange: Exchange) -> None:
        exchange.begin()
        self.notifier.ring()
        try:
            turn_service, history = self._premises.turn_service, self._premises.agent_service.history
            newest = await history.page(self._agent_id, limit=1)
            exchange.after = newest.entries[-1].id if newest.entries else None
            turn = exchange.turn = await turn_service.open(self._agent_id, exchange.message)
            if exchange.phase is ExchangePhase.ENDED:
                turn.stop()
            async with aclosing(turn_service.events(turn)) as events:
                async for event in events:
                    exchange.take(event)
                    self.notifier.ring()
        except IsabellaError as error:
            exchange.fail(error)
        finally:
            if exchange.phase is not ExchangePhase.ENDED:
                exchange.fail(MessageRefused("The backend was stopped."))
            exchange.turn = None
            self.notifier.ring()


class Conversations:
    """All conversations.

    Args:
        context: the backend.
    """

    def __init__(self, context: ConsoleContext) -> None:
        self._premises = context
        self._talks: dict[str, Conversation] = {}

    def of(self, agent: AgentRecord) -> Conversation:
        """The conversation with an agent."""
        return self.at(agent.id)

    def at(self, agent_id: str) -> Conversation:
        """The conversation with the agent of this id, which need not exist any more."""
        if agent_id not in self._talks:
            self._talks[agent_id] = Conversation(self._premises, agent_id)
        return self._talks[agent_id]
