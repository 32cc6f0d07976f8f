"""One attempt to get an answer, from the vendor that the agent is bound to.

Letta stores nothing of a run before its first step is complete, and notices a cancelled run only when the vendor
sends the next chunk (measured on 0.16.8). So an attempt that is given up before its first token is cancelled at Letta
first; if the vendor answers after that, Letta drops the answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace

import anyio
import structlog

from isabella.errors import IsabellaError, LettaBroken, LettaError, LettaRefused, LettaUnreachable
from isabella.letta.client import LettaClient
from isabella.system.english import english
from isabella.turns.events import (
    AnswerText,
    EndReason,
    ErrorCode,
    Event,
    HistorySummarized,
    ReasoningText,
    ToolCalled,
    ToolReturned,
    Usage,
)
from isabella.turns.message import UserMessage
from isabella.turns.stream import (
    Piece,
    RunStarted,
    StopNotice,
    ToolCallDelta,
    VendorRefusal,
    malformed_call,
    parse_line,
    refusal_of_stop,
    repeated_call,
)

log = structlog.get_logger()

#: Seconds in which Letta's stream may end by itself after a cancellation. It cannot while the vendor is silent.
_END_SECONDS = 1.0
#: A vendor that begins to answer just as it is given up still counts, within this time.
_GRACE_SECONDS = 0.25
_RUN_ID_SECONDS = 2.0
#: Steps of the event loop in which an HTTP client writes a request to an open connection.
_STEPS_TO_SEND = 4
_CANCEL_SECONDS = 10.0
#: After how many steps in a row in which the same call fails a turn ends. Letta's own limit is 50 steps.
_SAME_FAILURES = 5
_FINAL = (EndReason.COMPLETED, EndReason.MAX_STEPS, EndReason.NEEDS_APPROVAL)


class CancelRequest:
    """A request to end a turn early; wakes the attempt that waits for the next line."""

    def __init__(self) -> None:
        self.evicted = False  #: set if the turn's provider must be changed now
        self.stopped = False  #: set if the turn was stopped
        self._inbox: asyncio.Queue[_Item] | None = None

    @property
    def made(self) -> bool:
        """Whether the turn must end."""
        return self.evicted or self.stopped

    def stop(self) -> None:
        """Ask the turn to stop."""
        self.stopped = True
        self._wake()

    def evict(self) -> None:
        """Ask the turn to leave its provider."""
        self.evicted = True
        self._wake()

    def deliver_to(self, inbox: asyncio.Queue[_Item] | None) -> None:
        """Set the inbox that is woken."""
        self._inbox = inbox
        if self.made:
            self._wake()

    def _wake(self) -> None:
        if self._inbox is not None:
            self._inbox.put_nowait(_Interrupted())


@dataclass(frozen=True)
class _Interrupted:
    """The cancel request has changed."""


@dataclass(frozen=True)
class _Closed:
    """Letta's stream has ended, with an error if the connection broke."""

    error: Exception | None = None


_Item = str | _Interrupted | _Closed


