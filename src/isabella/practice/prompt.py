"""The chat request as the practice assistant reads it: memory blocks, messages, tools, and the facts in them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

# A memory block as Letta 0.16 renders it: label, description, metadata, sometimes a warning, then the value.
_BLOCK = re.compile(
    r"<(?P<label>[\w./ -]+)>\s*<description>(?P<description>.*?)</description>\s*"
    r"<metadata>(?P<metadata>.*?)</metadata>\s*(?:<warning>.*?</warning>\s*)?"
    r"<value>\n?(?P<value>.*?)\n?</value>\s*</(?P=label)>",
    re.DOTALL,
)
_LINE_NUMBER = re.compile(r"^\d+→ ?", re.MULTILINE)

_STOP_WORDS_TEXT = """
a an the and or but of to in on at for with from by as is are was were be been am do does did have has had what who
whom whose which where when why how that this these those it its i im me my mine you your he she they we our us user
know remember recall tell said please can could would will name named call called about there here not no yes so if
then than too very just now still already
"""
_STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())
#: A value of each JSON type.
_VALUES: Mapping[str, Any] = {"integer": 0, "number": 0, "boolean": False, "array": [], "object": {}}
_USER_LINE = re.compile(r"(?im)^[ \t]*(?:\d+\.[ \t]*)?\[?(?:MessageRole\.)?user\]?:?\s+(?P<text>.+)$")
_MY_NAME = re.compile(r"\b(?:my|the user's) name\b|\bwho am I\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


@dataclass(frozen=True)
class PromptBlock:
    """A memory block in the system message."""

    label: str
    value: str
    read_only: bool = False

    @property
    def about_agent(self) -> bool:
        """Whether it describes the agent, not the user."""
        return self.label in ("persona", "self", "memory_persona", "instructions", "guidelines", "policies")


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class PromptMessage:
    """A message of the conversation, without the JSON in which Letta wraps it.

    The role is user, assistant or tool, or system for messages that Letta itself inserts. `failed` says whether it is
    the result of a tool that failed.
    """

    role: str
    text: str
    calls: tuple[ToolCall, ...] = ()
    failed: bool = False

    def found_texts(self) -> list[str]:
        """Return the sentences in the result of a search, which Letta sends as JSON or as a Python literal."""
        for parse in (json.loads, ast.literal_eval):
            # Python's own parser fails in several ways on text that is not Python.
            with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                return list(_strings(parse(self.text)))
        return self.text.splitlines()


@dataclass(frozen=True)
class OfferedTool:
    """A tool that the assistant may call: its name, the JSON schemas of its arguments, the required ones."""

    name: str
    properties: Mapping[str, Any]
    required: tuple[str, ...]

    def call(self, arguments: Mapping[str, Any], *, reasoning: str, filler: str) -> ToolCall:
        """Return a call with these arguments and all others that the tool asks for; `filler` is for strings."""
        complete: dict[str, Any] = {
            name: reasoning for name in ("thinking", "inner_thoughts") if name in self.properties
        }
        complete |= arguments
        if "request_heartbeat" in self.properties:
            complete["request_heartbeat"] = self.name not in ("send_message", "memory_finish_edits")
        for name in self.required:
            if name not in complete:
                complete[name] = -1 if name == "insert_line" else _value_for(self.properties.get(name), filler)
        return ToolCall(self.name, complete)


@dataclass(frozen=True)
class ChatPrompt:
    """A chat request as the assistant reads it; the messages are oldest first, the system message left out.

    `forced` is the tool that the request forces, if it forces one; `must_call` says whether it wants any tool called.
    """

    blocks: tuple[PromptBlock, ...] = ()
    messages: tuple[PromptMessage, ...] = ()
    tools: Mapping[str, OfferedTool] = field(default_factory=dict)
    forced: str | None = None
    must_call: bool = False

    @property
    def user_text(self) -> str:
        """The last message of the user; empty if there is none."""
        return self.messages[self._last_user].text if self._last_user >= 0 else ""

    @property
    def after_user(self) -> tuple[PromptMessage, ...]:
        """The messages after the user's last one: tool calls and their results."""
        return self.messages[self._last_user + 1 :] if self._last_user >= 0 else ()

    @property
    def before_user(self) -> tuple[PromptMessage, ...]:
        """The messages before the user's last one."""
        return self.messages[: self._last_user] if self._last_user >= 0 else self.messages

    @property
    def previous_user_text(self) -> str:
        """The user's message before the last one; empty if there is none."""
        return next((message.text for message in reversed(self.before_user) if message.role == "user"), "")

    @property
    def transcript(self) -> list[str]:
        """The user's lines in a transcript that is the last message."""
        return [match["text"].strip() for match in _USER_LINE.finditer(self.user_text)]

    @property
    def facts(self) -> list[str]:
        """The sentences in the blocks; those about the agent itself come in `own_facts`."""
        return [fact for block in self.blocks if not block.about_agent for fact in sentences(block.value)]

    @property
    def own_facts(self) -> list[str]:
        """The sentences in the blocks about the agent itself."""
        return [fact for block in self.blocks if block.about_agent for fact in sentences(block.value)]

    @property
    def _last_user(self) -> int:
        positions = (index for index, message in enumerate(self.messages) if message.role == "user")
        return max(positions, default=-1)


@dataclass(frozen=True)
class Reply:
    """What the assistant says or does in one step; `text` is empty if it only calls tools."""

    reasoning: str
    text: str = ""
    calls: tuple[ToolCall, ...] = ()


