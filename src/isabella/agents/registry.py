"""The agents as they live in Letta: ours, and those of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from isabella.agents import bindings, context, metadata
from isabella.agents.bindings import BindingResult
from isabella.agents.definitions import NAME, AgentDefinition
from isabella.agents.metadata import AgentMetadata
from isabella.agents.model_catalog import ModelCatalog
from isabella.errors import AgentUnknown, LettaRefused, ModelUnknown
from isabella.letta.agents import RELATIONS, AgentRow
from isabella.letta.client import LettaClient
from isabella.letta.llm_config import Binding, LlmConfig
from isabella.system.tasks import gather
from isabella.system.urls import is_placeholder_url

_SAID_NAMES = 12
#: How often an agent is bound at most, where its provider moves each time.
_BINDINGS = 3


@dataclass(frozen=True)
class AgentRecord:
    """An agent in Letta.

    Attributes:
        id: Letta's id of it.
        name: what it is called.
        description: what it is for.
        definition: what the file says of it; None for an agent of somebody else's.
        llm: what it speaks through; None where Letta knows nothing.
        tags: Letta's tags.
        blocks: the ids of its memory blocks by label.
        tools: the ids of its tools by name.
        metadata: Letta's metadata.
        embedding: its `embedding_config`; None for text search.
    """

    id: str
    name: str
    description: str = ""
    definition: AgentDefinition | None = None
    llm: LlmConfig | None = None
    tags: tuple[str, ...] = ()
    blocks: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    embedding: Mapping[str, Any] | None = None

    @property
    def ours(self) -> bool:
        """Whether Isabella keeps it, or has taken it in."""
        return metadata.MANAGED_TAG in self.tags

    @property
    def own_metadata(self) -> AgentMetadata:
        """What Isabella noted about it."""
        return AgentMetadata.read(self.metadata)

    @property
    def binding(self) -> Binding | None:
        """Its explicit binding (fact M6); None where it has none."""
        return None if self.llm is None else self.llm.binding

    @property
    def agent_type(self) -> str | None:
        """Letta's type of agent."""
        return None if self.llm is None else self.llm.agent_type

    @property
    def handle(self) -> str:
        """`provider/model`, for people."""
        if self.llm is None:
            return "-"
        return self.llm.handle or f"{self.llm.provider or self.llm.endpoint_type}/{self.llm.model}"


