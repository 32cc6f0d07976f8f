"""Bringing agents in line with their definitions: what is missing is made, what the file changed is changed.

What the file last wrote is noted with the agent. So a change that somebody made in Letta stays, until the file itself
changes that field; and what agents have written into their memory is never touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from isabella.agents import metadata
from isabella.agents.definitions import AgentDefinition, BlockDefinition
from isabella.agents.embeddings import TEXT, EmbeddingSetup, SearchMethod
from isabella.agents.metadata import AgentMetadata
from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.registry import AgentRecord, AgentRegistry
from isabella.agents.repair import AvailableBindings, available_bindings, diagnose
from isabella.errors import AgentError, IsabellaError, LettaUnreachable
from isabella.letta.llm_config import Binding, creation_fields


async def set_embedding(registry: AgentRegistry, record: AgentRecord, vectors: EmbeddingSetup | None) -> str | None:
    """Decide how an agent's archival memory is searched, where that is not decided, and point Letta there.

    Returns:
        What was changed, for people; None where nothing was.

    Raises:
        LettaError: Letta refuses or fails.
    """
    if vectors is None:
        return None
    choice, change = await embedding_change(registry, record, vectors)
    if not change:
        return None
    await registry.letta.agents.update(record.id, change)
    return f"archival memory searched by {choice.model or 'text'}"


async def embedding_change(
    registry: AgentRegistry, record: AgentRecord, vectors: EmbeddingSetup
) -> tuple[SearchMethod, dict[str, Any]]:
    """How an agent's archival memory is searched, and the change that makes it so; empty where it is."""
    decided = SearchMethod.of_mark(record.own_metadata.embedding)
    choice = decided or await _decide(registry, record, vectors)
    change: dict[str, Any] = {}
    if decided is None:
        noted = replace(record.own_metadata, embedding=choice.as_mark())
        change["metadata"] = noted.into(record.metadata)
    config = choice.as_config(vectors.address)
    if config is not None and any((record.embedding or {}).get(key) != value for key, value in config.items()):
        change["embedding_config"] = config
    return choice, change


async def _decide(registry: AgentRegistry, record: AgentRecord, vectors: EmbeddingSetup) -> SearchMethod:
    """What the settings say, unless there are passages without such vectors already: they would not be found."""
    if record.embedding is not None:
        return TEXT
    return TEXT if await registry.letta.passages.page(record.id, limit=1) else vectors.choice


class EnsureOutcome(StrEnum):
    """What was done about an agent."""

    KEPT = "kept"
    CREATED = "created"
    CHANGED = "changed"
    #: It could not be made or changed; the others go on.
    FAILED = "failed"


@dataclass(frozen=True)
class EnsureResult:
    """How it went with one definition.

    Attributes:
        definition: which.
        name: what the agent is called in Letta.
        done: what was done.
        agent_id: Letta's id; None where there is no agent.
        changes: what was changed, one clause each.
        handle: the model that it is bound to.
        reason: why it failed, or what is worth knowing.
        remedy: what the reader can do about it.
    """

    definition: str
    name: str
    done: EnsureOutcome
    agent_id: str | None = None
    changes: tuple[str, ...] = ()
    handle: str | None = None
    reason: str | None = None
    remedy: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The form in which `--json` gives it."""
        return {
            "definition": self.definition,
            "name": self.name,
            "done": self.done.value,
            "id": self.agent_id,
            "changes": list(self.changes),
            "handle": self.handle,
            "reason": self.reason,
            "remedy": self.remedy,
        }


@dataclass(frozen=True)
class DefinitionDiff:
    """What differs between a definition and its agent: pure data.

    Attributes:
        fields: what is to be PATCHed, apart from the model.
        tools: names of tools to attach.
        tools_off: names of tools to detach.
        blocks: blocks to make and attach.
        block_fields: changes of blocks, by label.
        attach: labels of shared blocks to attach.
        models: whether the file's preference of models changed.
        said: one clause for each, for people.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    tools_off: tuple[str, ...] = ()
    blocks: tuple[BlockDefinition, ...] = ()
    block_fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attach: tuple[str, ...] = ()
    models: bool = False
    said: tuple[str, ...] = ()