def read_prompt(body: Mapping[str, Any]) -> ChatPrompt:
    """Read an OpenAI chat request. A part that is missing or malformed counts as absent."""
    system: list[str] = []
    messages: list[PromptMessage] = []
    for message in _mappings(body.get("messages")):
        role = str(message.get("role", "user"))
        text = _text_of(message.get("content"))
        if role in ("system", "developer"):
            system.append(text)
        elif role == "assistant":
            messages.append(PromptMessage("assistant", text, calls=tuple(_tool_calls(message))))
        else:
            messages.append(_tool_result(text) if role == "tool" else _user_message(text))
    choice = body.get("tool_choice")
    tools = {} if choice == "none" else {tool.name: tool for tool in _offered_tools(body)}
    function = choice.get("function") if isinstance(choice, dict) else None
    forced = str(function["name"]) if isinstance(function, dict) and "name" in function else None
    return ChatPrompt(
        blocks=tuple(_blocks("\n".join(system))),
        messages=tuple(messages),
        tools=tools,
        forced=forced if forced in tools else None,
        must_call=bool(tools) and (choice in ("required", "any") or forced in tools),
    )


def _mappings(value: object) -> Sequence[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text_of(content: object) -> str:
    """Return the text of a message's content, which is a string, a list of parts, or null; an image as its size."""
    if isinstance(content, str):
        return content
    texts = (part.get("text") if "image_url" not in part else _image_of(part) for part in _mappings(content))
    return "\n".join(text for text in texts if isinstance(text, str))


def _image_of(part: Mapping[str, Any]) -> str:
    given = part["image_url"]
    kind, _, data = str(given.get("url") if isinstance(given, dict) else given).partition(",")
    return f"[{kind.removeprefix('data:').removesuffix(';base64')}, {len(data) * 3 // 4 - data.count('=')} bytes]"


def _user_message(text: str) -> PromptMessage:
    # Older agent types get user messages, heartbeats and alerts wrapped in JSON.
    wrapped = _json_object(text) or {}
    if wrapped.get("type") == "user_message":
        return PromptMessage("user", str(wrapped.get("message", "")))
    if wrapped.get("type") in ("heartbeat", "system_alert", "login"):
        return PromptMessage("system", str(wrapped.get("message", wrapped.get("reason", ""))))
    return PromptMessage("user", text)


def _tool_result(text: str) -> PromptMessage:
    wrapped = _json_object(text)
    if wrapped is None or "status" not in wrapped:
        return PromptMessage("tool", text, failed=text.startswith("Error"))
    message = wrapped.get("message")
    plain = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    return PromptMessage("tool", plain, failed=wrapped["status"] != "OK")


def _tool_calls(message: Mapping[str, Any]) -> Iterator[ToolCall]:
    for entry in _mappings(message.get("tool_calls")):
        function = entry.get("function")
        if isinstance(function, dict):
            arguments = _json_object(str(function.get("arguments", ""))) or {}
            yield ToolCall(str(function.get("name", "")), arguments)


def _offered_tools(body: Mapping[str, Any]) -> Iterator[OfferedTool]:
    for entry in _mappings(body.get("tools")):
        function = entry.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            continue
        parameters = function.get("parameters")
        schema = parameters if isinstance(parameters, dict) else {}
        properties, required = schema.get("properties"), schema.get("required")
        yield OfferedTool(
            name=function["name"],
            properties=properties if isinstance(properties, dict) else {},
            required=tuple(str(name) for name in required) if isinstance(required, list) else (),
        )


def _blocks(system: str) -> Iterator[PromptBlock]:
    for match in _BLOCK.finditer(system):
        value = _LINE_NUMBER.sub("", match["value"]).strip("\n")
        yield PromptBlock(match["label"], value, read_only="read_only=true" in match["metadata"])


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _value_for(schema: object, filler: str) -> Any:
    """Return a harmless value for an argument: its default, null, or a value of its type; `filler` for a string."""
    if not isinstance(schema, Mapping):
        return filler
    kinds = schema["type"] if isinstance(schema.get("type"), list) else [schema.get("type")]
    if "default" in schema or "anyOf" in schema or "null" in kinds:
        return schema.get("default")
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return choices[0]
    return _VALUES.get(str(kinds[0]) if kinds else "", filler)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield from sentences(value)
    inner = value if isinstance(value, list) else []
    if isinstance(value, dict):
        inner = [value.get(name) for name in ("results", "content", "text", "message")]
    for item in inner:
        yield from _strings(item)


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, each of which may be a fact."""
    for line in text.splitlines():
        for sentence in re.split(r"(?<=[.!?])\s+(?=[\"'A-Z0-9])", line):
            if sentence.strip():
                yield sentence.strip()


def same_words(text: str, other: str) -> bool:
    """Whether two texts differ only in case, spacing and punctuation."""
    return _WORD.findall(text.lower()) == _WORD.findall(other.lower())


def best_match(question: str, facts: Iterable[str]) -> str | None:
    """Return the fact that shares most words with a question, the newest of equals; None if none shares any."""
    best, best_score = None, 0.0
    words = _content_words(question)
    for fact in facts:
        if not words:
            score = float(bool(_MY_NAME.search(question) and _MY_NAME.search(fact)))
        else:
            fact_words = _content_words(fact)
            # A small deduction for other words keeps a long text from answering everything.
            score = len(words & fact_words) - 0.01 * len(fact_words - words) if words & fact_words else 0.0
        if score and score >= best_score:
            best, best_score = fact, score
    return best


def _content_words(text: str) -> set[str]:
    return {word.removesuffix("'s") for word in _WORD.findall(text.lower())} - _STOP_WORDS
