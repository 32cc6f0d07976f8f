"""What the assistant was sent: memory blocks, turns, tools, read from an OpenAI chat request as Letta builds it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# As Letta 0.16 renders a block: label, description, metadata, sometimes a warning, then the value.
_BLOCK = re.compile(
    r"<(?P<label>[\w./ -]+)>\s*<description>(?P<description>.*?)</description>\s*"
    r"<metadata>(?P<metadata>.*?)</metadata>\s*(?:<warning>.*?</warning>\s*)?"
    r"<value>\n?(?P<value>.*?)\n?</value>\s*</(?P=label)>",
    re.DOTALL,
)
_LINE_NUMBER = re.compile(r"^\d+→ ?", re.MULTILINE)


@dataclass(frozen=True)
class PromptBlock:
    """A memory block.

    Attributes:
        label: its name.
        value: its text.
        read_only: whether its agent may not change it.
    """

    label: str
    value: str
    read_only: bool = False


@dataclass(frozen=True)
class Call:
    """A call of a tool.

    Attributes:
        name: the tool.
        arguments: what it is given.
    """

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class PromptMessage:
    """One message of the conversation.

    Attributes:
        role: user, assistant or tool; `system` for what Letta itself slips in.
        text: what was said, without Letta's wrapping.
        calls: the tools that the assistant called in it.
        failed: for a tool's result, whether the tool failed.
    """

    role: str
    text: str
    calls: tuple[Call, ...] = ()
    failed: bool = False


@dataclass(frozen=True)
class Tool:
    """A tool that the assistant may call.

    Attributes:
        name: its name.
        properties: the JSON schemas of its arguments.
        required: the arguments that it must be given.
    """

    name: str
    properties: Mapping[str, Any]
    required: tuple[str, ...]


@dataclass(frozen=True)
class Situation:
    """All that one request tells the assistant.

    Attributes:
        system: the system message.
        blocks: the memory blocks in it.
        turns: the conversation, oldest first.
        tools: the tools on offer, by name.
        forced: the tool that it must call.
        must_call: whether it must call some tool.
    """

    system: str
    blocks: tuple[PromptBlock, ...] = ()
    turns: tuple[PromptMessage, ...] = ()
    tools: Mapping[str, Tool] = field(default_factory=dict)
    forced: str | None = None
    must_call: bool = False

    @property
    def asked(self) -> str:
        """What the user said last."""
        position = self._position
        return "" if position is None else self.turns[position].text

    @property
    def since(self) -> tuple[PromptMessage, ...]:
        """What has happened since the user spoke: calls of tools and their results."""
        position = self._position
        return () if position is None else self.turns[position + 1 :]

    @property
    def before(self) -> tuple[PromptMessage, ...]:
        """The conversation before the user's last words."""
        position = self._position
        return self.turns if position is None else self.turns[:position]

    @property
    def former(self) -> str:
        """What the user said before that; empty where that was nothing."""
        return next((turn.text for turn in reversed(self.before) if turn.role == "user"), "")

    @property
    def _position(self) -> int | None:
        for index in range(len(self.turns) - 1, -1, -1):
            if self.turns[index].role == "user":
                return index
        return None


def read(request: Mapping[str, Any]) -> Situation:
    """Understand an OpenAI chat request. Whatever is missing or of another shape counts as absent."""
    system: list[str] = []
    turns: list[PromptMessage] = []
    for message in _mappings(request.get("messages")):
        role = str(message.get("role", "user"))
        text = text_of(message.get("content"))
        if role in ("system", "developer"):
            system.append(text)
        elif role == "assistant":
            turns.append(PromptMessage("assistant", text, calls=tuple(_calls(message))))
        elif role == "tool":
            turns.append(_tool_result(text))
        else:
            turns.append(_user_turn(text))
    prompt = "\n".join(system)
    tools = {tool.name: tool for tool in _tools(request)}
    choice = request.get("tool_choice")
    forced = _forced(choice)
    if choice == "none":
        tools = {}
    return Situation(
        system=prompt,
        blocks=tuple(_blocks(prompt)),
        turns=tuple(turns),
        tools=tools,
        forced=forced if forced in tools else None,
        must_call=bool(tools) and (choice in ("required", "any") or forced in tools),
    )


def text_of(content: object) -> str:
    """The text of a message's content, which is a string, a list of parts, or nothing."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in _mappings(content) if isinstance(part.get("text"), str))
    return ""


def _mappings(value: object) -> Sequence[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _user_turn(text: str) -> PromptMessage:
    # Older agent types get user messages, heartbeats and alerts wrapped in JSON.
    wrapped = _json_object(text)
    if wrapped is None:
        return PromptMessage("user", text)
    kind = wrapped.get("type")
    if kind == "user_message":
        return PromptMessage("user", str(wrapped.get("message", "")))
    if kind in ("heartbeat", "system_alert", "login"):
        return PromptMessage("system", str(wrapped.get("message", wrapped.get("reason", ""))))
    return PromptMessage("user", text)


def _tool_result(text: str) -> PromptMessage:
    wrapped = _json_object(text)
    if wrapped is None or "status" not in wrapped:
        return PromptMessage("tool", text, failed=text.startswith("Error"))
    message = wrapped.get("message")
    plain = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    return PromptMessage("tool", plain, failed=wrapped["status"] != "OK")


def _calls(message: Mapping[str, Any]) -> list[Call]:
    calls = []
    for entry in _mappings(message.get("tool_calls")):
        function = entry.get("function")
        if isinstance(function, dict):
            arguments = _json_object(str(function.get("arguments", ""))) or {}
            calls.append(Call(str(function.get("name", "")), arguments))
    return calls


def _tools(request: Mapping[str, Any]) -> list[Tool]:
    tools = []
    for entry in _mappings(request.get("tools")):
        function = entry.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            continue
        parameters = function.get("parameters")
        schema: Mapping[str, Any] = parameters if isinstance(parameters, dict) else {}
        properties = schema.get("properties")
        required = schema.get("required")
        tools.append(
            Tool(
                name=function["name"],
                properties=properties if isinstance(properties, dict) else {},
                required=tuple(str(name) for name in required) if isinstance(required, list) else (),
            )
        )
    return tools


def _forced(choice: object) -> str | None:
    if isinstance(choice, dict):
        function = choice.get("function")
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            return str(function["name"])
    return None


def _blocks(prompt: str) -> list[PromptBlock]:
    return [
        PromptBlock(
            label=found["label"],
            value=_LINE_NUMBER.sub("", found["value"]).strip("\n"),
            read_only="read_only=true" in found["metadata"],
        )
        for found in _BLOCK.finditer(prompt)
    ]


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
