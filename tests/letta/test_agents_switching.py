"""Switching agents between vendors, on a real Letta."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from isabella.agents import context
from isabella.agents.prompt_budget import prompt_budget
from isabella.agents.service import AgentService
from isabella.embedded import Letta
from isabella.errors import ModelUnknown
from isabella.practice import NAMES
from tests.support.agent_env import PROVIDERS, AgentEnv, agent_env, say

WINDOWS = {"cerebras": 65_536, "groq": 131_072, "mistral": 262_144, "longcat": 1_048_576}


@pytest.fixture(scope="module")
def new(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], AgentEnv]]:
    """Makes colonies for the tests of this file."""
    with agent_env(letta_server, tmp_path_factory.mktemp("switching")) as make:
        yield make


def test_a_conversation_through_all_four_vendors_keeps_its_history_and_every_vendor_its_key(
    new: Callable[[], AgentEnv],
) -> None:
    """Each vendor answers in its turn, from memory that another wrote, with its own key and the true window."""
    here = new()
    here.vendors.forget()

    async def work(agent_service: AgentService) -> None:
        await agent_service.ensure()
        agent = await agent_service.registry.find(here.id)
        await agent_service.registry.switch(agent, "longcat", agent_service.models)
        await say(agent_service, agent.id, "Remember that my dog is called Rex.")
        for vendor in NAMES:
            bound = await agent_service.registry.switch(agent, PROVIDERS[vendor], agent_service.models)
            assert bound.binding.window == WINDOWS[vendor]
            seen = {name: len(here.vendors.requests(name)) for name in NAMES}
            assert "Rex" in await say(agent_service, agent.id, "What is my dog called?")
            answered = {name for name in NAMES if len(here.vendors.requests(name)) > seen[name]}
            assert answered == {vendor}
        page = await agent_service.history.page(agent.id, limit=100)
        assert [entry.kind for entry in page.entries].count("user") == 1 + len(NAMES)

    here.run(work)
    assert here.strangers() == []


def test_a_conversation_that_is_too_long_for_the_new_model_is_summarised_first(new: Callable[[], AgentEnv]) -> None:
    """By the model that the agent leaves; the history stays whole. A prompt that no summary shortens is refused."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        await agent_service.ensure()
        registry, models, letta = agent_service.registry, agent_service.models, agent_service.letta
        agent = await registry.find(here.id)
        await registry.switch(agent, "longcat", models)
        ids = (await letta.agents.get(agent.id)).message_ids or []
        for number in range(12):
            words = f"Story {number}: " + "the cat sat on the mat. " * 150
            ids += await context.add(letta, agent.id, words, words, known=ids)
        await letta.agents.update(agent.id, {"message_ids": ids})
        long = await prompt_budget(letta, agent.id)
        assert long.total > 16_000

        models.cap("byok-groq", 12_000, "It takes no more.")
        here.vendors.forget()
        bound = await registry.switch(agent, "byok-groq", models)
        assert (bound.binding.provider, bound.binding.window) == ("byok-groq", 12_000)
        assert any("did not fit into a window of 12,000 tokens" in note for note in bound.notes)
        chats = [name for name in NAMES for one in here.vendors.requests(name) if one.path.endswith("/completions")]
        assert set(chats) == {"longcat"}
        short = await prompt_budget(letta, agent.id)
        assert short.total <= 9_000
        assert await say(agent_service, agent.id, "Say good morning")
        page = await agent_service.history.page(agent.id, limit=100)
        assert sum("Story" in entry.text for entry in page.entries) >= 24

        # This agent has no gateway, so Letta's descriptions of its tools are as long as they are.
        models.cap("cerebras", 2048, "It takes no more.")
        before = (await registry.get(agent.id)).binding
        await letta.agents.update(agent.id, {"system": "Be kind. " * 1000})
        await letta.agents.recompile(agent.id)
        with pytest.raises(ModelUnknown, match="without its conversation"):
            await registry.switch(agent, "cerebras", models)
        assert (await registry.get(agent.id)).binding == before

    here.run(work)


def test_summaries_of_long_conversations_come_from_the_vendor_it_speaks_with(new: Callable[[], AgentEnv]) -> None:
    """After a switch to Groq a summary is Groq's, with Groq's key: by its handle Letta would fail there (M3)."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        await agent_service.ensure()
        agent = await agent_service.registry.find(here.id)
        for text in ("Hello.", "My name is Ada.", "Good evening.", "Say something."):
            await say(agent_service, agent.id, text)
        await agent_service.registry.switch(agent, "byok-groq", agent_service.models)
        here.vendors.forget()
        await agent_service.letta.http.post(f"/v1/agents/{agent.id}/summarize", {})

    here.run(work)
    assert [name for name in NAMES if here.vendors.requests(name)] == ["groq"]
    assert here.strangers() == []


@pytest.mark.parametrize(
    ("handle", "said"),
    [
        ("nobody/model", "no provider 'nobody'"),
        ("cerebras/no-such-model", "no model 'no-such-model'"),
        ("byok-mistral/mistral-embed", "for conversations"),
    ],
)
def test_a_handle_that_would_not_work_is_refused_with_those_that_would(
    new: Callable[[], AgentEnv], handle: str, said: str
) -> None:
    """Nothing is changed, and the error offers a handle of every vendor that answers."""
    here = new()

    async def work(agent_service: AgentService) -> None:
        await agent_service.ensure()
        agent = await agent_service.registry.find(here.id)
        with pytest.raises(ModelUnknown) as refused:
            await agent_service.registry.switch(agent, handle, agent_service.models)
        assert said in refused.value.what
        assert {handle.partition("/")[0] for handle in refused.value.handles} == set(PROVIDERS.values())
        assert (await agent_service.registry.find(here.id)).binding == agent.binding

    here.run(work)


def test_a_vendor_that_refuses_its_key_or_fails_is_refused_and_not_offered(new: Callable[[], AgentEnv]) -> None:
    """An unhealthy vendor is no place to switch to; the others are offered."""
    here = new()
    here.vendors.fault("groq", on="models", status=401)
    here.vendors.fault("mistral", on="models", status=503)
    try:

        async def work(agent_service: AgentService) -> None:
            await agent_service.ensure()
            agent = await agent_service.registry.find(here.id)
            for provider, said in (("byok-groq", "refuses the key"), ("byok-mistral", "cannot answer now")):
                with pytest.raises(ModelUnknown, match=said) as refused:
                    await agent_service.registry.switch(agent, provider, agent_service.models)
                offered = {handle.partition("/")[0] for handle in refused.value.handles}
                assert offered == {"cerebras", "longcat"}

        here.run(work)
    finally:
        here.vendors.clear()


def test_an_agent_is_made_on_the_first_of_its_vendors_that_works(new: Callable[[], AgentEnv]) -> None:
    """A preferred vendor that refuses is passed over; with no vendor answering, the agent is made all the same."""
    here = new()
    here.vendors.fault("cerebras", on="models", status=401)
    try:

        async def work(agent_service: AgentService) -> str:
            (made,) = await agent_service.ensure()
            return str(made.handle)

        assert here.run(work) == "byok-groq/openai/gpt-oss-120b"
        here.vendors.clear()
        other = new()
        for vendor in NAMES:
            here.vendors.fault(vendor, on="models", status=503)
        assert other.run(work) == "cerebras/gpt-oss-120b"
    finally:
        here.vendors.clear()
