"""The practice vendors behind a real Letta: its agents remember, recall, search and sum up through all four."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from letta_client import APIStatusError, Letta
from pydantic import SecretStr

from isabella.practice import NAMES, PracticeVendors

# Type of the provider in Letta, and a model to talk to.
VENDORS = {
    "cerebras": ("cerebras", "gpt-oss-120b"),
    "groq": ("groq", "openai/gpt-oss-120b"),
    "mistral": ("mistral", "mistral-medium-latest"),
    "longcat": ("openai", "LongCat-2.0"),
}


class Server(Protocol):
    """What these tests need of the running Letta."""

    base_url: str
    password: SecretStr


@dataclass(frozen=True)
class Stage:
    """Practice vendors, a Letta that knows them as providers, and agents that are made on it."""

    vendors: PracticeVendors
    letta: Letta
    suffix: str

    def binding(self, vendor: str) -> dict[str, Any]:
        """The explicit binding of fact M6."""
        name, model = f"{vendor}-{self.suffix}", VENDORS[vendor][1]
        return {
            "model": model,
            "model_endpoint_type": "openai",
            "model_endpoint": self.vendors.base_url(vendor),
            "provider_name": name,
            "provider_category": "byok",
            "context_window": 32_000,
            "handle": f"{name}/{model}",
        }

    def agent(self, vendor: str, **fields: Any) -> str:
        """A new agent with a persona and an empty human block; its id."""
        body = {
            "name": f"practice-{secrets.token_hex(4)}",
            "memory_blocks": [
                {"label": "persona", "value": "I am Isabella, an assistant who remembers."},
                {"label": "human", "value": ""},
            ],
            "llm_config": self.binding(vendor),
        }
        made: Any = self.letta.post("/v1/agents/", cast_to=object, body=body | fields)
        return str(made["id"])

    def say(self, agent: str, text: str) -> list[Any]:
        """A turn of an agent: the messages that come of it."""
        return list(self.letta.agents.messages.create(agent, messages=[{"role": "user", "content": text}]).messages)

    def answer(self, agent: str, text: str) -> str:
        """What the agent says to a text."""
        return "".join(
            str(message.content) for message in self.say(agent, text) if message.message_type == "assistant_message"
        )

    def human(self, agent: str) -> str:
        """What stands in the agent's human block."""
        return str(self.letta.agents.blocks.retrieve("human", agent_id=agent).value)

    def keys_are_right(self) -> bool:
        """Whether every vendor got its own key and no other."""
        return all(
            request.carries(self.vendors.key(vendor).get_secret_value())
            for vendor in NAMES
            for request in self.vendors.requests(vendor)
        )


@pytest.fixture(scope="module")
def stage(letta_server: Server) -> Iterator[Stage]:
    """Providers for all four practice vendors in the Letta of this run."""
    with PracticeVendors() as vendors:
        letta = Letta(base_url=letta_server.base_url, api_key=letta_server.password.get_secret_value(), max_retries=0)
        found = Stage(vendors, letta, secrets.token_hex(4))
        made: list[Any] = []
        for vendor, (kind, _) in VENDORS.items():
            body = {
                "name": f"{vendor}-{found.suffix}",
                "provider_type": kind,
                "api_key": vendors.key(vendor).get_secret_value(),
                "base_url": vendors.base_url(vendor),
            }
            made.append(letta.post("/v1/providers/", cast_to=object, body=body))
        yield found
        for provider in made:
            letta.delete(f"/v1/providers/{provider['id']}", cast_to=object)


@pytest.fixture(autouse=True)
def _without_faults(stage: Stage) -> None:
    stage.vendors.clear()
    stage.vendors.forget()


@pytest.mark.parametrize("vendor", NAMES)
def test_remembers_and_recalls(stage: Stage, vendor: str) -> None:
    """Asked to remember, the agent writes into its block with `memory_insert`; asked again, it knows."""
    agent = stage.agent(vendor)
    turn = stage.say(agent, "Remember that my dog is called Rex.")
    calls = [message.tool_call.name for message in turn if message.message_type == "tool_call_message"]
    assert calls == ["memory_insert"]
    assert [message.status for message in turn if message.message_type == "tool_return_message"] == ["success"]
    assert "My dog is called Rex." in stage.human(agent)
    # Without the conversation only the block can tell.
    stage.letta.patch(
        f"/v1/agents/{agent}/reset-messages", cast_to=object, body={"add_default_initial_messages": False}
    )
    assert stage.answer(agent, "What is my dog called?") == "I remember: My dog is called Rex."
    assert "do not know" in stage.answer(agent, "Where did I go to school?")
    assert stage.keys_are_right()


