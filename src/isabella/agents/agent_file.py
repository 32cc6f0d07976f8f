"""What is imported from an agent file (`.af`): one agent, field by field, and the names of all that is left out.

An agent file is not trusted. It can name tools that fetch URLs or run programs, prefill their arguments, hide the
agent, attach folders and identities of others by their ids, and bring servers and URLs that Letta would call (fact
A1). So Letta receives a document of fields that are known to be harmless; all others are left out.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from isabella.agents.memory import ArchivalPassage
from isabella.errors import AgentFileRefused
from isabella.system.redaction import redact

LARGEST_FILE = 64 * 1024 * 1024  # the largest agent file that is read, in bytes
_TABLE: Mapping[str, Any] = tomllib.loads(resources.files(__package__).joinpath("agent_file.toml").read_text("utf-8"))
MEMORY_TOOLS = frozenset(_TABLE["memory_tools"])  # always imported: they reach nothing but the agent's own memory
ARCHIVE_KEY = "isabella"  # the key of archival memory in a file, which Letta's own export leaves out (fact M19)
REMEDY = "Export one with `isabella agents export`, or from Letta in its format with `agents`."

#: These rules have an agent call a tool that neither its model nor its user asked for.
_CALLING = ("run_first", "required_before_exit")

Parsed = TypeVar("Parsed", bound=BaseModel)


@dataclass(frozen=True)
class AgentFile:
    """An agent in a file, reduced to what is imported."""

    agent: Mapping[str, Any]  # the agent's fields for Letta, without tools and their rules
    blocks: Sequence[Mapping[str, Any]]  # its memory blocks for Letta
    handle: str | None  # the model that it was bound to; None if the file has none
    settings: Mapping[str, Any]  # the settings of its `llm_config`, such as the temperature
    name: str
    tools: Sequence[str]  # the names of its tools, in order
    programs: Mapping[str, Mapping[str, Any]]  # the definitions of its tools that are programs, by name
    rules: Sequence[Rule]
    tags: Sequence[str]
    metadata: Mapping[str, Any]
    passages: Sequence[ArchivalPassage]
    left_out: Sequence[str]  # what else the file has, for people


def read(text: str | bytes) -> AgentFile:
    """Return what is imported from an agent file. `AgentFileRefused` has the path to a malformed field."""
    return read_document(_document(text))


def read_document(document: Any) -> AgentFile:
    """Return what is imported from the JSON of an agent file, as `read` does."""
    try:
        return _read(document)
    except RecursionError:
        raise AgentFileRefused("The file is nested too deeply.", remedy=REMEDY) from None


def allowed_rules(rules: Iterable[Rule], tools: Iterable[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rules for an agent with these tools, and what was removed from them, for people.

    Removed are rules that make a call themselves, prefilled arguments (the transcript would show others), and rules
    about missing tools. Rules that restrain the agent's model stay.
    """
    there = set(tools)
    kept, out = [], []
    for rule in rules:
        if rule.type in _CALLING:
            with_arguments = ", with prefilled arguments" if rule.args else ""
            out.append(f"the rule {rule.type} of {rule.tool_name}{with_arguments}")
        elif missing := sorted(rule.named() - there):
            out.append(f"the rule {rule.type} of {rule.tool_name}, which needs {', '.join(missing)}")
        else:
            out += [f"prefilled arguments of {node.name}" for node in rule.child_arg_nodes if node.args]
            kept.append(rule.for_letta())
    return kept, out


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


def _known_zone(value: str | None) -> bool:
    # Letta refuses a file with an unknown time zone.
    return value in (None, "UTC") or value in available_timezones()


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


class _Part(_Model):
    """A part of a message."""

    type: str = "text"
    text: Text | None = None
    reasoning: Text | None = None
    is_native: bool = False

    def for_letta(self) -> dict[str, Any] | None:
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
    list[_Part],
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


class _Message(_Model):
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
    def parts(self) -> list[_Part]:
        """All parts, tool results included."""
        return [*self.content, *(part for one in self.tool_returns for part in one.func_response)]

    @property
    def answers(self) -> set[str]:
        """The ids of the calls whose results it has."""
        ids = {self.tool_call_id, *(one.tool_call_id for one in self.tool_returns)}
        return {id for id in ids if id is not None}

    def for_letta(self, id: str) -> dict[str, Any]:
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

    type: Annotated[str, _one_of(_TABLE["rules"])]
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
        return self.model_dump(include={"type", "tool_name", *_TABLE["rules"][self.type]})


class _Requirement(_Model):
    name: Text
    version: Text | None = None


class _Tool(_Model):
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


class _Block(_Model):
    id: str = ""
    label: Text
    value: Annotated[Text, BeforeValidator(lambda value: "" if value is None else value)] = ""
    limit: Annotated[int, Field(ge=1, le=2**31 - 1)] = 20_000
    description: Text | None = None
    read_only: bool = False
    metadata: Annotated[Document, _EMPTY_DOCUMENT] = {}

    def for_letta(self, id: str) -> dict[str, Any]:
        # Letta does not enforce limits (fact M17), so a text may be longer.
        return {**self.model_dump(), "id": id, "limit": max(self.limit, len(self.value))}