class AgentRegistry:
    """The agents of one Letta.

    Args:
        letta: an open client.
        definitions: what the file says, so that ours can be told by it.
    """

    def __init__(self, letta: LettaClient, definitions: Sequence[AgentDefinition] = ()) -> None:
        self.letta = letta
        self.definitions = {definition.id: definition for definition in definitions}
        #: Are told of every agent that is bound here, so that nobody goes on with what he knew before.
        self.on_bound: list[Callable[[str, Binding], None]] = []

    async def all(self) -> list[AgentRecord]:
        """Every agent in Letta, oldest first, but for the passing ones that fetch receipts.

        Raises:
            LettaError: they cannot be listed as a whole.
        """
        return await self._some()

    async def find(self, name: str) -> AgentRecord:
        """The agent of this name, definition id, or Letta id. Ours come before those of others.

        Raises:
            AgentUnknown: there is none, or several that this does not tell apart.
            LettaError: Letta cannot be read.
        """
        # Most names are exact ones, and a Letta may have thousands of agents: those alike are enough, as a rule.
        if NAME.fullmatch(name):
            alike = await gather(
                [partial(self._some, name=name), partial(self._some, tags=[metadata.definition_tag(name)])]
            )
            found = {record.id: record for registry in alike for record in registry}
            if found:
                return select_agent(name, [*found.values()])
        return select_agent(name, await self.all())

    async def get(self, agent_id: str) -> AgentRecord:
        """The agent of this id.

        Raises:
            AgentUnknown: it is gone.
        """
        try:
            row = await self.letta.agents.get(agent_id, relations=RELATIONS)
        except LettaRefused as refused:
            if refused.status in (404, 422):
                raise AgentUnknown(f"There is no agent {agent_id} any more.") from None
            raise
        return self._record(row)

    async def bind(
        self,
        agent_id: str,
        binding: Binding,
        others: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> BindingResult:
        """Tie an agent to a provider and a model; effective with its next message.

        Memory, history and all other settings of its `llm_config` stay.

        It calls the address that the provider has in Letta, whatever the binding says: that is where the key belongs
        which Letta has (fact M6).

        Args:
            agent_id: Letta's id of it.
            binding: what to tie it to.
            others: fields of it that are changed with the binding.
            settings: an `llm_config` whose settings come before those that the agent has.

        Returns:
            What it is tied to now.

        Raises:
            LettaError: Letta refuses or fails.
        """
        for _ in range(_BINDINGS):
            home = await self.placed(binding) or binding
            bound = await bindings.bind(self.letta, agent_id, home, others, settings=settings)
            # Whoever moves a provider looks for its agents once more at the end: one that is bound before that look
            # is found by it, and one that is bound after it finds the new address here.
            if (await self.placed(binding) or binding) == home:
                break
        for on_event in self.on_bound:
            on_event(agent_id, bound.binding)
        return bound

    async def fit(self, agent_id: str, bound: BindingResult) -> BindingResult:
        """Make an agent's context such that the vendor which it was bound to takes it. Nothing may speak to it.

        Raises:
            LettaError: Letta refuses or fails.
        """
        form = context.required_id_form(bound.binding)
        if form is None:
            return bound
        return replace(bound, fitted=await context.fit(self.letta, agent_id, form))

    async def placed(self, binding: Binding) -> Binding | None:
        """The same at the address that its provider has in Letta; None where there is no such provider.

        Letta sends the provider's key to the agent's address (fact M6), so no other one will do. While a provider
        moves that is `NOWHERE`, and so is it after a move that was cut off, until the next sync.

        Raises:
            LettaError: Letta cannot be read.
        """
        stored = await self.letta.providers.find(binding.provider)
        return None if stored is None else replace(binding, base_url=stored.base_url or binding.base_url)

    async def switch(self, record: AgentRecord, handle: str, models: ModelCatalog) -> BindingResult:
        """Bind an agent to a handle, if that would work now, and make its context fit. Nothing may speak to it.

        Raises:
            ModelUnknown: it would not; the error names the handles that would.
            LettaError: Letta refuses or fails.
        """
        window = record.definition.window if record.definition else None
        binding = await models.binding(handle, window=window)
        placed = await self.placed(binding)
        if placed is None:
            raise ModelUnknown(
                f"The provider {binding.provider} is not in Letta.",
                remedy="Run `isabella providers sync`, which says why.",
            )
        if is_placeholder_url(placed.base_url):
            raise ModelUnknown(
                f"The provider {binding.provider} is between two addresses, and its key is not in Letta.",
                remedy=f"Run `isabella providers sync --only {binding.provider}`, then switch again.",
            )
        # A failover may have bound it elsewhere since it was looked up.
        now = await self.get(record.id)
        bound = BindingResult(placed.suited(now.agent_type), now.own_metadata.lowered, now.agent_type)
        if now.binding != bound.binding or now.llm is None or now.llm.compaction is not None:
            bound = await self.bind(record.id, placed)
        return await self.fit(record.id, bound)

    async def delete(self, agent_id: str) -> None:
        """Remove an agent with its memory.

        Raises:
            LettaError: Letta refuses or fails.
        """
        await self.letta.agents.delete(agent_id)

    async def _some(self, **query: Any) -> list[AgentRecord]:
        rows = await self.letta.agents.all(relations=RELATIONS, **query)
        return [self._record(row) for row in rows if metadata.PROBE_TAG not in row.tags]

    def _record(self, row: AgentRow) -> AgentRecord:
        id = metadata.definition_id(row.tags)
        return AgentRecord(
            id=row.id,
            name=row.name or row.id,
            description=row.description or "",
            definition=self.definitions.get(id) if id is not None else None,
            llm=row.llm,
            tags=tuple(row.tags),
            blocks={block.label: block.id for block in row.blocks if block.label},
            tools={tool.name: tool.id for tool in row.tools if tool.name},
            metadata=row.metadata or {},
            embedding=row.embedding_config,
        )


def select_agent(name: str, registry: Sequence[AgentRecord]) -> AgentRecord:
    """The one that a name, a definition id or a Letta id means.

    Raises:
        AgentUnknown: none, or several alike.
    """
    matches: tuple[Callable[[AgentRecord], bool], ...] = (
        lambda one: one.id == name,
        lambda one: one.ours and one.name == name,
        lambda one: one.definition is not None and one.definition.id == name,
        lambda one: one.name == name,
        lambda one: one.ours and one.name.casefold() == name.casefold(),
        lambda one: one.name.casefold() == name.casefold(),
    )
    for matching in matches:
        found = [record for record in registry if matching(record)]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(record.id for record in found[:_SAID_NAMES])
            raise AgentUnknown(f"{len(found)} agents are called {name!r}.", remedy=f"Name one by its id: {ids}.")
    names = [record.name for record in sorted(registry, key=lambda one: not one.ours)]
    there = ", ".join(names[:_SAID_NAMES]) + (", …" if len(names) > _SAID_NAMES else "")
    raise AgentUnknown(
        f"There is no agent {name[:100]!r}.",
        remedy=f"There are: {there}." if names else "There are none yet: run `isabella agents ensure`.",
    )
