"""Turns during which something changes: somebody switches the agent in Letta, or a vendor's key is renewed.

On the real Letta: `tests/letta/test_turns.py`. Here a test decides when something happens.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, MutableMapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import anyio
import pytest

from isabella.agents.registry import BindingResult
from isabella.errors import DatabaseUnusable, LettaBroken, LettaUnreachable
from isabella.letta.agents import AgentRow
from isabella.letta.llm_config import Binding
from isabella.locks.provider_lock import ProviderLock
from isabella.server.api.turns import TurnResponse, _sent
from isabella.system.supervision import Supervisor
from isabella.turns import turn as turns
from isabella.turns.agent_cache import AgentRef
from isabella.turns.attempt import Attempt
from isabella.turns.circuit_breaker import CircuitBreaker
from isabella.turns.events import (
    AnswerText,
    Ended,
    EndReason,
    ErrorCode,
    Event,
    Failover,
    Held,
    Opened,
    Queued,
    TurnFailed,
    Usage,
    VendorAsked,
)
from isabella.turns.message import UserMessage
from isabella.turns.queue import TurnQueue
from isabella.turns.stream import VendorRefusal
from isabella.turns.turn import TurnDependencies
from tests.support.made_parts import MadeParts

pytestmark = pytest.mark.anyio

THOUGHT = Binding("byok-groq", "openai/gpt-oss-120b", "http://groq.test/v1", 65_536)
REALLY = Binding("byok-mistral", "mistral-medium-latest", "http://mistral.test/v1", 65_536)
_SECONDS = 10.0


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the backend runs on."""
    return "asyncio"


@dataclass
class Agents:
    """A roster with one agent, which somebody has switched. It is looked at once `say` is set."""

    now: Binding = REALLY
    addresses: dict[str, str] = field(default_factory=dict)
    failure: Exception | None = None
    without_key: set[str] = field(default_factory=set)
    say: anyio.Event = field(default_factory=anyio.Event)
    said: anyio.Event = field(default_factory=anyio.Event)

    async def reload(self, agent_ref: AgentRef) -> AgentRef:
        """The agent as it is now."""
        await self.say.wait()
        self.said.set()
        if self.failure is not None:
            raise self.failure
        return _speaker(self.now, agent_ref.handles)

    async def bind(self, _agent_id: str, binding: Binding, *, conversation: str | None = None) -> BindingResult:
        """Bind it, where its provider is by now."""
        self.now = await self.placed(binding)
        return BindingResult(self.now)

    async def placed(self, binding: Binding) -> Binding:
        """The same where its provider is by now."""
        return replace(binding, base_url=self.addresses.get(binding.provider, binding.base_url))

    async def follow_provider(self, _speaker: AgentRef) -> None:
        """Have it call where its provider is by now."""
        self.now = await self.placed(self.now)

    def set_up(self, handles: Iterable[str]) -> list[str]:
        """All of them, but those of vendors without a key."""
        return [handle for handle in handles if handle.partition("/")[0] not in self.without_key]

    async def resolve(self, _speaker: AgentRef, handle: str) -> Binding:
        """What a handle means."""
        return {THOUGHT.handle: THOUGHT, REALLY.handle: REALLY}[handle]


#: Plays one answer of a vendor.
Answer = Callable[[Attempt], AsyncGenerator[Event | None]]


