"""Export of agents to agent files (`.af`) without any key, and import, bound to a model that works here.

Letta's own export has no archival memory. This one adds the passages under a key of its own. Fields that may
hold a secret are left out, and secrets that this process knows are masked everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import anyio

from isabella.agents import metadata as agent_metadata
from isabella.agents.agent_file import ARCHIVE_KEY, MEMORY_TOOLS, REMEDY, AgentFile, allowed_rules, read
from isabella.agents.deletion import delete_with_memory
from isabella.agents.embeddings import EmbeddingSetup
from isabella.agents.memory import ArchivalMemory, ArchivalPassage
from isabella.agents.metadata import AgentMetadata
from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.reconcile import set_embedding
from isabella.agents.registry import AgentRecord, AgentRegistry
from isabella.errors import AgentFileRefused, AgentNameRefused, AgentUnknown, IsabellaError, LettaBroken, LettaRefused
from isabella.letta.client import Connection
from isabella.letta.llm_config import Binding, creation_fields
from isabella.system import audit
from isabella.system.redaction import redact

#: Fields of an exported agent that may hold secrets, or that mean nothing elsewhere, with what replaces them.
_LEFT_OUT: Mapping[str, Any] = {
    "secrets": None,
    "tool_exec_environment_variables": {},
    # Its URL has a secret of this backend, and an import makes new vectors.
    "embedding_config": None,
    "embedding": None,
}
_VERSION = 1
#: The types of Letta's own tools for memory and conversation.
_MEMORY_TYPES = frozenset({"letta_core", "letta_memory_core", "letta_sleeptime_core"})


@dataclass(frozen=True)
class Additions:
    """The additions of an import to the agent of an agent file."""

    own: AgentMetadata = field(default_factory=AgentMetadata)  # Isabella's part of its metadata
    tags: tuple[str, ...] = ()
    window: int | None = None  # an upper limit for its context window, in tokens
    #: Completes the agent with this id, and returns what was left out, for people. If it fails, the agent is deleted.
    complete: Callable[[str], Awaitable[Sequence[str]]] | None = None


@dataclass(frozen=True)
class ImportedAgent:
    """An agent that was imported."""

    id: str
    name: str
    handle: str
    passages: int
    messages: int = 0  # of its history, those outside its context included
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # what the file has and was not imported, for people


async def export_agent(registry: AgentRegistry, record: AgentRecord, secrets: Iterable[str] = ()) -> str:
    """Return an agent file: its prompt, tools, blocks, the messages in its context, and its archival memory.

    A file that would hold one of the secrets is an `AgentFileRefused`.
    """
    document = await agent_document(registry, record)
    document[ARCHIVE_KEY] = {
        "version": _VERSION,
        "passages": [passage_fields(one) async for one in ArchivalMemory(registry.letta).every(record.id)],
    }
    # A user may have told the agent a key, so known secrets are masked everywhere.
    text = redact(json.dumps(document, ensure_ascii=False, indent=2))
    if any(secret in text for secret in secrets):
        raise AgentFileRefused(
            "The file would have held a key, and was not written.",
            remedy="Remove the key from the agent's memory and messages.",
        )
    return text


async def agent_document(registry: AgentRegistry, record: AgentRecord) -> dict[str, Any]:
    """Return Letta's agent file of an agent without fields that may hold secrets, or that mean nothing elsewhere."""
    document = await registry.letta.agents.export_file(record.id)
    for agent in document.get("agents", []):
        agent.update({name: value for name, value in _LEFT_OUT.items() if name in agent})
        agent["metadata"] = _without_own_metadata(agent.get("metadata"))
        agent["tags"] = _without_definition(agent.get("tags"))
    # The tokens, headers and environments of MCP servers stay here; their tools must be attached again.
    document["mcp_servers"] = []
    return document


def passage_fields(passage: ArchivalPassage) -> dict[str, Any]:
    """Return a passage as files hold it."""
    return {"text": passage.text, "tags": list(passage.tags), "created_at": passage.created_at}


