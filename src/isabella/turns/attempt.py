"""One try to have a message answered, by the vendor that the agent is bound to now.

Letta stores nothing of a run before its first step is complete, and notices that a run was cancelled when the next
piece comes from the vendor (measured on 0.16.8). So a try that is given up before its first token is cancelled at
Letta first; when the vendor answers after all, Letta throws that away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import anyio
import structlog

from isabella.errors import IsabellaError, LettaBroken, LettaError, LettaRefused, LettaUnreachable
from isabella.letta.client import LettaClient
from isabella.turns.events import Called, Code, Condensed, Event, Reason, Returned, Said, Thought, Usage
from isabella.turns.stream import Piece, RunStarted, StopNotice, ToolCallDelta, parse_line
from isabella.turns.vendor_errors import VendorRefusal

log = structlog.get_logger()

#: After a cancelling, Letta's stream gets so many seconds to end by itself. It cannot while the vendor is silent.
_TO_END = 1.0
#: A vendor that answers at the very moment when it is given up is heard, if its first piece comes within this.
_LAST_MOMENT = 0.25
_TO_BEGIN = 2.0
_STOP_SECONDS = 10.0
_ENDS = (Reason.COMPLETED, Reason.MAX_STEPS, Reason.NEEDS_APPROVAL)


class CancelRequest:
    """Why a turn is to end before its time; wakes whoever waits for the next piece."""

    def __init__(self) -> None:
        self.evicted = False
        self.stopped = False
        self._inbox: asyncio.Queue[_Item] | None = None

    @property
    def made(self) -> bool:
        """Whether it is to end."""
        return self.evicted or self.stopped

    def stop(self) -> None:
        """Somebody wants it to stop."""
        self.stopped = True
        self._wake()

    def evict(self) -> None:
        """Its provider has to be changed now."""
        self.evicted = True
        self._wake()

    def tell(self, inbox: asyncio.Queue[_Item] | None) -> None:
        """Where to put the news."""
        self._inbox = inbox
        if self.made:
            self._wake()

    def _wake(self) -> None:
        if self._inbox is not None:
            self._inbox.put_nowait(_Interrupted())


@dataclass(frozen=True)
class _Interrupted:
    """The wish has changed."""


@dataclass(frozen=True)
class _Closed:
    """Letta's stream has ended."""

    error: Exception | None = None


_Item = str | _Interrupted | _Closed


