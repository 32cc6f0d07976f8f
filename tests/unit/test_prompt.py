"""An agent's prompt in parts: how the compiled system prompt is divided, and that nothing is counted twice."""

from __future__ import annotations

import anyio
import pytest

from isabella.agents.prompt_budget import Prompt, read_prompt
from isabella.letta.agents import AgentRow
from isabella.letta.client import LettaClient

BLOCKS = (
    "<memory_blocks>\nThese are engaged:\n\n<human>\n<value>\nHas a dog.\n</value>\n</human>\n\n"
    "<self>\n<value>\n<human> is a tag.\n</value>\n</self>\n\n</memory_blocks>"
)
METADATA = "<memory_metadata>\n- It is Friday.\n</memory_metadata>"
ROW: dict[str, object] = {
    "id": "agent-1",
    "system": "I am Isabella.",
    "message_ids": ["message-0", "message-1", "message-2"],
    "blocks": [{"id": "block-1", "label": "human"}, {"id": "block-2", "label": "self"}],
    "tools": [{"id": "tool-1", "name": "memory_insert", "json_schema": {"name": "memory_insert"}}],
    "llm_config": {"model": "m", "model_endpoint_type": "openai", "context_window": 9000},
}


class _Agents:
    def __init__(self, row: dict[str, object]) -> None:
        self._row = row

    async def get(self, _id: str, relations: object = ()) -> AgentRow:
        return AgentRow.model_validate(self._row)


class _Messages:
    async def page(self, _id: str, *, order: str, **_options: object) -> list[dict[str, object]]:
        system: dict[str, object] = {"id": "message-0", "message_type": "system_message"}
        system["content"] = f"I am Isabella.\n\n{BLOCKS}\n\n{METADATA}"
        if order == "asc":
            return [system]
        return [
            system,
            {"id": "message-1", "message_type": "user_message", "content": "My dog is Rex.", "date": "2026-11-27"},
            {"id": "message-2", "message_type": "reasoning_message", "reasoning": "A dog."},
            {"id": "message-2", "message_type": "tool_call_message", "tool_call": {"name": "memory_insert"}},
        ]


@pytest.fixture
def prompt() -> Prompt:
    """The prompt of an agent with two blocks, a tool and two messages."""
    return prompt_of(ROW)


def prompt_of(row: dict[str, object]) -> Prompt:
    """The prompt of an agent that Letta holds so."""
    letta = LettaClient.__new__(LettaClient)
    letta.agents, letta.messages = _Agents(row), _Messages()  # type: ignore[assignment]
    return anyio.run(read_prompt, letta, "agent-1")


def test_each_block_is_a_part(prompt: Prompt) -> None:
    """The parts of the blocks are together exactly what Letta compiled; a tag within a text begins no block."""
    parts = prompt.of("blocks", "block")
    assert [part.name for part in parts] == ["memory blocks", "human", "self"]
    assert "".join(part.text for part in parts) == BLOCKS
    assert "Has a dog." in parts[1].text
    assert "is a tag." in parts[2].text


def test_messages_have_role_time_and_every_text(prompt: Prompt) -> None:
    """A message of several rows is one part; the compiled system prompt is no message."""
    user, assistant = prompt.of("message")
    assert (user.name, user.id, user.at, user.text) == ("user", "message-1", "2026-11-27", "My dog is Rex.")
    assert assistant.name == "assistant"
    assert assistant.text == 'A dog.\n{"name": "memory_insert"}'


def test_the_budget_is_the_sum_of_the_parts(prompt: Prompt) -> None:
    """Each character is counted once, in tokens of four."""
    budget = prompt.budget
    assert list(budget.parts) == ["persona", "memory blocks", "metadata", "tool memory_insert", "conversation"]
    assert budget.parts["persona"] == 4
    assert budget.parts["memory blocks"] == -(-len(BLOCKS) // 4)
    assert budget.window == 9000
    assert sum(part.tokens for part in prompt.parts) - budget.total in range(len(prompt.parts))


@pytest.mark.parametrize("blocks", [[], [{"id": "block-3", "label": "new"}]])
def test_a_text_without_the_blocks_of_the_agent_is_one_part(blocks: list[object]) -> None:
    """An agent has no blocks, or has got them since its last message."""
    prompt = prompt_of(ROW | {"blocks": blocks})
    assert [(part.name, part.text) for part in prompt.of("blocks", "block")] == [("memory blocks", BLOCKS)]
    assert prompt.budget.parts["memory blocks"] == -(-len(BLOCKS) // 4)