async def import_agent(
    registry: AgentRegistry,
    models: ModelCatalog,
    text: str | bytes,
    *,
    name: str | None = None,
    with_tools: bool | None = None,
    vectors: EmbeddingSetup | None = None,
    handles: Sequence[str] = (),
    dry_run: bool = False,
) -> ImportedAgent:
    """Import an agent file. The agent is bound to its own model if that works here, otherwise to one that does.

    `name` replaces the name in the file. Tools other than those for memory and conversation can fetch URLs or run
    programs on Letta's machine: `with_tools` imports them if True and leaves them out if False; if it is None, a file
    with such tools is refused. Without `vectors`, the backend decides at its next start how the memory is searched.
    `handles` are the models that the agent prefers, in order. A `dry_run` only checks: the id is empty then.

    Raises `AgentFileRefused`, `AgentExists` or `ModelUnknown`. After a `LettaError`, the agent was deleted again.
    """
    additions = Additions(AgentMetadata(handles=tuple(handles)))
    return await import_read(
        registry,
        models,
        read(text),
        name=name,
        with_tools=with_tools,
        vectors=vectors,
        additions=additions,
        dry_run=dry_run,
    )


async def import_read(
    registry: AgentRegistry,
    models: ModelCatalog,
    file: AgentFile,
    *,
    name: str | None = None,
    with_tools: bool | None = None,
    vectors: EmbeddingSetup | None = None,
    additions: Additions | None = None,
    dry_run: bool = False,
) -> ImportedAgent:
    """Import an agent file that was read; see `import_agent`."""
    async with registry.naming:
        return await _import(
            registry,
            models,
            file,
            file.name if name is None else name,
            with_tools=with_tools,
            vectors=vectors,
            additions=additions or Additions(),
            dry_run=dry_run,
        )


async def _import(
    registry: AgentRegistry,
    models: ModelCatalog,
    file: AgentFile,
    name: str,
    *,
    with_tools: bool | None,
    vectors: EmbeddingSetup | None,
    additions: Additions,
    dry_run: bool,
) -> ImportedAgent:
    try:
        await registry.check_name(name)
    except AgentNameRefused as error:
        raise AgentFileRefused(error.what, remedy=error.remedy) from None
    there, programs, omitted_tools = await _take_tools(registry, file, with_tools=with_tools)
    base = MEMORY_TOOLS if file.agent["include_base_tools"] else ()
    rules, about_rules = allowed_rules(file.rules, [*there, *(tool["name"] for tool in programs), *base])
    handles = [file.handle] if file.handle is not None else []
    binding = await models.choose(handles, window=additions.window)
    binding = binding.suited(file.agent["agent_type"])
    left_out = [redact(one) for one in (*file.left_out, *omitted_tools, *about_rules)]
    # The first message of a file is the system prompt.
    imported = ImportedAgent(
        "", name, binding.handle, len(file.passages), len(file.agent["messages"]) - 1, left_out=tuple(left_out)
    )
    if dry_run:
        return imported
    agent = {
        **file.agent,
        "id": "agent-0",
        "name": name,
        **creation_fields(binding, file.settings),
        "tags": [
            *_without_definition(file.tags),
            agent_metadata.MANAGED_TAG,
            agent_metadata.IMPORTED,
            *additions.tags,
        ],
        "metadata": additions.own.into(_without_own_metadata(file.metadata)),
        "tools": there,
        "tool_ids": [tool["id"] for tool in programs],
        "tool_rules": rules,
        "block_ids": [block["id"] for block in file.blocks],
    }
    document: dict[str, Any] = {key: [] for key in ("groups", "files", "sources", "mcp_servers")}
    document |= {"agents": [agent], "blocks": file.blocks, "tools": programs}
    with audit.change("agent.imported", name):
        return await _carry_out(registry, file, document, imported, binding, vectors, additions)


