"""Agents brought in line with their definitions, on a real Letta."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from colony import PLAIN, REFLECTING, Colony, colony, raw, say

from isabella.agents.service import AgentService
from isabella.embedded import Letta


@pytest.fixture(scope="module")
def new(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Colony]]:
    """Makes colonies for the tests of this file."""
    with colony(letta_server, tmp_path_factory.mktemp("upkeep")) as make:
        yield make


async def ensure(agency: AgentService) -> list[tuple[str, tuple[str, ...]]]:
    """Bring in line: what was done with each definition, and what was changed."""
    return [(ensured.done.value, ensured.changes) for ensured in await agency.ensure()]


async def writes(agency: AgentService, work: Callable[[], Any]) -> list[str]:
    """The writing requests that some work sends to Letta."""
    sent: list[str] = []
    http = agency.residents.wire.client._client

    async def note(request: Any) -> None:
        if request.method != "GET":
            sent.append(f"{request.method} {request.url.path}")

    http.event_hooks = {"request": [note]}
    await work()
    http.event_hooks = {}
    return sent


def test_the_second_time_nothing_is_written(new: Callable[[], Colony]) -> None:
    """What is in line is left alone: the second run sends Letta no write at all, and no vendor anything."""
    here = new()
    here.define(PLAIN + REFLECTING)

    async def work(agency: AgentService) -> None:
        assert [done for done, _ in await ensure(agency)] == ["created", "created"]
        here.vendors.forget()
        assert await writes(agency, agency.ensure) == []
        assert [ensured.done.value for ensured in agency.ensured] == ["kept", "kept"]

    here.run(work)
    asked = [vendor for vendor in ("cerebras", "groq", "mistral", "longcat") if here.vendors.requests(vendor)]
    assert asked == []


def test_a_definition_makes_the_agent_that_it_describes(new: Callable[[], Colony]) -> None:
    """The agent has the name, prompt, tools, block, tags and true window, and sums up through its own binding."""
    here = new()

    async def work(agency: AgentService) -> None:
        await agency.ensure()
        agent = await raw(agency, await agency.residents.find(here.id))
        assert agent["name"] == here.name
        assert agent["system"] == "You are an agent for a test."
        assert agent["llm_config"]["context_window"] == 65_536
        assert agent["llm_config"]["handle"] == "cerebras/gpt-oss-120b"
        assert agent["compaction_settings"]["model"] is None
        resident = await agency.residents.find(here.name)
        assert set(resident.tags) == {"isabella", f"isabella:agent:{here.id}"}
        assert set(resident.tools) == {
            "memory_insert",
            "memory_replace",
            "archival_memory_insert",
            "archival_memory_search",
        }
        (block,) = await agency.memory.blocks(resident.id)
        assert (block.label, block.value, block.limit, block.description) == ("human", "", 400, "About the user.")

    here.run(work)


def test_what_the_file_changes_is_changed_and_memory_is_not(new: Callable[[], Colony]) -> None:
    """A new name, persona, limit, tool and block arrive; what the agent has written and heard stays."""
    here = new()

    async def before(agency: AgentService) -> str:
        await agency.ensure()
        resident = await agency.residents.find(here.id)
        await say(agency, resident.id, "Remember that my dog is called Rex.")
        return str(resident.id)

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

    async def after(agency: AgentService) -> None:
        ((done, changes),) = await ensure(agency)
        assert done == "changed"
        assert set(changes) == {
            "name",
            "persona",
            "tool conversation_search added",
            "tool archival_memory_insert taken off",
            "tool archival_memory_search taken off",
            "block plans added",
            "block human described anew",
        }
        resident = await agency.residents.find(f"Renamed {here.id}")
        assert resident.id == id
        assert set(resident.tools) == {"memory_insert", "memory_replace", "conversation_search"}
        blocks = {block.label: block for block in await agency.memory.blocks(id)}
        assert "Rex" in blocks["human"].value
        assert blocks["human"].limit == 500
        assert blocks["plans"].value == "None yet."
        said = [entry.text for entry in (await agency.history.page(id)).entries if entry.kind == "user"]
        assert said == ["Remember that my dog is called Rex."]
        assert await ensure(agency) == [("kept", ())]

    here.run(after)


def test_what_somebody_changed_in_letta_stays(new: Callable[[], Colony]) -> None:
    """A name and a prompt changed in Letta, and a tool added there, outlive starts until the file changes them."""
    here = new()

    async def work(agency: AgentService) -> None:
        await agency.ensure()
        resident = await agency.residents.find(here.id)
        tools = {tool["name"]: tool["id"] for tool in await agency.residents.wire.every("/v1/tools/")}
        path = f"/v1/agents/{resident.id}"
        await agency.residents.wire.patch(path, {"name": f"Nickname {here.id}", "system": "Mine."})
        await agency.residents.wire.patch(f"{path}/tools/attach/{tools['conversation_search']}")
        assert await ensure(agency) == [("kept", ())]
        agent = await raw(agency, resident)
        assert (agent["name"], agent["system"]) == (f"Nickname {here.id}", "Mine.")

    here.run(work)
    here.define(PLAIN, **{"an agent for a test": "what the file says"})

    async def later(agency: AgentService) -> None:
        assert await ensure(agency) == [("changed", ("persona",))]
        resident = await agency.residents.find(here.id)
        assert resident.name == f"Nickname {here.id}"
        assert "conversation_search" in resident.tools

    here.run(later)


def test_an_agent_is_found_by_its_tag_not_by_its_name(new: Callable[[], Colony]) -> None:
    """A stranger's agent of the same name is neither adopted nor changed; ours is made beside it."""
    here = new()

    async def work(agency: AgentService) -> None:
        binding = await agency.models.binding("longcat")
        body = {"name": here.name, "llm_config": binding.as_llm_config(), "system": "Somebody else's.", "tags": ["x"]}
        foreign = await agency.residents.wire.post("/v1/agents/", body)
        before = await agency.residents.wire.get(f"/v1/agents/{foreign['id']}")
        assert [done for done, _ in await ensure(agency)] == ["created"]
        ours = await agency.residents.find(here.name)
        assert ours.ours
        assert ours.id != foreign["id"]
        after = await agency.residents.wire.get(f"/v1/agents/{foreign['id']}")
        assert after == before

    here.run(work)


