"""Which requests are repeats of one another, and what becomes of a turn whose client has gone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from isabella.errors import AgentUnknown
from isabella.server import idempotency as module
from isabella.server.idempotency import RequestRegistry, SharedTurn, TurnRequest
from isabella.turns.events import AnswerText, Ended, EndReason, Event, Opened

pytestmark = pytest.mark.anyio

FIRST, SECOND, THIRD = (TurnRequest(b"body", retry) for retry in range(3))


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the backend runs on."""
    return "asyncio"


class FakeTurn:
    """A turn that ends when it is told to."""

    def __init__(self, message: str) -> None:
        self.message = message
        self.stopped = anyio.Event()
        self.speak = anyio.Event()
        self.finish = anyio.Event()

    def stop(self) -> None:
        """Note it."""
        self.stopped.set()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Speaks once it may, and ends when it may, or when it is stopped and may end."""
        yield Opened("turn-1", "Isabella", "agent-1")
        await self.speak.wait()
        stopped = self.stopped.is_set()
        if not stopped:
            yield AnswerText("Good morning", "message-1")
        await self.finish.wait()
        yield Ended(EndReason.STOPPED if stopped else EndReason.COMPLETED, "vendor/model", not stopped, 0.1)


class FakeDesk:
    """Takes turns on, and lets the test decide what happens in them."""

    def __init__(self) -> None:
        self.turns: list[FakeTurn] = []

    async def open(self, agent: str, message: str, conversation: str | None = None) -> FakeTurn:
        """A turn of its own for each."""
        if agent != "Isabella":
            raise AgentUnknown(f"There is no agent {agent!r}.")
        self.turns.append(FakeTurn(message))
        return self.turns[-1]


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[RequestRegistry, FakeDesk]]:
    """The turns of one backend."""
    turn_service = FakeDesk()
    async with anyio.create_task_group() as tasks:
        found: Any = turn_service
        yield RequestRegistry(found, tasks), turn_service
        tasks.cancel_scope.cancel()


async def heard(hearing: SharedTurn) -> list[str]:
    """What a client hears, to the end."""
    return [event.kind for event in [event async for event in hearing.events()]]


async def begun(hearing: SharedTurn) -> None:
    """Wait for the first event."""
    async for _ in hearing.events():
        return


def let_go(turn: FakeTurn) -> None:
    """Have it speak and end."""
    turn.speak.set()
    turn.finish.set()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (FIRST, FIRST, False),
        (FIRST, SECOND, True),
        (FIRST, THIRD, True),
        (SECOND, THIRD, True),
        (THIRD, SECOND, False),
        (SECOND, SECOND, False),
        (FIRST, TurnRequest(b"another", 1), False),
        (FIRST, TurnRequest(b"body"), False),
        (TurnRequest(b"body"), SECOND, False),
        (TurnRequest(b"body", 0, "key"), TurnRequest(b"body", 0, "key"), True),
        (TurnRequest(b"body", None, "key"), TurnRequest(b"body", None, "key"), True),
        (TurnRequest(b"body", 0, "key"), TurnRequest(b"body", 1, "another"), False),
        (TurnRequest(b"body", 0, "key"), TurnRequest(b"another", 1, "key"), False),
    ],
)
def test_what_repeats_what(one: TurnRequest, other: TurnRequest, same: bool) -> None:
    """A later retry with the same body repeats an earlier one, and so does the same key; nothing else does."""
    assert other.repeats(one) is same


@pytest.mark.parametrize("count", ["", "-1", "1.0", "x", "²", "9" * 5000])
def test_a_count_that_is_none(count: str) -> None:
    """What is no number of retries is as good as none."""
    assert TurnRequest.of({"x-stainless-retry-count": count}, b"{}").retry is None


async def test_a_repeat_joins_the_turn_that_goes_on() -> None:
    """The message is said once, whether the first client is still there or not, and both hear all of it."""
    async with opened() as (repeats, turn_service):
        first = await repeats.join(FIRST, "Isabella", "Hello")
        await begun(first)
        second = await repeats.join(SECOND, "Isabella", "Hello")
        first.leave()
        second.leave()
        third = await repeats.join(THIRD, "Isabella", "Hello")
        let_go(turn_service.turns[0])
        assert await heard(third) == ["turn", "text", "end"]
        assert not turn_service.turns[0].stopped.is_set()
        assert len(turn_service.turns) == 1


async def test_a_repeat_after_the_end_gets_the_answer() -> None:
    """An answer that came when nobody was there to hear it is kept for the repeat."""
    async with opened() as (repeats, turn_service):
        first = await repeats.join(FIRST, "Isabella", "Hello")
        await begun(first)
        first.leave()
        let_go(turn_service.turns[0])
        await first.finished.wait()
        assert await heard(await repeats.join(SECOND, "Isabella", "Hello")) == ["turn", "text", "end"]
        assert len(turn_service.turns) == 1


async def test_a_client_that_repeats_nothing() -> None:
    """Where the client does not count its retries, its turn is stopped as soon as it has gone."""
    async with opened() as (repeats, turn_service):
        first = await repeats.join(TurnRequest(b"body"), "Isabella", "Hello")
        await begun(first)
        first.leave()
        assert turn_service.turns[0].stopped.is_set()


async def test_a_client_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that nobody asks for again is stopped; then the agent is free for a late repeat, which says it anew."""
    monkeypatch.setattr(module, "SECONDS_FOR_REPEAT", 0.0)
    async with opened() as (repeats, turn_service), anyio.create_task_group() as tasks:
        first = await repeats.join(FIRST, "Isabella", "Hello")
        await begun(first)
        first.leave()
        await turn_service.turns[0].stopped.wait()
        late: list[SharedTurn] = []

        async def repeat() -> None:
            late.append(await repeats.join(SECOND, "Isabella", "Hello"))

        tasks.start_soon(repeat)
        await anyio.wait_all_tasks_blocked()
        # What is stored of the first one is not known before it is over.
        assert late == []
        let_go(turn_service.turns[0])
        await first.finished.wait()
        await anyio.wait_all_tasks_blocked()
        let_go(turn_service.turns[1])
        assert await heard(late[0]) == ["turn", "text", "end"]