class _LlmConfig(_Model):
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


class _Agent(_Model):
    id: str
    name: str | None = None
    agent_type: Annotated[str, _one_of(_TABLE["agent_types"])] = "letta_v1_agent"
    system: Text | None = None
    description: Text | None = None
    tags: Texts = []
    metadata: Annotated[Document, _EMPTY_DOCUMENT] = {}
    timezone: Text | None = None
    message_buffer_autoclear: bool = False
    include_base_tools: bool = True
    include_base_tool_rules: bool | None = None
    llm_config: _LlmConfig | None = None
    tools: Texts = []
    tool_ids: Texts = []
    tool_rules: Annotated[list[Rule], _EMPTY_LIST] = []
    block_ids: Texts = []
    memory_blocks: Annotated[list[_Block], _EMPTY_LIST] = []
    messages: Annotated[list[_Message], _EMPTY_LIST] = []
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


class _File(_Model):
    agents: list[dict[str, Any]] = Field(min_length=1)
    groups: Annotated[list[dict[str, Any]], _EMPTY_LIST] = []
    blocks: Annotated[list[_Block], _EMPTY_LIST] = []
    tools: Annotated[list[_Tool], _EMPTY_LIST] = []
    mcp_servers: Annotated[list[_Named], _EMPTY_LIST] = []
    files: Annotated[list[_Named], _EMPTY_LIST] = []
    sources: Annotated[list[_Named], _EMPTY_LIST] = []
    skills: Annotated[list[_Named], _EMPTY_LIST] = []
    isabella: _Archive | None = None


def _read(document: Any) -> AgentFile:
    file = _parse(_File, document)
    index = _main_agent(file)
    raw = file.agents[index]
    agent = _parse(_Agent, raw, "agents", index)
    names, programs = _tools(file, agent, index)
    superfluous = "send_message" in names and agent.agent_type in _TABLE["types_without_send_message"]
    if superfluous:
        names.remove("send_message")
    messages, context, about_messages = _messages(agent, index)
    fields = agent.model_dump(include=set(_TABLE["imported_fields"]))
    if not _known_zone(agent.timezone):
        fields["timezone"] = None
    config = agent.llm_config or _LlmConfig()
    special = ["the tool send_message: agents of this type answer without it"] if superfluous else []
    special += [f"the tag {tag}" for tag in _TABLE["special_tags"] if tag in agent.tags]
    passages = file.isabella.passages if file.isabella else []
    return AgentFile(
        agent={**fields, "messages": messages, "in_context_message_ids": context},
        blocks=_blocks(file, agent, index),
        handle=config.handle,
        settings=config.model_dump(exclude={"handle"}, exclude_none=True),
        name=agent.name or "",
        tools=names,
        programs=programs,
        rules=agent.tool_rules,
        tags=[tag for tag in dict.fromkeys(agent.tags) if tag not in _TABLE["special_tags"]],
        metadata=agent.metadata,
        passages=[ArchivalPassage("", one.text, tuple(one.tags), one.created_at) for one in passages],
        left_out=[*_untaken(file, agent, index), *special, *about_messages],
    )


def _document(text: str | bytes) -> Any:
    if len(text) > LARGEST_FILE:
        raise AgentFileRefused(f"The file is larger than {LARGEST_FILE // 1024 // 1024} MB.")
    try:
        document = json.loads(text, parse_constant=_no_constant)
        # Letta also accepts a JSON string that contains the JSON.
        return json.loads(document, parse_constant=_no_constant) if isinstance(document, str) else document
    except RecursionError:
        raise AgentFileRefused("The file is nested too deeply.", remedy=REMEDY) from None
    except ValueError:
        raise AgentFileRefused("The file is not JSON, so it is not an agent file.", remedy=REMEDY) from None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _parse(model: type[Parsed], value: Any, *where: str | int) -> Parsed:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        raise _malformed(found["msg"], *where, *found["loc"]) from None


def _malformed(why: str, *where: str | int) -> AgentFileRefused:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
    return AgentFileRefused(
        f"The agent file is malformed at {redact(path)[:200] or 'its top'}: {redact(why)[:300]}.", remedy=REMEDY
    )


def _main_agent(file: _File) -> int:
    """Return the index of the agent to import: not a sleep-time agent of another one."""
    agents = range(len(file.agents))
    main = [index for index in agents if file.agents[index].get("agent_type") not in _TABLE["companion_types"]] or [
        *agents
    ]
    if len(main) > 1:
        raise AgentFileRefused(
            f"The file holds {len(main)} agents; one can be imported at a time.",
            remedy="Export them one by one. A sleep-time agent may accompany its main agent.",
        )
    return main[0]


