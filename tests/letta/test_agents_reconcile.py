"""Agents brought in line with their definitions, on a real Letta."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import anyio
import pytest

from isabella.agents.service import AgentService
from isabella.embedded import Letta
from tests.support.agent_env import PLAIN, REFLECTING, AgentEnv, agent_env, raw, say


@pytest.fixture(scope="module")
def new(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], AgentEnv]]:
    """Makes colonies for the tests of this file."""
    with agent_env(letta_server, tmp_path_factory.mktemp("upkeep")) as make:
        yield make


async def ensure(agent_service: AgentService) -> list[tuple[str, tuple[str, ...]]]:
    """Bring in line: what was done with each definition, and what was changed."""
    return [(ensured.done.value, ensured.changes) for ensured in await agent_service.ensure()]


async def writes(agent_service: AgentService, work: Callable[[], Any]) -> list[str]:
    """The writing requests that some work sends to Letta."""
    sent: list[str] = []
    http = agent_service.letta.http._client

    async def note(request: Any) -> None:
        if request.method != "GET":
            sent.append(f"{request.method} {request.url.path}")

    http.event_hooks = {"request": [note]}
    await work()
    http.event_hooks = {}
    return sent


def test_the_second_time_nothing_is_written(new: Callable[[], AgentEnv]) -> None:
    """What is in line is left alone: the second run sends Letta no write at all, and no vendor anything."""
    here = new()
    here.define(PLAIN + REFLECTING)

    async def work(agent_service: AgentService) -> None:
        assert [done for done, _ in await ensure(agent_service)] == ["created", "created"]
        here.vendors.forget()
        assert await writes(agent_service, agent_service.ensure) == []
        assert [ensured.done.value for ensured in agent_service.ensured] == ["kept", "kept"]

    here.run(work)
    asked = [vendor for vendor in ("cerebras", "groq", "mistral", "longcat") if here.vendors.requests(vendor)]
    assert asked == []


def test_a_definition_makes_the_agent_that_it_describes(new: Callable[[], AgentEnv]) -> None:
    """The agent has the name, prompt, tools, block, tags and true window, and sums up through its own binding."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        await agent_service.ensure()
        agent = await raw(agent_service, await agent_service.registry.find(here.id))
        assert agent["name"] == here.name
        assert agent["system"] == "You are an agent for a test."
        assert agent["llm_config"]["context_window"] == 65_536
        assert agent["llm_config"]["handle"] == "cerebras/gpt-oss-120b"
        assert agent["compaction_settings"]["model"] is None
        record = await agent_service.registry.find(here.name)
        assert set(record.tags) == {"isabella", f"isabella:agent:{here.id}"}
        assert set(record.tools) == {
            "memory_insert",
            "memory_replace",
            "archival_memory_insert",
            "archival_memory_search",
        }
        (block,) = await agent_service.memory.blocks(record.id)
        assert (block.label, block.value, block.limit, block.description) == ("human", "", 400, "About the user.")

    here.run(work)


def test_what_the_file_changes_is_changed_and_memory_is_not(new: Callable[[], AgentEnv]) -> None:
    """A new name, persona, limit, tool and block arrive; what the agent has written and heard stays."""
    here = new()

    async def before(agent_service: AgentService) -> str:
        await agent_service.ensure()
        record = await agent_service.registry.find(here.id)
        await say(agent_service, record.id, "Remember that my dog is called Rex.")
        return str(record.id)

    id = here.run(before)
    more = '\n[[agents.blocks]]\nlabel = "plans"\ndescription = "What is planned."\nvalue = "None yet."\n'
    here.define(
        PLAIN + more,
        **{
            '"Agent %"': '"Renamed %"',
            "an agent for a test": "another agent by now",
            "limit = 400": "limit = 500\nvalue = 'never written'",
            '"archival_memory_insert", "archival_memory_search"': '"conversation_search"',
        },
    )

    async def after(agent_service: AgentService) -> None:
        ((done, changes),) = await ensure(agent_service)
        assert done == "changed"
        assert set(changes) == {
            "name",
            "persona",
            "tool conversation_search added",
            "tool archival_memory_insert removed",
            "tool archival_memory_search removed",
            "block plans added",
            "block human description changed",
        }
        record = await agent_service.registry.find(f"Renamed {here.id}")
        assert record.id == id
        assert set(record.tools) == {"memory_insert", "memory_replace", "conversation_search"}
        blocks = {block.label: block for block in await agent_service.memory.blocks(id)}
        assert "Rex" in blocks["human"].value
        assert blocks["human"].limit == 500
        assert blocks["plans"].value == "None yet."
        said = [entry.text for entry in (await agent_service.history.page(id)).entries if entry.kind == "user"]
        assert said == ["Remember that my dog is called Rex."]
        assert await ensure(agent_service) == [("kept", ())]

    here.run(after)


