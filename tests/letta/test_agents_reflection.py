"""Reflection on a real Letta: what was said reaches memory, nothing is lost, and silence costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from isabella.agents.reflection import LABEL, TAG, ReflectionOutcome, reflect
from isabella.agents.service import AgentService
from isabella.embedded import Letta
from isabella.errors import LettaError
from isabella.practice import NAMES
from tests.support.agent_env import PLAIN, REFLECTING, AgentEnv, agent_env, say

KNOWN = "The user's dog is called Rex.\nThe user lives in Ghent.\nThe user likes figs.\nThe user plays the cello."


@pytest.fixture(scope="module")
def new(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], AgentEnv]]:
    """Makes colonies with an agent that reflects."""
    with agent_env(letta_server, tmp_path_factory.mktemp("reflection")) as make:

        def reflecting() -> AgentEnv:
            here = make()
            here.define(PLAIN + REFLECTING)
            return here

        yield reflecting


async def left_over(agent_service: AgentService) -> int:
    """How much of what is set down before a reflection is still there."""
    return len(await agent_service.letta.http.get("/v1/blocks/", label=LABEL, limit=100))


def test_what_was_said_reaches_memory_and_silence_costs_nothing(new: Callable[[], AgentEnv]) -> None:
    """A fact told in passing is written down; then, and while people still talk, no vendor is asked at all."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        await agent_service.ensure()
        main = await agent_service.registry.find(here.id)

        async def speak(id: str, text: str) -> None:
            await say(agent_service, id, text)

        async def reflected(**options: Any) -> ReflectionOutcome:
            reflector = await agent_service.registry.find(f"{here.id}-reflection")
            return (await reflect(agent_service, reflector, speak, **options)).outcome

        assert await reflected() is ReflectionOutcome.NOTHING
        await speak(main.id, "My sister lives in Ghent.")
        here.vendors.forget()
        assert await reflected(quiet_for=600) is ReflectionOutcome.WAITING
        assert [vendor for vendor in NAMES if here.vendors.requests(vendor)] == []
        assert await reflected() is ReflectionOutcome.DONE
        assert "sister lives in Ghent" in (await agent_service.memory.block(main.id, "human")).value
        here.vendors.forget()
        assert await reflected() is ReflectionOutcome.NOTHING
        assert [vendor for vendor in NAMES if here.vendors.requests(vendor)] == []
        assert await left_over(agent_service) == 0

    here.run(work)


async def prepared(agent_service: AgentService, here: AgentEnv) -> str:
    """An agent that knows something and was spoken to; its id."""
    await agent_service.ensure()
    main = await agent_service.registry.find(here.id)
    await agent_service.memory.write(main.id, "human", KNOWN, seen="*")
    await say(agent_service, main.id, "I have moved to Bruges.")
    return str(main.id)


def writing(
    agent_service: AgentService, id: str, text: str, *, then: Exception | None = None
) -> Callable[[str, str], object]:
    """A turn that does nothing but replace the block, and perhaps fails."""

    async def turn(_agent: str, _said: str) -> None:
        block = await agent_service.memory.block(id, "human")
        await agent_service.letta.http.patch(f"/v1/blocks/{block.id}", {"value": text})
        if then is not None:
            raise then

    return turn


