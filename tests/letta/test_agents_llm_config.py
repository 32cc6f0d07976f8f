"""What an owner has set for an agent outlives every binding, and each type of agent gets a client that streams.

On a real Letta, which replaces the whole `llm_config` with every PATCH (M25), and streams with few clients for agents
of older types (M26).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from isabella.agents.import_export import export_agent, import_agent
from isabella.agents.repair import apply_repairs, find_broken
from isabella.agents.service import AgentService
from isabella.config.settings import Settings
from isabella.doctor.run import DoctorRun, apply_fixes, run_doctor
from isabella.embedded import Letta
from isabella.letta.llm_config import Binding
from isabella.letta.releases import GENERIC, OPENAI
from isabella.practice import PracticeVendors
from tests.support.agent_env import PLAIN, AgentEnv
from tests.support.backend_server import Backend, backend

CEREBRAS, GROQ, LONGCAT = "cerebras/gpt-oss-120b", "byok-groq/openai/gpt-oss-120b", "longcat/LongCat-2.0"
#: What an owner may set, as `llm_config` has it.
OWNERS = {
    "temperature": 0.15,
    "max_tokens": 777,
    "parallel_tool_calls": True,
    "frequency_penalty": 0.4,
    "reasoning_effort": "low",
    "enable_reasoner": True,
    "verbosity": "high",
    "strict": True,
}
OLDER = ("memgpt_agent", "memgpt_v2_agent", "react_agent", "workflow_agent")


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend on practice vendors."""
    with PracticeVendors() as vendors, backend(letta_server, tmp_path_factory.mktemp("home"), vendors) as running:
        yield running


@pytest.fixture
def here(served: Backend, letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentEnv]:
    """A definition of the test's own, on the same Letta and vendors."""
    made = AgentEnv(letta_server, served.vendors, tmp_path_factory.mktemp("agent_env"))
    made.define()
    yield made
    served.vendors.clear()


def config(served: Backend, id: str) -> dict[str, Any]:
    """An agent's `llm_config` as Letta has it."""
    return dict(served.letta.get(f"/v1/agents/{id}").json()["llm_config"])


def owners(served: Backend, id: str) -> dict[str, Any]:
    """What Letta has of what the owner set."""
    return {name: value for name, value in config(served, id).items() if name in OWNERS}


def owned(served: Backend, id: str, **changes: Any) -> str:
    """Have an owner set everything of an agent."""
    wanted = {**config(served, id), **OWNERS, **changes}
    served.letta.patch(f"/v1/agents/{id}", json={"llm_config": wanted}).raise_for_status()
    assert owners(served, id) == OWNERS | {key: value for key, value in changes.items() if key in OWNERS}
    return id


def change(served: Backend, id: str, **fields: Any) -> None:
    """Somebody changes fields of an agent's `llm_config`, and keeps the others."""
    update = {"llm_config": {**config(served, id), **fields}}
    served.letta.patch(f"/v1/agents/{id}", json=update).raise_for_status()


async def switched(here: AgentEnv, agent_service: AgentService, id: str, served: Backend) -> str:
    """To Groq, and what Groq is asked for has the owner's settings."""
    await agent_service.registry.switch(await agent_service.registry.get(id), "byok-groq", agent_service.models)
    assert config(served, id)["handle"] == GROQ
    return id


async def ensured(here: AgentEnv, agent_service: AgentService, id: str, served: Backend) -> str:
    """The file prefers another model by now."""
    here.define(PLAIN, **{'"cerebras/gpt-oss-120b", ': ""})
    async with here.agent_service() as changed:
        (done,) = await changed.ensure()
    assert done.agent_id == id
    assert config(served, id)["handle"] == GROQ
    return id


async def repaired(here: AgentEnv, agent_service: AgentService, id: str, served: Backend) -> str:
    """It is bound with a client that vendors refuse, and mended."""
    change(served, id, model_endpoint_type=OPENAI)
    broken = [one for one in await find_broken(agent_service.registry, agent_service.models) if one.agent_id == id]
    assert [one.done for one in await apply_repairs(agent_service.registry, broken)] == [True]
    assert config(served, id)["model_endpoint_type"] == GENERIC
    return id


async def fixed(here: AgentEnv, agent_service: AgentService, id: str, served: Backend) -> str:
    """The same, by `isabella doctor --fix`."""
    change(served, id, model_endpoint="http://127.0.0.1:9/v1")
    doctor_run = await examined(here.settings(), agent_service)
    name = served.letta.get(f"/v1/agents/{id}").json()["name"]
    assert any(line.startswith(f"{name}: bound") for line in [line async for line in apply_fixes(doctor_run)])
    assert config(served, id)["model_endpoint"] == here.vendors.base_url("cerebras")
    return id