def test_two_starts_at_once_make_one_agent(new: Callable[[], Colony]) -> None:
    """Backends that start together do not both make the same agent."""
    here = new()

    async def both() -> None:
        async def one() -> None:
            async with here.agency() as agency:
                await agency.ensure()

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(one)

    anyio.run(both)

    async def count(agency: AgentService) -> int:
        tag = f"isabella:agent:{here.id}"
        return sum(tag in resident.tags for resident in await agency.residents.all())

    assert here.run(count) == 1


def test_the_reflecting_agent_shares_the_blocks_themselves(new: Callable[[], Colony]) -> None:
    """Shared blocks are the same blocks: what one writes the other has."""
    here = new()
    here.define(PLAIN + REFLECTING)

    async def work(agency: AgentService) -> None:
        await agency.ensure()
        main, reflector = await agency.residents.find(here.id), await agency.residents.find(f"{here.id}-reflection")
        assert reflector.blocks == main.blocks
        block = await agency.memory.block(main.id, "human")
        await agency.memory.write(main.id, "human", "Likes figs.", seen=block.version)
        assert (await agency.memory.block(reflector.id, "human")).value == "Likes figs."

    here.run(work)


def test_one_bad_definition_does_not_stop_the_others(new: Callable[[], Colony]) -> None:
    """A tool that Letta does not have fails its agent alone, with what Letta has instead."""
    here = new()
    bad = PLAIN.replace('id = "%"', 'id = "%-bad"').replace("Agent %", "Bad %").replace("memory_replace", "telepathy")
    here.define(bad + PLAIN)

    async def work(agency: AgentService) -> None:
        failed, made = await agency.ensure()
        assert (failed.done.value, made.done.value) == ("failed", "created")
        assert "telepathy" in (failed.reason or "")
        assert "memory_replace" in (failed.remedy or "")

    here.run(work)


def test_a_base_url_that_moved_is_followed_at_the_next_start(new: Callable[[], Colony]) -> None:
    """When a provider has another address by now, our agents are bound to it, and memory and history stay."""
    here = new()

    async def work(agency: AgentService) -> None:
        await agency.ensure()
        resident = await agency.residents.find(here.id)
        stale = resident.binding
        assert stale is not None
        old = {**stale.as_llm_config(), "model_endpoint": "http://127.0.0.1:9/v1"}
        await agency.residents.wire.patch(f"/v1/agents/{resident.id}", {"llm_config": old})
        ((done, changes),) = await ensure(agency)
        assert done == "changed"
        assert "127.0.0.1:9" in changes[0]
        assert (await agency.residents.find(here.id)).binding == stale

    here.run(work)