def diff_definition(definition: AgentDefinition, record: AgentRecord, shared: Sequence[str] = ()) -> DefinitionDiff:
    """What the file asks for that this agent was not given yet. Pure.

    Args:
        definition: what is wanted.
        record: what there is.
        shared: the labels that the agent it reflects on shares.
    """
    written, wanted = record.own_metadata.written, metadata.fingerprints(definition)
    news = {name for name, digest in wanted.items() if written.get(name) != digest}
    fields: dict[str, Any] = {}
    said: list[str] = []
    for name, key, value in (
        ("name", "name", definition.name),
        ("description", "description", definition.description),
        ("persona", "system", definition.persona),
    ):
        if name in news:
            fields[key] = value
            said.append(name)
    on = tuple(tool for tool in definition.tools if tool not in record.tools) if "tools" in news else ()
    off = tuple(tool for tool in record.own_metadata.tools if tool not in definition.tools and tool in record.tools)
    said += [f"tool {tool} added" for tool in on] + [f"tool {tool} taken off" for tool in off]
    made: list[BlockDefinition] = []
    block_fields: dict[str, Mapping[str, Any]] = {}
    for block in definition.blocks:
        known = f"{block.label}.description" in written
        if block.label not in record.blocks:
            # One that it had once was taken from it on purpose.
            if not known:
                made.append(block)
                said.append(f"block {block.label} added")
        elif f"{block.label}.description" in news or f"{block.label}.limit" in news:
            block_fields[block.label] = {
                "description": block.description,
                "limit": block.limit,
                "read_only": block.read_only,
            }
            said.append(f"block {block.label} described anew")
    attach = tuple(label for label in shared if label not in record.blocks)
    said += [f"block {label} shared" for label in attach]
    models = "models" in news
    return DefinitionDiff(fields, on, off, tuple(made), block_fields, attach, models, tuple(said))


async def ensure(
    registry: AgentRegistry,
    definitions: Sequence[AgentDefinition],
    models: ModelCatalog,
    vectors: EmbeddingSetup | None = None,
) -> list[EnsureResult]:
    """Bring every definition's agent in line.

    Args:
        registry: the agents' Letta.
        definitions: what is wanted.
        models: what they can be bound to.
        vectors: how archival memory is searched; None leaves that as it is.

    Raises:
        LettaError: Letta cannot be read, or is gone; single agents' failures are in the result.
    """
    there = await registry.all()
    for record in there:
        if record.ours and record.definition is None:
            await set_embedding(registry, record, vectors)
    if not definitions:
        return []
    available = await available_bindings(registry, models, ask=False)
    done: dict[str, EnsureResult] = {}
    # Whoever reflects on another comes after it, because it needs the other's blocks.
    for definition in sorted(definitions, key=lambda one: one.reflects_on is not None):
        try:
            done[definition.id] = await _ensure_one(registry, definition, there, models, available, vectors)
        except LettaUnreachable:
            raise
        except IsabellaError as error:
            done[definition.id] = EnsureResult(
                definition.id, definition.name, EnsureOutcome.FAILED, reason=error.what, remedy=error.remedy
            )
        made = done[definition.id]
        if made.done is EnsureOutcome.CREATED and made.agent_id is not None:
            there.append(await registry.get(made.agent_id))
    return [done[definition.id] for definition in definitions]


async def _ensure_one(
    registry: AgentRegistry,
    definition: AgentDefinition,
    there: Sequence[AgentRecord],
    models: ModelCatalog,
    available: AvailableBindings,
    vectors: EmbeddingSetup | None,
) -> EnsureResult:
    shared = _shared(definition, there)
    tag = metadata.definition_tag(definition.id)
    mine = [record for record in there if tag in record.tags]
    if not mine:
        return await _create(registry, definition, models, shared, vectors)
    # The oldest is the one; two can only come from two Lettas' files having been mixed.
    return await _change(registry, definition, mine[0], models, available, shared, vectors)


def _shared(definition: AgentDefinition, there: Sequence[AgentRecord]) -> dict[str, str]:
    """The ids of the blocks that it shares with the agent it reflects on, by label."""
    if definition.reflects_on is None:
        return {}
    tag = metadata.definition_tag(definition.reflects_on)
    other = next((record for record in there if tag in record.tags), None)
    if other is None or other.definition is None:
        raise AgentError(f"{definition.name} reflects on {definition.reflects_on}, which is not there.")
    labels = other.definition.shared_labels
    return {label: id for label, id in other.blocks.items() if label in labels}