async def brought_in(here: AgentEnv, agent_service: AgentService, id: str, served: Backend) -> str:
    """Out into a file, and in again as another agent."""
    text = await export_agent(agent_service.registry, await agent_service.registry.get(id))
    return (await import_agent(agent_service.registry, agent_service.models, text, name=f"Twin {here.id}")).id


async def moved(here: AgentEnv, agent_service: AgentService, id: str, served: Backend) -> str:
    """Its provider has another address by now, and it goes along at its next turn."""
    change(served, id, model_endpoint="http://127.0.0.1:9/v1")
    agent_cache = agency_roster(served)
    served.call(agent_cache.follow_provider, served.call(agent_cache.reload, served.call(agent_cache.find, id)))
    assert config(served, id)["model_endpoint"] == here.vendors.base_url("cerebras")
    return id


def agency_roster(served: Backend) -> Any:
    """The roster of the backend's turns."""
    return served.runtime.turns.deps.agent_cache


async def examined(settings: Settings, agent_service: AgentService) -> DoctorRun:
    """What the doctor finds in this Letta."""
    return await run_doctor(settings=settings, connection=agent_service.connection)


WRITERS: dict[str, Callable[[AgentEnv, AgentService, str, Backend], Awaitable[str]]] = {
    "switch": switched,
    "ensure": ensured,
    "repair": repaired,
    "doctor": fixed,
    "import": brought_in,
    "move": moved,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_the_owner_has_set_outlives_a_binding(served: Backend, here: AgentEnv, writer: str) -> None:
    """Temperature, max_tokens and the like are after every kind of binding what they were before it."""

    async def work(agent_service: AgentService) -> None:
        (made,) = await agent_service.ensure()
        assert made.agent_id is not None
        id = await WRITERS[writer](here, agent_service, owned(served, made.agent_id), served)
        assert owners(served, id) == OWNERS
        seen = served.letta.get(f"/v1/agents/{id}").json()["model_settings"]
        assert (seen["temperature"], seen["max_output_tokens"]) == (0.15, 777)

    here.run(work)


def test_what_the_owner_has_set_outlives_a_failover_and_the_way_back(served: Backend) -> None:
    """The vendor that steps in is asked with the owner's settings, and the agent has them again afterwards."""
    agent = served.agent("owned-failover", CEREBRAS, GROQ)
    id = owned(served, served.id_of(agent))
    seen: list[dict[str, Any]] = []
    served.vendors.fault("cerebras", on="chat", times=3, status=503)
    with watched_bindings(served, seen):
        heard = served.say(agent, "Say good morning")
    assert heard.handles == [CEREBRAS, GROQ]
    assert [one["handle"] for one in seen] == [GROQ, CEREBRAS]
    assert [{name: one[name] for name in OWNERS} for one in seen] == [OWNERS, OWNERS]
    assert owners(served, id) == OWNERS


@contextmanager
def watched_bindings(served: Backend, seen: list[dict[str, Any]]) -> Iterator[None]:
    """Note what Letta has of an agent each time that it was bound."""
    registry = agency_roster(served).registry

    def on_event(agent_id: str, _binding: Binding) -> None:
        seen.append(config(served, agent_id))

    registry.on_bound.append(on_event)
    try:
        yield
    finally:
        registry.on_bound.remove(on_event)


def test_a_limit_that_does_not_fit_into_the_window_is_lowered_told_and_brought_back(
    served: Backend, here: AgentEnv
) -> None:
    """A `max_tokens` beyond the window of the new model is halved to fit, and comes back with a larger window."""

    async def work(agent_service: AgentService) -> None:
        (made,) = await agent_service.ensure()
        id = owned(served, str(made.agent_id), max_tokens=200_000)
        to_groq = await agent_service.registry.switch(
            await agent_service.registry.get(id), "byok-groq", agent_service.models
        )
        assert config(served, id)["max_tokens"] == 131_072 // 2
        assert "200,000 does not fit into a window of 131,072" in to_groq.notes[0]
        again = await agent_service.registry.switch(
            await agent_service.registry.get(id), "byok-groq", agent_service.models
        )
        assert again.notes == to_groq.notes
        back = await agent_service.registry.switch(
            await agent_service.registry.get(id), "longcat", agent_service.models
        )
        assert back.notes == ()
        assert config(served, id)["max_tokens"] == 200_000
        # What its owner sets meanwhile is the owner's word.
        await agent_service.registry.switch(await agent_service.registry.get(id), "byok-groq", agent_service.models)
        change(served, id, max_tokens=5)
        await agent_service.registry.switch(await agent_service.registry.get(id), "longcat", agent_service.models)
        assert config(served, id)["max_tokens"] == 5

    here.run(work)


# --- older types of agents -----------------------------------------------------------------------------------------


def older(served: Backend, type: str, client: str = OPENAI) -> str:
    """Somebody's agent of an older type, bound with this client."""
    binding = Binding("cerebras", "gpt-oss-120b", served.vendors.base_url("cerebras"), 65_536, client)
    body = {
        "name": f"Older {type} {client}",
        "agent_type": type,
        "llm_config": binding.as_llm_config(),
        "memory_blocks": [{"label": "human", "value": "Has a dog called Rex."}],
        "tools": ["send_message"],
    }
    made = served.letta.post("/v1/agents/", json=body)
    made.raise_for_status()
    id = str(made.json()["id"])
    unset = {"compaction_settings": {"model": None}}
    served.letta.patch(f"/v1/agents/{id}", json=unset).raise_for_status()
    return id


def answers(served: Backend, id: str) -> None:
    """It answers a streamed turn through Isabella."""
    agency_roster(served).forget(id)
    heard = served.say(id, "What is my dog called?")
    assert heard.end["reason"] in ("completed", "max_steps"), heard.events
    assert heard.end["handle"] is not None


@pytest.fixture
def gone(served: Backend) -> Iterator[list[str]]:
    """Agents that are deleted in the end: their faults are none of the other tests' business."""
    made: list[str] = []
    yield made
    for id in made:
        served.letta.delete(f"/v1/agents/{id}")


@pytest.mark.parametrize("type", OLDER)
def test_an_agent_of_an_older_type_is_switched_fails_over_and_goes_on_answering(
    served: Backend, here: AgentEnv, gone: list[str], type: str
) -> None:
    """Whatever binds it, it keeps the client that streams for its type, and answers."""
    id = older(served, type)
    gone.append(id)
    answers(served, id)

    async def work(agent_service: AgentService) -> None:
        for handle in ("byok-groq", "longcat", "cerebras"):
            bound = await agent_service.registry.switch(
                await agent_service.registry.get(id), handle, agent_service.models
            )
            assert bound.binding.client == OPENAI
            assert config(served, id)["model_endpoint_type"] == OPENAI
            answers(served, id)
        assert [
            one for one in await find_broken(agent_service.registry, agent_service.models) if one.agent_id == id
        ] == []
        findings = (await examined(here.settings(), agent_service)).diagnosis.causes
        assert not any(id in cause.finding.agent_ids for cause in findings)

    here.run(work)
    change(served, id, model_endpoint="http://127.0.0.1:9/v1")
    answers(served, id)
    assert config(served, id)["model_endpoint_type"] == OPENAI


@pytest.mark.parametrize(
    ("type", "mended_by"),
    # Every way, and every type: a type differs from the others in its name only.
    [
        *((OLDER[0], way) for way in ("repair", "doctor", "ensure", "import", "failover")),
        *((o, "repair") for o in OLDER[1:]),
    ],
)
def test_an_agent_of_an_older_type_that_cannot_stream_is_found_and_mended(
    served: Backend, here: AgentEnv, gone: list[str], type: str, mended_by: str
) -> None:
    """Bound with the generic client it answers no streamed turn: it is found by everybody, and each way mends it."""
    id = older(served, type, GENERIC)
    gone.append(id)
    name = served.letta.get(f"/v1/agents/{id}").json()["name"]
    assert served.say(id, "Hello.").end["reason"] == "failed"

    async def work(agent_service: AgentService) -> str:
        (broken,) = [
            one for one in await find_broken(agent_service.registry, agent_service.models) if one.agent_id == id
        ]
        assert broken.fault.value == "cannot_stream"
        doctor_run = await examined(here.settings(), agent_service)
        (finding,) = [cause.finding for cause in doctor_run.diagnosis.causes if id in cause.finding.agent_ids]
        assert finding.code == "agent-cannot-stream"
        match mended_by:
            case "repair":
                assert [one.done for one in await apply_repairs(agent_service.registry, [broken])] == [True]
            case "doctor":
                assert any(
                    line.startswith(f"{name}: bound") for line in [line async for line in apply_fixes(doctor_run)]
                )
            case "ensure":
                body = {"tags": ["isabella", f"isabella:agent:{here.id}"]}
                served.letta.patch(f"/v1/agents/{id}", json=body).raise_for_status()
                (done,) = await agent_service.ensure()
                assert (done.agent_id, done.done.value) == (id, "changed")
            case "import":
                text = json.loads(await export_agent(agent_service.registry, await agent_service.registry.get(id)))
                brought = await import_agent(
                    agent_service.registry,
                    agent_service.models,
                    json.dumps(text),
                    name=f"In {here.id}",
                    with_tools=True,
                )
                gone.append(brought.id)
                return brought.id
            case "failover":
                agent_cache = agency_roster(served)
                agent_ref = served.call(agent_cache.reload, served.call(agent_cache.find, id))
                served.call(agent_cache.bind, id, served.call(agent_cache.resolve, agent_ref, GROQ))
        return id

    found = here.run(work)
    assert config(served, found)["model_endpoint_type"] == OPENAI
    answers(served, found)
