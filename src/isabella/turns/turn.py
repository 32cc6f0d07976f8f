"""A turn: what is said to an agent, and what comes back, from the first of its vendors that answers."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

import anyio
import structlog

from isabella.agents.context import FittedContext, required_id_form
from isabella.errors import (
    AgentUnknown,
    GateTimeout,
    IsabellaError,
    LettaBroken,
    LettaRefused,
    LettaUnreachable,
    ModelUnknown,
    TurnTimeout,
)
from isabella.letta.client import LettaClient
from isabella.letta.llm_config import Binding
from isabella.locks.provider_lock import ProviderLock
from isabella.turns import partial_history
from isabella.turns.agent_cache import AgentCache, AgentRef
from isabella.turns.attempt import Attempt, CancelRequest
from isabella.turns.circuit_breaker import CircuitBreaker
from isabella.turns.events import Code, Ended, Event, Failover, Held, Opened, Queued, Reason, TurnFailed, VendorAsked
from isabella.turns.queue import Ticket, TicketAbandoned
from isabella.turns.vendor_errors import VendorRefusal
from isabella.vendors.status import VendorState, VendorStatusBoard

_BINDING_SECONDS = 10.0


@dataclass(frozen=True)
class Candidate:
    """A vendor that may answer.

    Attributes:
        handle: `provider/model`.
        provider: the provider's name in Letta.
        model: the vendor's id of the model.
        binding: what the agent has to be bound to for it; None for what it is bound to already.
    """

    handle: str
    provider: str
    model: str
    binding: Binding | None = None

    @classmethod
    def of(cls, agent_ref: AgentRef) -> Candidate:
        """What an agent is bound to already."""
        return cls(agent_ref.handle, agent_ref.provider, agent_ref.model)

    @property
    def asked(self) -> VendorAsked:
        """The event that tells that it is asked."""
        return VendorAsked(self.handle, self.provider, self.model)


class TemporaryBinding:
    """An agent bound elsewhere for a turn, and back to what its people chose afterwards.

    Args:
        agent_cache: the agents.
        agent_ref: the agent.
    """

    def __init__(self, agent_cache: AgentCache, agent_ref: AgentRef) -> None:
        self._roster = agent_cache
        self._speaker = agent_ref
        self._chosen: Binding | None = None
        self._now: Binding | None = None
        self._fitted: FittedContext | None = None

    async def to(self, binding: Binding) -> None:
        """Bind it to this one, whose gate has been passed.

        Raises:
            LettaError: Letta refuses or fails.
        """
        if self._chosen is None:
            # Somebody may have switched it meanwhile: that is what it goes back to.
            self._chosen = self._now = (await self._roster.look(self._speaker)).binding
        binding = await self._roster.placed(binding)
        if self._now != binding:
            # Noted before: where the answer to it is lost, it may be bound there all the same.
            self._now = binding
            bound = await self._roster.bind(self._speaker.id, binding)
            self._now = bound.binding
            if bound.fitted is not None:
                self._fitted = bound.fitted

    async def __aenter__(self) -> TemporaryBinding:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._chosen is None or self._now is None or self._now == self._chosen:
            return
        with anyio.CancelScope(shield=True), anyio.move_on_after(_BINDING_SECONDS):
            try:
                # Not through the gate, which may be closed for long: nothing is said here, and where the provider
                # moves meanwhile the agent goes along.
                home = await self._roster.placed(self._chosen)
                if home != self._now and (await self._roster.look(self._speaker)).binding == self._now:
                    bound = await self._roster.bind(self._speaker.id, home)
                    if self._fitted is not None and required_id_form(bound.binding) is None:
                        await self._roster.put_back(self._speaker.id, self._fitted)
            except IsabellaError as error:
                log.warning("not bound back", agent=self._speaker.name, to=self._chosen.handle, error=error.what)


def broken_turn(begun: bool, refusal: VendorRefusal) -> TurnFailed:
    """The error of a turn that ended in the middle, or with an empty answer."""
    if not begun:
        return TurnFailed(
            refusal.code, refusal.message, "Ask again, or switch to another model.", status=refusal.status
        )
    if refusal.code is Code.PROVIDER_CHANGING:
        return TurnFailed(refusal.code, refusal.message, "What came is kept. Ask again in a moment.")
    return TurnFailed(
        Code.STREAM_BROKEN,
        f"The answer broke off in the middle: {refusal.message}",
        "What came is kept. Ask again, or switch to another model.",
        status=refusal.status,
    )


def unanswered_turn(refusals: list[VendorRefusal]) -> TurnFailed:
    """The error of a turn that nobody answered: the only reason there is, or that there are several."""
    waits = [refusal.retry_after for refusal in refusals if refusal.retry_after]
    retry_after = round(min(waits), 1) if waits else None
    if not refusals:
        return TurnFailed(
            Code.NO_VENDOR, "The agent has no model that it could speak with.", "Switch it to another model."
        )
    if len(refusals) == 1:
        only = refusals[0]
        return TurnFailed(
            only.code,
            f"The vendor does not answer: {only.message}",
            "Mend the cause, or give the agent further models to go on with.",
            retry_after=retry_after,
            status=only.status,
        )
    return TurnFailed(
        Code.NO_VENDOR,
        "None of the agent's vendors answers.",
        "The failover events say why; `isabella providers status` shows how the providers stand.",
        retry_after=retry_after,
    )


def refused_turn(error: IsabellaError) -> TurnFailed:
    """The error of a turn that one of ours has ended."""
    match error:
        case TurnTimeout():
            code = Code.BUSY
        case AgentUnknown():
            code = Code.AGENT_UNKNOWN
        case LettaUnreachable():
            code = Code.LETTA_UNREACHABLE
        case LettaRefused():
            code = Code.LETTA_REFUSED
        case LettaBroken():
            code = Code.LETTA_FAILING
        case _:
            code = Code.INTERNAL
    return TurnFailed(code, error.what, error.remedy)


@dataclass(frozen=True)
class TurnLimits:
    """How long a turn waits for what.

    Attributes:
        first_token: seconds that a vendor may take to begin its answer.
        silence: seconds of silence after which an answer that has begun is broken.
    """

    first_token: float = 20.0
    silence: float = 60.0


@dataclass(frozen=True)
class TurnDependencies:
    """What all turns share.

    Attributes:
        letta: the client of their Letta.
        agent_cache: the agents.
        gate: of the providers.
        breaker: which vendors are left out.
        limits: how long a turn waits for what.
        vendors: what each vendor did when it was asked last.
    """

    letta: LettaClient
    agent_cache: AgentCache
    gate: ProviderLock
    breaker: CircuitBreaker
    limits: TurnLimits
    vendors: VendorStatusBoard = field(default_factory=VendorStatusBoard)


log = structlog.get_logger()

_STORING_SECONDS = 10.0
#: So long an answer that is over waits to hear from Letta whose it was.
_LOOKING_SECONDS = 5.0
#: Stands in the history behind what came of an answer that is not whole.
_MARKS = {Reason.STOPPED: "[stopped]", Reason.BROKEN: "[broken off]", Reason.MAX_STEPS: "[step limit reached]"}


class Turn:
    """One turn. `events()` runs it, once; `stop()` ends it.

    Args:
        deps: what all turns share.
        agent_ref: the agent.
        message: what is said to it.
        ticket: its place in the agent's queue.
    """

    def __init__(self, deps: TurnDependencies, agent_ref: AgentRef, message: str, ticket: Ticket) -> None:
        self.id = f"turn-{secrets.token_hex(12)}"
        self.agent_ref = agent_ref
        self.ended = anyio.Event()
        self._house = deps
        self._message = message
        self._place = ticket
        self._wish = CancelRequest()
        self._opened = time.monotonic()
        self._began: float | None = None
        self._answered_by: str | None = None
        self._reason = Reason.FAILED
        self._stored = False
        self._failed: TurnFailed | None = None
        self._tried: set[str] = set()
        self._asked: Candidate | None = None
        self._fitted = False
        self._bound = TemporaryBinding(deps.agent_cache, agent_ref)

    @property
    def answered_by(self) -> str | None:
        """The handle of the model that answers; None as long as none does."""
        return self._answered_by

    @property
    def waited_for_token(self) -> float | None:
        """Seconds until the answer began."""
        return None if self._began is None else self._began - self._opened

    def stop(self) -> None:
        """End it; what came is kept."""
        self._wish.stop()
        self._place.give_up()

    def leave(self) -> None:
        """Let the next one speak. For a turn whose events nobody ever asked for."""
        self._place.leave()
        self.ended.set()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Everything that happens, as it happens: first `Opened`, and last exactly one `Ended`. Raises nothing."""
        try:
            yield Opened(self.id, self.agent_ref.name, self.agent_ref.id)
            try:
                if self._place.ahead:
                    yield Queued(self._place.ahead)
                async with self._place.reached(), aclosing(self._speak()) as spoken:
                    async for event in spoken:
                        yield event
            except TicketAbandoned:
                self._reason = Reason.STOPPED
            except IsabellaError as error:
                self._failed = refused_turn(error)
            if self._failed is not None:
                yield self._failed
            yield Ended(
                reason=self._reason,
                handle=self._answered_by,
                stored=self._stored,
                seconds=round(time.monotonic() - self._opened, 3),
                first_token=None if self.waited_for_token is None else round(self.waited_for_token, 3),
            )
        finally:
            self.leave()

    # --- one vendor after the other -------------------------------------------------------------------------------

    async def _speak(self) -> AsyncGenerator[Event, None]:
        """Ask one vendor after the other until an answer begins. The agent is ours meanwhile."""
        refusals: list[VendorRefusal] = []
        async with (
            TemporaryBinding(self._house.agent_cache, self.agent_ref) as self._bound,
            aclosing(self._candidates(refusals)) as candidates,
        ):
            async for step in candidates:
                if not isinstance(step, Candidate):
                    yield step
                    continue
                async with aclosing(self._ask(step, refusals)) as asked:
                    async for event in asked:
                        yield event
                if self._answered_by is not None or self._failed is not None or self._reason is Reason.STOPPED:
                    return
        self._failed = unanswered_turn(refusals)

    async def _candidates(self, refusals: list[VendorRefusal]) -> AsyncGenerator[Candidate | Event, None]:
        """The vendors to ask, in order, each made out when it is needed; first what the agent is bound to.

        Those that are left out come last, and only where nobody else answered and they did not ask for it. At the
        very end those come once more that have got another key, or another address, since they were asked.
        """
        breaker = self._house.breaker
        left_out: list[Candidate] = []
        asked: list[tuple[Candidate, int]] = []
        for handle in (None, *self.agent_ref.handles):
            try:
                candidate = await self._candidate(handle)
            except ModelUnknown as error:
                refusal = VendorRefusal(Code.MODEL_UNKNOWN, error.what, counts=False)
                refusals.append(refusal)
                yield Failover(handle or "-", refusal.code, refusal.message)
                continue
            if candidate.handle in self._tried:
                continue
            self._tried.add(candidate.handle)
            out = breaker.admit(candidate.provider)
            if out is None:
                asked.append((candidate, breaker.renewals(candidate.provider)))
                yield candidate
                continue
            why = VendorRefusal(
                Code.LEFT_OUT,
                f"Left out for {out.seconds:.0f} s: {out.because}",
                retry_after=out.seconds,
                counts=False,
            )
            refusals.append(why)
            yield Failover(candidate.handle, why.code, why.message, retry_after=round(out.seconds, 1))
            if not out.wished:
                left_out.append(candidate)
        for candidate in left_out:
            if breaker.admit(candidate.provider, anyway=True) is None:
                asked.append((candidate, breaker.renewals(candidate.provider)))
                yield candidate
        for candidate, renewals in asked:
            if breaker.renewals(candidate.provider) == renewals:
                continue
            try:
                # Made out anew: the agent may be bound elsewhere by now, and its address may be another one.
                again = await self._candidate(candidate.handle)
            except ModelUnknown:
                continue
            # Only now: whoever is admitted has to be asked.
            if breaker.admit(again.provider) is None:
                yield again

    async def _candidate(self, handle: str | None) -> Candidate:
        if handle is None:
            return Candidate.of(self.agent_ref)
        binding = await self._house.agent_cache.resolve(self.agent_ref, handle)
        return Candidate(binding.handle, binding.provider, binding.model, binding)

    # --- one vendor ---------------------------------------------------------------------------------------------

    async def _ask(self, candidate: Candidate, refusals: list[VendorRefusal]) -> AsyncGenerator[Event, None]:
        deps = self._house
        self._asked = None
        attempt = Attempt(
            self.agent_ref.id,
            self._message,
            first_token=deps.limits.first_token,
            silence=deps.limits.silence,
            wish=self._wish,
        )
        try:
            if deps.gate.is_closed(candidate.provider):
                yield Held(candidate.provider)
            try:
                async with (
                    deps.gate.passing(candidate.provider, leave=self._wish.evict),
                    aclosing(self._through_the_gate(candidate, attempt)) as heard,
                ):
                    async for event in heard:
                        yield event
            except GateTimeout as error:
                attempt.refusal = VendorRefusal(Code.PROVIDER_CHANGING, error.what, counts=False)
            self._wish.evicted = False
            refusal = attempt.refusal
            if refusal is None:
                return
            asked = self._asked or candidate
            left_out_for = self._hold_against(asked.provider, refusal)
            if attempt.reason is not None:
                self._failed = broken_turn(attempt.began is not None, refusal)
            elif not refusal.elsewhere:
                self._failed = TurnFailed(refusal.code, refusal.message, status=refusal.status)
            else:
                wait = refusal.retry_after or left_out_for
                yield Failover(asked.handle, refusal.code, refusal.message, refusal.status, wait)
                if refusal.code is not Code.CONTEXT_REFUSED or not await self._fit():
                    refusals.append(refusal)
                    return
                async with aclosing(self._ask(candidate, refusals)) as again:
                    async for event in again:
                        yield event
        finally:
            deps.breaker.gave_up(candidate.provider)

    async def _fit(self) -> bool:
        """Make the context such that a vendor takes it, once; whether anything was changed."""
        if self._fitted:
            return False
        self._fitted = True
        try:
            fitted = await self._house.agent_cache.fit(self.agent_ref.id)
        except IsabellaError as error:
            log.warning("context not fitted", agent=self.agent_ref.name, error=error.what)
            return False
        if fitted is not None:
            log.info("context fitted", agent=self.agent_ref.name, calls=fitted.calls)
        return fitted is not None

    async def _through_the_gate(self, candidate: Candidate, attempt: Attempt) -> AsyncGenerator[Event, None]:
        if self._wish.stopped:
            self._reason = Reason.STOPPED
            return
        async with AsyncExitStack() as stack:
            if candidate.binding is not None:
                await self._bound.to(candidate.binding)
            else:
                await self._house.agent_cache.take_along(self.agent_ref)
            self._asked = candidate
            looking: asyncio.Task[AgentRef] | None = None
            looked = candidate.binding is not None
            try:
                async with aclosing(attempt.events(self._house.letta)) as heard:
                    async for event in heard:
                        if event is None:
                            yield candidate.asked
                            continue
                        self._note(attempt)
                        if looking is None and not looked:
                            # Not before the first token: Letta would see to this instead.
                            looking = asyncio.create_task(self._house.agent_cache.look(self.agent_ref))
                        elif looking is not None and looking.done() and not looked:
                            looked = True
                            if await self._really(candidate, looking):
                                await self._pass_as_well(candidate, stack)
                                yield self._asked.asked
                        yield event
                if not looked and await self._really(candidate, looking):
                    yield self._asked.asked
            finally:
                if looking is not None:
                    looking.cancel()
                self._note(attempt)
                await self._conclude(attempt)

    async def _really(self, thought: Candidate, looking: asyncio.Task[AgentRef] | None) -> bool:
        """Find out what the agent is really bound to, and whether that is another model than was thought.

        Somebody may have switched it since it was looked at last. Where Letta does not say so, nobody has.
        """
        try:
            with anyio.fail_after(_LOOKING_SECONDS):
                self.agent_ref = await (looking or self._house.agent_cache.look(self.agent_ref))
        except (IsabellaError, TimeoutError) as error:
            log.info("not looked whether it was switched", agent=self.agent_ref.name, error=str(error))
            return False
        really = Candidate.of(self.agent_ref)
        if really == thought:
            return False
        # That one was not asked, so it still may be.
        self._tried.discard(thought.handle)
        self._tried.add(really.handle)
        self._asked = really
        if self._answered_by is not None:
            self._answered_by = really.handle
        return True

    async def _pass_as_well(self, thought: Candidate, stack: AsyncExitStack) -> None:
        """Pass the gate of the provider that is really answering, while it does."""
        really = Candidate.of(self.agent_ref)
        if really.provider == thought.provider:
            return
        try:
            await stack.enter_async_context(self._house.gate.passing(really.provider, leave=self._wish.evict))
        except GateTimeout:
            self._wish.evict()

    def _note(self, attempt: Attempt) -> None:
        """Note that an answer has begun, and whose it is."""
        if attempt.began is not None and self._began is None and self._asked is not None:
            self._began = attempt.began
            self._answered_by = self._asked.handle
            self._house.breaker.succeeded(self._asked.provider)
            said = f"{self._asked.model} answered {self.agent_ref.name}"
            self._house.vendors.observe(self._asked.provider, VendorState.ANSWERS, said)

    async def _conclude(self, attempt: Attempt) -> None:
        """Note how it ended, and keep what came, also when we are being cancelled ourselves."""
        if attempt.reason is None and attempt.began is None:
            return
        # Without a reason of its own the client has gone away in the middle.
        self._reason = attempt.reason or Reason.STOPPED
        if self._reason in (Reason.COMPLETED, Reason.NEEDS_APPROVAL):
            self._stored = True
        elif attempt.began is None:
            # Of a stopped turn that had not begun nothing remains; of an empty answer, the message does.
            self._stored = self._reason is Reason.BROKEN
        elif attempt.run_id is not None:
            # Letta has stored every step of a turn that reached its limit; only an answer may be missing.
            self._stored = whole = self._reason is Reason.MAX_STEPS
            with anyio.CancelScope(shield=True), anyio.move_on_after(_STORING_SECONDS):
                kept = await partial_history.store_partial(
                    self._house.letta,
                    self.agent_ref.id,
                    run_id=attempt.run_id,
                    asked=self._message,
                    said=attempt.said,
                    mark=_MARKS[self._reason],
                    model=self._answered_by or "-",
                )
                self._stored = kept or whole

    def _hold_against(self, provider: str, refusal: VendorRefusal) -> float | None:
        if refusal.vendor is not None:
            self._house.vendors.observe(provider, refusal.vendor, refusal.message)
        if not refusal.counts:
            self._house.breaker.gave_up(provider)
            return None
        left = self._house.breaker.failed(provider, refusal.message, retry_after=refusal.retry_after)
        log.info("vendor refused", provider=provider, code=refusal.code.value, left_out=left)
        return left