async def test_an_answer_belongs_to_its_question() -> None:
    """Who has got an answer asks anew, whatever the count says; and so does who begins to count anew."""
    async with opened() as (repeats, turn_service):
        first = await repeats.join(FIRST, "Isabella", "Yes")
        await begun(first)
        let_go(turn_service.turns[0])
        assert await heard(first) == ["turn", "text", "end"]
        first.answered = True
        first.leave()
        again = await repeats.join(SECOND, "Isabella", "Yes")
        await begun(again)
        assert len(turn_service.turns) == 2
        again.leave()
        # Nobody comes back for the second one.
        await begun(await repeats.join(FIRST, "Isabella", "Yes"))
        assert turn_service.turns[1].stopped.is_set()
        assert len(turn_service.turns) == 3


async def test_a_key_tells_a_repeat_of_what_was_answered() -> None:
    """With an Idempotency-Key an answer that was lost on the way is given again."""
    keyed = TurnRequest(b"body", None, "key")
    async with opened() as (repeats, turn_service):
        first = await repeats.join(keyed, "Isabella", "Hello")
        await begun(first)
        let_go(turn_service.turns[0])
        assert await heard(first) == ["turn", "text", "end"]
        first.answered = True
        first.leave()
        assert await heard(await repeats.join(keyed, "Isabella", "Hello")) == ["turn", "text", "end"]
        assert len(turn_service.turns) == 1


async def test_a_client_that_goes_in_the_middle_of_a_stream() -> None:
    """Once a response has begun the official client repeats nothing, so the turn is stopped at once."""
    async with opened() as (repeats, turn_service):
        first = await repeats.join(FIRST, "Isabella", "Hello")
        await begun(first)
        first.answered = True
        first.leave()
        assert turn_service.turns[0].stopped.is_set()


async def test_a_turn_that_cannot_begin() -> None:
    """The error comes to the one who asked, and a repeat tries again."""
    async with opened() as (repeats, _):
        for request in (FIRST, SECOND):
            hearing = await repeats.join(request, "Nobody", "Hello")
            with pytest.raises(AgentUnknown):
                await heard(hearing)
            hearing.leave()
