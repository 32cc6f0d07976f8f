"""Agents as files (`.af`): taken out of Letta without any key in them, and brought in bound to what works here.

Letta's own export leaves archival memory out. This one adds the passages, below a key of Isabella's own. Every field
that may hold a secret is left out, and what this process knows as a secret is masked wherever it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from isabella.agents import metadata as agent_metadata
from isabella.agents.agent_file import MEMORY_TOOLS, OURS, REMEDY, AgentFile, allowed_rules, read
from isabella.agents.definitions import NAME
from isabella.agents.embeddings import EmbeddingSetup
from isabella.agents.memory import ArchivalMemory
from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.reconcile import set_embedding
from isabella.agents.registry import AgentRecord, AgentRegistry
from isabella.errors import AgentExists, AgentFileRefused, IsabellaError, LettaBroken, LettaRefused
from isabella.letta.connection import Connection
from isabella.letta.llm_config import import_fields
from isabella.system.redaction import redact

#: Fields of an exported agent that may hold secrets, or that mean nothing elsewhere, and what stands in their place.
_LEFT_OUT: Mapping[str, Any] = {
    "secrets": None,
    "tool_exec_environment_variables": {},
    # Its address has a secret of this backend in it, and vectors are made anew where the agent is brought in.
    "embedding_config": None,
    "embedding": None,
}
_VERSION = 1
#: The types of Letta's own tools for memory and conversation.
_MEMORY_TYPES = frozenset({"letta_core", "letta_memory_core", "letta_sleeptime_core"})


@dataclass(frozen=True)
class ImportedAgent:
    """An agent that was brought in.

    Attributes:
        id: Letta's id of it.
        name: what it is called.
        handle: the model that it is bound to.
        passages: how many passages its archival memory has.
        notes: what is to be known about it, one sentence each.
        left_out: what the file holds and was not brought in, for people.
    """

    id: str
    name: str
    handle: str
    passages: int
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


async def export_agent(registry: AgentRegistry, record: AgentRecord, secrets: Iterable[str] = ()) -> str:
    """An agent as a file: its prompt, tools, blocks, the messages in its context, and its archival memory.

    Args:
        registry: its Letta.
        record: which.
        secrets: texts that must not be in the file, whatever put them there.

    Raises:
        AgentFileRefused: a secret would have been in the file.
        LettaError: Letta cannot export it.
    """
    document = await registry.letta.agents.export_file(record.id)
    passages = await ArchivalMemory(registry.letta).every(record.id)
    for agent in document.get("agents", []):
        agent.update({name: value for name, value in _LEFT_OUT.items() if name in agent})
        agent["metadata"] = _without_marks(agent.get("metadata"))
        agent["tags"] = _without_definition(agent.get("tags"))
    # What reaches an MCP server (tokens, headers, environments) stays here; its tools would have to be attached anew.
    document["mcp_servers"] = []
    document[OURS] = {
        "version": _VERSION,
        "passages": [
            {"text": passage.text, "tags": list(passage.tags), "created_at": passage.created_at}
            for passage in passages
        ],
    }
    # Somebody may have told an agent a key: what this process knows as a secret is masked wherever it stands.
    text = redact(json.dumps(document, ensure_ascii=False, indent=2))
    if any(secret in text for secret in secrets):
        raise AgentFileRefused("The file would have held a key, and was not written.")
    return text


async def import_agent(
    registry: AgentRegistry,
    models: ModelCatalog,
    text: str | bytes,
    *,
    name: str | None = None,
    with_tools: bool | None = None,
    vectors: EmbeddingSetup | None = None,
) -> ImportedAgent:
    """Bring an agent in from a file, bound to its own model where that works here, otherwise to one that does.

    Args:
        registry: the Letta to bring it into.
        models: what works here.
        text: the file.
        name: what to call it; by default as the file does.
        with_tools: what becomes of tools that are not for memory or conversation, and can fetch addresses or run
            programs on Letta's machine: True takes them along, False leaves them out, None refuses the file.
        vectors: how its archival memory is to be searched; decided at the backend's next start where None.

    Raises:
        AgentFileRefused: it is no agent file, or holds tools that were not asked for.
        AgentExists: there is an agent of that name.
        ModelUnknown: no vendor has a key.
        LettaError: Letta refuses or fails; nothing of the agent stays behind.
    """
    file = read(text)
    name = _name(file, name)
    if any(other.name.casefold() == name.casefold() for other in await registry.all()):
        raise AgentExists(f"There is an agent {name!r} already.", remedy="Give the new one another name.")
    tools = await _take_tools(registry, file, with_tools=with_tools)
    base = MEMORY_TOOLS if file.agent["include_base_tools"] else ()
    rules, about_rules = allowed_rules(file.rules, [*tools.names, *base])
    binding = await models.choose([file.handle] if file.handle is not None else [])
    binding = binding.suited(file.agent["agent_type"])
    agent = {
        **file.agent,
        "id": "agent-0",
        "name": name,
        **import_fields(file.settings, binding),
        "tags": [*_without_definition(file.tags), agent_metadata.MANAGED_TAG, agent_metadata.IMPORTED],
        "metadata": _without_marks(file.metadata),
        "tools": tools.there,
        "tool_ids": [tool["id"] for tool in tools.programs],
        "tool_rules": rules,
        "block_ids": [block["id"] for block in file.blocks],
    }
    document = {
        "agents": [agent],
        "blocks": file.blocks,
        "tools": tools.programs,
        **{key: [] for key in ("groups", "files", "sources", "mcp_servers")},
    }
    try:
        id = await registry.letta.agents.import_file(json.dumps(document).encode(), name)
    except LettaBroken as broken:
        await _remove_half(registry, name)
        raise AgentFileRefused(f"Letta failed on the file: {broken.what}", remedy=REMEDY) from None
    except LettaRefused as refused:
        await _remove_half(registry, name)
        why = refused.detail.partition("For further information")[0].replace("\n", " ").strip()
        raise AgentFileRefused(f"Letta cannot read the file: {why}", remedy=REMEDY) from None
    try:
        # Letta sets the reasoning of a new agent as it thinks fit; the file comes first.
        bound = await registry.fit(id, await registry.bind(id, binding, settings=file.settings))
        await set_embedding(registry, await registry.get(id), vectors)
        archive = ArchivalMemory(registry.letta)
        for passage in file.passages:
            if not passage.text.strip():
                # Letta itself takes empty ones; they say nothing.
                continue
            await archive.add(id, passage.text, passage.tags, created_at=passage.created_at)
        await registry.letta.agents.recompile(id)
    except IsabellaError:
        # Half an agent would look like a whole one that has forgotten.
        await registry.delete(id)
        raise
    left_out = [redact(one) for one in (*file.left_out, *tools.left_out, *about_rules)]
    return ImportedAgent(id, name, binding.handle, len(file.passages), bound.notes, tuple(left_out))


def configured_secrets(models: ModelCatalog, connection: Connection) -> list[str]:
    """What must not stand in any file: the vendors' keys, and what opens Letta and its database."""
    found = [provider.key for provider in models.providers]
    found += [connection.password, connection.master_key, connection.database_url]
    return [secret.get_secret_value() for secret in found if secret is not None]


