"""Agents that match their definitions: missing ones are created, and fields that changed in the file are written.

What the file last wrote is noted with the agent. So a change made in Letta stays until the file changes
the same field. What agents have written into their memory is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
from isabella.letta.llm_config import Binding, answer_limit, creation_fields
from isabella.system import audit
from isabella.system.english import english


class EnsureOutcome(StrEnum):
    """The outcome for an agent."""

    KEPT = "kept"
    CREATED = "created"
    CHANGED = "changed"
    FAILED = "failed"  # it could not be created or changed; the others were


@dataclass(frozen=True)
class EnsureResult:
    """The result for one definition."""

    definition: str
    name: str
    done: EnsureOutcome
    agent_id: str | None = None
    changes: tuple[str, ...] = ()
    handle: str | None = None
    reason: str | None = None
    remedy: str | None = None

    @property
    def sentence(self) -> str:
        """The outcome, as a sentence."""
        match self.done:
            case EnsureOutcome.CREATED:
                return f"{self.name}: created on {self.handle}"
            case EnsureOutcome.CHANGED:
                return f"{self.name}: changed on {self.handle}: {'; '.join(self.changes)}"
            case EnsureOutcome.KEPT:
                return f"{self.name}: unchanged on {self.handle}"
        return " ".join(filter(None, (f"{self.name}: failed: {self.reason}", self.remedy)))

    def as_json(self) -> dict[str, Any]:
        """Return the form in which `--json` prints it."""
        document = asdict(self)
        return {"id": document.pop("agent_id"), **document}


@dataclass(frozen=True)
class DefinitionDiff:
    """The differences between a definition and its agent."""

    fields: Mapping[str, Any] = field(default_factory=dict)  # fields of the agent to write, without the model
    tools: tuple[str, ...] = ()  # names of tools to attach
    tools_off: tuple[str, ...] = ()  # names of tools to detach
    blocks: tuple[BlockDefinition, ...] = ()  # blocks to create and attach
    block_fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # changes of blocks, by label
    attach: tuple[str, ...] = ()  # labels of shared blocks to attach
    models: bool = False  # whether the preferred models changed
    said: tuple[str, ...] = ()  # one clause for each difference, for people


def diff_definition(definition: AgentDefinition, record: AgentRecord, shared: Sequence[str] = ()) -> DefinitionDiff:
    """Return the blocks that the file defines, and shared ones, as far as this agent was not given them yet. Pure."""
    written, current = record.own_metadata.written, metadata.fingerprints(definition)
    news = {name for name, digest in current.items() if written.get(name) != digest}
    said: list[str] = [name for name in ("name", "description", "persona") if name in news]
    fields = {"system" if name == "persona" else name: getattr(definition, name) for name in said}
    on = tuple(tool for tool in definition.tools if tool not in record.tools) if "tools" in news else ()
    off = tuple(tool for tool in record.own_metadata.tools if tool not in definition.tools and tool in record.tools)
    said += [f"tool {tool} added" for tool in on] + [f"tool {tool} removed" for tool in off]
    added: list[BlockDefinition] = []
    block_fields: dict[str, Mapping[str, Any]] = {}
    for block in definition.blocks:
        if block.label not in record.blocks:
            # A block that it had once was detached on purpose.
            if f"{block.label}.description" not in written:
                added.append(block)
                said.append(f"block {block.label} added")
        elif f"{block.label}.description" in news or f"{block.label}.limit" in news:
            names = ("description", "limit", "read_only")
            block_fields[block.label] = {name: getattr(block, name) for name in names}
            said.append(f"block {block.label} description changed")
    attach = tuple(label for label in shared if label not in record.blocks)
    said += [f"block {label} shared" for label in attach]
    return DefinitionDiff(fields, on, off, tuple(added), block_fields, attach, "models" in news, tuple(said))


async def ensure(
    registry: AgentRegistry,
    definitions: Sequence[AgentDefinition],
    models: ModelCatalog,
    vectors: EmbeddingSetup | None = None,
) -> list[EnsureResult]:
    """Make every definition's agent match it. Without `vectors`, the search of archival memory stays as it is.

    The failure of one agent is in its result. A Letta that cannot be read is a `LettaError`.
    """
    if vectors is not None:
        for record in await registry.overview():
            if record.managed and record.definition is None:
                await set_embedding(registry, record, vectors)
    if not definitions:
        return []
    records = await registry.defined(definitions)
    run = _Ensure(registry, records, models, await available_bindings(registry, models, ask=False), vectors)
    results: dict[str, EnsureResult] = {}
    # An agent that reflects on another one comes after it, because it needs the other's blocks.
    for definition in sorted(definitions, key=lambda one: one.reflects_on is not None):
        try:
            result = await run.ensure(definition)
        except LettaUnreachable:
            raise
        except IsabellaError as error:
            result = EnsureResult(
                definition.id, definition.name, EnsureOutcome.FAILED, reason=error.what, remedy=error.remedy
            )
        results[definition.id] = result
        if result.done is EnsureOutcome.CREATED and result.agent_id is not None:
            records.append(await registry.get(result.agent_id))
    return [results[definition.id] for definition in definitions]


async def set_embedding(registry: AgentRegistry, record: AgentRecord, vectors: EmbeddingSetup | None) -> str | None:
    """Decide how an agent's archival memory is searched, unless that is decided, and give Letta the URL for it.

    Return a description of the changes; None if there were none.
    """
    if vectors is None:
        return None
    method = SearchMethod.from_metadata(record.own_metadata.embedding)
    change: dict[str, Any] = {}
    if method is None:
        # Passages without such vectors would not be found, so an agent that has some keeps its text search.
        has_passages = record.embedding is not None or await registry.letta.passages.page(record.id, limit=1)
        method = TEXT if has_passages else vectors.choice
        change["metadata"] = replace(record.own_metadata, embedding=method.as_metadata()).into(record.metadata)
    config = method.as_config(vectors.address)
    if config is not None and any((record.embedding or {}).get(key) != value for key, value in config.items()):
        change["embedding_config"] = config
    if not change:
        return None
    await registry.letta.agents.update(record.id, change)
    return f"archival memory searched by {method.model or 'text'}"


@dataclass
class _Ensure:
    """One run of `ensure`, with the state that all definitions share."""

    registry: AgentRegistry
    records: Sequence[AgentRecord]
    models: ModelCatalog
    available: AvailableBindings
    vectors: EmbeddingSetup | None

    @audit.recorded("agent.ensured", lambda self, definition: {"subject": definition.name})
    async def ensure(self, definition: AgentDefinition) -> EnsureResult:
        """Create or change the agent of a definition."""
        shared = self._shared_blocks(definition)
        record = self._record_of(definition.id)
        if record is None:
            return await self._create(definition, shared)
        return await self._change(definition, record, shared)

    def _record_of(self, definition_id: str) -> AgentRecord | None:
        # The oldest one counts; there can only be two if the agents of two Lettas were mixed.
        tag = metadata.definition_tag(definition_id)
        return next((record for record in self.records if tag in record.tags), None)

    def _shared_blocks(self, definition: AgentDefinition) -> dict[str, str]:
        """Return the ids of the blocks that it shares with the agent it reflects on, by label."""
        if definition.reflects_on is None:
            return {}
        other = self._record_of(definition.reflects_on)
        if other is None or other.definition is None:
            raise AgentError(
                english(
                    "%(name)s reflects on %(other)s, which does not exist.",
                    name=definition.name,
                    other=definition.reflects_on,
                ),
                remedy=english("Define that agent too, or remove `reflects_on` from the agents file."),
            )
        labels = other.definition.shared_labels
        return {label: id for label, id in other.blocks.items() if label in labels}

    async def _create(self, definition: AgentDefinition, shared: Mapping[str, str]) -> EnsureResult:
        await tool_ids(self.registry, definition.tools)
        binding = await self.models.choose(definition.handles, window=definition.window)
        own = AgentMetadata(metadata.fingerprints(definition), definition.tools)
        agent_id = await self.registry.letta.agents.create(
            {
                **new_agent_fields(definition, binding, own, self.vectors),
                "block_ids": list(shared.values()),
                "tags": [metadata.MANAGED_TAG, metadata.definition_tag(definition.id)],
                # An agent that reflects receives everything with each request, and its memory is in the blocks.
                "message_buffer_autoclear": definition.reflects_on is not None,
            }
        )
        # Letta sets a model for summaries in every new agent.
        handle = (await self.registry.bind(agent_id, binding)).binding.handle
        return EnsureResult(definition.id, definition.name, EnsureOutcome.CREATED, agent_id, handle=handle)

    async def _change(
        self, definition: AgentDefinition, record: AgentRecord, shared: Mapping[str, str]
    ) -> EnsureResult:
        search_changed = await set_embedding(self.registry, record, self.vectors)
        if search_changed is not None:
            record = await self.registry.get(record.id)
        diff = diff_definition(definition, record, tuple(shared))
        binding, why = await self._rebinding(definition, record, changed=diff.models)
        if diff == DefinitionDiff() and binding is None and search_changed is None:
            return EnsureResult(definition.id, record.name, EnsureOutcome.KEPT, record.id, handle=record.handle)
        letta, ids = self.registry.letta, await tool_ids(self.registry, diff.tools)
        for tool in diff.tools:
            await letta.agents.attach_tool(record.id, ids[tool])
        for tool in diff.tools_off:
            await letta.agents.detach_tool(record.id, record.tools[tool])
        for label, fields in diff.block_fields.items():
            await letta.blocks.update(record.blocks[label], fields)
        for block in diff.blocks:
            await letta.blocks.attach(record.id, await letta.blocks.create(_block_fields(block)))
        for label in diff.attach:
            await letta.blocks.attach(record.id, shared[label])
        # The note is written with the last change, so that changes that were interrupted are made again.
        changes = [clause for clause in (*diff.said, why, search_changed) if clause]
        own = replace(record.own_metadata, written=metadata.fingerprints(definition), tools=definition.tools)
        update = {**diff.fields, "metadata": own.into(record.metadata)}
        if binding is not None:
            changes += (await self.registry.bind(record.id, binding, update)).notes
        elif update != {"metadata": dict(record.metadata)}:
            await letta.agents.update(record.id, update)
        return EnsureResult(
            definition.id,
            diff.fields.get("name", record.name),
            EnsureOutcome.CHANGED,
            record.id,
            changes=tuple(changes),
            handle=binding.handle if binding else record.handle,
        )

    async def _rebinding(
        self, definition: AgentDefinition, record: AgentRecord, *, changed: bool
    ) -> tuple[Binding | None, str | None]:
        """Return the binding that replaces the agent's own, and why; None if its own is right."""
        diagnosis = None if changed else diagnose(record.llm, self.available, definition.handles)
        if changed or (diagnosis is None and self._has_no_vendor(definition, record)):
            chosen = await self.models.choose(definition.handles, window=definition.window)
            binding = (await self.registry.placed(chosen) or chosen).suited(record.agent_type)
            return (None, None) if binding == record.binding else (binding, f"bound to {binding.handle}")
        if diagnosis is None:
            return self._relimited(record)
        binding = diagnosis.binding or await self.models.choose(diagnosis.instead, window=definition.window)
        return binding, f"bound to {binding.handle}: {diagnosis.why}"

    def _relimited(self, record: AgentRecord) -> tuple[Binding | None, str | None]:
        """Return the agent's own binding if the limit of its answers is not the one of the settings, and why."""
        lowered, llm = record.own_metadata.lowered, record.llm
        if llm is None or llm.binding is None:
            return None, None
        ours = llm.max_tokens is None or (
            lowered is not None and lowered.wanted is None and llm.max_tokens == lowered.to
        )
        limit = answer_limit(llm.window, self.registry.answer_tokens)
        if not ours or llm.max_tokens == limit:
            return None, None
        return llm.binding, "answers are not limited" if limit is None else f"answers are limited to {limit} tokens"

    def _has_no_vendor(self, definition: AgentDefinition, record: AgentRecord) -> bool:
        """Return whether neither its own vendor nor one of its definition is set up, and another one is.

        So it is after a first run with practice vendors, and after a vendor was exchanged for another one.
        """
        names = {handle.partition("/")[0] for handle in (record.handle, *definition.handles)}
        return self.models.usable.isdisjoint(names) and bool(self.models.usable)


