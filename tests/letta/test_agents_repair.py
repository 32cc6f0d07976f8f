"""Agents that cannot work, planted in a real Letta: found, shown, and bound anew."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from isabella.agents.repair import AgentRepair, apply_repairs, find_broken
from isabella.agents.service import AgentService
from isabella.embedded import Letta
from isabella.errors import IsabellaError
from isabella.letta.llm_config import Binding
from isabella.letta.releases import OPENAI
from tests.support.agent_env import AgentEnv, agent_env, say


@pytest.fixture(scope="module")
def new(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], AgentEnv]]:
    """Makes colonies for the tests of this file."""
    with agent_env(letta_server, tmp_path_factory.mktemp("repair")) as make:
        yield make


async def plant(agent_service: AgentService, **body: Any) -> str:
    """Somebody else's agent; what is given is what Letta is asked for."""
    name = f"Planted {secrets.token_hex(4)}"
    made = await agent_service.letta.http.post(
        "/v1/agents/",
        {"name": name, "memory_blocks": [{"label": "human", "value": "Has a dog called Rex."}], **body},
    )
    return str(made["id"])


async def finding(agent_service: AgentService, id: str) -> AgentRepair | None:
    """What is found about one agent; others in this Letta are none of the test's business."""
    return next(
        (
            repair
            for repair in await find_broken(agent_service.registry, agent_service.models)
            if repair.agent_id == id
        ),
        None,
    )


async def mended(agent_service: AgentService, id: str) -> AgentRepair:
    """Mend one agent, and see that nothing is found about it any more."""
    found = await finding(agent_service, id)
    assert found is not None
    (done,) = await apply_repairs(agent_service.registry, [found])
    assert done.done
    assert await finding(agent_service, id) is None
    return done


def bound(here: AgentEnv, vendor: str, provider: str, model: str, **changes: Any) -> dict[str, Any]:
    """An explicit `llm_config`, with changes."""
    return {**Binding(provider, model, here.vendors.base_url(vendor), 65_536).as_llm_config(), **changes}


def test_a_native_groq_agent_is_found_and_speaks_afterwards(new: Callable[[], AgentEnv]) -> None:
    """By handle alone Letta gives a Groq agent no key (M3); bound, it answers from the memory that it had."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        id = await plant(agent_service, model="byok-groq/openai/gpt-oss-120b")
        with pytest.raises(IsabellaError):
            await say(agent_service, id, "Hello.")
        done = await mended(agent_service, id)
        assert (done.fault.value, done.managed) == ("key_ignored", False)
        assert done.after == "byok-groq/openai/gpt-oss-120b (128000)"
        assert "Rex" in await say(agent_service, id, "What is my dog called?")

    here.run(work)
    assert all(request.carries(here.key("groq")) for request in here.vendors.requests("groq"))


def test_an_agent_on_a_shared_proxy_handle_gets_a_binding_of_its_own(new: Callable[[], AgentEnv]) -> None:
    """`openai-proxy/LongCat-2.0` with its guessed window becomes `longcat/LongCat-2.0` with a million tokens (M4)."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        config = bound(
            here, "longcat", "longcat", "LongCat-2.0", handle="openai-proxy/LongCat-2.0", context_window=30_000
        )
        id = await plant(agent_service, llm_config=config)
        done = await mended(agent_service, id)
        assert (done.fault.value, done.after) == ("proxy_handle", "longcat/LongCat-2.0 (1048576)")
        assert "Rex" in await say(agent_service, id, "What is my dog called?")

    here.run(work)


def test_an_agent_whose_provider_is_gone_moves_to_one_that_works(new: Callable[[], AgentEnv]) -> None:
    """With its provider gone, the same model at the same address is taken, through the provider that is there."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        config = bound(here, "mistral", "old-mistral", "mistral-small-latest")
        id = await plant(agent_service, llm_config=config)
        done = await mended(agent_service, id)
        assert done.fault.value == "provider_gone"
        assert done.after == "byok-mistral/mistral-small-latest (256000)"
        elsewhere = {**config, "model": "unheard-of", "model_endpoint": "http://127.0.0.1:9/v1"}
        id = await plant(agent_service, llm_config=elsewhere)
        assert (await mended(agent_service, id)).after == "cerebras/gpt-oss-120b (65536)"
        assert "Rex" in await say(agent_service, id, "What is my dog called?")

    here.run(work)


def test_a_base_url_that_moved_is_found(new: Callable[[], AgentEnv]) -> None:
    """An agent that still calls a former address is bound to its provider's present one; a chosen window stays."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        config = bound(here, "cerebras", "cerebras", "gpt-oss-120b")
        id = await plant(agent_service, llm_config={**config, "model_endpoint": "http://127.0.0.1:9/v1"})
        done = await mended(agent_service, id)
        assert (done.fault.value, done.after) == ("base_url_moved", "cerebras/gpt-oss-120b (65536)")

    here.run(work)


def test_the_window_that_letta_guesses_is_found(new: Callable[[], AgentEnv]) -> None:
    """A native Cerebras agent has 8192 tokens (M1); afterwards it has the model's own."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        id = await plant(agent_service, model="cerebras/gpt-oss-120b")
        row = await agent_service.letta.http.get(f"/v1/agents/{id}")
        assert row["llm_config"]["context_window"] == 8192
        assert (await mended(agent_service, id)).after == "cerebras/gpt-oss-120b (65536)"
        row = await agent_service.letta.http.get(f"/v1/agents/{id}")
        assert (row["llm_config"]["context_window"], row["compaction_settings"]["model"]) == (65_536, None)

    here.run(work)


def test_the_client_that_vendors_refuse_is_found(new: Callable[[], AgentEnv]) -> None:
    """An agent bound through Letta's openai client is bound through the one that vendors take (M13)."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        config = bound(here, "mistral", "byok-mistral", "mistral-medium-latest", model_endpoint_type=OPENAI)
        assert (
            await mended(agent_service, await plant(agent_service, llm_config=config))
        ).fault.value == "wrong_client"

    here.run(work)


def test_a_model_that_its_vendor_no_longer_has_is_replaced(new: Callable[[], AgentEnv]) -> None:
    """A retired model is found, and another is offered in its place."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        config = bound(here, "groq", "byok-groq", "retired-model")
        done = await mended(agent_service, await plant(agent_service, llm_config=config))
        assert done.fault.value == "model_gone"

    here.run(work)


def test_finding_changes_nothing_and_healthy_agents_are_not_found(new: Callable[[], AgentEnv]) -> None:
    """Looking writes nothing; agents that work, ours and others', are left out."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        await agent_service.ensure()
        ours = await agent_service.registry.find(here.id)
        healthy = await plant(agent_service, llm_config=bound(here, "longcat", "longcat", "LongCat-2.0"))
        # Letta notes the handle for summaries when it makes an agent, which is a fault of its own (M15).
        await agent_service.registry.bind(
            healthy, (await agent_service.registry.get(healthy)).binding or pytest.fail("unbound")
        )
        broken = await plant(agent_service, model="byok-groq/openai/gpt-oss-120b")
        before = await agent_service.letta.http.get(f"/v1/agents/{broken}")
        found = {
            repair.agent_id: repair for repair in await find_broken(agent_service.registry, agent_service.models)
        }
        assert broken in found
        assert ours.id not in found
        assert healthy not in found
        assert await agent_service.letta.http.get(f"/v1/agents/{broken}") == before

    here.run(work)