async def _carry_out(
    registry: AgentRegistry,
    file: AgentFile,
    document: Mapping[str, Any],
    imported: ImportedAgent,
    binding: Binding,
    vectors: EmbeddingSetup | None,
    additions: Additions,
) -> ImportedAgent:
    """Create the agent of a checked file; nothing is left of one that failed."""
    id = await _create(registry, document, imported.name)
    left_out = [*imported.left_out]
    try:
        # Letta sets the reasoning of a new agent; the settings of the file replace it.
        bound = await registry.fit(id, await registry.bind(id, binding, settings=file.settings))
        await set_embedding(registry, await registry.get(id), vectors)
        archive = ArchivalMemory(registry.letta)
        for passage in file.passages:
            if passage.text.strip():  # Letta itself stores empty passages.
                await archive.add(id, passage.text, passage.tags, created_at=passage.created_at)
        if additions.complete is not None:
            left_out += await additions.complete(id)
        await registry.letta.agents.recompile(id)
    except BaseException:
        # An incomplete agent would look like one that has forgotten.
        with anyio.CancelScope(shield=True), suppress(AgentUnknown):
            await delete_with_memory(registry, await registry.get(id))
        raise
    return replace(imported, id=id, notes=bound.notes, left_out=tuple(left_out))


async def _create(registry: AgentRegistry, document: Mapping[str, Any], name: str) -> str:
    """Create the agent of an agent file, and return its id. Nothing is left of one that failed."""
    try:
        return await registry.letta.agents.import_file(json.dumps(document).encode(), name)
    except (LettaBroken, LettaRefused) as error:
        await _remove_half(registry, name)
        what = f"Letta failed on the file: {error.what}"
        if isinstance(error, LettaRefused):
            why = error.detail.partition("For further information")[0].replace("\n", " ").strip()
            what = f"Letta cannot read the file: {why}"
        raise AgentFileRefused(what, remedy=REMEDY) from None
    except BaseException:
        # Letta may have created it anyway.
        with anyio.CancelScope(shield=True), suppress(IsabellaError):
            await _remove_half(registry, name)
        raise


def configured_secrets(models: ModelCatalog, connection: Connection) -> list[str]:
    """Return the secrets that must not be in any file: vendors' keys, and the secrets of Letta and its database."""
    found = [provider.key for provider in models.providers]
    found += [connection.password, connection.master_key, connection.database_url]
    return [secret.get_secret_value() for secret in found if secret is not None]


async def _remove_half(registry: AgentRegistry, name: str) -> None:
    """Delete what a failed import may have created; there was no agent with this name before."""
    for record in await registry.all():
        if record.name == name and agent_metadata.IMPORTED in record.tags:
            await delete_with_memory(registry, record)


async def _take_tools(
    registry: AgentRegistry, file: AgentFile, *, with_tools: bool | None
) -> tuple[list[str], list[dict[str, Any]], list[str]]:
    """Decide about each tool. A tool in a file never replaces one of Letta's own.

    Return the names of tools that Letta has, the definitions of those that come from the file, and what is left out.
    """
    others = [name for name in file.tools if name not in MEMORY_TOOLS]
    if others and with_tools is None:
        raise AgentFileRefused(
            "The file contains tools that can fetch URLs or run programs on Letta's machine: "
            f"{redact(', '.join(others))[:2000]}.",
            remedy="Read them first. Then import it with `--with-tools` (over HTTP: tools=true) to import them, "
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
            # For instance tools of MCP servers, which are not imported.
            lacking.append(name)
    left_out = [f"tools: {', '.join(out)}"] if out else []
    left_out += [f"tools that Letta does not have: {', '.join(lacking)}"] if lacking else []
    return there, programs, left_out


def _without_own_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (metadata or {}).items() if key != agent_metadata.KEY}


def _without_definition(tags: Iterable[str] | None) -> list[str]:
    """Return tags without Isabella's own: two agents with the tag of one definition could not be told apart."""
    return [tag for tag in tags or () if not tag.startswith("isabella")]
