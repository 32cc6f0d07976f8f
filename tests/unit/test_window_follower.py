"""When an agent follows the window of its model."""

from __future__ import annotations

import pytest

from isabella.agents.definitions import AgentDefinition
from isabella.agents.registry import AgentRecord
from isabella.letta.llm_config import Binding, LlmConfig
from isabella.server.window_follower import followed

HANDLE = "smol/smollm2"


def record(window: int, chosen: int | None = None) -> AgentRecord:
    """An agent with this window, whose definition chooses another one at most."""
    config = Binding("smol", "smollm2", "http://127.0.0.1:9/v1", window).as_llm_config()
    definition = AgentDefinition(id="a", name="A", description="", persona="x", window=chosen)
    return AgentRecord("agent-1", "A", definition=definition, llm=LlmConfig.of(config))


@pytest.mark.parametrize(
    ("window", "former", "limit", "chosen", "then"),
    [
        (32_768, 32_768, 8192, None, 8192),  # the server was started with less
        (32_768, None, 8192, None, 8192),  # and nothing was known before
        (8192, 8192, 32_768, None, 32_768),  # with more
        (8192, 16_384, 32_768, None, None),  # the agent's was chosen
        (8192, 8192, 32_768, 16_384, 16_384),  # no more than its definition allows
        (8192, 8192, 8192, None, None),
        (8192, 8192, None, None, None),  # the vendor tells nothing
    ],
)
def test_the_window_of_an_agent(
    window: int, former: int | None, limit: int | None, chosen: int | None, then: int | None
) -> None:
    """Never more than the model has, and more again if it was the model's before."""
    binding = followed(record(window, chosen), {HANDLE: former} if former else {}, {HANDLE: limit} if limit else {})
    assert (None if binding is None else binding.window) == then


def test_an_agent_without_an_explicit_binding_stays() -> None:
    """Nothing is known of its model."""
    assert followed(AgentRecord("agent-1", "A"), {}, {HANDLE: 8192}) is None
