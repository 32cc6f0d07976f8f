"""The parts of an agent's next prompt and their sizes, in tokens at four characters each.

No vendor's tokenizer is asked: they differ by a tenth or two, and the parts are compared with each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from isabella.agents.context import context_ids, context_rows
from isabella.gateway.tool_descriptions import with_short_descriptions
from isabella.letta.client import LettaClient
from isabella.letta.conversations import DEFAULT
from isabella.system.urls import is_gateway_url

CHARACTERS_PER_TOKEN = 4

_BLOCKS = re.compile(r"<memory_blocks>.*</memory_blocks>", re.DOTALL)
_METADATA = re.compile(r"<memory_metadata>.*</memory_metadata>", re.DOTALL)
_TEXTS = ("content", "reasoning", "tool_call", "tool_return")


@dataclass(frozen=True)
class PromptBudget:
    """The sizes of the parts of a prompt in tokens, and the window that they have to fit into."""

    parts: Mapping[str, int]  # `persona`, `memory blocks`, `metadata`, one for each tool, and `conversation`
    window: int

    @property
    def total(self) -> int:
        """The size of the whole prompt."""
        return sum(self.parts.values())

    @property
    def fixed(self) -> int:
        """The size of everything but the conversation, which no summary makes smaller."""
        return self.total - self.parts["conversation"]

    def as_json(self) -> dict[str, Any]:
        """Return the form in which `--json` prints it."""
        return {"tokens": self.total, "window": self.window, "parts": dict(self.parts)}


async def prompt_budget(letta: LettaClient, agent_id: str, conversation: str | None = None) -> PromptBudget:
    """Return the budget of an agent's next prompt, without the next message. Raises `LettaError`.

    `conversation` is the id of another conversation than the default one.
    """
    row = await letta.agents.get(agent_id, relations=("agent.tools",))
    ids = (row.message_ids or []) if conversation is None else await context_ids(letta, agent_id, conversation)
    # The first message is the compiled system prompt.
    beginning = await letta.messages.page(agent_id, limit=1, order="asc", conversation_id=conversation or DEFAULT)
    system = "".join(
        str(one.get("content") or "") for one in beginning if one.get("message_type") == "system_message"
    )
    blocks, metadata = (_found(pattern, system) for pattern in (_BLOCKS, _METADATA))
    through_gateway = is_gateway_url((row.llm_config or {}).get("model_endpoint"))
    tools = {f"tool {tool.name}": _tool(tool.json_schema, shortened=through_gateway) for tool in row.tools}
    rows = await context_rows(letta, agent_id, ids, conversation)
    said = (row.get(name) for id in ids[1:] for row in rows.get(id, ()) for name in _TEXTS)
    return PromptBudget(
        {
            # The prompt is compiled with the next message; the persona may have changed since the last one.
            "persona": _tokens(len(row.system or "") or len(system) - len(blocks) - len(metadata)),
            "memory blocks": _tokens(len(blocks)),
            "metadata": _tokens(len(metadata)),
            **tools,
            "conversation": _tokens(_length(said)),
        },
        0 if row.llm is None else row.llm.window,
    )


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return "" if match is None else match[0]


def _tool(schema: Mapping[str, Any] | None, *, shortened: bool) -> int:
    tools: Any = [{"type": "function", "function": schema}]
    return _tokens(len(json.dumps(with_short_descriptions(tools) if shortened else tools, separators=(",", ":"))))


def _length(texts: Iterable[Any]) -> int:
    return sum(len(text if isinstance(text, str) else json.dumps(text)) for text in texts if text)


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
