"""Agents as files: out of a real Letta without a key, and in again, bound to what works here."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from colony import Colony, colony, say

from isabella.agents.agency import Agency
from isabella.agents.portable import export_agent, import_agent, own_secrets
from isabella.embedded import Letta
from isabella.errors import AgentExists, AgentFileRefused, AgentUnknown


@pytest.fixture(scope="module")
def new(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Colony]]:
    """Makes colonies for the tests of this file."""
    with colony(letta_server, tmp_path_factory.mktemp("files")) as make:
        yield make


async def export(agency: Agency, name: str) -> str:
    """An agent as a file."""
    resident = await agency.residents.find(name)
    return await export_agent(agency.residents, resident, own_secrets(agency.models, agency.connection))


def test_an_agent_goes_out_and_comes_in_again_with_all_it_knows(new: Callable[[], Colony]) -> None:
    """Blocks, conversation and archival memory come along; it is bound here and answers from what it knew."""
    here = new()
    name = f"Twin {secrets.token_hex(3)}"

    async def work(agency: Agency) -> None:
        await agency.ensure()
        first = await agency.residents.find(here.id)
        await say(agency, first.id, "Remember that my dog is called Rex.")
        await agency.archive.add(first.id, "The boiler was repaired in May.", ["house"])
        brought = await import_agent(agency.residents, agency.models, await export(agency, here.id), name=name)
        twin = await agency.residents.find(name)
        assert (twin.id, twin.ours, twin.definition) == (brought.id, True, None)
        assert twin.binding == first.binding
        assert twin.engine is not None
        assert twin.engine.compaction is None
        assert "Rex" in await say(agency, twin.id, "What is my dog called?")
        (passage,) = await agency.archive.search(twin.id, "boiler")
        assert (passage.text, passage.tags) == ("The boiler was repaired in May.", ("house",))
        said = [entry.text for entry in (await agency.history.page(twin.id)).entries if entry.kind == "user"]
        assert said[0] == "Remember that my dog is called Rex."
        # The definition's own agent is still the one of before.
        assert [ensured.agent_id for ensured in await agency.ensure()] == [first.id]
        with pytest.raises(AgentExists):
            await import_agent(agency.residents, agency.models, await export(agency, name))

    here.run(work)


def test_no_key_is_in_the_file_whatever_put_it_there(new: Callable[[], Colony]) -> None:
    """Keys of vendors, secrets of tools, the address of vectors and keys told in conversation are left out."""
    here = new()
    backend = "http://127.0.0.1:9999"

    async def work(agency: Agency) -> str:
        await agency.ensure()
        agent = await agency.residents.find(here.id)
        await say(agency, agent.id, f"Remember that my key is {here.key('groq')}.")
        await agency.residents.wire.patch(f"/v1/agents/{agent.id}", {"secrets": {"TOKEN": "tool-secret-0123456789"}})
        assert agency.vectors is not None
        assert agency.vectors.address is not None
        text = await export(agency, here.id)
        assert agency.vectors.address.get_secret_value() not in text
        assert agency.vectors.address.get_secret_value().split("/")[4] not in text
        return text

    text = here.run(work, backend=backend, embeddings="mistral")
    for vendor in ("cerebras", "groq", "mistral", "longcat"):
        assert here.key(vendor) not in text
    assert "tool-secret-0123456789" not in text
    assert here.letta.password.get_secret_value() not in text
    assert json.loads(text)["agents"][0]["embedding_config"] is None


def test_an_agent_from_elsewhere_is_bound_to_what_works_here(new: Callable[[], Colony]) -> None:
    """A file whose model is unknown here gets one that works; 8192 tokens and native Groq do not come in."""
    here = new()

    async def work(agency: Agency) -> None:
        await agency.ensure()
        document = json.loads(await export(agency, here.id))
        agent = document["agents"][0]
        agent["llm_config"] |= {
            "handle": "elsewhere/model",
            "provider_name": "elsewhere",
            "model_endpoint_type": "groq",
            "context_window": 8192,
        }
        agent["tags"] = ["isabella", f"isabella:agent:{here.id}", "theirs"]
        name = f"Immigrant {secrets.token_hex(3)}"
        brought = await import_agent(agency.residents, agency.models, json.dumps(document), name=name)
        resident = await agency.residents.get(brought.id)
        assert resident.binding is not None
        assert (resident.binding.handle, resident.binding.window) == ("cerebras/gpt-oss-120b", 65_536)
        assert set(resident.tags) == {"theirs", "isabella", "isabella:imported"}
        assert await say(agency, resident.id, "Hello.")

    here.run(work)


def test_programs_in_a_file_are_not_taken_unasked(new: Callable[[], Colony]) -> None:
    """A tool that Letta does not have is named and refused; nothing stays behind."""
    here = new()
    name = f"Trojan {secrets.token_hex(3)}"

    async def work(agency: Agency) -> None:
        await agency.ensure()
        document = json.loads(await export(agency, here.id))
        tool = {**document["tools"][0], "id": "tool-99", "name": "format_disk", "tool_type": "custom"}
        document["tools"].append(tool)
        with pytest.raises(AgentFileRefused, match="format_disk"):
            await import_agent(agency.residents, agency.models, json.dumps(document), name=name)
        with pytest.raises(AgentUnknown):
            await agency.residents.find(name)

    here.run(work)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["agents"].append(d["agents"][0]),
        lambda d: d["agents"][0].pop("id"),
        lambda d: d["agents"][0].update(llm_config="?", block_ids=["block-77"]),
        lambda d: d["agents"][0].update(messages=[{"role": "user"}]),
        lambda d: d["agents"][0].update(messages=7),
        lambda d: d.update(blocks=[{"id": 1}]),
        lambda d: d.update(tools="all"),
        lambda d: d.update(isabella={"passages": [{"text": 1}]}),
        lambda d: d.update(isabella=[1]),
    ],
)
def test_a_broken_file_is_refused_and_leaves_nothing(
    new: Callable[[], Colony], exported: str, damage: Callable[[dict[str, Any]], Any]
) -> None:
    """Whatever is wrong in it: a refusal that says it is the file, and no half of an agent."""
    here = new()
    name = f"Broken {secrets.token_hex(3)}"
    document = json.loads(exported)
    damage(document)

    async def work(agency: Agency) -> None:
        with pytest.raises(AgentFileRefused):
            await import_agent(agency.residents, agency.models, json.dumps(document), name=name)
        with pytest.raises(AgentUnknown):
            await agency.residents.find(name)

    here.run(work)


@pytest.fixture(scope="module")
def exported(new: Callable[[], Colony]) -> str:
    """A good file."""
    here = new()

    async def work(agency: Agency) -> str:
        await agency.ensure()
        return await export(agency, here.id)

    return str(here.run(work))


def test_archival_memory_that_cannot_be_brought_in_takes_the_agent_back(new: Callable[[], Colony]) -> None:
    """An agent without its archive would look whole and have forgotten; so none is left."""
    here = new()
    name = f"Forgetful {secrets.token_hex(3)}"

    async def work(agency: Agency) -> None:
        await agency.ensure()
        document = json.loads(await export(agency, here.id))
        document["isabella"] = {"passages": [{"text": "short"}, {"text": "word " * 60_000}]}
        with pytest.raises(Exception, match="longer than archival memory takes"):
            await import_agent(agency.residents, agency.models, json.dumps(document), name=name)
        with pytest.raises(AgentUnknown):
            await agency.residents.find(name)

    here.run(work)