def test_one_memory_on_four_vendors(stage: Stage) -> None:
    """Switched from vendor to vendor by PATCH, the agent keeps what it knows; each vendor gets its own key."""
    agent = stage.agent("cerebras")
    stage.say(agent, "Remember that my boat is called Ida.")
    for vendor in NAMES:
        stage.letta.patch(f"/v1/agents/{agent}", cast_to=object, body={"llm_config": stage.binding(vendor)})
        assert stage.answer(agent, "What is my boat called?") == "I remember: My boat is called Ida."
        assert [request.path.split("/")[1] for request in stage.vendors.requests(vendor)][-1] == vendor
    assert stage.keys_are_right()


@pytest.mark.parametrize("vendor", NAMES)
def test_streams_word_by_word(stage: Stage, vendor: str) -> None:
    """Letta passes the pieces on as they come, tool calls included."""
    agent = stage.agent(vendor)
    said: Any = {"role": "user", "content": "Remember that I live in Bergen."}
    with stage.letta.agents.messages.with_streaming_response.create(
        agent, messages=[said], streaming=True, stream_tokens=True
    ) as response:
        text = "".join(response.iter_text())
    assert "memory_insert" in text
    assert text.count('"assistant_message"') >= 4
    assert "[DONE]" in text
    assert "I live in Bergen." in stage.human(agent)
    assert any(request.stream for request in stage.vendors.requests(vendor))


@pytest.mark.parametrize("kind", ["memgpt_v2_agent", "memgpt_agent"])
def test_older_agent_types_speak_through_a_tool(stage: Stage, kind: str) -> None:
    """They are offered `send_message`, heartbeats and wrapped messages, and work all the same."""
    agent = stage.agent("groq", agent_type=kind)
    assert stage.answer(agent, "Remember that my cat is called Tom.") == "I will remember that."
    assert "My cat is called Tom." in stage.human(agent)
    assert stage.answer(agent, "What is my cat called?") == "I remember: My cat is called Tom."


def test_archival_memory_by_meaning(stage: Stage) -> None:
    """Passages are embedded by the practice Mistral; the nearest comes back first (fact M8)."""
    mistral = stage.vendors.key("mistral")
    # What Letta sends for embeddings when it has no key of its own.
    stage.vendors.accept("mistral", [mistral, "DUMMY_API_KEY"])
    try:
        embedding = {
            "embedding_endpoint_type": "openai",
            "embedding_endpoint": stage.vendors.base_url("mistral"),
            "embedding_model": "mistral-embed",
            "embedding_dim": 1024,
            "embedding_chunk_size": 300,
        }
        tools = ["archival_memory_insert", "archival_memory_search"]
        agent = stage.agent("cerebras", tools=tools, embedding_config=embedding)
        stage.say(agent, "Store in your archival memory that the meeting with Anna was on 3 May in Oslo.")
        stage.say(agent, "Store in your archival memory that the boiler was repaired in June.")
        answer = stage.answer(agent, "Search your archival memory for Anna's meeting")
        assert answer == "I found this: The meeting with Anna was on 3 May in Oslo."
        embedded = [request for request in stage.vendors.requests("mistral") if request.path.endswith("/embeddings")]
        assert {request.status for request in embedded} == {200}
    finally:
        stage.vendors.accept("mistral", [mistral])


def test_a_summary_keeps_what_was_said(stage: Stage) -> None:
    """When Letta makes room, the summary comes from the same vendor and still answers."""
    agent = stage.agent("mistral", compaction_settings={"mode": "self_compact_all"})
    stage.say(agent, "My boat is called Ida.")
    for number in range(4):
        stage.say(agent, f"Say number {number}")
    stage.letta.post(f"/v1/agents/{agent}/summarize", cast_to=object, body={})
    assert stage.answer(agent, "What is my boat called?") == "I remember: My boat is called Ida."


@pytest.mark.parametrize(
    ("fault", "status"),
    [({"status": 401}, 401), ({"status": 429}, 429), ({"reset": True}, None), ({"html": 502}, None)],
)
def test_faults_reach_whoever_talks_to_letta(stage: Stage, fault: dict[str, Any], status: int | None) -> None:
    """A fault ends in an error of Letta's, and the next turn goes well."""
    agent = stage.agent("longcat")
    stage.vendors.fault("longcat", **fault, on="chat")
    with pytest.raises(APIStatusError) as caught:
        stage.say(agent, "Hello")
    if status is not None:
        assert caught.value.status_code == status
    stage.vendors.clear()
    assert stage.answer(agent, "Hello").startswith("Hello!")