async def tool_ids(registry: AgentRegistry, names: Sequence[str]) -> dict[str, str]:
    """Return Letta's ids of tools. A tool that Letta does not have is an `AgentError`."""
    if not names:
        return {}
    ids = {tool["name"]: tool["id"] for tool in await registry.letta.agents.tools()}
    missing = [name for name in names if name not in ids]
    if missing:
        raise AgentError(
            english("Letta has no tool %(name)s.", name=repr(missing[0])),
            remedy=english("Remove it from the agents file. Letta has: %(names)s.", names=", ".join(sorted(ids))),
        )
    return {name: ids[name] for name in names}


def new_agent_fields(
    definition: AgentDefinition, binding: Binding, own: AgentMetadata, vectors: EmbeddingSetup | None
) -> dict[str, Any]:
    """Return Letta's fields of a new agent from a definition, without its tags and the blocks that it shares.

    `own` is Isabella's part of its metadata; the search method of its archival memory is added.
    """
    choice = None if vectors is None else vectors.choice
    own = replace(own, embedding=None if choice is None else choice.as_metadata())
    return {
        "name": definition.name,
        "description": definition.description,
        "system": definition.persona,
        **creation_fields(binding),
        "memory_blocks": [_block_fields(block) for block in definition.blocks],
        "tools": list(definition.tools),
        "include_base_tools": False,
        "metadata": own.into(None),
        "embedding_config": None if choice is None or vectors is None else choice.as_config(vectors.address),
    }


def _block_fields(block: BlockDefinition) -> dict[str, Any]:
    names = ("label", "description", "value", "limit", "read_only")
    return {name: getattr(block, name) for name in names}