@dataclass
class Stage:
    """Where a turn is played: vendors answer as they are told to, one after the other."""

    agents: Agents
    patch: pytest.MonkeyPatch
    gate: ProviderLock = field(default_factory=ProviderLock)
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    supervisor: Supervisor | None = None
    gateway: Any = None
    hold: float = 10.0
    stored: bool = False  #: whether Letta has stored a run

    fails: int = 0  #: how many questions about a run fail

    async def of_run(self, _run_id: str) -> list[dict[str, Any]]:
        """What Letta has stored of a run."""
        if self.fails:
            self.fails -= 1
            raise LettaBroken("Letta answered with 500.")
        return [{"id": "m", "message_type": "user_message"}] if self.stored else []

    context: list[str] = field(default_factory=lambda: ["system", "m1", "m2", "m3", "m4"])

    async def get(self, agent_id: str) -> AgentRow:
        """The agent with its context."""
        return AgentRow(id=agent_id, message_ids=self.context)

    async def update(self, _agent_id: str, fields: dict[str, Any]) -> None:
        """Change its context."""
        self.context = fields["message_ids"]

    async def turn(self, *answers: Answer, handles: tuple[str, ...] = (), **message: Any) -> list[Event]:
        """A whole turn of an agent that is thought to be bound as it was."""
        turn = self.open(*answers, handles=handles, **message)
        with anyio.fail_after(_SECONDS):
            return [event async for event in turn.events()]

    def open(
        self, *answers: Answer, handles: tuple[str, ...] = (), queue: TurnQueue | None = None, **message: Any
    ) -> turns.Turn:
        """A turn of such an agent; `message` are fields of the message."""
        left = [*answers]

        class Played(Attempt):
            def events(self, _client: Any) -> AsyncGenerator[Event | None]:
                return left.pop(0)(self)

        self.patch.setattr(turns, "Attempt", Played)
        letta: Any = SimpleNamespace(messages=self, agents=self)
        agents: Any = self.agents
        deps = TurnDependencies(
            letta,
            agents,
            self.gate,
            self.breaker,
            supervisor=self.supervisor,
            hold=self.hold,
            gateway=self.gateway,
        )
        return turns.Turn(
            deps,
            _speaker(THOUGHT, handles),
            UserMessage("Say good morning", **message),
            (queue or TurnQueue()).take("agent-1"),
        )


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """One for each test."""
    return Stage(Agents(), monkeypatch)


def _speaker(binding: Binding, handles: tuple[str, ...] = ()) -> AgentRef:
    return AgentRef("agent-1", "Anna", binding.handle, binding.provider, binding.model, binding, handles)


def answer(between: anyio.Event | None = None, over: anyio.Event | None = None) -> Answer:
    """Two pieces: the second comes once `between` is set; `over` is set when there is nothing more to come."""

    async def play(attempt: Attempt) -> AsyncGenerator[Event | None]:
        yield None
        attempt.began = 1.0
        yield AnswerText("Good", "message-1")
        if between is not None:
            await between.wait()
        yield AnswerText(" morning", "message-1")
        attempt.reason = EndReason.COMPLETED
        if over is not None:
            over.set()

    return play


async def refuse(attempt: Attempt) -> AsyncGenerator[Event | None]:
    """A vendor that does not take its key."""
    yield None
    attempt.refusal = VendorRefusal(ErrorCode.KEY_REFUSED, "401: Invalid API Key", 401)


def told(events: list[Event]) -> list[str]:
    """Who is asked, and what is said, in order."""
    return [event.handle if isinstance(event, VendorAsked) else event.text for event in events if _tells(event)]  # type: ignore[attr-defined]


def _tells(event: Event) -> bool:
    return isinstance(event, VendorAsked | AnswerText)


def end(events: list[Event]) -> Ended:
    """The last event."""
    assert isinstance(events[-1], Ended)
    return events[-1]


async def test_a_turn_has_progressed_when_its_message_is_sent(stage: Stage) -> None:
    """When its first event is read, it is not sent yet."""
    turn = stage.open(answer())
    async with aclosing(turn.events()) as events:
        assert isinstance(await anext(events), Opened)
        assert not turn.progressed.is_set()
        assert isinstance(await anext(events), VendorAsked)
        assert turn.progressed.is_set()


async def test_a_turn_behind_another_one_has_progressed_at_once(stage: Stage) -> None:
    """The client learns of the queue at once; its response does not wait for the other turn."""
    queue = TurnQueue()
    other = queue.take("agent-1")
    turn = stage.open(answer(), queue=queue)
    async with aclosing(turn.events()) as events:
        assert isinstance(await anext(events), Opened)
        await turn.progressed.wait()
        assert isinstance(await anext(events), Queued)
        other.leave()
        assert isinstance(await anext(events), VendorAsked)