@dataclass
class Attempt:
    """One attempt. `events()` runs it; afterwards the fields hold the result."""

    agent_id: str
    message: UserMessage
    first_token: float  #: seconds that the vendor may take to begin, before `more_time` is asked
    silence: float  #: seconds of silence after which an answer that has begun is broken
    cancel_request: CancelRequest
    conversation: str | None = None  #: the id of a conversation other than the default one
    #: ends the agent's requests at the vendor, if a gateway can do that
    end_calls: Callable[[str], Awaitable[None]] | None = None
    #: waits while Letta is frozen or restarted; returns whether it was, so that its silence is none of the vendor
    outlast: Callable[[], Awaitable[bool]] | None = None
    #: returns how many seconds more the vendor may take to begin; asked once
    more_time: Callable[[], Awaitable[float]] | None = None
    longest: float = float("inf")  #: seconds that the whole answer may take
    sent: float = 0.0  #: when the message was sent, in monotonic seconds
    usage: Usage | None = None
    run_id: str | None = None  #: Letta's run; None if Letta has not accepted the message
    began: float | None = None  #: when the first token came, in monotonic seconds
    said: dict[str, str] = field(default_factory=dict)  #: the answer so far, by message id
    reason: EndReason | None = None  #: how it ended; None if no answer began, so that another vendor may be asked
    refusal: VendorRefusal | None = None  #: why no answer began, or why it broke off
    _calls: dict[str, list[ToolCallDelta]] = field(default_factory=dict)
    _malformed: dict[str, str] = field(default_factory=dict)  # names of tools, by the id of the malformed call
    _called: dict[str, ToolCalled] = field(default_factory=dict)  # the calls of the present step, by id
    #: name and arguments of the calls that have failed in the present step and in the one before, and in how many
    #: steps in a row each has
    _failures: dict[tuple[str, str], int] = field(default_factory=dict)
    _earlier_failures: dict[tuple[str, str], int] = field(default_factory=dict)
    _stop: StopNotice | None = None
    _until: float = 0.0
    _overdue: bool = False  # whether the whole answer took too long
    _cancelled: bool = False
    _confirmed: bool = False  # whether Letta has answered that

    async def events(self, letta: LettaClient) -> AsyncGenerator[Event | None, None]:
        """Send the message and yield the answer. Errors of Letta and of the vendor end up in `refusal`.

        The first event is always None: by then the request is sent, if a connection to Letta was open.
        """
        inbox: asyncio.Queue[_Item] = asyncio.Queue()
        pump = asyncio.create_task(_pump(self._lines(letta), inbox))
        self.sent = time.monotonic()
        self._until = self.sent + self.first_token
        self.cancel_request.deliver_to(inbox)
        try:
            # The request is written before the reader of the events takes the processor.
            for _ in range(_STEPS_TO_SEND):
                await asyncio.sleep(0)
            yield None
            while isinstance(item := await self._next_item(inbox), str):
                for event in self._take(item):
                    yield event
                if self._note_repeated_call():
                    break
            if isinstance(item, _Closed):
                self._lost(item.error)
            else:
                refusal = self.refusal
                await self._cancel(letta, inbox)
                # Lines that arrive now still count: they may be the end of the answer, or its very beginning.
                silent = not self.cancel_request.made and self.began is None
                until = time.monotonic() + (_GRACE_SECONDS if silent else _END_SECONDS)
                while (line := await _next_line(inbox, until)) is not None:
                    for event in self._take(line):
                        yield event
                    if silent and self.began is not None:
                        # The vendor answers after all: read on until Letta notices the cancellation.
                        silent, until = False, time.monotonic() + _END_SECONDS
                # An error that comes now only shows that the request to the vendor was ended.
                self.refusal = refusal
                self._give_up()
            for event in self._finished_calls():
                yield event
            self._settle()
        finally:
            self.cancel_request.deliver_to(None)
            await self._abandon(letta, inbox, pump)

    def _lines(self, letta: LettaClient) -> AsyncGenerator[str, None]:
        """Send the message, and return the lines of Letta's stream."""
        message = self.message
        if self.conversation is None:
            return letta.messages.stream(self.agent_id, message.text, message.images, message.request_id)
        return letta.conversations.stream(self.conversation, message.text, message.images, message.request_id)

    async def _next_item(self, inbox: asyncio.Queue[_Item]) -> _Item | None:
        """Return the next item; None if the vendor is silent for too long."""
        deadline = self.sent + self.longest
        while (item := await _next(inbox, min(self._until, deadline) - time.monotonic())) is None:
            if time.monotonic() >= deadline:
                self._overdue = True
                return None
            if self.outlast is not None and await self.outlast():
                self._until = time.monotonic() + (self.first_token if self.began is None else self.silence)
            elif (more := await self._more_time()) > 0:
                self._until = time.monotonic() + more
            else:
                return None
        return item

    async def _more_time(self) -> float:
        """Return for how many more seconds to wait for the first token; 0 to give the vendor up."""
        ask, self.more_time = self.more_time, None
        if ask is None or self.began is not None:
            return 0.0
        more = await ask()
        self.first_token += more
        return more

    def _take(self, line: str) -> list[Event]:
        piece = parse_line(line)
        if piece is None:
            return []
        now = time.monotonic()
        if self.began is None and isinstance(piece, AnswerText | ReasoningText | ToolCallDelta):
            self.began = now
        if self.began is not None and not isinstance(piece, RunStarted):
            # Letta's own pings do not show that the vendor is alive.
            self._until = now + self.silence
        return self._collect(piece)

    def _collect(self, piece: Piece) -> list[Event]:
        match piece:
            case RunStarted(run_id=run_id):
                self.run_id = run_id
            case ToolCallDelta():
                self._calls.setdefault(piece.id, []).append(piece)
            case StopNotice():
                # A failure is reported twice, the second time with its type.
                self._stop = piece
            case VendorRefusal():
                self.refusal = piece
            case AnswerText():
                self.said[piece.message_id] = self.said.get(piece.message_id, "") + piece.text
                return [*self._finished_calls(), piece]
            case ToolReturned():
                finished = self._finished_calls()
                self._note_result(piece)
                return [*finished, self._with_blame(piece)]
            case ReasoningText() | Usage() | HistorySummarized():
                self.usage = piece if isinstance(piece, Usage) else self.usage
                return [*self._finished_calls(), piece]
        return []

    def _finished_calls(self) -> list[Event]:
        """Return the tool calls whose parts are complete: the next piece of another type shows that they are."""
        calls, self._calls = self._calls, {}
        called = [
            ToolCalled(id, "".join(part.name for part in parts), "".join(part.arguments for part in parts))
            for id, parts in calls.items()
        ]
        self._malformed |= {call.id: call.name for call in called if not _is_object(call.arguments)}
        if called:
            self._called = {call.id: call for call in called}
            self._earlier_failures, self._failures = self._failures, {}
        return [*called]

    def _note_result(self, result: ToolReturned) -> None:
        """Count in how many steps in a row the call of a failed result has failed."""
        call = self._called.get(result.id)
        if call is not None and not result.ok:
            key = (call.name, call.arguments)
            self._failures[key] = self._earlier_failures.get(key, 0) + 1

    def _note_repeated_call(self) -> bool:
        """Return whether the model repeats a failing call without end; then `refusal` says so."""
        for (name, _), steps in self._failures.items():
            if steps >= _SAME_FAILURES and self._stop is None and self.refusal is None:
                self.refusal = repeated_call(name, steps)
                return True
        return False

    def _with_blame(self, result: ToolReturned) -> ToolReturned:
        """Return a failed result with the reason, if the model's call was malformed: the tool reports another one."""
        if result.ok or result.id not in self._malformed:
            return result
        why = "The model's call is malformed: its arguments are not a JSON object."
        return replace(result, text=f"{why} {result.text}")

    def _settle(self) -> None:
        """Decide how it ended, from everything that was received."""
        if self.reason is not None:
            return
        if self.refusal is None and self._stop is not None and self._stop.reason is not EndReason.BROKEN:
            if self.began is None and self._stop.reason is EndReason.COMPLETED:
                self.reason = EndReason.BROKEN
                self.refusal = VendorRefusal(
                    ErrorCode.EMPTY_ANSWER, english("The vendor sent an empty answer."), counts=True
                )
                return
            self.reason = self._stop.reason
            return
        if self.refusal is None and self._stop is not None:
            self.refusal = refusal_of_stop(self._stop.word)
        elif self._malformed and self.refusal is not None and self.refusal.code is ErrorCode.LETTA_FAILING:
            # Letta fails on a call that it cannot parse, and reports its own error.
            name = [*self._malformed.values()][-1]
            self.refusal = malformed_call(english("The arguments of %(name)s are not a JSON object.", name=name))
        elif self.refusal is None:
            self.refusal = VendorRefusal(
                ErrorCode.LETTA_FAILING,
                english("Letta's stream ended without a stop reason."),
                counts=False,
                elsewhere=False,
            )
        if self.began is not None:
            self.reason = EndReason.BROKEN

    def _give_up(self) -> None:
        """Record why it was given up, unless it has ended in the meantime."""
        if self.refusal is not None or (self._stop is not None and self._stop.reason in _FINAL):
            return
        if self.cancel_request.stopped:
            self.reason = EndReason.STOPPED
        elif self.cancel_request.evicted:
            self.refusal = VendorRefusal(
                ErrorCode.PROVIDER_CHANGING,
                english("The provider must be changed, and this turn did not end in time."),
                counts=False,
            )
        elif not self._confirmed:
            message = english(
                "Letta did not answer within %(seconds)s s, after the answer had stopped.",
                seconds=format(_CANCEL_SECONDS, "g"),
            )
            self.refusal = VendorRefusal(ErrorCode.LETTA_UNREACHABLE, message, counts=False, elsewhere=False)
        elif self._overdue and self.began is not None:
            self.reason = EndReason.LENGTH
        elif self.began is None:
            message = english(
                "The vendor did not begin to answer within %(seconds)s s. If it is only slow, "
                "raise ISABELLA_FIRST_TOKEN_TIMEOUT.",
                seconds=format(self.first_token, ".3g"),
            )
            self.refusal = VendorRefusal(ErrorCode.VENDOR_SILENT, message)
        else:
            self.refusal = VendorRefusal(ErrorCode.VENDOR_SILENT, english("The answer stopped in the middle."))

    def _lost(self, error: Exception | None) -> None:
        if error is None:
            return
        message = error.what if isinstance(error, IsabellaError) else english("The connection to Letta broke.")
        match error:
            case LettaRefused(status=404):
                code = ErrorCode.AGENT_UNKNOWN if self.conversation is None else ErrorCode.CONVERSATION_UNKNOWN
            case LettaRefused():
                code = ErrorCode.LETTA_REFUSED
            case LettaBroken():
                code = ErrorCode.LETTA_FAILING
            case _:
                code = ErrorCode.LETTA_UNREACHABLE
                # With its remedy: the event has no other.
                message = str(error) if isinstance(error, LettaUnreachable) else message
                log.warning("turn lost", agent=self.agent_id, run=self.run_id, error=repr(error))
        self.refusal = VendorRefusal(code, message, counts=False, elsewhere=False)

    async def _cancel(self, letta: LettaClient, inbox: asyncio.Queue[_Item]) -> None:
        self._cancelled = True
        with anyio.move_on_after(_CANCEL_SECONDS):
            # A run cannot be cancelled before Letta has created it.
            until = time.monotonic() + _RUN_ID_SECONDS
            while self.run_id is None and (left := until - time.monotonic()) > 0:
                item = await _next(inbox, left)
                if isinstance(item, str):
                    piece = parse_line(item)
                    if isinstance(piece, RunStarted):
                        self.run_id = piece.run_id
                elif not isinstance(item, _Interrupted):
                    if item is not None:
                        inbox.put_nowait(item)
                    break
            self._confirmed = await cancel(letta, self.agent_id, self.run_id)
            if self.end_calls is not None:
                # Letta would leave the vendor generating (fact G1).
                await self.end_calls(self.agent_id)

    async def _abandon(self, letta: LettaClient, inbox: asyncio.Queue[_Item], pump: asyncio.Task[None]) -> None:
        """Leave nothing behind: neither the reading task, nor a run without a reader."""
        with anyio.CancelScope(shield=True):
            if not pump.done() and self._stop is None and not self._cancelled:
                # This task is being cancelled: the client has disconnected.
                await self._cancel(letta, inbox)
            # Letta notices the cancellation with the vendor's next chunk. What it stores until then must be known
            # before Isabella stores the rest.
            await asyncio.wait({pump}, timeout=_END_SECONDS)
            pump.cancel()
            with suppress(asyncio.CancelledError):
                await pump


