"""Queues and gates in one process."""

from __future__ import annotations

import anyio
import pytest

from isabella.errors import GateTimeout, QueueFull, TurnTimeout
from isabella.locks.provider_lock import ProviderLock
from isabella.turns.queue import TicketAbandoned, TurnQueue

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the backend runs on."""
    return "asyncio"


def counted(order: TurnQueue) -> int:
    """How many turns run or wait."""
    return sum(map(len, order._queues.values()))


async def test_in_the_order_in_which_they_came() -> None:
    """Turns of one agent run one after the other, in the order of their places, whoever waits first."""
    order = TurnQueue(limit=10)
    places = [order.take("agent-1") for _ in range(4)]
    done: list[int] = []

    async def speak(number: int) -> None:
        async with places[number].reached():
            await anyio.lowlevel.checkpoint()
            done.append(number)

    async with anyio.create_task_group() as tasks:
        for number in (3, 1, 0, 2):
            tasks.start_soon(speak, number)
    assert done == [0, 1, 2, 3]
    assert counted(order) == 0


async def test_agents_do_not_wait_for_each_other() -> None:
    """Each agent has a queue of its own."""
    order = TurnQueue(limit=1)
    async with order.take("agent-1").reached(), order.take("agent-2").reached():
        assert counted(order) == 2


async def test_too_many() -> None:
    """One speaks, so many wait as the limit says, and the next is told when to come again."""
    order = TurnQueue(limit=2)
    places = [order.take("agent-1") for _ in range(3)]
    assert [place.ahead for place in places] == [0, 1, 2]
    with pytest.raises(QueueFull) as full:
        order.take("agent-1")
    assert full.value.retry_after >= 1
    places[1].leave()
    assert order.take("agent-1").ahead == 2


async def test_giving_up() -> None:
    """A place that is given up is not waited for any longer, and makes room."""
    order = TurnQueue(limit=2)
    first, second, third = (order.take("agent-1") for _ in range(3))
    second.give_up()
    with pytest.raises(TicketAbandoned):
        async with second.reached():
            pass
    async with first.reached():
        pass
    async with third.reached():
        pass


async def test_patience_ends() -> None:
    """Whoever waits for too long is told so, and leaves the queue."""
    order = TurnQueue(limit=2, patience=0.01)
    async with order.take("agent-1").reached():
        with pytest.raises(TurnTimeout):
            async with order.take("agent-1").reached():
                pass
    assert counted(order) == 0


async def test_a_change_waits_for_turns_and_holds_new_ones() -> None:
    """A gate closes behind those in flight, and lets others in when the change is made."""
    gate = ProviderLock(patience=5.0)
    happened: list[str] = []
    in_flight, may_land = anyio.Event(), anyio.Event()

    async def first() -> None:
        async with gate.passing("groq"):
            in_flight.set()
            await may_land.wait()
            happened.append("landed")

    async def change() -> None:
        async with gate.closed("groq"):
            happened.append("changed")

    async def second() -> None:
        async with gate.passing("groq"):
            happened.append("passed")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        await in_flight.wait()
        tasks.start_soon(change)
        await anyio.wait_all_tasks_blocked()
        assert gate.is_closed("groq")
        tasks.start_soon(second)
        async with gate.passing("mistral"):
            happened.append("elsewhere")
        await anyio.wait_all_tasks_blocked()
        may_land.set()
    assert happened == ["elsewhere", "landed", "changed", "passed"]


async def test_turns_are_asked_to_leave() -> None:
    """A change that has waited for long enough asks turns to end, and is made when they have."""
    gate = ProviderLock(patience=0.01)
    asked = anyio.Event()

    async def turn() -> None:
        async with gate.passing("groq", leave=asked.set):
            await asked.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(turn)
        await anyio.wait_all_tasks_blocked()
        async with gate.closed("groq"):
            assert asked.is_set()


async def test_a_closed_gate_is_not_waited_for_for_ever() -> None:
    """A turn at a gate that stays closed is told so."""
    gate = ProviderLock(patience=0.01)
    async with gate.closed("groq"):
        with pytest.raises(GateTimeout):
            async with gate.passing("groq"):
                pass
    async with gate.passing("groq"):
        pass


async def test_nothing_is_changed_under_turns_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change is given up rather than made while a turn is in flight."""
    monkeypatch.setattr("isabella.locks.provider_lock._TO_END", 0.01)
    gate = ProviderLock(patience=0.01)
    async with gate.passing("groq"):
        with pytest.raises(GateTimeout):
            async with gate.closed("groq"):
                raise AssertionError("it was changed")
    assert not gate.is_closed("groq")