def _tools(file: _File, agent: _Agent, index: int) -> tuple[list[str], dict[str, Mapping[str, Any]]]:
    by_id = {tool.id: tool for tool in file.tools}
    names = list(agent.tools)
    programs: dict[str, Mapping[str, Any]] = {}
    for position, id in enumerate(agent.tool_ids):
        if id not in by_id:
            raise _malformed(f"there is no tool {id!r} in the file", "agents", index, "tool_ids", position)
        tool = by_id[id]
        names.append(tool.name)
        if tool.tool_type == "custom" and tool.source_code:
            programs[tool.name] = tool.model_dump()
    return list(dict.fromkeys(names)), programs


def _blocks(file: _File, agent: _Agent, index: int) -> list[dict[str, Any]]:
    by_id = {block.id: block for block in file.blocks}
    found = []
    for position, id in enumerate(dict.fromkeys(agent.block_ids)):
        if id not in by_id:
            raise _malformed(f"there is no block {id!r} in the file", "agents", index, "block_ids", position)
        found.append(by_id[id])
    found += agent.memory_blocks
    labels = [block.label for block in found]
    for label in labels:
        if labels.count(label) > 1:
            raise _malformed(f"two blocks have the label {label!r}", "agents", index, "block_ids")
    return [block.for_letta(f"block-{number}") for number, block in enumerate(found)]


def _messages(agent: _Agent, index: int) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Return the messages for Letta, the ids of those in the context, and what was left out, for people."""
    by_id: dict[str, _Message] = {}
    for position, message in enumerate(agent.messages):
        if message.id in by_id:
            raise _malformed("another message has the same id", "agents", index, "messages", position, "id")
        by_id[message.id] = message
    for position, id in enumerate(agent.in_context_message_ids):
        if id not in by_id:
            raise _malformed(f"there is no message {id!r}", "agents", index, "in_context_message_ids", position)
    context = [by_id[id] for id in dict.fromkeys(agent.in_context_message_ids)]
    # The first message is the system prompt with the memory, which Letta compiles again. A file without messages in
    # its context has none, and an agent without one cannot answer (facts A3, A4).
    former = context.pop(0) if context and context[0].role == "system" else None
    kept = _complete(context)
    taken = [one for one in agent.messages if one is not former and not _is_never_sent(one)]
    ids = {one.id: f"message-{number}" for number, one in enumerate(taken, start=1)}
    first = former or (agent.messages[0] if agent.messages else None)
    system = _Message(
        id="message-0",
        role="system",
        content=[_Part(text=agent.system or "")],
        created_at=first.created_at if first else None,
    )
    out = []
    if images := sum(part.type == "image" for one in taken for part in one.parts):
        out.append(f"images in messages ({images})")
    if unfinished := len(context) - len(kept):
        out.append(f"messages of unfinished tool calls in the context ({unfinished})")
    return (
        [system.for_letta("message-0"), *(one.for_letta(ids[one.id]) for one in taken)],
        ["message-0", *(ids[one.id] for one in kept)],
        out,
    )


def _is_never_sent(message: _Message) -> bool:
    """Return whether Letta sends a message to no vendor: a decision about an approval, or a result as of 2023."""
    return message.role == "function" or (message.role == "approval" and not message.tool_calls)


def _complete(context: Sequence[_Message]) -> list[_Message]:
    """Remove calls without results and results without calls: vendors refuse both in every turn."""
    kept: list[_Message] = []
    rest = [message for message in context if not _is_never_sent(message)]
    while rest:
        message = rest.pop(0)
        if message.role == "tool":
            continue
        results = []
        while message.tool_calls and rest and rest[0].role == "tool":
            results.append(rest.pop(0))
        answered = {id for result in results for id in result.answers}
        if answered == {call.id for call in message.tool_calls}:
            kept += [message, *results]
    return kept


def _untaken(file: _File, agent: _Agent, index: int) -> list[str]:
    """Return what the file has and is not imported, for people."""
    found = [
        f"the agent {str(other.get('name') or other.get('id'))!r}, its companion"
        for number, other in enumerate(file.agents)
        if number != index
    ]
    for key, title in _TABLE["omitted_lists"].items():
        named = [one.server_name or one.file_name or one.name or "without a name" for one in getattr(file, key)]
        if named:
            found.append(f"{title}: {', '.join(named)}")
    if variables := sorted({*agent.secrets, *agent.tool_exec_environment_variables}):
        found.append(f"secrets for tools: {', '.join(variables)}")
    if not _known_zone(agent.timezone):
        found.append(f"the time zone {agent.timezone}, which is not known here")
    raw = file.agents[index]
    return [*found, *(title for field, title in _TABLE["omitted_fields"].items() if raw.get(field))]


def _parts(parts: Iterable[_Part]) -> list[dict[str, Any]]:
    return [part for part in (one.for_letta() for one in parts) if part is not None]


def _plain(parts: Iterable[_Part]) -> str:
    return "\n".join(part["text"] for part in _parts(parts) if part["type"] == "text")
