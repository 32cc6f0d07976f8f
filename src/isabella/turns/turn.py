"""A turn: one message to an agent, and the answer of the first of its vendors that gives one."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import anyio
import structlog

from isabella import errors
from isabella.agents import context, conversations
from isabella.agents.conversations import SystemPrompts
from isabella.agents.prompt_budget import CHARACTERS_PER_TOKEN, prompt_budget
from isabella.errors import (
    DatabaseUnusable,
    GateTimeout,
    GatewayError,
    IsabellaError,
    LettaBroken,
    LettaError,
    LettaUnreachable,
    ModelUnknown,
)
from isabella.gateway.client import GatewayClient
from isabella.letta.client import LettaClient
from isabella.letta.conversations import ConversationRow
from isabella.locks.provider_lock import ProviderLock
from isabella.system import tracing
from isabella.system.english import english, joined
from isabella.system.supervision import PartState, PartStatus, Supervisor
from isabella.turns import leftovers, partial_history
from isabella.turns.agent_cache import AgentCache, AgentRef, Candidate, TemporaryBinding
from isabella.turns.attempt import Attempt, CancelRequest
from isabella.turns.circuit_breaker import CircuitBreaker
from isabella.turns.events import Ended, EndReason, ErrorCode, Event, Failover, Held, Opened, Queued, TurnFailed
from isabella.turns.first_token_timeout import ReadingSpeeds
from isabella.turns.message import UserMessage
from isabella.turns.partial_history import CUT_OFF
from isabella.turns.queue import Ticket, TicketAbandoned
from isabella.turns.stream import VendorRefusal, refusal_of, remedy_of
from isabella.vendors.client import VendorState, VendorStatusBoard

log = structlog.get_logger()

_T = TypeVar("_T")

_STORE_SECONDS = 10.0
#: The additional seconds from which a wait for the first token is announced.
_TOLD_SECONDS = 1.0
#: How long the end of an answer waits to learn from Letta which model gave it.
_LOOKUP_SECONDS = 5.0
#: How soon a turn that waits for Letta notices that it is to stop.
_HELD_SECONDS = 0.25
#: How often a turn tries again what fails although every part works.
_TRIES = 3
#: How long a turn waits for a Letta or a Postgres that others restart, and how often it tries.
_OTHERS_SECONDS, _OTHERS_PAUSE = 30.0, 0.5
#: How long a turn waits for a run that another backend has left, before it is cancelled.
_LEFTOVER_SECONDS = 10.0
#: Stored in the history after an incomplete answer.
_MARKS = {
    EndReason.STOPPED: "[stopped]",
    EndReason.BROKEN: "[broken off]",
    EndReason.MAX_STEPS: "[step limit reached]",
    EndReason.LENGTH: CUT_OFF,
}
_CODES = (
    (errors.TurnTimeout, ErrorCode.BUSY),
    (errors.AgentUnknown, ErrorCode.AGENT_UNKNOWN),
    (errors.MessageGone, ErrorCode.MESSAGE_GONE),
    (errors.ConversationUnknown, ErrorCode.CONVERSATION_UNKNOWN),
    (errors.LettaUnreachable, ErrorCode.LETTA_UNREACHABLE),
    (errors.DatabaseUnusable, ErrorCode.LETTA_UNREACHABLE),
    (errors.LettaRefused, ErrorCode.LETTA_REFUSED),
    (errors.LettaBroken, ErrorCode.LETTA_FAILING),
)
#: Failures that have nothing to do with the request to the vendor.
_NOT_OF_A_VENDOR = (
    ErrorCode.PROVIDER_CHANGING,
    ErrorCode.VENDOR_SILENT,
    ErrorCode.AGENT_UNKNOWN,
    ErrorCode.CONVERSATION_UNKNOWN,
    ErrorCode.LETTA_REFUSED,
    ErrorCode.LETTA_UNREACHABLE,
    ErrorCode.GATEWAY_REFUSED,
    ErrorCode.TOOL_CALL_REPEATED,
)
_NOT_OF_AN_OUTAGE = (
    ErrorCode.PROVIDER_CHANGING,
    ErrorCode.AGENT_UNKNOWN,
    ErrorCode.CONVERSATION_UNKNOWN,
    ErrorCode.LETTA_REFUSED,
    ErrorCode.EMPTY_ANSWER,
    ErrorCode.CONTEXT_FULL,
    ErrorCode.TOOL_CALL_REPEATED,
)
#: Failures after which Letta may still continue the turn.
_LOST = (ErrorCode.LETTA_UNREACHABLE, ErrorCode.LETTA_FAILING)
_OF_LETTA_OR_GATEWAY = (ErrorCode.GATEWAY_REFUSED, ErrorCode.GATEWAY_UNREACHABLE, ErrorCode.LETTA_FAILING)


@dataclass(frozen=True)
class TurnDependencies:
    """The services that all turns share."""

    letta: LettaClient
    agent_cache: AgentCache
    gate: ProviderLock
    breaker: CircuitBreaker
    first_token: float = 20.0  #: seconds that a vendor may take to begin its answer
    longest: float = 1800.0  #: seconds that a whole answer may take
    silence: float = 60.0  #: seconds of silence after which an answer that has begun counts as broken
    gateway: GatewayClient | None = None  #: the gateway between Letta and the vendors, if there is one
    vendors: VendorStatusBoard = field(default_factory=VendorStatusBoard)
    supervisor: Supervisor | None = None  #: of Letta, Postgres and the gateway, if this process restarts them
    hold: float = 120.0  #: seconds that a turn waits for them
    shared: bool = False  #: whether other backends run turns on the same Letta, or others restart it
    first_turns: leftovers.FirstTurns | None = None  #: of a single backend that runs its Letta itself
    speeds: ReadingSpeeds = field(default_factory=ReadingSpeeds)
    prompts: SystemPrompts = field(default_factory=SystemPrompts)


class Turn:
    """One turn. `events()` runs it, once; `stop()` ends it. `on_event` is called before the reader gets the event."""

    def __init__(
        self,
        deps: TurnDependencies,
        agent_ref: AgentRef,
        message: UserMessage,
        ticket: Ticket,
        *,
        conversation: ConversationRow | None = None,
        on_event: Callable[[Turn, Event], None] = lambda _turn, _event: None,
        on_end: Callable[[Turn], None] = lambda _turn: None,
    ) -> None:
        self.id = f"turn-{secrets.token_hex(12)}"
        self.agent_ref = agent_ref
        #: The handle of the model that answers; None until one does.
        self.answered_by: str | None = None
        #: The id of the conversation, if it is not the default one.
        self.conversation = None if conversation is None else conversation.id
        self.ended = anyio.Event()
        #: Set when the message is sent to Letta, or when the turn waits or fails before.
        self.progressed = anyio.Event()
        self._deps = deps
        self._message = message
        self._ticket = ticket
        self._conversation = conversation
        self._on_event = on_event
        self._on_end = on_end
        self._cancel_request = CancelRequest()
        self._opened = time.monotonic()
        self._began: float | None = None
        self._reason = EndReason.FAILED
        #: Whether the message is in the history; None if Letta does not say.
        self._stored: bool | None = False
        self._failed: TurnFailed | None = None
        self._tried: set[str] = set()
        self._refusals: list[VendorRefusal] = []
        self._asked: Candidate | None = None
        self._fitted = False
        self._tries_left = _TRIES
        self._hold_left = deps.hold
        self._others_left = _OTHERS_SECONDS if deps.shared and deps.supervisor is None else 0.0
        #: The number of outages that this turn knows of.
        self._outages = 0 if deps.supervisor is None else deps.supervisor.outages
        self._binding = TemporaryBinding(deps.agent_cache, agent_ref, self.conversation)
        #: From the task that runs the turn to the reader of `events()`; None is the end.
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        #: Cancels that task, but not the parts of its cleanup that are shielded.
        self._scope = anyio.CancelScope()

    @property
    def text(self) -> str:
        """The text of the user's message."""
        return self._message.text

    def stop(self) -> None:
        """End the turn; the part of the answer that has arrived is stored."""
        self._cancel_request.stop()
        self._ticket.give_up()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Run the turn and yield its events: first `Opened`, last exactly one `Ended`.

        The turn runs in its own task, which waits while the reader handles an event. Closing this generator
        cancels that task and waits for its cleanup: it cancels Letta's run, stores the partial answer and binds the
        agent back.
        """
        task = asyncio.create_task(self._run())
        try:
            while (event := await self._events.get()) is not None:
                self._on_event(self, event)
                yield event
                self._events.task_done()
            # Expected errors have become events; this raises the unexpected ones.
            await task
        finally:
            self._scope.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({task})
            self._ticket.leave()
            self._on_end(self)
            self.ended.set()

    async def _emit(self, event: Event) -> None:
        """Hand an event to the reader, and wait until the reader asks for the next one."""
        self.progressed.set()
        self._events.put_nowait(event)
        await self._events.join()

    async def _run(self) -> None:
        with tracing.span("turn", isabella_agent=self.agent_ref.id, isabella_turn=self.id) as span:
            try:
                await self._run_in_scope()
            finally:
                span.set(isabella_reason=self._reason.value, isabella_handle=self.answered_by)

    async def _run_in_scope(self) -> None:
        try:
            with self._scope:
                # The turn does not wait until this is read: it takes its locks meanwhile.
                self._events.put_nowait(Opened(self.id, self.agent_ref.name, self.agent_ref.id, self.conversation))
                try:
                    if self._ticket.ahead:
                        await self._emit(Queued(self._ticket.ahead))
                    if await self._parts_run():
                        async with self._ticket.reached(self._may_recover):
                            if not await self._answered_elsewhere():
                                await self._answer()
                                await self._name_conversation()
                except TicketAbandoned:
                    self._reason = EndReason.STOPPED
                except IsabellaError as error:
                    code = next((code for kind, code in _CODES if isinstance(error, kind)), ErrorCode.INTERNAL)
                    self._failed = TurnFailed(code, error.what, error.remedy)
                if self._failed is not None:
                    await self._emit(self._failed)
                await self._emit(self._end())
        finally:
            self._events.put_nowait(None)

    async def _parts_run(self) -> bool:
        """Wait until Letta, Postgres and the gateway run, if they are supervised.

        Return false if that takes too long, or the turn was stopped; then it is over.
        """
        supervisor = self._deps.supervisor
        if supervisor is None or not supervisor.down:
            return True
        await self._emit(Held(supervisor.down[0].reason))
        began = time.monotonic()
        deadline = began + self._hold_left
        while not await supervisor.wait(min(_HELD_SECONDS, deadline - time.monotonic())):
            if self._cancel_request.stopped:
                self._reason = EndReason.STOPPED
                return False
            down = supervisor.down[:1]
            if down and (down[0].state is PartState.GIVEN_UP or time.monotonic() >= deadline):
                self._failed = interrupted_turn(down[0])
                return False
        self._hold_left -= time.monotonic() - began
        return True

    async def _outlasted(self) -> bool:
        """Wait while a part is down; return whether one was, since this turn has asked last."""
        supervisor = self._deps.supervisor
        if supervisor is None:
            return False
        known, self._outages = self._outages, await supervisor.doubt()
        return (self._outages != known or bool(supervisor.down)) and await self._parts_run()

    async def _may_recover(self) -> bool:
        """Return whether to try again what failed before the message was sent.

        A part may have been down so briefly that the supervisor did not notice, such as Postgres after the end of one
        of its sessions.
        """
        if await self._outlasted():
            return True
        if self._failed is not None or self._cancel_request.stopped:
            return False
        if self._deps.supervisor is None:
            return await self._wait_for_others()
        if self._tries_left == 0:
            return False
        self._tries_left -= 1
        await anyio.sleep(_HELD_SECONDS)
        return True

    async def _wait_for_others(self) -> bool:
        """Wait a moment for a Letta or a Postgres that others restart; return whether to try again."""
        if self._others_left <= 0:
            return False
        self._others_left -= _OTHERS_PAUSE
        await anyio.sleep(_OTHERS_PAUSE)
        return True

    async def _answered_elsewhere(self) -> bool:
        """Wait for what another backend has left of this agent, and return whether that was this very request."""
        if not self._deps.shared:
            first_turns = self._deps.first_turns
            if first_turns is not None and first_turns.is_next(self.agent_ref.id):
                await self._end_runs(_LEFTOVER_SECONDS, alive_since=first_turns.alive_since)
                first_turns.note(self.agent_ref.id)
            return False
        await self._end_runs(_LEFTOVER_SECONDS)
        if self._message.request_id is None:
            return False
        earlier = await self._repeatedly(
            partial(
                leftovers.earlier_turn,
                self._deps.letta,
                self.agent_ref.id,
                self._message.request_id,
                self.conversation,
            )
        )
        if earlier is None:
            return False
        for text in earlier.answer:
            await self._emit(text)
        last = earlier.answer[-1].text if earlier.answer else _MARKS[EndReason.BROKEN]
        marked = (reason for reason, mark in _MARKS.items() if last.endswith(mark))
        self._stored, self._reason = True, next(marked, EndReason.COMPLETED)
        if self._reason is EndReason.BROKEN:
            self._failed = TurnFailed(
                ErrorCode.STREAM_BROKEN,
                "The turn with this message broke off before the answer was complete.",
                "The part that arrived is stored. Ask again.",
            )
        return True

    async def _end_runs(self, wait: float, *, alive_since: float = 0.0) -> None:
        """End the runs of this agent that no client reads any longer."""
        deps = self._deps

        async def tell() -> None:
            await self._emit(Held(english("Letta is still running an earlier turn of this agent.")))

        await self._repeatedly(
            partial(
                leftovers.end_runs,
                deps.letta,
                self.agent_ref.id,
                wait=wait,
                alive_since=alive_since,
                on_wait=tell if wait else None,
                end_calls=None if deps.gateway is None else deps.gateway.end_calls,
            )
        )

    async def _repeatedly(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask Letta; again if it, or its database, was unavailable for a moment."""
        while True:
            try:
                return await ask()
            except (LettaUnreachable, LettaBroken):
                if not await self._may_recover():
                    raise

    def _end(self) -> Ended:
        first_token = None if self._began is None else self._began - self._opened
        return Ended(
            reason=self._reason,
            handle=self.answered_by,
            stored=self._stored,
            seconds=round(time.monotonic() - self._opened, 3),
            first_token=None if first_token is None else round(first_token, 3),
        )

    async def _answer(self) -> None:
        """Ask one vendor after the other until an answer begins. The agent's other turns wait meanwhile."""
        async with (
            self._rewound(),
            TemporaryBinding(self._deps.agent_cache, self.agent_ref, self.conversation) as self._binding,
            aclosing(self._candidates()) as candidates,
        ):
            async for candidate in candidates:
                await self._ask(candidate)
                if self.answered_by is not None or self._failed is not None or self._reason is not EndReason.FAILED:
                    return
        self._failed = unanswered_turn(self._refusals)

    @asynccontextmanager
    async def _rewound(self) -> AsyncIterator[None]:
        """Take out of the context what this message replaces; put it back at the end if the message is not stored."""
        if self._message.replaces is None:
            yield
            return
        whole = await self._rewind(self._message.replaces)
        try:
            yield
        finally:
            if not self._stored:
                with anyio.CancelScope(shield=True), anyio.move_on_after(_STORE_SECONDS):
                    await self._reinstate(whole)

    async def _rewind(self, message_id: str) -> Sequence[str]:
        letta, agent_id = self._deps.letta, self.agent_ref.id
        return await self._repeatedly(
            partial(context.rewind, letta, agent_id, message_id, conversation=self.conversation)
        )

    async def _reinstate(self, whole: Sequence[str]) -> None:
        try:
            await context.reinstate(self._deps.letta, self.agent_ref.id, whole, conversation=self.conversation)
        except IsabellaError as error:
            log.warning("replaced messages not put back", agent=self.agent_ref.name, error=error.what)

    async def _candidates(self) -> AsyncGenerator[Candidate, None]:
        """The vendors to ask, in order, each resolved when it is needed.

        The model that the message wants comes first, then the agent's current binding.

        Vendors with an open circuit come last, and only if they did not ask for the pause themselves. At the very end
        come, once more, those whose key or base URL has changed since they were asked.
        """
        breaker = self._deps.breaker
        skipped: list[Candidate] = []
        asked: list[tuple[Candidate, int]] = []
        agent_cache = self._deps.agent_cache
        handles: list[str | None] = [*agent_cache.set_up(self.agent_ref.handles)]
        # A vendor whose key was removed is asked only if there is no other one.
        if not handles or agent_cache.set_up([self.agent_ref.handle]):
            handles.insert(0, None)
        if self._message.handle is not None:
            handles.insert(0, self._message.handle)
        for handle in handles:
            if handle in self._tried:
                # It is not asked again, so nothing that its vendor says meanwhile is a reason of its own.
                continue
            try:
                candidate = await self._candidate(handle)
            except ModelUnknown as error:
                refusal = VendorRefusal(ErrorCode.MODEL_UNKNOWN, error.what, counts=False)
                self._refusals.append(refusal)
                await self._emit(Failover(handle or "-", refusal.code, refusal.message))
                continue
            if candidate.handle in self._tried:
                continue
            self._tried.add(candidate.handle)
            if self._message.images and not self._deps.agent_cache.takes_images(candidate.handle):
                refusal = VendorRefusal(
                    ErrorCode.REQUEST_REFUSED, english("The model does not accept images."), counts=False
                )
                self._refusals.append(refusal)
                await self._emit(Failover(candidate.handle, refusal.code, refusal.message))
                continue
            circuit = breaker.admit(candidate.provider)
            if circuit is None:
                asked.append((candidate, breaker.renewals(candidate.provider)))
                yield candidate
                continue
            refusal = VendorRefusal(
                ErrorCode.CIRCUIT_OPEN,
                english(
                    "Skipped for another %(seconds)s s: %(because)s",
                    seconds=format(circuit.seconds, ".0f"),
                    because=circuit.because,
                ),
                retry_after=circuit.seconds,
                counts=False,
            )
            self._refusals.append(refusal)
            await self._emit(
                Failover(candidate.handle, refusal.code, refusal.message, retry_after=round(circuit.seconds, 1))
            )
            if not circuit.requested:
                skipped.append(candidate)
        for candidate in skipped:
            if breaker.admit(candidate.provider, anyway=True) is None:
                asked.append((candidate, breaker.renewals(candidate.provider)))
                yield candidate
        for candidate, renewals in asked:
            if breaker.renewals(candidate.provider) == renewals:
                continue
            try:
                # Resolved again: the agent may have been bound elsewhere, and the base URL may have changed.
                again = await self._candidate(candidate.handle)
            except ModelUnknown:
                continue
            # `admit()` reserves the probe of an open circuit, so it is called immediately before asking.
            if breaker.admit(again.provider) is None:
                yield again

    async def _candidate(self, handle: str | None) -> Candidate:
        binding = self._binding.original
        if handle is not None:
            binding = await self._deps.agent_cache.resolve(self.agent_ref, handle)
        if binding is None:
            return Candidate.of(self.agent_ref)
        return Candidate(binding.handle, binding.provider, binding.model, binding)

    async def _ask(self, candidate: Candidate) -> None:
        """Ask a vendor; once more if it refused only a part of the request, and that could be changed."""
        try:
            refusal = await self._attempt(candidate)
            if refusal is not None and await self._may_be_repeated(refusal):
                refusal = await self._attempt(candidate)
            if refusal is not None:
                self._refusals.append(refusal)
        finally:
            self._deps.breaker.gave_up(candidate.provider)

    async def _may_be_repeated(self, refusal: VendorRefusal) -> bool:
        """Return whether the vendor may accept the request now."""
        if refusal.code is ErrorCode.TOOLS_REFUSED:
            # The gateway leaves the tools out from now on.
            return self._deps.gateway is not None
        return refusal.code is ErrorCode.CONTEXT_REFUSED and await self._fit()

    async def _attempt(self, candidate: Candidate) -> VendorRefusal | None:
        """Ask a vendor; again if Letta, Postgres or the gateway was down before the answer began.

        Return why it did not answer, if another may be asked; None if the turn is over.
        """
        while True:
            attempt = self._new_attempt(candidate)
            outages, since = self._outages, time.time()
            mark = None if self._deps.gateway is None else self._deps.gateway.mark()
            try:
                async with self._traced(candidate) as span:
                    await self._pass_gate(candidate, attempt)
                    span.set(isabella_refusal=None if attempt.refusal is None else attempt.refusal.code.value)
            except (LettaUnreachable, LettaBroken, DatabaseUnusable):
                # The message was not sent.
                if not await self._may_recover():
                    raise
                continue
            if attempt.refusal is None:
                await self._note_cut(attempt, since, mark)
                return None
            if _may_be_of_an_outage(attempt.refusal) and (await self._outlasted() or self._outages != outages):
                outage = "" if self._deps.supervisor is None else self._deps.supervisor.last_outage
                refusal = replace(attempt.refusal, message=outage or attempt.refusal.message)
                if self._failed is None and await self._interrupted(attempt, refusal):
                    continue
                return None
            if self._others_left > 0 and attempt.refusal.code in _LOST and attempt.began is None:
                # Letta may continue it.
                await self._end_runs(0.0)
                self._stored = await self._is_stored(attempt.run_id)
            refusal = await self._true_refusal(attempt.refusal, since)
            if attempt.reason is None and refusal.code is ErrorCode.LETTA_FAILING and refusal.status is None:
                # Its database may have been down so briefly that the supervisor did not notice.
                recovered = await self._may_recover()
                if recovered or self._failed is not None or self._cancel_request.stopped:
                    if self._failed is None and await self._interrupted(attempt, refusal):
                        continue
                    return None
            return await self._refused(candidate, attempt, refusal)

    @asynccontextmanager
    async def _traced(self, candidate: Candidate) -> AsyncIterator[tracing.NoSpan]:
        """Record a call of Letta as a span, and tell the gateway, through which Letta calls the vendor meanwhile."""
        with tracing.span(
            "letta POST messages",
            tracing.SpanKind.CLIENT,
            method="POST",
            isabella_provider=candidate.provider,
            model=candidate.model,
        ) as span:
            parent, gateway = tracing.headers().get("traceparent"), self._deps.gateway
            if parent is None or gateway is None:
                yield span
                return
            await gateway.begin_trace(self.agent_ref.id, parent)
            try:
                yield span
            finally:
                with anyio.CancelScope(shield=True):
                    await gateway.end_trace(self.agent_ref.id)

    def _new_attempt(self, candidate: Candidate) -> Attempt:
        deps = self._deps
        self._asked = None
        return Attempt(
            self.agent_ref.id,
            self._message,
            first_token=deps.first_token,
            silence=deps.silence,
            longest=deps.longest,
            cancel_request=self._cancel_request,
            conversation=self.conversation,
            end_calls=None if deps.gateway is None else deps.gateway.end_calls,
            outlast=self._outlasted,
            more_time=partial(self._more_time, candidate),
        )

    async def _more_time(self, candidate: Candidate) -> float:
        """Return how many seconds longer to wait for a model's first token: it may still read a long prompt."""
        deps, asked = self._deps, self._asked or candidate
        alone = not self._others()
        try:
            with anyio.fail_after(_LOOKUP_SECONDS):
                tokens = (await prompt_budget(deps.letta, self.agent_ref.id, self.conversation)).total
        except (IsabellaError, TimeoutError) as error:
            log.info("length of the prompt not known", agent=self.agent_ref.name, error=str(error))
            return 0.0
        tokens += len(self._message.text) // CHARACTERS_PER_TOKEN
        local = deps.agent_cache.is_local(asked.provider)
        more = deps.speeds.longer(asked.handle, tokens, local=local, alone=alone)
        if more >= _TOLD_SECONDS:
            values = {"handle": asked.handle, "tokens": tokens, "seconds": f"{more:.0f}"}
            text = english(
                "%(handle)s reads a prompt of about %(tokens)s tokens; it gets %(seconds)s s more.", **values
            )
            if alone:
                text = english(
                    "%(handle)s reads a prompt of about %(tokens)s tokens; it gets %(seconds)s s more, "
                    "and no other vendor could answer.",
                    **values,
                )
            await self._emit(Held(text))
        return more

    def _others(self) -> list[str]:
        """Return the handles that may still be asked after the present one."""
        handles = self._deps.agent_cache.set_up(self.agent_ref.handles)
        return [handle for handle in handles if handle not in self._tried]

    async def _pass_gate(self, candidate: Candidate, attempt: Attempt) -> None:
        """Send the message as soon as the provider is not being changed."""
        gate = self._deps.gate
        if gate.is_closed(candidate.provider):
            await self._emit(
                Held(english("%(provider)s is being changed.", provider=candidate.provider), candidate.provider)
            )
        try:
            async with gate.passing(candidate.provider, leave=self._cancel_request.evict):
                await self._send(candidate, attempt)
        except GateTimeout as error:
            attempt.refusal = VendorRefusal(ErrorCode.PROVIDER_CHANGING, error.what, counts=False)
        self._cancel_request.evicted = False

    async def _interrupted(self, attempt: Attempt, refusal: VendorRefusal) -> bool:
        """Return whether to send the message again: nothing of it was answered or stored. Else the turn is over."""
        if self._cancel_request.stopped:
            self._reason = EndReason.STOPPED
            return False
        if attempt.began is None:
            self._stored = await self._is_stored(attempt.run_id)
            if not self._stored:
                return True
            self._reason = EndReason.BROKEN
        self._failed = broken_turn(refusal, stored=self._stored)
        return False

    async def _is_stored(self, run_id: str | None) -> bool:
        """Return whether the message of a run that was cut off is in the history."""
        # The part that was down may be down again.
        return await self._repeatedly(partial(partial_history.is_stored, self._deps.letta, run_id))

    async def _refused(self, candidate: Candidate, attempt: Attempt, refusal: VendorRefusal) -> VendorRefusal | None:
        """Record a refusal. Return it if another vendor may be asked; None if the turn is over."""
        asked = self._asked or candidate
        pause = self._record_refusal(asked.provider, refusal)
        if attempt.reason is not None:
            begun = attempt.began is not None
            self._failed = broken_turn(refusal, stored=self._stored) if begun else empty_turn(refusal)
            return None
        if not refusal.elsewhere:
            self._failed = TurnFailed(refusal.code, refusal.message, status=refusal.status)
            return None
        await self._emit(
            Failover(asked.handle, refusal.code, refusal.message, refusal.status, refusal.retry_after or pause)
        )
        return refusal

    async def _true_refusal(self, refusal: VendorRefusal, since: float) -> VendorRefusal:
        """Return a refusal in the vendor's own words, if a gateway has seen it; Letta may have reworded it."""
        gateway = self._deps.gateway
        if gateway is None or refusal.code in _NOT_OF_A_VENDOR:
            return refusal
        try:
            outcome = await gateway.last_outcome(self.agent_ref.id, since)
        except GatewayError as error:
            log.warning("gateway not asked", error=error.what)
            if refusal.code is not ErrorCode.VENDOR_UNREACHABLE:
                return refusal
            return VendorRefusal(ErrorCode.GATEWAY_UNREACHABLE, error.what, counts=False)
        if outcome is not None:
            return refusal_of(outcome, refusal)
        if refusal.code is ErrorCode.VENDOR_FAILING and refusal.status is None:
            # The vendor has answered in full, or was not asked: the failure is Letta's own.
            return replace(refusal, code=ErrorCode.LETTA_FAILING, counts=False)
        return refusal

    async def _note_cut(self, attempt: Attempt, since: float, mark: str | None) -> None:
        """Note that a complete answer reached its limit of tokens, and shorten it in the agent's context.

        `mark` is that of the gateway's outcomes before the attempt.
        """
        if attempt.reason is not EndReason.COMPLETED or attempt.run_id is None:
            return
        try:
            with anyio.fail_after(_LOOKUP_SECONDS):
                cut = await self._was_cut(attempt, attempt.run_id, since, mark)
        except (GatewayError, LettaError, TimeoutError) as error:
            log.warning("length of the answer not known", agent=self.agent_ref.name, error=str(error))
            return
        if cut:
            self._reason = EndReason.LENGTH
            with anyio.CancelScope(shield=True), anyio.move_on_after(_STORE_SECONDS):
                await partial_history.shorten(
                    self._deps.letta, self.agent_ref.id, attempt.run_id, conversation=self.conversation
                )

    async def _was_cut(self, attempt: Attempt, run_id: str, since: float, mark: str | None) -> bool:
        """Return whether the answer reached its limit: the gateway says so, or the numbers of tokens do."""
        gateway, letta, usage = self._deps.gateway, self._deps.letta, attempt.usage
        if gateway is not None:
            if mark is not None and mark == gateway.mark():
                return False
            outcome = await gateway.last_outcome(self.agent_ref.id, since)
            return outcome is not None and outcome.code == "cut"
        if usage is None:
            return False
        return await partial_history.reached_limit(letta, self.agent_ref.id, run_id, usage.completion_tokens)

    async def _fit(self) -> bool:
        """Make the context acceptable to every vendor, once in a turn. Return whether anything was changed."""
        if self._fitted:
            return False
        self._fitted = True
        try:
            fitted = await context.fit(self._deps.letta, self.agent_ref.id, conversation=self.conversation)
        except IsabellaError as error:
            log.warning("context not fitted", agent=self.agent_ref.name, error=error.what)
            return False
        if fitted is not None:
            log.info("context fitted", agent=self.agent_ref.name, calls=fitted.calls)
        return fitted is not None

    async def _send(self, candidate: Candidate, attempt: Attempt) -> None:
        """Send the message and emit the answer. The provider cannot be recreated meanwhile."""
        if self._cancel_request.stopped:
            self._reason = EndReason.STOPPED
            return
        agent_cache = self._deps.agent_cache
        async with AsyncExitStack() as gates:
            if candidate.binding is not None:
                await self._binding.to(candidate.binding)
            else:
                await agent_cache.follow_provider(self.agent_ref)
            if self.conversation is not None:
                await self._deps.prompts.refresh(self._deps.letta, self.agent_ref.id, self.conversation)
            self._asked = candidate
            lookup: asyncio.Task[AgentRef] | None = None
            # An agent that was bound just now has the binding that it was given.
            verified = candidate.binding is not None
            try:
                async with aclosing(attempt.events(self._deps.letta)) as events:
                    async for event in events:
                        if event is None:
                            await self._emit(candidate.asked)
                            continue
                        self._note_start(attempt)
                        if lookup is not None and lookup.done() and not verified:
                            verified = True
                            if await self._was_switched(candidate, lookup):
                                await self._enter_gate(candidate, gates)
                                await self._emit(self._asked.asked)
                        await self._emit(event)
                        if lookup is None and not verified:
                            # Not before the first token, which would wait for it.
                            lookup = asyncio.create_task(agent_cache.reload(self.agent_ref))
                if not verified and await self._was_switched(candidate, lookup):
                    await self._emit(self._asked.asked)
            finally:
                if lookup is not None:
                    lookup.cancel()
                self._note_start(attempt)
                self._note_speed(attempt)
                await self._conclude(attempt)

    async def _name_conversation(self) -> None:
        """Name the conversation after its first message, if it has no name yet."""
        row = self._conversation
        if row is None or row.summary or not self._stored:
            return
        try:
            await conversations.name_if_unnamed(self._deps.letta, row.id, self._message.text)
        except IsabellaError as error:
            log.info("conversation not named", conversation=row.id, error=error.what)

    async def _was_switched(self, expected: Candidate, lookup: asyncio.Task[AgentRef] | None) -> bool:
        """Return whether another process has bound the agent to another model; False if Letta does not answer."""
        try:
            with anyio.fail_after(_LOOKUP_SECONDS):
                self.agent_ref = await (lookup or self._deps.agent_cache.reload(self.agent_ref))
        except (IsabellaError, TimeoutError) as error:
            log.info("binding not verified", agent=self.agent_ref.name, error=str(error))
            return False
        actual = Candidate.of(self.agent_ref)
        if actual == expected:
            return False
        # The expected one was not asked, so it may be asked later.
        self._tried.discard(expected.handle)
        self._tried.add(actual.handle)
        self._asked = actual
        if self.answered_by is not None:
            self.answered_by = actual.handle
        return True

    async def _enter_gate(self, expected: Candidate, gates: AsyncExitStack) -> None:
        """Hold off changes of the provider that actually answers, too."""
        actual = Candidate.of(self.agent_ref)
        if actual.provider == expected.provider:
            return
        try:
            await gates.enter_async_context(
                self._deps.gate.passing(actual.provider, leave=self._cancel_request.evict)
            )
        except GateTimeout:
            self._cancel_request.evict()

    def _note_start(self, attempt: Attempt) -> None:
        """Record that an answer has begun, and by which model."""
        if attempt.began is not None and self._began is None and self._asked is not None:
            self._began = attempt.began
            self.answered_by = self._asked.handle
            self._deps.breaker.succeeded(self._asked.provider)
            text = f"{self._asked.model} answered {self.agent_ref.name}"
            self._deps.vendors.observe(self._asked.provider, VendorState.ANSWERS, text)

    def _note_speed(self, attempt: Attempt) -> None:
        """Note how fast the model has read its prompt. Of several steps only the sum of the prompts is known."""
        usage = attempt.usage
        if self.answered_by is not None and attempt.began is not None and usage is not None and usage.steps == 1:
            self._deps.speeds.note(self.answered_by, usage.prompt_tokens, attempt.began - attempt.sent)

    async def _conclude(self, attempt: Attempt) -> None:
        """Record how the attempt ended and store a partial answer, even if this task is being cancelled."""
        if attempt.reason is None and attempt.began is None:
            return
        # No reason set: the client disconnected mid-stream.
        self._reason = attempt.reason or EndReason.STOPPED
        if self._reason in (EndReason.COMPLETED, EndReason.NEEDS_APPROVAL):
            self._stored = True
        elif attempt.began is None:
            # Letta stores nothing of a turn that is stopped before it begins, but the message of an empty answer.
            self._stored = self._reason is EndReason.BROKEN
        elif attempt.run_id is not None:
            # Letta has stored every step of a turn that reached its limit; only the answer may be missing.
            self._stored = whole = self._reason is EndReason.MAX_STEPS
            kept = await self._keep(attempt, attempt.run_id)
            self._stored = whole or kept

    async def _keep(self, attempt: Attempt, run_id: str) -> bool | None:
        """Store a partial answer. If that fails because a part is down, do it when everything works again.

        Return whether the message is in the history; None if Letta does not say.
        """
        known: set[str] = set()
        refusal = attempt.refusal
        lost = self._others_left > 0 and refusal is not None and _may_have_lost_it(refusal)
        broken = attempt.reason is EndReason.BROKEN and (self._deps.supervisor is not None or lost)
        if lost:
            with suppress(LettaError):
                await self._end_runs(0.0)
        while True:
            if broken:
                await self._outlasted()
            kept: bool | None = None
            # Letta may be frozen, and store it afterwards anyway: its answer is waited for.
            limit = self._deps.hold if broken else _STORE_SECONDS
            with anyio.CancelScope(shield=True), anyio.move_on_after(limit):
                kept = await partial_history.store_partial(
                    self._deps.letta,
                    self.agent_ref.id,
                    run_id=run_id,
                    asked=self._message.text,
                    said=attempt.said,
                    mark=_MARKS[self._reason],
                    model=self.answered_by or "-",
                    known=known,
                    conversation=self.conversation,
                )
            if kept is not None or not broken or not (await self._outlasted() or await self._wait_for_others()):
                return kept

    def _record_refusal(self, provider: str, refusal: VendorRefusal) -> float | None:
        """Tell the circuit breaker. Return the seconds for which the provider is skipped now, if it is."""
        if refusal.vendor is not None:
            self._deps.vendors.observe(provider, refusal.vendor, refusal.message)
        if not refusal.counts:
            self._deps.breaker.gave_up(provider)
            return None
        pause = self._deps.breaker.failed(provider, refusal.message, retry_after=refusal.retry_after)
        skipped = "" if pause is None else f" (skipped for {pause:.0f} s)"
        log.info(
            "vendor refused",
            provider=provider,
            code=refusal.code.value,
            skipped_for=pause,
            sentence=f"{provider} did not answer{skipped}: {refusal.message}",
        )
        return pause