@dataclass
class Attempt:
    """One try, and what came of it. `events()` runs it; the fields tell the rest afterwards.

    Attributes:
        agent_id: the agent.
        message: what is said to it.
        first_token: seconds that the vendor may take to begin.
        silence: seconds of silence after which an answer that has begun is broken.
        wish: tells when it is to end before its time.
        run_id: Letta's run; None where Letta has not taken the message on.
        began: when the first token came, by the monotonic clock.
        said: the answer so far, by the message's id.
        reason: how it ended; None where no answer began, and another vendor may be asked.
        refusal: why no answer began, or why it broke.
    """

    agent_id: str
    message: str
    first_token: float
    silence: float
    wish: CancelRequest
    run_id: str | None = None
    began: float | None = None
    said: dict[str, str] = field(default_factory=dict)
    reason: Reason | None = None
    refusal: VendorRefusal | None = None
    _calls: dict[str, list[ToolCallDelta]] = field(default_factory=dict)
    _stop: StopNotice | None = None
    _until: float = 0.0
    _cancelled: bool = False

    async def events(self, letta: LettaClient) -> AsyncGenerator[Event | None, None]:
        """Say the message and hear the answer. Raises nothing for what Letta or the vendor does.

        The first event is always None: by then the message is on its way.
        """
        inbox: asyncio.Queue[_Item] = asyncio.Queue()
        pump = asyncio.create_task(_pump(letta, self.agent_id, self.message, inbox))
        self._until = time.monotonic() + self.first_token
        self.wish.tell(inbox)
        try:
            yield None
            while True:
                item = await _next(inbox, self._until - time.monotonic())
                if isinstance(item, str):
                    for event in self._take(item):
                        yield event
                elif isinstance(item, _Closed):
                    self._lost(item.error)
                    break
                else:
                    await self._cancel(letta, inbox)
                    # What comes meanwhile is still heard: it may be the end, or the very beginning.
                    async for event in self._rest(inbox):
                        yield event
                    self._give_up()
                    break
            for event in self._finished_calls():
                yield event
            self._settle()
        finally:
            self.wish.tell(None)
            await self._abandon(letta, inbox, pump)

    # --- what comes --------------------------------------------------------------------------------------------

    def _take(self, line: str) -> list[Event]:
        piece = parse_line(line)
        if piece is None:
            return []
        now = time.monotonic()
        if self.began is None and isinstance(piece, Said | Thought | ToolCallDelta):
            self.began = now
        if self.began is not None and not isinstance(piece, RunStarted):
            # Letta's own pings are no sign of life of the vendor.
            self._until = now + self.silence
        return self._heard(piece)

    def _heard(self, piece: Piece) -> list[Event]:
        match piece:
            case RunStarted(run_id=run_id):
                self.run_id = run_id
            case ToolCallDelta():
                self._calls.setdefault(piece.id, []).append(piece)
            case StopNotice():
                # A failure is told twice, the second time with its kind.
                self._stop = piece
            case VendorRefusal():
                self.refusal = piece
            case Said():
                self.said[piece.message_id] = self.said.get(piece.message_id, "") + piece.text
                return [*self._finished_calls(), piece]
            case Thought() | Returned() | Usage() | Condensed():
                return [*self._finished_calls(), piece]
        return []

    def _finished_calls(self) -> list[Event]:
        """Tool calls come in parts; the next piece of another kind says that they are whole."""
        calls, self._calls = self._calls, {}
        return [
            Called(id, "".join(part.name for part in parts), "".join(part.arguments for part in parts))
            for id, parts in calls.items()
        ]

    async def _rest(self, inbox: asyncio.Queue[_Item]) -> AsyncGenerator[Event, None]:
        """What still comes after the run was cancelled, until the stream ends or nothing more is to be expected."""
        silent = not self.wish.made and self.began is None
        until = time.monotonic() + (_LAST_MOMENT if silent else _TO_END)
        while (left := until - time.monotonic()) > 0:
            item = await _next(inbox, left)
            if item is None or isinstance(item, _Closed):
                return
            if isinstance(item, str):
                for event in self._take(item):
                    yield event
                if silent and self.began is not None:
                    # It answers after all: hear it until Letta notices that the run is cancelled.
                    silent, until = False, time.monotonic() + _TO_END

    # --- how it ended -------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Decide how it ended, from all that was heard."""
        if self.reason is not None:
            return
        if self.refusal is None and self._stop is not None and self._stop.reason is not Reason.BROKEN:
            if self.began is None and self._stop.reason is Reason.COMPLETED:
                self.reason = Reason.BROKEN
                self.refusal = VendorRefusal(Code.EMPTY_ANSWER, "The vendor answered with nothing.", counts=True)
                return
            self.reason = self._stop.reason
            return
        if self.refusal is None:
            self.refusal = VendorRefusal(
                Code.LETTA_FAILING, "Letta's answer ended without a reason.", counts=False, elsewhere=False
            )
        if self.began is not None:
            self.reason = Reason.BROKEN

    def _give_up(self) -> None:
        """Say why it was given up, unless it came to its end just then."""
        if self.refusal is not None or (self._stop is not None and self._stop.reason in _ENDS):
            return
        if self.wish.stopped:
            self.reason = Reason.STOPPED
        elif self.wish.evicted:
            self.refusal = VendorRefusal(
                Code.PROVIDER_CHANGING,
                "The provider has to be changed, and this turn took too long to wait for.",
                counts=False,
            )
        elif self.began is None:
            said = f"The vendor did not begin to answer within {self.first_token:g} s."
            self.refusal = VendorRefusal(Code.VENDOR_SILENT, said)
        else:
            self.refusal = VendorRefusal(
                Code.VENDOR_SILENT, "The answer stopped in the middle, and nothing more came."
            )

    def _lost(self, error: Exception | None) -> None:
        """The stream has ended; with an error where that was not Letta's doing."""
        if error is None:
            return
        match error:
            case LettaUnreachable():
                # Its remedy is the only one that there is.
                said = str(error)
            case IsabellaError():
                said = error.what
            case _:
                said = "The connection to Letta broke."
        match error:
            case LettaRefused(status=404):
                code = Code.AGENT_UNKNOWN
            case LettaRefused():
                code = Code.LETTA_REFUSED
            case LettaBroken():
                code = Code.LETTA_FAILING
            case _:
                code = Code.LETTA_UNREACHABLE
                log.warning("turn lost", agent=self.agent_id, run=self.run_id, error=repr(error))
        self.refusal = VendorRefusal(code, said, counts=False, elsewhere=False)

    # --- ending it at Letta -------------------------------------------------------------------------------------

    async def _cancel(self, letta: LettaClient, inbox: asyncio.Queue[_Item]) -> None:
        with anyio.move_on_after(_STOP_SECONDS):
            # A run that Letta is just about to make cannot be cancelled yet.
            until = time.monotonic() + _TO_BEGIN
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
            await cancel(letta, self.agent_id, self.run_id)
            self._cancelled = True

    async def _abandon(self, letta: LettaClient, inbox: asyncio.Queue[_Item], pump: asyncio.Task[None]) -> None:
        """Leave nothing behind: neither our reading, nor a run that goes on without anybody who listens."""
        with anyio.CancelScope(shield=True):
            if not pump.done() and self._stop is None and not self._cancelled:
                # We ourselves are being cancelled: the client has gone away.
                await self._cancel(letta, inbox)
            # Letta notices it with the vendor's next piece. What it stores until then has to be known before anything
            # is put there by us.
            await asyncio.wait({pump}, timeout=_TO_END)
            pump.cancel()
            with suppress(asyncio.CancelledError):
                await pump


async def cancel(letta: LettaClient, agent_id: str, run_id: str | None) -> None:
    """End a run at Letta; without its id, all of the agent's. One that has ended already is left as it is."""
    try:
        await letta.messages.cancel(agent_id, run_id)
    except LettaError as error:
        # 409: nothing runs.
        log.info("nothing cancelled", agent=agent_id, error=error.what)


async def _next(inbox: asyncio.Queue[_Item], seconds: float) -> _Item | None:
    if not inbox.empty():
        return inbox.get_nowait()
    with anyio.move_on_after(max(0.0, seconds)):
        return await inbox.get()
    return None


async def _pump(letta: LettaClient, agent_id: str, message: str, inbox: asyncio.Queue[_Item]) -> None:
    """Read Letta's stream as it comes, so that waiting for the next line can be given up without losing one."""
    try:
        async with aclosing(letta.messages.stream(agent_id, message)) as lines:
            async for line in lines:
                inbox.put_nowait(line)
        inbox.put_nowait(_Closed())
    except Exception as error:  # noqa: BLE001 - whatever the transport does, the turn has to end
        inbox.put_nowait(_Closed(error))
