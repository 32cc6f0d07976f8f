"""The fields of an agent file (`.af`) that are read, with what is accepted in each.

Unknown fields are ignored. `agent_file.toml` has the words that a field may hold, and what is imported.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

TABLE: Mapping[str, Any] = tomllib.loads(resources.files(__package__).joinpath("agent_file.toml").read_text("utf-8"))


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("contains a NUL character, which Postgres does not store")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("contains half of a surrogate pair") from None
    return value


def _storable_document(value: dict[str, Any]) -> dict[str, Any]:
    def look(inner: Any) -> None:
        match inner:
            case str():
                _storable(inner)
            case float() if not math.isfinite(inner):
                raise ValueError("contains a number that is not finite")
            case dict():
                for key, item in inner.items():
                    look(key)
                    look(item)
            case list():
                for item in inner:
                    look(item)

    look(value)
    return value


def _one_of(known: Collection[str]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in known:
            raise ValueError(f"it is none of {', '.join(known)}")
        return value

    return AfterValidator(check)


Text = Annotated[str, AfterValidator(_storable)]
Document = Annotated[dict[str, Any], AfterValidator(_storable_document)]
#: Lists and documents that are null in some files.
_EMPTY_LIST = BeforeValidator(lambda value: [] if value is None else value)
_EMPTY_DOCUMENT = BeforeValidator(lambda value: {} if value is None else value)
Texts = Annotated[list[Text], _EMPTY_LIST]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class FilePart(_Model):
    """A part of a message."""

    type: str = "text"
    text: Text | None = None
    reasoning: Text | None = None
    is_native: bool = False

    def for_letta(self) -> dict[str, Any] | None:
        """Return the part for Letta; None if Letta cannot use it."""
        match self.type:
            case "text":
                return {"type": "text", "text": self.text or ""}
            case "image":
                # Letta fails on its URL in every later turn, and most models accept no images.
                return {"type": "text", "text": "[An image was left out when this agent was brought in.]"}
            case "reasoning" if self.reasoning:
                return {"type": "reasoning", "reasoning": self.reasoning, "is_native": self.is_native}
            case _:
                # Encrypted reasoning is of use for one vendor only.
                return None


Parts = Annotated[
    list[FilePart],
    BeforeValidator(lambda value: [] if value is None else [{"text": value}] if isinstance(value, str) else value),
]


class _Function(_Model):
    name: Text
    arguments: Text = "{}"


class _Call(_Model):
    id: Text
    function: _Function


class _Return(_Model):
    tool_call_id: Text | None = None
    status: Literal["success", "error"] = "success"
    stdout: Texts = []
    stderr: Texts = []
    func_response: Parts = []


class FileMessage(_Model):
    """A message."""

    id: str
    role: Literal["assistant", "user", "tool", "function", "system", "approval", "summary"]
    content: Parts = []
    name: Text | None = None
    model: Text | None = None
    tool_calls: Annotated[list[_Call], _EMPTY_LIST] = []
    tool_call_id: Text | None = None
    tool_returns: Annotated[list[_Return], _EMPTY_LIST] = []
    created_at: datetime | None = None

    @property
    def parts(self) -> list[FilePart]:
        """All parts, tool results included."""
        return [*self.content, *(part for one in self.tool_returns for part in one.func_response)]

    @property
    def answers(self) -> set[str]:
        """The ids of the calls whose results it has."""
        ids = {self.tool_call_id, *(one.tool_call_id for one in self.tool_returns)}
        return {id for id in ids if id is not None}

    def for_letta(self, id: str) -> dict[str, Any]:
        """Return the message for Letta, under this id."""
        # A request for an approval is a call that cannot be approved here.
        found: dict[str, Any] = {
            "id": id,
            "role": "assistant" if self.role == "approval" else self.role,
            "content": _parts(self.content),
            "model": self.model,
        }
        if self.created_at is not None:
            found["created_at"] = self.created_at.isoformat()
        if self.tool_calls:
            found["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function.model_dump()}
                for call in self.tool_calls
            ]
        if self.role == "tool":
            found |= {"name": self.name, "tool_call_id": self.tool_call_id}
            found["tool_returns"] = [
                {**one.model_dump(exclude={"func_response"}), "func_response": _plain(one.func_response)}
                for one in self.tool_returns
            ]
        return found


class _ChildArguments(_Model):
    name: Text
    args: dict[str, Any] | None = None


class Rule(_Model):
    """A rule for a tool."""

    type: Annotated[str, _one_of(TABLE["rules"])]
    tool_name: Text
    args: dict[str, Any] | None = None
    children: Texts = []
    child_arg_nodes: Annotated[list[_ChildArguments], _EMPTY_LIST] = []
    default_child: Text | None = None
    child_output_mapping: Annotated[dict[Text, Text], _EMPTY_DOCUMENT] = {}
    require_output_mapping: bool = False
    max_count_limit: int | None = None

    def named(self) -> set[str]:
        """The tools that the rule names."""
        named = {self.tool_name, *self.children, *self.child_output_mapping.values(), self.default_child}
        return {name for name in named if name is not None}

    def for_letta(self) -> dict[str, Any]:
        """Return the rule without prefilled arguments."""
        return self.model_dump(include={"type", "tool_name", *TABLE["rules"][self.type]})


class _Requirement(_Model):
    name: Text
    version: Text | None = None


class FileTool(_Model):
    """A tool."""

    id: str
    name: Text
    tool_type: str = "custom"
    description: Text | None = None
    source_type: Annotated[Text, BeforeValidator(lambda value: "python" if value is None else value)] = "python"
    source_code: Text | None = None
    json_schema: Document | None = None
    args_json_schema: Document | None = None
    tags: Texts = []
    return_char_limit: Annotated[int, Field(ge=1, le=1_000_000)] = 50_000
    pip_requirements: list[_Requirement] | None = None
    npm_requirements: list[_Requirement] | None = None
    default_requires_approval: bool | None = None


class FileBlock(_Model):
    """A memory block."""

    id: str = ""
    label: Text
    value: Annotated[Text, BeforeValidator(lambda value: "" if value is None else value)] = ""
    limit: Annotated[int, Field(ge=1, le=2**31 - 1)] = 20_000
    description: Text | None = None
    read_only: bool = False
    metadata: Annotated[Document, _EMPTY_DOCUMENT] = {}

    def for_letta(self, id: str) -> dict[str, Any]:
        """Return the block for Letta, under this id."""
        # Letta does not enforce limits (fact M17), so a text may be longer.
        return {**self.model_dump(), "id": id, "limit": max(self.limit, len(self.value))}


class FileLlmConfig(_Model):
    """The handle, and the settings that an agent keeps. The binding is not imported."""

    handle: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    parallel_tool_calls: bool | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    put_inner_thoughts_in_kwargs: bool | None = None
    enable_reasoner: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    max_reasoning_tokens: Annotated[int, Field(ge=0)] | None = None
    effort: Literal["low", "medium", "high", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    strict: bool | None = None


class FileAgent(_Model):
    """An agent."""

    id: str
    name: str | None = None
    agent_type: Annotated[str, _one_of(TABLE["agent_types"])] = "letta_v1_agent"
    system: Text | None = None
    description: Text | None = None
    tags: Texts = []
    metadata: Annotated[Document, _EMPTY_DOCUMENT] = {}
    timezone: Text | None = None
    message_buffer_autoclear: bool = False
    include_base_tools: bool = True
    include_base_tool_rules: bool | None = None
    llm_config: FileLlmConfig | None = None
    tools: Texts = []
    tool_ids: Texts = []
    tool_rules: Annotated[list[Rule], _EMPTY_LIST] = []
    block_ids: Texts = []
    memory_blocks: Annotated[list[FileBlock], _EMPTY_LIST] = []
    messages: Annotated[list[FileMessage], _EMPTY_LIST] = []
    in_context_message_ids: Texts = []
    secrets: Annotated[dict[str, Any], _EMPTY_DOCUMENT] = {}
    tool_exec_environment_variables: Annotated[dict[str, Any], _EMPTY_DOCUMENT] = {}


class _Passage(_Model):
    text: Text
    tags: Texts = []
    created_at: str | None = None


class _Archive(_Model):
    passages: list[_Passage]


class _Named(_Model):
    name: str | None = None
    server_name: str | None = None
    file_name: str | None = None


class FileDocument(_Model):
    """A whole file."""

    agents: list[dict[str, Any]] = Field(min_length=1)
    groups: Annotated[list[dict[str, Any]], _EMPTY_LIST] = []
    blocks: Annotated[list[FileBlock], _EMPTY_LIST] = []
    tools: Annotated[list[FileTool], _EMPTY_LIST] = []
    mcp_servers: Annotated[list[_Named], _EMPTY_LIST] = []
    files: Annotated[list[_Named], _EMPTY_LIST] = []
    sources: Annotated[list[_Named], _EMPTY_LIST] = []
    skills: Annotated[list[_Named], _EMPTY_LIST] = []
    isabella: _Archive | None = None


def _parts(parts: Iterable[FilePart]) -> list[dict[str, Any]]:
    return [part for part in (one.for_letta() for one in parts) if part is not None]


def _plain(parts: Iterable[FilePart]) -> str:
    return "\n".join(part["text"] for part in _parts(parts) if part["type"] == "text")