def test_what_is_replaced_goes_to_archival_memory(new: Callable[[], AgentEnv]) -> None:
    """A corrected line leaves the block and can still be found."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        id = await prepared(agent_service, here)
        reflector = await agent_service.registry.find(f"{here.id}-reflection")
        corrected = KNOWN.replace("Ghent", "Bruges")
        done = await reflect(agent_service, reflector, writing(agent_service, id, corrected))  # type: ignore[arg-type]
        assert (done.archived, done.restored) == (1, ())
        assert (await agent_service.memory.block(id, "human")).value == corrected
        (passage,) = [one async for one in agent_service.archive.every(id)]
        assert "The user lives in Ghent." in passage.text
        assert TAG in passage.tags
        _, versions = await agent_service.memory.versions(id, "human")
        assert [(one.author.value, one.value) for one in versions[-2:]] == [
            ("person", KNOWN),
            ("reflection", corrected),
        ]
        assert versions[-1].agent == reflector.name

    here.run(work)


@pytest.mark.parametrize("emptied", ["", "Tidy!"])
def test_a_block_that_was_emptied_is_put_back(new: Callable[[], AgentEnv], emptied: str) -> None:
    """A reflection that wipes memory is undone, and what it added is kept beside it."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        id = await prepared(agent_service, here)
        reflector = await agent_service.registry.find(f"{here.id}-reflection")
        done = await reflect(agent_service, reflector, writing(agent_service, id, emptied))  # type: ignore[arg-type]
        assert done.restored == ("human",)
        value = (await agent_service.memory.block(id, "human")).value
        assert value.startswith(KNOWN)
        assert value.endswith(emptied)

    here.run(work)


def test_a_turn_that_fails_loses_nothing_and_is_repeated(new: Callable[[], AgentEnv]) -> None:
    """Memory is as it was, and what was said is read again by the next reflection."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        id = await prepared(agent_service, here)
        reflector = await agent_service.registry.find(f"{here.id}-reflection")
        with pytest.raises(LettaError):
            await reflect(agent_service, reflector, writing(agent_service, id, "", then=LettaError("Broken.")))  # type: ignore[arg-type]
        assert (await agent_service.memory.block(id, "human")).value == KNOWN
        assert await left_over(agent_service) == 0

        async def speak(agent: str, text: str) -> None:
            assert "moved to Bruges" in text
            await say(agent_service, agent, text)

        reflector = await agent_service.registry.find(f"{here.id}-reflection")
        assert (await reflect(agent_service, reflector, speak)).outcome is ReflectionOutcome.DONE

    here.run(work)


def test_a_backend_that_was_killed_in_the_middle_is_made_good(new: Callable[[], AgentEnv]) -> None:
    """What was set down before a reflection survives the process; the next look puts memory back."""
    here = new()

    async def killed(agent_service: AgentService) -> str:
        id = await prepared(agent_service, here)
        block = await agent_service.memory.block(id, "human")
        # What a reflection leaves that dies after its agent has emptied the block.
        from isabella.agents.reflection import _store_snapshot

        await _store_snapshot(agent_service, await agent_service.registry.get(id), [block])
        await agent_service.letta.http.patch(f"/v1/blocks/{block.id}", {"value": ""})
        return id

    id = here.run(killed)

    async def next_start(agent_service: AgentService) -> None:
        async def never(_agent: str, _text: str) -> None:
            raise AssertionError("people are still talking")

        reflector = await agent_service.registry.find(f"{here.id}-reflection")
        assert (await reflect(agent_service, reflector, never, quiet_for=600)).outcome is ReflectionOutcome.WAITING
        assert (await agent_service.memory.block(id, "human")).value == KNOWN
        assert await left_over(agent_service) == 0

    here.run(next_start)


def test_it_does_not_run_during_a_turn_of_the_agent_it_reflects_on(new: Callable[[], AgentEnv]) -> None:
    """Reflection waits for whoever holds the agent, and holds it while it works."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        id = await prepared(agent_service, here)
        reflector = await agent_service.registry.find(f"{here.id}-reflection")
        order: list[str] = []
        began = anyio.Event()

        async def speak(_agent: str, _text: str) -> None:
            order.append("reflection begins")
            began.set()
            await anyio.sleep(0.2)
            order.append("reflection ends")

        async def turn(name: str) -> None:
            async with agent_service.memory.hold(id):
                order.append(f"{name} begins")
                await anyio.sleep(0.2)
                order.append(f"{name} ends")

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(turn, f"turn {number}")
            tasks.start_soon(reflect, agent_service, reflector, speak)
            await began.wait()
            tasks.start_soon(turn, "late turn")
        assert len(order) == 10
        assert all(
            begins.removesuffix("begins") == ends.removesuffix("ends")
            for begins, ends in zip(order[::2], order[1::2], strict=True)
        )

    here.run(work)
