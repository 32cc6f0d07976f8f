"""Mistral after another vendor: what it refuses leaves the context, nothing leaves the history, and turns go on.

Practice Mistral refuses tool calls with other ids than its own form, and a user's message after a tool's result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx2 as httpx
import pytest

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from tests.support.backend_server import Backend, backend

CEREBRAS, GROQ = "cerebras/gpt-oss-120b", "byok-groq/openai/gpt-oss-120b"
MISTRAL, LONGCAT = "byok-mistral/mistral-medium-latest", "longcat/LongCat-2.0"
REMEMBER, ASK = "Remember that my dog is called Rex.", "What is my dog called?"


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend on practice vendors."""
    with PracticeVendors() as vendors, backend(letta_server, tmp_path_factory.mktemp("home"), vendors) as running:
        yield running


@pytest.fixture(autouse=True)
def _fair(served: Backend) -> Iterator[None]:
    """Every vendor does as it should at first, and nobody is left out."""
    served.vendors.forget()
    yield
    served.vendors.clear()
    for provider in ("cerebras", "byok-groq", "byok-mistral", "longcat"):
        served.call(served.runtime.turns.deps.breaker.forgive, provider)


def switch(served: Backend, agent: str, handle: str) -> dict[str, Any]:
    """Switch an agent as a client does."""
    answer = served.client.post(f"/api/agents/{agent}/switch", json={"handle": handle})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def fail_second_step(served: Backend, **fault: Any) -> None:
    """Have Cerebras fail at every second request, beginning with the second step of the next turn."""
    served.vendors.fault("cerebras", on="chat", share=0.5, **fault)
    # The first request is struck; this is the first one.
    key = served.vendors.key("cerebras").get_secret_value()
    body = {"model": "gpt-oss-120b", "messages": [{"role": "user", "content": "Hello"}]}
    with suppress(httpx.TransportError):
        httpx.post(
            f"{served.vendors.base_url('cerebras')}/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,
        )


def told(served: Backend, agent: str) -> list[tuple[str, str]]:
    """The history without the system prompt, which Letta makes anew now and then."""
    return [(kind, text) for kind, text in served.history(agent) if kind != "system_message"]


def statuses(served: Backend, vendor: str) -> list[int]:
    """What a vendor answered to every conversation."""
    return [one.status for one in served.vendors.requests(vendor) if one.path.endswith("/chat/completions")]


@pytest.mark.parametrize(("first", "foreign"), [(GROQ, True), (LONGCAT, True), (CEREBRAS, False)])
def test_mistral_goes_on_after_a_tool_call_of_another_vendor(served: Backend, first: str, foreign: bool) -> None:
    """The switch says what leaves the context; Mistral refuses nothing, remembers, and uses tools of its own."""
    agent = served.agent(f"onto-mistral-{foreign}-{first.partition('/')[0]}", first, GROQ)
    assert served.say(agent, REMEMBER).all("tool_call")
    before, seen = told(served, agent), served.in_context(agent)
    notes = switch(served, agent, "byok-mistral")["notes"]
    assert [("1 tool call" in note) for note in notes] == ([True] if foreign else [])
    assert told(served, agent) == before
    assert set(served.in_context(agent)) <= set(seen)
    assert (served.in_context(agent) == seen) is not foreign
    for message in (ASK, "Remember that my cat is called Tom.", "What is my cat called?"):
        heard = served.say(agent, message)
        assert heard.handles == [MISTRAL]
        assert heard.all("failover") == []
        assert heard.end["reason"] == "completed"
    assert "Tom" in heard.text
    assert set(statuses(served, "mistral")) == {200}
    assert told(served, agent)[: len(before)] == before


def test_a_failover_to_mistral_takes_nothing_from_the_context(served: Backend) -> None:
    """Where Mistral steps in for one turn, what it does not take is back in the context after it."""
    agent = served.agent("failover-onto-mistral", GROQ, MISTRAL)
    served.say(agent, REMEMBER)
    seen = served.in_context(agent)
    served.vendors.fault("groq", on="chat", status=402)
    heard = served.say(agent, ASK)
    assert heard.handles == [GROQ, MISTRAL]
    assert "Rex" in heard.text
    assert statuses(served, "mistral") == [200]
    now = served.in_context(agent)
    assert now[: len(seen)] == seen
    assert len(now) > len(seen)
    served.vendors.clear()
    served.call(served.runtime.turns.deps.breaker.forgive, "byok-groq")
    assert served.say(agent, ASK).handles == [GROQ]


