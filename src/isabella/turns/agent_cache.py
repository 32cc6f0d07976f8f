"""Whom turns speak to: agents by name, and the vendors that each may be answered by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from isabella.agents import context
from isabella.agents.context import FittedContext
from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.registry import AgentRecord, AgentRegistry, BindingResult
from isabella.errors import AgentUnknown, LettaRefused
from isabella.letta.agents import AgentRow
from isabella.letta.llm_config import Binding
from isabella.system.urls import same_address

#: How long a name stands for the same agent without being looked up again, in seconds.
_KNOWN_SECONDS = 30.0


@dataclass(frozen=True)
class AgentRef:
    """An agent that can be spoken to.

    Attributes:
        id: Letta's id of it.
        name: what it is called.
        handle: the model that it speaks with now, for people.
        provider: whose provider that is; `-` where Letta does not say.
        model: the vendor's id of the model.
        binding: the same as a binding; None where it is no explicit one, and is left as it is.
        handles: the models that it prefers, in order; an agent of somebody else's has none.
        window: at most so many tokens of context on any of them.
        type: Letta's type of agent.
    """

    id: str
    name: str
    handle: str
    provider: str
    model: str
    binding: Binding | None = None
    handles: tuple[str, ...] = ()
    window: int | None = None
    type: str | None = None


class AgentCache:
    """The agents of one Letta, for turns.

    Args:
        registry: the agents.
        models: what they can be bound to.
        clock: tells the time, in seconds.
    """

    def __init__(
        self, registry: AgentRegistry, models: ModelCatalog, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._residents = registry
        self._models = models
        self._clock = clock
        self._known: dict[str, tuple[float, AgentRef]] = {}
        registry.on_bound.append(self._bound)

    @property
    def registry(self) -> AgentRegistry:
        """The agents themselves."""
        return self._residents

    async def find(self, name: str) -> AgentRef:
        """The agent of this name, definition id or Letta id. What it is bound to may have changed since.

        Raises:
            AgentUnknown: there is none, or several.
            LettaError: Letta cannot be read.
        """
        known = self._known.get(name)
        if known is not None and known[0] > self._clock():
            return known[1]
        agent_ref = _speaker(await self._residents.find(name))
        self._known[name] = (self._clock() + _KNOWN_SECONDS, agent_ref)
        return agent_ref

    async def look(self, agent_ref: AgentRef) -> AgentRef:
        """The same agent as it is now.

        Raises:
            AgentUnknown: it is gone.
            LettaError: Letta cannot be read.
        """
        try:
            row = await self._residents.letta.agents.get(agent_ref.id)
        except LettaRefused as error:
            self.forget(agent_ref.id)
            if error.status in (404, 422):
                raise AgentUnknown(f"There is no agent {agent_ref.name} any more.") from None
            raise
        now = _as_it_is(agent_ref, row)
        for name, (until, known) in [*self._known.items()]:
            if known.id == now.id and known != now:
                if known.name == now.name:
                    self._known[name] = (until, now)
                else:
                    del self._known[name]
        return now

    def forget(self, agent_id: str) -> None:
        """Look this agent up anew the next time."""
        self._known = {name: known for name, known in self._known.items() if known[1].id != agent_id}

    async def bind(self, agent_id: str, binding: Binding) -> BindingResult:
        """Bind an agent, at the address that its provider has in Letta; effective with its next message.

        Its context is made such that the vendor takes it.

        Raises:
            LettaError: Letta refuses or fails.
        """
        return await self._residents.fit(agent_id, await self._residents.bind(agent_id, binding))

    async def fit(self, agent_id: str) -> FittedContext | None:
        """Make an agent's context such that every vendor takes it; None where nothing had to be, or can be, done.

        Raises:
            LettaError: Letta refuses or fails.
        """
        return await context.fit(self._residents.letta, agent_id)

    async def put_back(self, agent_id: str, fitted: FittedContext) -> None:
        """Show an agent again what left its context for one vendor.

        Raises:
            LettaError: Letta refuses or fails.
        """
        await context.restore(self._residents.letta, agent_id, fitted)

    async def placed(self, binding: Binding) -> Binding:
        """The same at the address that its provider has in Letta: for as long as its gate is being passed.

        Where there is no such provider, it stays as it is, and Letta says so.

        Raises:
            LettaError: Letta cannot be read.
        """
        return await self._residents.placed(binding) or binding

    async def take_along(self, agent_ref: AgentRef) -> None:
        """Where the agent's provider has moved, and it was left behind, have it call the new address.

        That costs a request only where the configuration says otherwise than the agent does.

        Raises:
            LettaError: Letta refuses or fails.
        """
        binding = agent_ref.binding
        provider = None if binding is None else self._models.provider(binding.provider)
        if binding is None or provider is None or not provider.wanted:
            return
        if same_address(provider.base_url, binding.base_url):
            return
        home = await self.placed(binding)
        if await self._residents.letta.agents.point_to(agent_ref.id, home.provider, home.base_url):
            self._bound(agent_ref.id, home)

    def _bound(self, agent_id: str, binding: Binding) -> None:
        """Somebody in this process has bound an agent: what is known of it is known anew."""
        for name, (until, known) in [*self._known.items()]:
            if known.id == agent_id:
                bound = replace(
                    known, handle=binding.handle, provider=binding.provider, model=binding.model, binding=binding
                )
                self._known[name] = (until, bound)

    async def resolve(self, agent_ref: AgentRef, handle: str) -> Binding:
        """What a handle of an agent's list means now.

        Raises:
            ModelUnknown: nothing that would work.
        """
        return (await self._models.binding(handle, window=agent_ref.window)).suited(agent_ref.type)


def _speaker(record: AgentRecord) -> AgentRef:
    definition, llm = record.definition, record.llm
    return AgentRef(
        id=record.id,
        name=record.name,
        handle=record.handle,
        provider=(llm.provider if llm is not None else None) or "-",
        model=llm.model if llm is not None else "-",
        binding=record.binding,
        handles=definition.handles if definition is not None else (),
        window=definition.window if definition is not None else None,
        type=llm.agent_type if llm is not None else None,
    )


def _as_it_is(agent_ref: AgentRef, row: AgentRow) -> AgentRef:
    """The agent with the name and the model that Letta has for it now."""
    llm = row.llm
    if llm is None:
        return agent_ref
    return replace(
        agent_ref,
        name=row.name or agent_ref.name,
        handle=llm.handle or f"{llm.provider or llm.endpoint_type}/{llm.model}",
        provider=llm.provider or "-",
        model=llm.model,
        binding=llm.binding,
        type=llm.agent_type,
    )