async def _create(
    registry: AgentRegistry,
    definition: AgentDefinition,
    models: ModelCatalog,
    shared: Mapping[str, str],
    vectors: EmbeddingSetup | None,
) -> EnsureResult:
    await _tool_ids(registry, definition.tools)
    binding = await models.choose(definition.handles, window=definition.window)
    choice = None if vectors is None else vectors.choice
    noted = AgentMetadata(
        written=metadata.fingerprints(definition),
        tools=definition.tools,
        embedding=None if choice is None else choice.as_mark(),
    )
    body = {
        "name": definition.name,
        "description": definition.description,
        "system": definition.persona,
        **creation_fields(binding),
        "memory_blocks": [_block(block) for block in definition.blocks],
        "block_ids": list(shared.values()),
        "tools": list(definition.tools),
        "include_base_tools": False,
        "tags": [metadata.MANAGED_TAG, metadata.definition_tag(definition.id)],
        "metadata": noted.into(None),
        "embedding_config": None if vectors is None else vectors.choice.as_config(vectors.address),
        # One that reflects is given what it needs each time, and its memory is in the blocks.
        "message_buffer_autoclear": definition.reflects_on is not None,
    }
    agent_id = await registry.letta.agents.create(body)
    # Letta notes a model for summaries whatever it is given at first.
    bound = await registry.bind(agent_id, binding)
    return EnsureResult(definition.id, definition.name, EnsureOutcome.CREATED, agent_id, handle=bound.binding.handle)


async def _change(
    registry: AgentRegistry,
    definition: AgentDefinition,
    record: AgentRecord,
    models: ModelCatalog,
    available: AvailableBindings,
    shared: Mapping[str, str],
    vectors: EmbeddingSetup | None,
) -> EnsureResult:
    said_of_vectors = await set_embedding(registry, record, vectors)
    if said_of_vectors is not None:
        record = await registry.get(record.id)
    changes = diff_definition(definition, record, tuple(shared))
    binding, why = await _rebinding(registry, definition, record, models, available, changed=changes.models)
    if changes == DefinitionDiff() and binding is None and said_of_vectors is None:
        return EnsureResult(definition.id, record.name, EnsureOutcome.KEPT, record.id, handle=record.handle)
    letta = registry.letta
    ids = await _tool_ids(registry, changes.tools)
    for tool in changes.tools:
        await letta.agents.attach_tool(record.id, ids[tool])
    for tool in changes.tools_off:
        await letta.agents.detach_tool(record.id, record.tools[tool])
    for label, block_fields in changes.block_fields.items():
        await letta.blocks.update(record.blocks[label], block_fields)
    for block in changes.blocks:
        await letta.blocks.attach(record.id, await letta.blocks.create(_block(block)))
    for label in changes.attach:
        await letta.blocks.attach(record.id, shared[label])
    # The note comes with the last change: one that was interrupted is made again.
    news = [clause for clause in (*changes.said, why, said_of_vectors) if clause]
    noted = replace(record.own_metadata, written=metadata.fingerprints(definition), tools=definition.tools)
    update = {**changes.fields, "metadata": noted.into(record.metadata)}
    if binding is not None:
        bound = await registry.bind(record.id, binding, update)
        news += bound.notes
    elif update != {"metadata": dict(record.metadata)}:
        await letta.agents.update(record.id, update)
    return EnsureResult(
        definition.id,
        changes.fields.get("name", record.name),
        EnsureOutcome.CHANGED,
        record.id,
        changes=tuple(news),
        handle=binding.handle if binding else record.handle,
    )


async def _rebinding(
    registry: AgentRegistry,
    definition: AgentDefinition,
    record: AgentRecord,
    models: ModelCatalog,
    available: AvailableBindings,
    *,
    changed: bool,
) -> tuple[Binding | None, str | None]:
    """The binding that it is to have instead of its own, and why; None where its own is good."""
    if changed:
        chosen = await models.choose(definition.handles, window=definition.window)
        binding = (await registry.placed(chosen) or chosen).suited(record.agent_type)
        return (None, None) if binding == record.binding else (binding, f"bound to {binding.handle}")
    finding = diagnose(record.llm, available, definition.handles)
    if finding is None:
        return None, None
    binding = finding.binding or await models.choose(finding.instead, window=definition.window)
    return binding, f"bound to {binding.handle}: {finding.why}"


async def _tool_ids(registry: AgentRegistry, names: Sequence[str]) -> dict[str, str]:
    """Letta's ids of tools.

    Raises:
        AgentError: Letta has no tool of one of these names.
    """
    if not names:
        return {}
    found = {tool["name"]: tool["id"] for tool in await registry.letta.agents.tools()}
    missing = [name for name in names if name not in found]
    if missing:
        raise AgentError(
            f"Letta has no tool {missing[0]!r}.",
            remedy=f"Take it out of the agents' file. Letta has: {', '.join(sorted(found))}.",
        )
    return {name: found[name] for name in names}


def _block(block: BlockDefinition) -> dict[str, Any]:
    return {
        "label": block.label,
        "description": block.description,
        "value": block.value,
        "limit": block.limit,
        "read_only": block.read_only,
    }