@pytest.mark.parametrize("sends_head", [False, True])
async def test_a_client_that_is_gone_before_the_first_event_ends_the_turn(stage: Stage, sends_head: bool) -> None:
    """The turn has begun before its response; its place in the queue is free again when the response has failed."""
    queue = TurnQueue()
    turn = stage.open(answer(between=anyio.Event()), queue=queue)
    events = turn.events()
    response = TurnResponse(_sent(events, await anext(events)), turn=events)

    async def receive() -> dict[str, str]:
        if sends_head:
            await anyio.sleep_forever()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client has closed the connection")
        if not sends_head:
            await anyio.sleep_forever()

    with anyio.fail_after(_SECONDS), suppress(Exception):
        await response({"type": "http"}, receive, send)
    assert turn.ended.is_set()
    assert queue.waiting == 0
    assert queue.take("agent-1").at_head.is_set()


async def test_who_really_answers_is_told_in_the_middle(stage: Stage) -> None:
    """Where Letta says it while the answer is coming, the next piece has the right name before it."""
    stage.agents.say.set()
    events = await stage.turn(answer(between=stage.agents.said))
    assert told(events) == [THOUGHT.handle, "Good", REALLY.handle, " morning"]
    assert (end(events).handle, end(events).reason) == (REALLY.handle, EndReason.COMPLETED)


async def test_who_really_answered_is_told_after_the_last_piece(stage: Stage) -> None:
    """Where Letta says it only when the answer is over, the end waits for it."""
    events = await stage.turn(answer(over=stage.agents.say))
    assert told(events) == [THOUGHT.handle, "Good", " morning", REALLY.handle]
    assert (end(events).handle, end(events).stored) == (REALLY.handle, True)


