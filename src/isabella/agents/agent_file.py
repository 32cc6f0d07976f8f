"""The content imported from an agent file (`.af`): one agent, field by field, and the names of everything left out.

An agent file is not trusted. It can name tools that fetch URLs or run programs, prefill their arguments, hide the
agent, attach folders and identities of others by their ids, and bring servers and URLs that Letta would call (fact
A1). So Letta receives a document of fields that are known to be harmless; all others are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from zoneinfo import available_timezones

from pydantic import BaseModel, ValidationError

from isabella.agents.agent_file_format import (
    TABLE,
    FileAgent,
    FileDocument,
    FileLlmConfig,
    FileMessage,
    FilePart,
    Rule,
)
from isabella.agents.memory import ArchivalPassage
from isabella.errors import AgentFileRefused
from isabella.system.redaction import redact

LARGEST_FILE = 64 * 1024 * 1024  # the largest agent file that is read, in bytes
MEMORY_TOOLS = frozenset(TABLE["memory_tools"])  # always imported: they reach nothing but the agent's own memory
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
    """Return the content to import from an agent file. `AgentFileRefused` has the path to a malformed field."""
    return read_document(_document(text))


def read_document(document: Any) -> AgentFile:
    """Return the content to import from the JSON of an agent file, as `read` does."""
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


def _read(document: Any) -> AgentFile:
    file = _parse(FileDocument, document)
    index = _main_agent(file)
    raw = file.agents[index]
    agent = _parse(FileAgent, raw, "agents", index)
    names, programs = _tools(file, agent, index)
    superfluous = "send_message" in names and agent.agent_type in TABLE["types_without_send_message"]
    if superfluous:
        names.remove("send_message")
    messages, context, about_messages = _messages(agent, index)
    fields = agent.model_dump(include=set(TABLE["imported_fields"]))
    if not _known_zone(agent.timezone):
        fields["timezone"] = None
    config = agent.llm_config or FileLlmConfig()
    special = ["the tool send_message: agents of this type answer without it"] if superfluous else []
    special += [f"the tag {tag}" for tag in TABLE["special_tags"] if tag in agent.tags]
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
        tags=[tag for tag in dict.fromkeys(agent.tags) if tag not in TABLE["special_tags"]],
        metadata=agent.metadata,
        passages=[ArchivalPassage("", one.text, tuple(one.tags), one.created_at) for one in passages],
        left_out=[*_untaken(file, agent, index), *special, *about_messages],
    )


def too_large() -> AgentFileRefused:
    """Return the error about a file of more than `LARGEST_FILE` bytes."""
    return AgentFileRefused(
        f"The file is larger than {LARGEST_FILE // 1024 // 1024} MB.",
        remedy="Remove older messages from it, and import it again.",
    )


def _document(text: str | bytes) -> Any:
    if len(text) > LARGEST_FILE:
        raise too_large()
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


def _main_agent(file: FileDocument) -> int:
    """Return the index of the agent to import: not a sleep-time agent of another one."""
    agents = range(len(file.agents))
    main = [index for index in agents if file.agents[index].get("agent_type") not in TABLE["companion_types"]] or [
        *agents
    ]
    if len(main) > 1:
        raise AgentFileRefused(
            f"The file holds {len(main)} agents; one can be imported at a time.",
            remedy="Export them one by one. A sleep-time agent may accompany its main agent.",
        )
    return main[0]


def _tools(file: FileDocument, agent: FileAgent, index: int) -> tuple[list[str], dict[str, Mapping[str, Any]]]:
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


def _blocks(file: FileDocument, agent: FileAgent, index: int) -> list[dict[str, Any]]:
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


def _messages(agent: FileAgent, index: int) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Return the messages for Letta, the ids of those in the context, and what was left out, for people."""
    by_id: dict[str, FileMessage] = {}
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
    system = FileMessage(
        id="message-0",
        role="system",
        content=[FilePart(text=agent.system or "")],
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


def _is_never_sent(message: FileMessage) -> bool:
    """Return whether Letta sends a message to no vendor: a decision about an approval, or a result as of 2023."""
    return message.role == "function" or (message.role == "approval" and not message.tool_calls)


def _complete(context: Sequence[FileMessage]) -> list[FileMessage]:
    """Remove calls without results and results without calls: vendors refuse both in every turn."""
    kept: list[FileMessage] = []
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


def _untaken(file: FileDocument, agent: FileAgent, index: int) -> list[str]:
    """Describe the parts of the file that are not imported."""
    found = [
        f"the agent {str(other.get('name') or other.get('id'))!r}, its companion"
        for number, other in enumerate(file.agents)
        if number != index
    ]
    for key, title in TABLE["omitted_lists"].items():
        named = [one.server_name or one.file_name or one.name or "without a name" for one in getattr(file, key)]
        if named:
            found.append(f"{title}: {', '.join(named)}")
    if variables := sorted({*agent.secrets, *agent.tool_exec_environment_variables}):
        found.append(f"secrets for tools: {', '.join(variables)}")
    if not _known_zone(agent.timezone):
        found.append(f"the time zone {agent.timezone}, which is not known here")
    raw = file.agents[index]
    return [*found, *(title for field, title in TABLE["omitted_fields"].items() if raw.get(field))]


def _known_zone(value: str | None) -> bool:
    # Letta refuses a file with an unknown time zone.
    return value in (None, "UTC") or value in available_timezones()