async def cancel(letta: LettaClient, agent_id: str, run_id: str | None) -> bool:
    """Cancel a run at Letta; without its id, all runs of the agent. A run that has ended is not changed.

    Return whether Letta has answered.
    """
    try:
        await letta.messages.cancel(agent_id, run_id)
    except LettaError as error:
        # 409: nothing runs.
        log.info("nothing cancelled", agent=agent_id, error=error.what)
        return not isinstance(error, LettaUnreachable)
    return True


def _is_object(arguments: str) -> bool:
    """Return whether the arguments of a call are valid for Letta."""
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


async def _next(inbox: asyncio.Queue[_Item], seconds: float) -> _Item | None:
    if not inbox.empty():
        return inbox.get_nowait()
    with anyio.move_on_after(max(0.0, seconds)):
        return await inbox.get()
    return None


async def _next_line(inbox: asyncio.Queue[_Item], until: float) -> str | None:
    """Return the next line; None at that monotonic time, or at the end of the stream."""
    while (left := until - time.monotonic()) > 0:
        item = await _next(inbox, left)
        if not isinstance(item, _Interrupted):
            return item if isinstance(item, str) else None
    return None


async def _pump(stream: AsyncGenerator[str, None], inbox: asyncio.Queue[_Item]) -> None:
    """Read Letta's stream into the inbox, so that waiting for a line can be interrupted without losing one."""
    try:
        async with aclosing(stream) as lines:
            async for line in lines:
                if line:  # an empty one follows each event
                    inbox.put_nowait(line)
        inbox.put_nowait(_Closed())
    except Exception as error:  # noqa: BLE001 - the turn must end, whatever the transport raises
        inbox.put_nowait(_Closed(error))