def test_what_somebody_changed_in_letta_stays(new: Callable[[], AgentEnv]) -> None:
    """A name and a prompt changed in Letta, and a tool added there, outlive starts until the file changes them."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        await agent_service.ensure()
        record = await agent_service.registry.find(here.id)
        tools = {tool["name"]: tool["id"] for tool in await agent_service.letta.http.list_all("/v1/tools/")}
        path = f"/v1/agents/{record.id}"
        await agent_service.letta.http.patch(path, {"name": f"Nickname {here.id}", "system": "Mine."})
        await agent_service.letta.http.patch(f"{path}/tools/attach/{tools['conversation_search']}")
        assert await ensure(agent_service) == [("kept", ())]
        agent = await raw(agent_service, record)
        assert (agent["name"], agent["system"]) == (f"Nickname {here.id}", "Mine.")

    here.run(work)
    here.define(PLAIN, **{"an agent for a test": "what the file says"})

    async def later(agent_service: AgentService) -> None:
        assert await ensure(agent_service) == [("changed", ("persona",))]
        record = await agent_service.registry.find(here.id)
        assert record.name == f"Nickname {here.id}"
        assert "conversation_search" in record.tools

    here.run(later)


def test_an_agent_is_found_by_its_tag_not_by_its_name(new: Callable[[], AgentEnv]) -> None:
    """A stranger's agent of the same name is neither adopted nor changed; ours is made beside it."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        binding = await agent_service.models.binding("longcat")
        body = {"name": here.name, "llm_config": binding.as_llm_config(), "system": "Somebody else's.", "tags": ["x"]}
        foreign = await agent_service.letta.http.post("/v1/agents/", body)
        before = await agent_service.letta.http.get(f"/v1/agents/{foreign['id']}")
        assert [done for done, _ in await ensure(agent_service)] == ["created"]
        ours = await agent_service.registry.find(here.name)
        assert ours.managed
        assert ours.id != foreign["id"]
        after = await agent_service.letta.http.get(f"/v1/agents/{foreign['id']}")
        assert after == before

    here.run(work)


def test_two_starts_at_once_make_one_agent(new: Callable[[], AgentEnv]) -> None:
    """Backends that start together do not both make the same agent."""
    here = new()

    async def both() -> None:
        async def one() -> None:
            async with here.agent_service() as agent_service:
                await agent_service.ensure()

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(one)

    anyio.run(both)

    async def count(agent_service: AgentService) -> int:
        tag = f"isabella:agent:{here.id}"
        return sum(tag in record.tags for record in await agent_service.registry.all())

    assert here.run(count) == 1


def test_the_reflecting_agent_shares_the_blocks_themselves(new: Callable[[], AgentEnv]) -> None:
    """Shared blocks are the same blocks: what one writes the other has."""
    here = new()
    here.define(PLAIN + REFLECTING)

    async def work(agent_service: AgentService) -> None:
        await agent_service.ensure()
        main, reflector = (
            await agent_service.registry.find(here.id),
            await agent_service.registry.find(f"{here.id}-reflection"),
        )
        assert reflector.blocks == main.blocks
        block = await agent_service.memory.block(main.id, "human")
        await agent_service.memory.write(main.id, "human", "Likes figs.", seen=block.version)
        assert (await agent_service.memory.block(reflector.id, "human")).value == "Likes figs."

    here.run(work)


def test_one_bad_definition_does_not_stop_the_others(new: Callable[[], AgentEnv]) -> None:
    """A tool that Letta does not have fails its agent alone, with what Letta has instead."""
    here = new()
    bad = PLAIN.replace('id = "%"', 'id = "%-bad"').replace("Agent %", "Bad %").replace("memory_replace", "telepathy")
    here.define(bad + PLAIN)

    async def work(agent_service: AgentService) -> None:
        failed, made = await agent_service.ensure()
        assert (failed.done.value, made.done.value) == ("failed", "created")
        assert "telepathy" in (failed.reason or "")
        assert "memory_replace" in (failed.remedy or "")

    here.run(work)


def test_a_base_url_that_moved_is_followed_at_the_next_start(new: Callable[[], AgentEnv]) -> None:
    """When a provider has another address by now, our agents are bound to it, and memory and history stay."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        await agent_service.ensure()
        record = await agent_service.registry.find(here.id)
        stale = record.binding
        assert stale is not None
        old = {**stale.as_llm_config(), "model_endpoint": "http://127.0.0.1:9/v1"}
        await agent_service.letta.http.patch(f"/v1/agents/{record.id}", {"llm_config": old})
        ((done, changes),) = await ensure(agent_service)
        assert done == "changed"
        assert "127.0.0.1:9" in changes[0]
        assert (await agent_service.registry.find(here.id)).binding == stale

    here.run(work)


def test_an_agent_whose_vendors_are_all_gone_is_bound_to_one_that_is_there(new: Callable[[], AgentEnv]) -> None:
    """As after a first run with practice vendors; as long as one of its definition is set up, it keeps its own."""
    here = new()
    here.define()

    async def work(agent_service: AgentService) -> None:
        await agent_service.ensure()
        providers = agent_service.models.providers

        async def with_keys(*names: str) -> list[tuple[str, tuple[str, ...]]]:
            agent_service.models.renew([one if one.name in names else replace(one, key=None) for one in providers])
            return await ensure(agent_service)

        assert await with_keys("byok-groq", "longcat") == [("kept", ())]
        assert await with_keys() == [("kept", ())]
        assert await with_keys("longcat") == [("changed", ("bound to longcat/LongCat-2.0",))]
        assert await with_keys("longcat") == [("kept", ())]

    here.run(work)