def broken_turn(refusal: VendorRefusal, *, stored: bool | None) -> TurnFailed:
    """Return the error of a turn that broke off; `stored`: whether its message is in the history, None if unknown."""
    kept = english("The part that arrived is stored.") if stored else english("Nothing of this turn is stored.")
    if stored is None:
        kept = english("Letta does not say whether this turn is stored: look at the history first.")
    if refusal.code is ErrorCode.PROVIDER_CHANGING:
        return TurnFailed(refusal.code, refusal.message, joined([kept, english("Ask again in a moment.")]))
    remedy = joined([kept, english("Ask again, or switch to another model.")])
    if refusal.code is ErrorCode.TOOL_CALL_REPEATED:
        return TurnFailed(refusal.code, refusal.message, remedy)
    return TurnFailed(
        ErrorCode.STREAM_BROKEN,
        english("The answer broke off in the middle: %(message)s", message=refusal.message),
        remedy,
        status=refusal.status,
    )


def empty_turn(refusal: VendorRefusal) -> TurnFailed:
    """Return the error of a turn that got an empty answer."""
    return TurnFailed(
        refusal.code, refusal.message, english("Ask again, or switch to another model."), status=refusal.status
    )


def interrupted_turn(part: PartStatus) -> TurnFailed:
    """Return the error of a turn that has waited for Letta, Postgres or the gateway."""
    code = ErrorCode.GATEWAY_UNREACHABLE if part.word == "gateway" else ErrorCode.LETTA_UNREACHABLE
    return TurnFailed(
        code, part.reason, english("`GET /ready` says when it works again; then send the message again.")
    )