async def _remove_half(registry: AgentRegistry, name: str) -> None:
    """Remove what an import that failed may have made; there was no agent of this name before it."""
    for record in await registry.all():
        if record.name == name and agent_metadata.IMPORTED in record.tags:
            await registry.delete(record.id)


@dataclass(frozen=True)
class _Tools:
    """The tools that an agent gets.

    Attributes:
        there: the names of those that Letta has, and that are used as they are there.
        programs: the definitions of those that come with the file.
        left_out: what was left out, for people.
    """

    there: list[str]
    programs: list[dict[str, Any]]
    left_out: list[str]

    @property
    def names(self) -> list[str]:
        """The names of all."""
        return [*self.there, *(str(tool["name"]) for tool in self.programs)]


async def _take_tools(registry: AgentRegistry, file: AgentFile, *, with_tools: bool | None) -> _Tools:
    """Decide about each tool. What a file says a tool does is never taken for a tool of Letta's own."""
    others = [name for name in file.tools if name not in MEMORY_TOOLS]
    if others and with_tools is None:
        raise AgentFileRefused(
            "The file brings tools that can fetch addresses or run programs on Letta's machine: "
            f"{redact(', '.join(others))[:2000]}.",
            remedy="Read them first. Then import it with `--with-tools` (over HTTP: tools=true) to take them along, "
            "or with `--without-tools` (tools=false) to leave them out.",
        )
    types = {tool["name"]: tool.get("tool_type") for tool in await registry.letta.agents.tools()}
    there: list[str] = []
    programs: list[dict[str, Any]] = []
    out: list[str] = []
    lacking: list[str] = []
    for name in file.tools:
        if name in MEMORY_TOOLS:
            (there if types.get(name) in _MEMORY_TYPES else lacking).append(name)
        elif not with_tools:
            out.append(name)
        elif name in types:
            there.append(name)
        elif name in file.programs:
            programs.append({**file.programs[name], "id": f"tool-{len(programs)}"})
        else:
            # Tools of MCP servers among them: what reaches those stays where it was.
            lacking.append(name)
    left_out = [f"tools: {', '.join(out)}"] if out else []
    left_out += [f"tools that Letta does not have: {', '.join(lacking)}"] if lacking else []
    return _Tools(there, programs, left_out)


def _name(file: AgentFile, given: str | None) -> str:
    name = given if given is not None else file.name
    if not NAME.fullmatch(name):
        raise AgentFileRefused(
            "An agent's name holds letters, digits, spaces, '-', '_' and apostrophes, 100 at most.",
            remedy="Give it such a name.",
        )
    return name


def _without_marks(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (metadata or {}).items() if key != agent_metadata.KEY}


def _without_definition(tags: Iterable[str] | None) -> list[str]:
    """Tags without Isabella's own: a second agent with the mark of a definition would be taken for the first."""
    return [tag for tag in tags or () if not tag.startswith("isabella")]