def test_a_refusal_of_the_context_is_told_mended_and_asked_again(served: Backend) -> None:
    """Somebody binds the agent to Mistral in Letta itself: the turn says why it is refused, and goes on there."""
    agent = served.agent("bound-in-letta", GROQ, CEREBRAS)
    served.say(agent, REMEMBER)
    before = told(served, agent)
    id = served.id_of(agent)
    config = served.letta.get(f"/v1/agents/{id}").json()["llm_config"]
    config |= {
        "model": "mistral-medium-latest",
        "model_endpoint": served.vendors.base_url("mistral"),
        "provider_name": "byok-mistral",
        "handle": MISTRAL,
    }
    served.letta.patch(f"/v1/agents/{id}", json={"llm_config": config}).raise_for_status()
    served.runtime.turns.deps.agent_cache.forget(id)
    heard = served.say(agent, ASK)
    failover = heard.one("failover")
    assert (failover["handle"], failover["code"], failover["status"]) == (MISTRAL, "context_refused", 400)
    assert "must be a-z, A-Z, 0-9, with a length of 9" in failover["message"]
    assert heard.handles == [MISTRAL, MISTRAL]
    assert "Rex" in heard.text
    assert told(served, agent)[: len(before)] == before
    assert statuses(served, "mistral") == [400, 200]
    assert served.say(agent, ASK).all("failover") == []


def test_a_refusal_that_cannot_be_mended_says_why(served: Backend) -> None:
    """An agent of an older type has a user's message after every tool: the switch warns, and the turn says why."""
    id = served.id_of(served.agent("older-onto-mistral", CEREBRAS))
    body = {
        "name": "older onto mistral",
        "agent_type": "memgpt_v2_agent",
        "llm_config": served.letta.get(f"/v1/agents/{id}").json()["llm_config"] | {"model_endpoint_type": "openai"},
        "memory_blocks": [{"label": "human", "value": "Has a dog called Rex."}],
    }
    made = served.letta.post("/v1/agents/", json=body).raise_for_status().json()["id"]
    try:
        assert served.say(made, ASK).end["reason"] == "completed"
        (note,) = switch(served, made, "byok-mistral")["notes"]
        assert "agents of type memgpt_v2_agent" in note
        heard = served.say(made, ASK)
        assert heard.one("failover")["code"] == "context_refused"
        assert heard.one("error")["code"] == "context_refused"
    finally:
        served.letta.delete(f"/v1/agents/{made}")


@pytest.mark.parametrize("fault", [{"status": 402}, {"truncated": True}])
def test_a_turn_that_breaks_after_a_tool_leaves_an_answer_behind_the_result(
    served: Backend, fault: dict[str, Any]
) -> None:
    """The vendor fails after a tool's result: that is answered in history and context, and Mistral takes the next."""
    agent = served.agent(f"breaks-after-a-tool-{'-'.join(fault)}", CEREBRAS)
    fail_second_step(served, **fault)
    heard = served.say(agent, REMEMBER)
    assert heard.all("tool_result")
    assert heard.end["reason"] == "broken"
    assert heard.end["stored"]
    kind, text = told(served, agent)[-1]
    assert kind == "assistant_message"
    assert text.endswith("[broken off]")
    served.vendors.clear()
    served.call(served.runtime.turns.deps.breaker.forgive, "cerebras")
    assert switch(served, agent, "byok-mistral")["notes"] == []
    heard = served.say(agent, ASK)
    assert "Rex" in heard.text
    assert statuses(served, "mistral") == [200]


def test_a_result_that_was_never_answered_is_answered_at_the_switch(served: Backend) -> None:
    """A turn that Letta alone ran and that broke after a tool does not keep Mistral from answering the next one."""
    agent = served.agent("broken-in-letta", CEREBRAS)
    id = served.id_of(agent)
    fail_second_step(served, status=402)
    served.letta.post(f"/v1/agents/{id}/messages", json={"messages": [{"role": "user", "content": REMEMBER}]})
    assert told(served, agent)[-1][0] == "tool_return_message"
    served.vendors.clear()
    (note,) = switch(served, agent, "byok-mistral")["notes"]
    assert "broken off" in note
    assert "Rex" in served.say(agent, ASK).text
    assert statuses(served, "mistral") == [200]