@pytest.mark.parametrize("failure", [None, LettaUnreachable("Letta does not answer.")])
async def test_a_letta_that_does_not_say_is_not_waited_for(
    stage: Stage, failure: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent or failing: the turn ends all the same, completed, with the name that was known."""
    if failure is None:
        monkeypatch.setattr(turns, "_LOOKUP_SECONDS", 0.01)
    else:
        stage.agents.failure = failure
        stage.agents.say.set()
    events = await stage.turn(answer())
    assert told(events) == [THOUGHT.handle, "Good", " morning"]
    assert (end(events).handle, end(events).reason) == (THOUGHT.handle, EndReason.COMPLETED)
    assert stage.agents.said.is_set() is (failure is not None)


async def test_an_answer_that_is_over_waits_at_no_gate(stage: Stage) -> None:
    """While the provider that has answered is being changed, its answer can end: nothing is in flight on it."""
    async with stage.gate.closed(REALLY.provider):
        events = await stage.turn(answer(over=stage.agents.say))
    assert end(events).handle == REALLY.handle


async def test_a_vendor_that_was_not_asked_after_all_still_is(stage: Stage) -> None:
    """The refusal is that of the vendor that it was switched to; the one that was thought to be asked comes next."""
    stage.agents.say.set()
    events = await stage.turn(refuse, answer(), handles=(THOUGHT.handle,))
    assert told(events) == [THOUGHT.handle, REALLY.handle, THOUGHT.handle, "Good", " morning"]
    assert [event.handle for event in events if isinstance(event, Failover)] == [REALLY.handle]
    assert end(events).handle == THOUGHT.handle
    # And afterwards it is where somebody wanted it.
    assert stage.agents.now == REALLY


async def test_a_vendor_without_a_key_is_not_asked_if_there_is_another_one(stage: Stage) -> None:
    """Its key was removed since the agent was bound to it: that is no failure of the vendor."""
    stage.agents.without_key.add(THOUGHT.provider)
    stage.agents.now = THOUGHT
    stage.agents.say.set()
    events = await stage.turn(answer(), handles=(THOUGHT.handle, REALLY.handle))
    assert told(events) == [REALLY.handle, "Good", " morning"]
    assert not [event for event in events if isinstance(event, Failover)]
    events = await stage.turn(refuse, handles=(THOUGHT.handle,))
    assert [event.handle for event in events if isinstance(event, VendorAsked)] == [THOUGHT.handle]


@pytest.mark.parametrize(
    ("reported", "code"),
    [
        (VendorRefusal(ErrorCode.VENDOR_FAILING, "Letta stumbled"), ErrorCode.LETTA_FAILING),
        (VendorRefusal(ErrorCode.VENDOR_FAILING, "503: overloaded", 503), ErrorCode.VENDOR_FAILING),
        (VendorRefusal(ErrorCode.EMPTY_ANSWER, "nothing came"), ErrorCode.EMPTY_ANSWER),
    ],
)
async def test_a_failure_that_the_gateway_has_not_seen_is_letta_s(
    stage: Stage, reported: VendorRefusal, code: ErrorCode
) -> None:
    """Without a status, and with a vendor that has answered in full or was not asked, nobody blames the vendor."""

    async def fail(attempt: Attempt) -> AsyncGenerator[Event | None]:
        yield None
        attempt.refusal = reported

    stage.gateway = SimpleNamespace(end_calls=None, last_outcome=_nothing, mark=str)
    stage.agents.say.set()
    events = await stage.turn(fail)
    (failover,) = [event for event in events if isinstance(event, Failover)]
    assert failover.code is code


@pytest.mark.parametrize("cut", [True, False, LettaBroken("Letta answered with 500.")])
async def test_without_a_gateway_the_tokens_tell_that_an_answer_was_cut(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, cut: bool | Exception
) -> None:
    """It is shortened in the context. If Letta does not answer, the answer counts as complete."""
    asked: list[object] = []

    async def long(attempt: Attempt) -> AsyncGenerator[Event | None]:
        async for event in answer()(attempt):
            yield event
        attempt.run_id, attempt.usage = "run-1", Usage(2000, 800, 2800, 1)

    async def reached_limit(_letta: Any, _agent_id: str, run_id: str, tokens: int) -> bool:
        asked.append((run_id, tokens))
        if isinstance(cut, Exception):
            raise cut
        return cut

    async def shorten(_letta: Any, _agent_id: str, run_id: str, **_: Any) -> None:
        asked.append(run_id)

    monkeypatch.setattr("isabella.turns.partial_history.reached_limit", reached_limit)
    monkeypatch.setattr("isabella.turns.partial_history.shorten", shorten)
    stage.agents.say.set()
    ended = end(await stage.turn(long))
    assert (ended.reason is EndReason.LENGTH, ended.stored) == (cut is True, True)
    assert asked == [("run-1", 800), *(["run-1"] if cut is True else [])]


@pytest.mark.parametrize(
    ("marks", "asked"),
    [
        (["start 4", "start 4"], False),
        (["start 4", "start 5"], True),
        ([None, None], True),
        (["start 4", None], True),
    ],
)
async def test_the_gateway_is_asked_after_an_answer_only_if_its_mark_has_changed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, marks: list[str | None], asked: bool
) -> None:
    """While the mark stays the same, every answer was complete; a mark that cannot be read says nothing."""
    requests: list[str] = []

    async def long(attempt: Attempt) -> AsyncGenerator[Event | None]:
        async for event in answer()(attempt):
            yield event
        attempt.run_id = "run-1"

    async def last_outcome(agent_id: str, _since: float) -> Any:
        await anyio.lowlevel.checkpoint()
        requests.append(agent_id)
        return SimpleNamespace(code="cut")

    monkeypatch.setattr("isabella.turns.partial_history.shorten", _nothing)
    stage.gateway = SimpleNamespace(end_calls=None, last_outcome=last_outcome, mark=Mock(side_effect=marks))
    stage.agents.say.set()
    ended = end(await stage.turn(long))
    assert (len(requests) == 1, ended.reason is EndReason.LENGTH) == (asked, asked)


async def _nothing(*_: Any, **__: Any) -> None:
    await anyio.lowlevel.checkpoint()


def renew_and_refuse(breaker: CircuitBreaker, provider: str) -> Answer:
    """A vendor that refuses, while a provider gets another key."""

    async def play(attempt: Attempt) -> AsyncGenerator[Event | None]:
        breaker.forgive(provider)
        async for event in refuse(attempt):
            yield event

    return play


async def test_a_vendor_with_a_new_key_is_asked_once_more(stage: Stage) -> None:
    """Where nobody answers, the one whose key was renewed since it was asked has another say, and answers."""
    stage.agents.now = THOUGHT
    stage.agents.say.set()
    renewing = renew_and_refuse(stage.breaker, THOUGHT.provider)
    events = await stage.turn(refuse, renewing, answer(), handles=(REALLY.handle,))
    assert told(events) == [THOUGHT.handle, REALLY.handle, THOUGHT.handle, "Good", " morning"]
    assert (end(events).handle, end(events).reason) == (THOUGHT.handle, EndReason.COMPLETED)
    assert stage.agents.now == THOUGHT


async def test_nobody_is_asked_a_third_time(stage: Stage) -> None:
    """However often keys are renewed, a turn comes to its end; and without a new key nobody is asked twice."""
    stage.agents.now = THOUGHT
    stage.agents.say.set()
    renewing = renew_and_refuse(stage.breaker, THOUGHT.provider)
    events = await stage.turn(refuse, renewing, renewing, handles=(REALLY.handle,))
    assert told(events) == [THOUGHT.handle, REALLY.handle, THOUGHT.handle]
    assert isinstance(events[-2], TurnFailed)
    assert events[-2].code is ErrorCode.NO_VENDOR
    assert told(await stage.turn(refuse, refuse, handles=(REALLY.handle,))) == [THOUGHT.handle, REALLY.handle]


NEW_ADDRESS = "http://groq.moved/v1"


async def test_an_agent_that_calls_a_former_address_is_bound_to_the_new_one_first(stage: Stage) -> None:
    """The key that Letta holds belongs to the new address: nothing is said at the former one."""
    stage.agents.now = THOUGHT
    stage.agents.say.set()
    stage.agents.addresses[THOUGHT.provider] = NEW_ADDRESS
    called: list[str] = []

    async def note(attempt: Attempt) -> AsyncGenerator[Event | None]:
        called.append(stage.agents.now.base_url)
        async for event in answer()(attempt):
            yield event

    events = await stage.turn(note)
    assert end(events).reason is EndReason.COMPLETED
    assert called == [NEW_ADDRESS]
    assert stage.agents.now == replace(THOUGHT, base_url=NEW_ADDRESS)


async def test_an_agent_goes_back_to_where_its_provider_is_by_then(stage: Stage) -> None:
    """Its own vendor refuses, and moves while another one answers."""
    stage.agents.now = THOUGHT
    stage.agents.say.set()

    async def answer_meanwhile(attempt: Attempt) -> AsyncGenerator[Event | None]:
        async with stage.gate.closed(THOUGHT.provider):
            stage.agents.addresses[THOUGHT.provider] = NEW_ADDRESS
        async for event in answer()(attempt):
            yield event

    await stage.turn(refuse, answer_meanwhile, handles=(REALLY.handle,))
    assert stage.agents.now == replace(THOUGHT, base_url=NEW_ADDRESS)


async def test_an_agent_goes_back_whatever_is_done_to_its_provider(stage: Stage) -> None:
    """A gate that is closed for long keeps no agent on the vendor that answered in its own vendor's place."""
    stage.agents.now = THOUGHT
    stage.agents.say.set()
    closed = AsyncExitStack()

    async def answer_meanwhile(attempt: Attempt) -> AsyncGenerator[Event | None]:
        await closed.enter_async_context(stage.gate.closed(THOUGHT.provider))
        async for event in answer()(attempt):
            yield event

    async with closed:
        events = await stage.turn(refuse, answer_meanwhile, handles=(REALLY.handle,))
    assert end(events).handle == REALLY.handle
    assert stage.agents.now == THOUGHT


@pytest.mark.parametrize("way", ["cancelled", "closed"])
async def test_a_reader_that_goes_away_ends_the_turn_and_waits_for_its_cleanup(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """What came is stored, though the reader is cancelled; only then is the next turn's place free."""
    stage.agents.now = THOUGHT
    stage.agents.say.set()
    order: list[str] = []

    async def store(*_: Any, mark: str, **__: Any) -> bool:
        await anyio.sleep(0.05)
        order.append(mark)
        return True

    monkeypatch.setattr("isabella.turns.partial_history.store_partial", store)

    async def play(attempt: Attempt) -> AsyncGenerator[Event | None]:
        yield None
        attempt.began, attempt.run_id = 1.0, "run-1"
        try:
            yield AnswerText("Good", "message-1")
            await anyio.sleep_forever()
        finally:
            order.append("attempt closed")

    turn = stage.open(play)
    events = turn.events()
    async with anyio.create_task_group() as tasks:
        started = anyio.Event()

        async def read() -> None:
            async for event in events:
                if isinstance(event, AnswerText):
                    started.set()
                    if way == "closed":
                        break
            await events.aclose()

        tasks.start_soon(read)
        await started.wait()
        await anyio.sleep(0.01)
        if way == "cancelled":
            tasks.cancel_scope.cancel()
    assert order == ["attempt closed", "[stopped]"]
    assert turn.ended.is_set()


# --- a message in the place of an earlier one ----------------------------------------------------------------------


async def test_a_replaced_message_leaves_the_context(stage: Stage) -> None:
    """The vendor is asked without the earlier message and what followed it; once stored, they stay out."""
    stage.agents.now = THOUGHT
    stage.agents.say.set()
    seen: list[list[str]] = []

    async def play(attempt: Attempt) -> AsyncGenerator[Event | None]:
        seen.append(stage.context)
        stage.context = [*stage.context, "m5", "m6"]
        async for event in answer()(attempt):
            yield event

    assert end(await stage.turn(play, replaces="m3")).stored
    assert seen == [["system", "m1", "m2"]]
    assert stage.context == ["system", "m1", "m2", "m5", "m6"]


async def test_nothing_is_replaced_by_a_message_that_nobody_answers(stage: Stage) -> None:
    """If no vendor answers, the context is as it was; what another wrote into it meanwhile stays behind it."""
    stage.agents.now = THOUGHT
    stage.agents.say.set()

    async def refuse_meanwhile(attempt: Attempt) -> AsyncGenerator[Event | None]:
        stage.context = ["system again", *stage.context[1:], "other"]
        async for event in refuse(attempt):
            yield event

    events = await stage.turn(refuse_meanwhile, replaces="m1")
    assert end(events).reason is EndReason.FAILED
    assert stage.context == ["system again", "m1", "m2", "m3", "m4", "other"]


async def test_a_message_that_left_the_context_is_not_replaced(stage: Stage) -> None:
    """The turn fails before a vendor is asked, and says why; the system prompt is no message of the user's."""
    for gone in ("m9", "system"):
        events = await stage.turn(replaces=gone)
        (failed,) = (event for event in events if isinstance(event, TurnFailed))
        assert failed.code is ErrorCode.MESSAGE_GONE
        assert not end(events).stored
        assert stage.context == ["system", "m1", "m2", "m3", "m4"]


async def test_a_model_for_one_turn(stage: Stage) -> None:
    """The wanted model is asked first, and the agent keeps its own; it answers if the wanted one does not."""
    stage.agents.now = THOUGHT
    stage.agents.say.set()
    assert end(await stage.turn(answer(), handle=REALLY.handle)).handle == REALLY.handle
    assert stage.agents.now == THOUGHT
    events = await stage.turn(refuse, answer(), handle=REALLY.handle)
    assert [event.handle for event in events if isinstance(event, VendorAsked)] == [REALLY.handle, THOUGHT.handle]
    assert end(events).handle == THOUGHT.handle


# --- while Letta, Postgres or the gateway is away -------------------------------------------------------------------


@pytest.fixture
async def parts(stage: Stage) -> AsyncIterator[MadeParts]:
    """Three parts with a supervisor, which the turns of the stage know."""
    stage.agents.now = THOUGHT
    stage.agents.say.set()
    made = MadeParts()
    async with made.running() as stage.supervisor:
        yield made


def lose(parts: MadeParts, name: str, *, begun: bool = False, run_id: str | None = "run-1") -> Answer:
    """An answer in which a part ends: Letta's stream breaks off."""

    async def play(attempt: Attempt) -> AsyncGenerator[Event | None]:
        yield None
        attempt.run_id = run_id
        if begun:
            attempt.began = 1.0
            yield AnswerText("Good", "message-1")
            attempt.reason = EndReason.BROKEN
        parts.end(name)
        attempt.refusal = VendorRefusal(ErrorCode.VENDOR_UNREACHABLE, "The connection broke.")

    return play


async def test_a_turn_waits_for_letta_and_goes_on(stage: Stage, parts: MadeParts) -> None:
    """One `held` event says why; then it is answered as if nothing had happened."""
    parts.parts[1].may_start.clear()
    parts.end("letta")
    assert stage.supervisor is not None
    await stage.supervisor.confirm()
    held: list[Event] = []
    async for event in stage.open(answer()).events():
        if isinstance(event, Held):
            held.append(event)
            parts.parts[1].may_start.set()
    assert held == [Held("letta has ended.")]
    assert end([event]).reason is EndReason.COMPLETED


@pytest.mark.parametrize("name", ["postgres", "letta", "gateway"])
async def test_a_message_that_was_lost_before_its_answer_is_sent_again(
    stage: Stage, parts: MadeParts, name: str
) -> None:
    """To the same vendor, whose circuit stays as it was."""
    events = await stage.turn(lose(parts, name), lose(parts, name), lose(parts, name), answer())
    assert told(events) == [*[THOUGHT.handle] * 4, "Good", " morning"]
    assert end(events).reason is EndReason.COMPLETED
    assert stage.breaker.states() == {}
    assert not any(isinstance(event, Failover) for event in events)


async def test_a_message_that_is_stored_is_not_sent_again(stage: Stage, parts: MadeParts) -> None:
    """It would be in the history twice; the end says that it is stored."""
    stage.stored = True
    events = await stage.turn(lose(parts, "letta"))
    assert (end(events).reason, end(events).stored) == (EndReason.BROKEN, True)
    assert isinstance(events[-2], TurnFailed)
    assert "is stored" in str(events[-2].remedy)


async def test_a_letta_that_fails_again_is_asked_again_what_it_has_stored(stage: Stage, parts: MadeParts) -> None:
    """Only then is the message sent again."""
    stage.fails = 2
    events = await stage.turn(lose(parts, "postgres"), answer())
    assert (end(events).reason, stage.fails) == (EndReason.COMPLETED, 0)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (True, "The part that arrived is stored"),
        (False, "Nothing of this turn is stored"),
        (None, "Letta does not say whether this turn is stored"),
    ],
)
async def test_an_answer_that_was_cut_off_says_whether_it_is_stored(
    stage: Stage, parts: MadeParts, kept: bool | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored when Letta is there again, and not before."""
    there: list[tuple[object, ...]] = []

    async def store(*_: Any, **__: Any) -> bool | None:
        assert stage.supervisor is not None
        there.append(stage.supervisor.down)
        return kept

    monkeypatch.setattr("isabella.turns.partial_history.store_partial", store)
    events = await stage.turn(lose(parts, "letta", begun=True))
    assert there == [()]
    assert (end(events).reason, end(events).stored) == (EndReason.BROKEN, kept)
    (failed,) = [event for event in events if isinstance(event, TurnFailed)]
    assert failed.code is ErrorCode.STREAM_BROKEN
    assert said in str(failed.remedy)
    assert stage.breaker.states() == {}


async def test_a_turn_that_waits_for_too_long_ends_in_one_event(stage: Stage, parts: MadeParts) -> None:
    """It names the part and the reason, and nothing is stored."""
    stage.hold = 0.01
    parts.parts[0].wanted = False
    parts.end("postgres")
    assert stage.supervisor is not None
    await stage.supervisor.confirm()
    events = await stage.turn()
    failed = events[-2]
    assert isinstance(failed, TurnFailed)
    assert (failed.code, failed.message) == (ErrorCode.LETTA_UNREACHABLE, "postgres has ended.")
    assert (end(events).reason, end(events).stored) == (EndReason.FAILED, False)


async def test_a_turn_that_waits_can_be_stopped(stage: Stage, parts: MadeParts) -> None:
    """It does not wait to the end."""
    parts.parts[0].wanted = False
    parts.end("postgres")
    assert stage.supervisor is not None
    await stage.supervisor.confirm()
    turn = stage.open()
    events = []
    async for event in turn.events():
        events.append(event)
        if isinstance(event, Held):
            turn.stop()
    assert end(events).reason is EndReason.STOPPED


async def test_a_refusal_of_the_vendor_stays_one_whatever_ends_meanwhile(stage: Stage, parts: MadeParts) -> None:
    """Its status is an answer of the vendor's: the next one is asked."""

    async def refuse_meanwhile(attempt: Attempt) -> AsyncGenerator[Event | None]:
        parts.end("gateway")
        async for event in refuse(attempt):
            yield event

    events = await stage.turn(refuse_meanwhile, answer(), handles=(REALLY.handle,))
    assert [event.code for event in events if isinstance(event, Failover)] == [ErrorCode.KEY_REFUSED]
    assert end(events).handle == REALLY.handle


async def test_a_failure_without_an_outage_is_told_at_once(stage: Stage, parts: MadeParts) -> None:
    """Everything runs, so nothing is waited for and nothing is sent twice."""

    async def fail(attempt: Attempt) -> AsyncGenerator[Event | None]:
        yield None
        attempt.refusal = VendorRefusal(ErrorCode.LETTA_UNREACHABLE, "It broke.", counts=False, elsewhere=False)

    events = await stage.turn(fail)
    assert isinstance(events[-2], TurnFailed)
    assert events[-2].code is ErrorCode.LETTA_UNREACHABLE
    assert parts.starts == []


async def stumble(attempt: Attempt) -> AsyncGenerator[Event | None]:
    """An attempt on which Letta fails although every part runs, as after the end of a session of Postgres."""
    yield None
    attempt.run_id = "run-1"
    attempt.refusal = VendorRefusal(ErrorCode.VENDOR_FAILING, "Letta stumbled")


@pytest.mark.parametrize("times", [1, 3, 4])
async def test_a_failure_of_letta_alone_is_tried_again(stage: Stage, parts: MadeParts, times: int) -> None:
    """At the same vendor, which is not to blame, three times; then the next one is asked."""
    stage.gateway = SimpleNamespace(end_calls=None, last_outcome=_nothing, mark=str)
    events = await stage.turn(*[stumble] * times, answer(), handles=(REALLY.handle,))
    failovers = [(event.handle, event.code) for event in events if isinstance(event, Failover)]
    assert failovers == [(THOUGHT.handle, ErrorCode.LETTA_FAILING)] * (times > 3)
    assert end(events).handle == (REALLY if times > 3 else THOUGHT).handle
    assert stage.breaker.states() == {}
    assert parts.starts == []


async def test_a_message_that_letta_has_stored_before_it_failed_is_not_tried_again(
    stage: Stage, parts: MadeParts
) -> None:
    """It would be in the history twice."""
    stage.gateway = SimpleNamespace(end_calls=None, last_outcome=_nothing, mark=str)
    stage.stored = True
    events = await stage.turn(stumble, handles=(REALLY.handle,))
    assert told(events) == [THOUGHT.handle]
    assert (end(events).reason, end(events).stored) == (EndReason.BROKEN, True)
    (failed,) = [event for event in events if isinstance(event, TurnFailed)]
    assert "Letta stumbled" in failed.message


async def test_a_database_of_locks_that_cannot_be_used_is_no_internal_error(stage: Stage) -> None:
    """The turn tells what cannot be reached."""

    async def unusable(_attempt: Attempt) -> AsyncGenerator[Event | None]:
        raise DatabaseUnusable("The database is gone.")
        yield None

    (failed,) = [event for event in await stage.turn(unusable) if isinstance(event, TurnFailed)]
    assert (failed.code, failed.message) == (ErrorCode.LETTA_UNREACHABLE, "The database is gone.")
