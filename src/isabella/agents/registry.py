"""The agents in Letta: how they are found, and how they are bound to a provider and a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import anyio

from isabella.agents import context, metadata
from isabella.agents.context import FittedContext, required_id_form
from isabella.agents.definitions import NAME, AgentDefinition
from isabella.agents.metadata import AgentMetadata
from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.prompt_budget import prompt_budget
from isabella.errors import AgentExists, AgentNameRefused, AgentUnknown, LettaError, LettaRefused, ModelUnknown
from isabella.letta.agents import RELATIONS, AgentRow
from isabella.letta.client import LettaClient
from isabella.letta.llm_config import Binding, LlmConfig, LoweredLimit, binding_fields, is_older
from isabella.system import audit
from isabella.system.english import english
from isabella.system.tasks import gather
from isabella.system.urls import is_gateway_url, is_placeholder_url

_NAMES_SHOWN = 12
_SUMMARIES = 3  # how often a conversation is summarised at most to fit into a window
_BIND_ATTEMPTS = 3  # how often an agent is bound at most if its provider moves each time


@dataclass(frozen=True)
class AgentRecord:
    """An agent in Letta."""

    id: str
    name: str
    description: str = ""
    definition: AgentDefinition | None = None  # its definition in the agents file; None if it has none
    llm: LlmConfig | None = None  # its `llm_config`; None if Letta has none
    tags: tuple[str, ...] = ()
    blocks: Mapping[str, str] = field(default_factory=dict)  # the ids of its memory blocks, by label
    tools: Mapping[str, str] = field(default_factory=dict)  # the ids of its tools, by name
    metadata: Mapping[str, Any] = field(default_factory=dict)
    embedding: Mapping[str, Any] | None = None  # its `embedding_config`; None for text search

    @property
    def managed(self) -> bool:
        """Whether Isabella created or imported it."""
        return metadata.MANAGED_TAG in self.tags

    @property
    def own_metadata(self) -> AgentMetadata:
        """Isabella's part of the metadata."""
        return AgentMetadata.read(self.metadata)

    @property
    def handles(self) -> tuple[str, ...]:
        """The models that it prefers, in order: those of its definition, or those that it was created with."""
        return self.definition.handles if self.definition is not None else self.own_metadata.handles

    @property
    def binding(self) -> Binding | None:
        """Its explicit binding (fact M6); None if it has none."""
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


@dataclass(frozen=True)
class BindingResult:
    """The result of binding an agent."""

    binding: Binding  # the binding, with the client that its type of agent needs
    lowered: LoweredLimit | None = None  # the `max_tokens` that Isabella has set; None if the owner's is in force
    agent_type: str | None = None  # Letta's type of the agent
    fitted: FittedContext | None = None  # what was changed about its context; None if nothing was
    calls_tools: bool = True  # whether the model calls tools, as far as its vendor says
    summarised: bool = False  # whether its conversation was summarised because it did not fit into the window

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the agent's owner."""
        notes = []
        if self.lowered is not None and self.lowered.wanted is not None:
            notes.append(
                english(
                    "max_tokens is %(to)s for now: %(wanted)s does not fit into a window of %(window)s "
                    "tokens. A larger window restores it.",
                    to=self.lowered.to,
                    wanted=self.lowered.wanted,
                    window=self.binding.window,
                )
            )
        if not self.calls_tools:
            notes.append(
                english(
                    "This model cannot call tools, so the agent cannot write into its memory or search it by "
                    "itself. An agent on another model that reflects on it (`reflects_on`) can write for "
                    "it."
                )
            )
        if self.summarised:
            notes.append(
                english(
                    "Older messages were summarised: the conversation did not fit into a window of "
                    "%(window)s tokens. The history is complete.",
                    window=self.binding.window,
                )
            )
        if self.fitted is not None:
            notes.append(self.fitted.note)
        if is_older(self.agent_type) and required_id_form(self.binding) is not None:
            notes.append(
                english(
                    "This vendor refuses what Letta sends for agents of type %(agent_type)s, after the "
                    "first tool call at the latest. Switch the agent to another vendor.",
                    agent_type=self.agent_type,
                )
            )
        return tuple(notes)


