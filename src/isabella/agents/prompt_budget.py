"""The parts of an agent's next prompt: their texts, and their sizes in tokens, estimated as four characters each.

The estimate serves to compare the parts with each other; the tokenizers of vendors differ by 10 to 20 %.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isabella.agents.context import context_ids, context_rows
from isabella.gateway.adapting import with_short_descriptions
from isabella.letta.agents import AgentRow
from isabella.letta.client import LettaClient
from isabella.letta.conversations import DEFAULT
from isabella.system.urls import is_gateway_url

CHARACTERS_PER_TOKEN = 4

_BLOCKS = re.compile(r"<memory_blocks>.*</memory_blocks>", re.DOTALL)
_METADATA = re.compile(r"<memory_metadata>.*</memory_metadata>", re.DOTALL)
_TEXTS = ("content", "reasoning", "tool_call", "tool_return")
_ROLES = {
    "user_message": "user",
    "assistant_message": "assistant",
    "reasoning_message": "assistant",
    "hidden_reasoning_message": "assistant",
    "tool_call_message": "assistant",
    "approval_request_message": "assistant",
    "tool_return_message": "tool",
    "summary_message": "summary",
    "event_message": "event",
    "system_message": "system",
}


@dataclass(frozen=True)
class PromptBudget:
    """The sizes of the parts of a prompt in tokens, and the window that they must fit into."""

    parts: Mapping[str, int]  # `persona`, `memory blocks`, `metadata`, one for each tool, and `conversation`
    window: int  # of the model, in tokens

    @property
    def total(self) -> int:
        """The size of the whole prompt."""
        return sum(self.parts.values())

    @property
    def fixed(self) -> int:
        """The size of everything but the conversation: a summary makes only the conversation smaller."""
        return self.total - self.parts["conversation"]

    def as_json(self) -> dict[str, Any]:
        """Return the form in which `--json` prints it."""
        return {"tokens": self.total, "window": self.window, "parts": dict(self.parts)}


@dataclass(frozen=True)
class PromptPart:
    """A part of a prompt."""

    kind: str  # `persona`, `block`, `blocks` (the text around the blocks), `metadata`, `tool` or `message`
    name: str  # the label of a block, the name of a tool, or the role of a message
    text: str
    id: str = ""  # Letta's id of a message
    at: str = ""  # its time; ISO 8601

    @property
    def tokens(self) -> int:
        """Its size in tokens."""
        return _tokens(len(self.text))


@dataclass(frozen=True)
class Prompt:
    """An agent's next prompt, without the next message."""

    parts: Sequence[PromptPart]  # as the model gets them: the system prompt, then the messages, oldest first
    window: int

    def of(self, *kinds: str) -> list[PromptPart]:
        """Return the parts of these kinds."""
        return [part for part in self.parts if part.kind in kinds]

    @property
    def budget(self) -> PromptBudget:
        """The sizes of its parts; all blocks count as one part, and so do all messages."""
        return PromptBudget(
            {
                "persona": self._size("persona"),
                "memory blocks": self._size("block", "blocks"),
                "metadata": self._size("metadata"),
                **{f"tool {part.name}": part.tokens for part in self.of("tool")},
                "conversation": self._size("message"),
            },
            self.window,
        )

    def _size(self, *kinds: str) -> int:
        return _tokens(sum(len(part.text) for part in self.of(*kinds)))


async def prompt_budget(letta: LettaClient, agent_id: str, conversation: str | None = None) -> PromptBudget:
    """Return the budget of an agent's next prompt, as `read_prompt` reads it."""
    return (await read_prompt(letta, agent_id, conversation)).budget


async def read_prompt(letta: LettaClient, agent_id: str, conversation: str | None = None) -> Prompt:
    """Return an agent's next prompt, without the next message. Raises `LettaError`.

    `conversation` is the id of a conversation other than the default one. The blocks are those of the last message:
    with each message Letta compiles the memory into the system prompt.
    """
    row = await letta.agents.get(agent_id, relations=("agent.tools", "agent.blocks"))
    # The first message is the compiled system prompt.
    beginning = await letta.messages.page(agent_id, limit=1, order="asc", conversation_id=conversation or DEFAULT)
    system = "".join(
        str(one.get("content") or "") for one in beginning if one.get("message_type") == "system_message"
    )
    blocks, metadata = (_found(pattern, system) for pattern in (_BLOCKS, _METADATA))
    # The persona may have changed since the last message.
    persona = row.system or system.replace(blocks, "", 1).replace(metadata, "", 1)
    labels = [block.label for block in row.blocks if block.label]
    parts = [
        PromptPart("persona", "persona", persona),
        *_divided(blocks, labels),
        PromptPart("metadata", "metadata", metadata),
        *_tool_parts(row),
        *await _message_parts(letta, row, conversation),
    ]
    return Prompt(parts, 0 if row.llm is None else row.llm.window)


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return "" if match is None else match[0]


def _divided(text: str, labels: Sequence[str]) -> list[PromptPart]:
    """Divide the compiled blocks into one part for each label, after a part with the text before the first block."""
    starts: dict[str, int] = {}
    if labels:
        tags = re.compile(rf"^<({'|'.join(map(re.escape, labels))})>$", re.MULTILINE)
        for match in tags.finditer(text):
            starts.setdefault(match[1], match.start())
    first = min(starts.values(), default=len(text))
    parts = [PromptPart("blocks", "memory blocks", text[:first])]
    bounds = itertools.pairwise([*starts.values(), len(text)])
    return parts + [
        PromptPart("block", label, text[start:end]) for label, (start, end) in zip(starts, bounds, strict=True)
    ]


def _tool_parts(row: AgentRow) -> Iterator[PromptPart]:
    through_gateway = is_gateway_url((row.llm_config or {}).get("model_endpoint"))
    for tool in row.tools:
        tools: Any = [{"type": "function", "function": tool.json_schema}]
        sent = with_short_descriptions(tools) if through_gateway else tools
        yield PromptPart("tool", str(tool.name), json.dumps(sent, separators=(",", ":"), ensure_ascii=False))


async def _message_parts(letta: LettaClient, row: AgentRow, conversation: str | None) -> list[PromptPart]:
    ids = (row.message_ids or []) if conversation is None else await context_ids(letta, row.id, conversation)
    rows = await context_rows(letta, row.id, ids, conversation)
    return [_message_part(id, rows[id]) for id in ids[1:] if id in rows]


def _message_part(id: str, rows: Sequence[Mapping[str, Any]]) -> PromptPart:
    values = (row.get(name) for row in rows for name in _TEXTS)
    texts = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values if value)
    role = next((_ROLES[kind] for row in rows if (kind := row.get("message_type")) in _ROLES), "message")
    return PromptPart("message", role, "\n".join(texts), id, str(rows[0].get("date") or ""))


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