def _may_have_lost_it(refusal: VendorRefusal) -> bool:
    """Return whether Letta, or its database, may be unavailable for a moment, and the message stored anyway."""
    return refusal.code in _LOST or _may_be_of_an_outage(refusal)


def _may_be_of_an_outage(refusal: VendorRefusal) -> bool:
    """Return whether Letta's or the gateway's end may look like this. A status comes from the vendor."""
    return refusal.status is None and refusal.code not in _NOT_OF_AN_OUTAGE


def unanswered_turn(refusals: list[VendorRefusal]) -> TurnFailed:
    """Return the error of a turn that no vendor answered: the only reason if there is one, or a summary."""
    waits = [refusal.retry_after for refusal in refusals if refusal.retry_after]
    retry_after = round(min(waits), 1) if waits else None
    if not refusals:
        return TurnFailed(
            ErrorCode.NO_VENDOR, english("The agent has no usable model."), english("Switch it to another model.")
        )
    only = refusals[0]
    if only.code in _OF_LETTA_OR_GATEWAY and all(refusal.code is only.code for refusal in refusals):
        return TurnFailed(
            only.code, only.message, english("Run `isabella doctor`: it names the cause."), status=only.status
        )
    if len(refusals) == 1:
        of_model = only.code is ErrorCode.TOOL_CALL_MALFORMED
        return TurnFailed(
            only.code,
            only.message if of_model else english("The vendor does not answer: %(reason)s", reason=only.message),
            remedy_of(only.code) or english("Fix the cause, or give the agent more models to fail over to."),
            retry_after=retry_after,
            status=only.status,
        )
    return TurnFailed(
        ErrorCode.NO_VENDOR,
        english("None of the agent's vendors answers."),
        english(
            "The failover events give the reasons; `isabella providers status` shows the state of the providers."
        ),
        retry_after=retry_after,
    )