def agents_url(configured: str | None, stored: str | None) -> str | None:
    """Return the base URL that the agents of a provider call: the stored one, or the gateway, if it is configured.

    Agents stay at the gateway if another program has moved the provider away. Elsewhere, they would send the vendor a
    key of Letta's own if that program deleted the provider (fact P7). While a provider moves, the stored one counts.
    """
    return configured if is_gateway_url(configured) and not is_placeholder_url(stored) else stored


class AgentRegistry:
    """The agents of one Letta. Methods that send requests raise `LettaError`."""

    def __init__(
        self, letta: LettaClient, definitions: Sequence[AgentDefinition] = (), *, answer_tokens: int = 0
    ) -> None:
        self.letta = letta
        self.answer_tokens = answer_tokens  #: the limit of an answer if an agent's owner has set none; 0 for none
        self.definitions = {definition.id: definition for definition in definitions}
        #: Held from the check of a name until the agent has it, because Letta accepts the same name twice.
        self.naming = anyio.Lock()
        #: Callbacks that run after an agent is bound, so that caches can be updated.
        self.on_bound: list[Callable[[str, Binding], None]] = []

    async def all(self, **filters: Any) -> list[AgentRecord]:
        """Return every agent, oldest first, without the temporary ones of `turns.probe`."""
        return self._records(await self.letta.agents.all(relations=RELATIONS, **filters))

    async def overview(self) -> list[AgentRecord]:
        """Return the same agents without blocks and tools, at little cost to Letta."""
        return self._records(await self.letta.agents.overview())

    async def defined(self, definitions: Iterable[AgentDefinition]) -> list[AgentRecord]:
        """Return the agents of these definitions, oldest first."""
        tags = [metadata.definition_tag(definition.id) for definition in definitions]
        return await self.all(tags=tags) if tags else []

    async def find(self, name: str) -> AgentRecord:
        """Return the agent with this name, definition id, or Letta id; see `select_agent`."""
        # Most names are exact, and a Letta may have thousands of agents: two filtered lists are enough as a rule.
        if NAME.fullmatch(name):
            tags = [metadata.definition_tag(name)]
            lists = await gather([partial(self.all, name=name), partial(self.all, tags=tags)])
            if records := {record.id: record for records in lists for record in records}:
                return select_agent(name, [*records.values()])
        return select_agent(name, await self.all())

    async def find_overview(self, name: str) -> AgentRecord:
        """Return the same agent as `find` does, as `overview` has it: a turn asks for it every half minute."""
        found = self._records(await self.letta.agents.named(name, metadata.definition_tag(name)))
        return select_agent(name, found) if found else await self.find(name)

    async def get(self, agent_id: str) -> AgentRecord:
        """Return the agent with this id; `AgentUnknown` if it was deleted."""
        try:
            return self._record(await self.letta.agents.get(agent_id, relations=RELATIONS))
        except LettaRefused as refused:
            if refused.status in (404, 422):
                raise AgentUnknown(
                    english("The agent %(agent_id)s no longer exists.", agent_id=agent_id),
                    remedy=english("`isabella agents list` shows the existing ones."),
                ) from None
            raise

    async def check_name(self, name: str, *, of: str | None = None) -> None:
        """Raise `AgentNameRefused` or `AgentExists` unless an agent, the one with the id `of`, may have this name."""
        if not NAME.fullmatch(name):
            raise AgentNameRefused(
                english("An agent's name holds letters, digits, spaces, '-', '_' and apostrophes, 100 at most."),
                remedy=english("Give it such a name."),
            )
        if any(other.name.casefold() == name.casefold() and other.id != of for other in await self.all()):
            raise AgentExists(
                english("An agent named %(name)s already exists.", name=repr(name)),
                remedy=english("Choose another name."),
            )

    async def bind(
        self,
        agent_id: str,
        binding: Binding,
        changes: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> BindingResult:
        """Bind an agent to a provider and a model, effective with its next message.

        Memory, history and the other settings of its `llm_config` stay, unless `settings` replace them; `changes` are
        other fields of the agent to write. The agent calls the gateway, or the base URL that the provider has in
        Letta, whatever the binding says, because the key in Letta belongs there (fact M6).
        """
        for _ in range(_BIND_ATTEMPTS):
            placed = await self.placed(binding) or binding
            result = await self._bind_once(agent_id, placed, changes, settings)
            # A sync that moves a provider lists its agents once more at the end. An agent that is bound before that
            # is in the list; one that is bound later finds the new base URL here.
            if (await self.placed(binding) or binding) == placed:
                break
        for on_bound in self.on_bound:
            on_bound(agent_id, result.binding)
        return result

    async def fit(self, agent_id: str, result: BindingResult, *, conversation: str | None = None) -> BindingResult:
        """Change the context of an agent so that its new vendor accepts it. No turn of it may run."""
        form = required_id_form(result.binding)
        if form is None:
            return result
        return replace(result, fitted=await context.fit(self.letta, agent_id, form, conversation=conversation))

    async def placed(self, binding: Binding) -> Binding | None:
        """Return a binding with the base URL that its provider has in Letta; None if there is no such provider.

        Letta sends the provider's key to the agent's base URL (fact M6), so no other one is right. While a provider
        moves, and after a move that was interrupted, this is the placeholder. For the gateway see `agents_url`.
        """
        stored = await self.letta.providers.find(binding.provider)
        if stored is None:
            return None
        return replace(binding, base_url=agents_url(binding.base_url, stored.base_url) or binding.base_url)

    async def usable(self, handle: str, models: ModelCatalog, *, window: int | None = None) -> Binding:
        """Return the binding to a handle, at its provider's stored base URL.

        Raises `ModelUnknown` if it does not work now.
        """
        binding = await models.binding(handle, window=window)
        placed = await self.placed(binding)
        if placed is None:
            raise ModelUnknown(
                english("The provider %(provider)s is not in Letta.", provider=binding.provider),
                remedy=english("Run `isabella providers sync`, which says why."),
            )
        if is_placeholder_url(placed.base_url):
            raise ModelUnknown(
                english(
                    "The provider %(provider)s is between two addresses, and its key is not in Letta.",
                    provider=binding.provider,
                ),
                remedy=english(
                    "Run `isabella providers sync --only %(provider)s`, then try again.", provider=binding.provider
                ),
            )
        return placed

    @audit.recorded(
        "agent.switched",
        lambda self, record, handle, models: {"subject": record.name, "model": record.handle, "to": handle},
    )
    async def switch(self, record: AgentRecord, handle: str, models: ModelCatalog) -> BindingResult:
        """Bind an agent to a handle if that works now, and fit its context. No turn of it may run.

        A conversation that is too long for the window of the model is summarised first, by the present model.
        """
        window = record.definition.window if record.definition else None
        placed = await self.usable(handle, models, window=window)
        # A failover may have bound it to another model since the record was read.
        now = await self.get(record.id)
        summarised = await self._shrink(now, placed)
        result = BindingResult(placed.suited(now.agent_type), now.own_metadata.lowered, now.agent_type)
        if now.binding != result.binding or now.llm is None or now.llm.compaction is not None:
            result = await self.bind(record.id, placed)
        result = replace(result, summarised=summarised, calls_tools=models.calls_tools(placed))
        return await self.fit(record.id, result)

    async def _shrink(self, record: AgentRecord, new: Binding) -> bool:
        """Summarise an agent's conversation if it is too long for a new model. Return whether it was summarised."""
        if record.llm is None or new.window >= record.llm.window:
            return False
        room = new.window - new.window // 4  # the rest is for the next message and its answer
        budget = await prompt_budget(self.letta, record.id)
        if budget.fixed > new.window:
            raise ModelUnknown(
                english(
                    "%(handle)s has a window of %(window)s tokens; the prompt of %(name)s takes about "
                    "%(fixed)s without its conversation.",
                    handle=new.handle,
                    window=new.window,
                    name=record.name,
                    fixed=budget.fixed,
                ),
                remedy=english(
                    "Choose a model with a larger window. `isabella agents show NAME --prompt` shows the parts."
                ),
            )
        if budget.total <= room or record.binding is None:
            return False
        # Letta keeps as much as fits into the window that it knows.
        await self.bind(record.id, replace(record.binding, window=new.window))
        try:
            for _ in range(_SUMMARIES):
                await self.letta.agents.summarise(record.id)
                budget = await prompt_budget(self.letta, record.id)
                if budget.total <= room:
                    return True
            what = english("it takes about %(total)s tokens even when summarised", total=budget.total)
        except LettaError as error:
            what = english("%(handle)s could not summarise it: %(what)s", handle=record.handle, what=error.what)
        await self.bind(record.id, record.binding)
        raise ModelUnknown(
            english(
                "The conversation of %(name)s does not fit into the %(window)s tokens of %(handle)s: %(what)s.",
                name=record.name,
                window=new.window,
                handle=new.handle,
                what=what,
            ),
            remedy=english("Choose a model with a larger window, or try again."),
        )

    async def _bind_once(
        self,
        agent_id: str,
        binding: Binding,
        changes: Mapping[str, Any] | None,
        settings: Mapping[str, Any] | None,
    ) -> BindingResult:
        """Bind an agent to exactly this base URL."""
        row = await self.letta.agents.get(agent_id)
        binding = binding.suited(row.agent_type)
        update = dict(changes or {})
        agent_metadata = update.get("metadata") or row.metadata
        own = AgentMetadata.read(agent_metadata)
        fields, lowered = binding_fields(
            {**(row.llm_config or {}), **(settings or {})}, binding, own.lowered, self.answer_tokens
        )
        update |= fields
        if lowered != own.lowered:
            update["metadata"] = replace(own, lowered=lowered).into(agent_metadata)
        try:
            await self.letta.agents.update(agent_id, update)
        except LettaRefused as refused:
            # Up to 0.16.4 a model for summaries cannot be unset, and there is none unless one was given (fact M24).
            if refused.status != 422:
                raise
            del update["compaction_settings"]
            await self.letta.agents.update(agent_id, update)
        return BindingResult(binding, lowered, row.agent_type)

    def _records(self, rows: Iterable[AgentRow]) -> list[AgentRecord]:
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


def select_agent(name: str, records: Sequence[AgentRecord]) -> AgentRecord:
    """Return the agent that a name, a definition id or a Letta id means; `AgentUnknown` if it is none, or several."""
    rules: tuple[Callable[[AgentRecord], bool], ...] = (
        lambda record: record.id == name,
        lambda record: record.managed and record.name == name,
        lambda record: record.definition is not None and record.definition.id == name,
        lambda record: record.name == name,
        lambda record: record.managed and record.name.casefold() == name.casefold(),
        lambda record: record.name.casefold() == name.casefold(),
    )
    for rule in rules:
        matches = [record for record in records if rule(record)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            ids = ", ".join(record.id for record in matches[:_NAMES_SHOWN])
            raise AgentUnknown(
                english("%(count)s agents are called %(name)s.", count=len(matches), name=repr(name)),
                remedy=english("Name one by its id: %(ids)s.", ids=ids),
            )
    names = [record.name for record in sorted(records, key=lambda record: not record.managed)]
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
    remedy = (
        english("Available: %(shown)s.", shown=shown)
        if names
        else english("There are none yet: run `isabella agents ensure`.")
    )
    raise AgentUnknown(english("There is no agent %(name)s.", name=repr(name[:100])), remedy=remedy)
