"""The agents that turns address, cached by name, and the models that can answer for each."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import anyio
import structlog

from isabella.agents import context
from isabella.agents.context import FittedContext, required_id_form
from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.registry import AgentRecord, AgentRegistry, BindingResult
from isabella.errors import AgentUnknown, DatabaseUnusable, IsabellaError, LettaRefused
from isabella.letta.llm_config import Binding, LlmConfig
from isabella.system.english import english
from isabella.system.urls import same_address
from isabella.turns.events import VendorAsked

log = structlog.get_logger()

_CACHE_SECONDS = 30.0
_BIND_SECONDS = 10.0


@dataclass(frozen=True)
class AgentRef:
    """An agent, its binding and the models that it may fail over to."""

    id: str
    name: str
    handle: str  #: the current model as `provider/model`
    provider: str  #: the name of that model's provider in Letta; `-` if Letta does not say
    model: str
    #: the current model as a binding; None if it is not an explicit one, and is left as it is
    binding: Binding | None = None
    handles: tuple[str, ...] = ()  #: the preferred models, in order; empty for an agent without a definition
    window: int | None = None  #: the most tokens of context to use on any model
    type: str | None = None  #: Letta's type of agent
    reflects: bool = False  #: whether it reflects on another agent


@dataclass(frozen=True)
class Candidate:
    """A model that may answer a turn."""

    handle: str  #: `provider/model`
    provider: str
    model: str
    binding: Binding | None = None  #: what to bind the agent to; None for the model that it is bound to already

    @classmethod
    def of(cls, agent_ref: AgentRef) -> Candidate:
        """Return the model that an agent is bound to."""
        return cls(agent_ref.handle, agent_ref.provider, agent_ref.model)

    @property
    def asked(self) -> VendorAsked:
        """The event that announces the request."""
        return VendorAsked(self.handle, self.provider, self.model)


class AgentCache:
    """A cache of one Letta's agents. The methods raise `LettaError` if Letta fails or refuses."""

    def __init__(
        self, registry: AgentRegistry, models: ModelCatalog, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry = registry
        self._models = models
        self._clock = clock
        #: By name: when the entry expires, and the agent.
        self._cached: dict[str, tuple[float, AgentRef]] = {}
        #: The names of each agent, because every turn looks for its agent among all that are cached.
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        registry.on_bound.append(self._bound)

    async def find(self, name: str) -> AgentRef:
        """Return the agent with this name, definition id or Letta id. Its binding may be up to 30 s old."""
        cached = self._cached.get(name)
        if cached is not None and cached[0] > self._clock():
            return cached[1]
        agent_ref = _of_record(await self.registry.find_overview(name))
        self._put(name, agent_ref)
        return agent_ref

    def known(self, name: str) -> AgentRef | None:
        """Return the agent as it was last read, however long ago; None if it never was. It sends no request."""
        cached = self._cached.get(name)
        return None if cached is None else cached[1]

    async def warm(self) -> None:
        """Read all agents, so that they are known while Letta is down; not by a name that several share."""
        records = await self.registry.overview()
        names = Counter(record.name for record in records)
        for record in records:
            definition = "" if record.definition is None else record.definition.id
            for name in {record.id, definition, record.name if names[record.name] == 1 else ""} - {""}:
                if name not in self._cached:
                    self._put(name, _of_record(record))

    async def reload(self, agent_ref: AgentRef) -> AgentRef:
        """Return the agent as Letta has it now; raise `AgentUnknown` if it was deleted."""
        try:
            row = await self.registry.letta.agents.current(agent_ref.id)
        except LettaRefused as error:
            self.forget(agent_ref.id)
            if error.status in (404, 422):
                raise AgentUnknown(
                    english("The agent %(name)s no longer exists.", name=agent_ref.name),
                    remedy=english("`isabella agents list` shows the existing ones."),
                ) from None
            raise
        now = _with_model(replace(agent_ref, name=row.name or agent_ref.name), row.llm)
        for name, until, cached in self._entries(now.id):
            if cached.name != now.name:
                del self._cached[name]
            elif cached != now:
                self._cached[name] = (until, now)
        return now

    def forget(self, agent_id: str) -> None:
        """Drop an agent from the cache."""
        for name, _, _ in self._entries(agent_id):
            del self._cached[name]
        self._names.pop(agent_id, None)

    async def bind(self, agent_id: str, binding: Binding, *, conversation: str | None = None) -> BindingResult:
        """Bind an agent, at its provider's stored base URL, from its next message on; make its context fit.

        `conversation` is the id of a conversation other than the default one. If its context cannot be changed, a
        vendor that would need it may refuse it.
        """
        bound = await self.registry.bind(agent_id, binding)
        try:
            return await self.registry.fit(agent_id, bound, conversation=conversation)
        except DatabaseUnusable as error:
            log.warning("context not fitted", agent=agent_id, conversation=conversation, error=error.what)
            return bound

    async def placed(self, binding: Binding) -> Binding:
        """Return the binding with its provider's stored base URL, if any. It holds while the gate is passed."""
        return await self.registry.placed(binding) or binding

    async def follow_provider(self, agent_ref: AgentRef) -> None:
        """Update the base URL of an agent that was left behind when its provider moved; otherwise send no request."""
        binding = agent_ref.binding
        provider = None if binding is None else self._models.provider(binding.provider)
        if binding is None or provider is None or not provider.configured:
            return
        if same_address(provider.base_url, binding.base_url):
            return
        stored = await self.placed(binding)
        if await self.registry.letta.agents.point_to(agent_ref.id, stored.provider, stored.base_url):
            self._bound(agent_ref.id, stored)

    async def resolve(self, agent_ref: AgentRef, handle: str) -> Binding:
        """Return the binding that one of an agent's handles stands for; raise `ModelUnknown` if none would work."""
        return (await self._models.binding(handle, window=agent_ref.window)).suited(agent_ref.type)

    def takes_images(self, handle: str) -> bool:
        """Return whether the model of a handle is known to take images."""
        name, _, model = handle.partition("/")
        provider = self._models.provider(name)
        if provider is None:
            return False
        return provider.vendor.quirks.takes_images(model or provider.vendor.default_model or "") is True

    def set_up(self, handles: Iterable[str]) -> list[str]:
        """Return the handles without those of vendors that have no key: they are not set up."""
        providers = {handle: self._models.provider(handle.partition("/")[0]) for handle in handles}
        return [handle for handle, provider in providers.items() if provider is None or provider.configured]

    def is_local(self, provider: str) -> bool:
        """Return whether a vendor is a server on this machine or in the house: such servers have no certificate."""
        desired = self._models.provider(provider)
        return desired is not None and desired.vendor.base_url.startswith("http://")

    def _bound(self, agent_id: str, binding: Binding) -> None:
        """Update the cache after this process has bound an agent."""
        for name, until, cached in self._entries(agent_id):
            bound = replace(
                cached, handle=binding.handle, provider=binding.provider, model=binding.model, binding=binding
            )
            self._cached[name] = (until, bound)

    def _put(self, name: str, agent_ref: AgentRef) -> None:
        self._cached[name] = (self._clock() + _CACHE_SECONDS, agent_ref)
        self._names[agent_ref.id].add(name)

    def _entries(self, agent_id: str) -> list[tuple[str, float, AgentRef]]:
        """Return the cached entries of an agent: name, expiry, and the agent."""
        named = [(name, self._cached[name]) for name in self._names.get(agent_id, ()) if name in self._cached]
        return [(name, until, cached) for name, (until, cached) in named if cached.id == agent_id]


class TemporaryBinding:
    """Binds an agent to other models during a turn, and back to its own one afterwards.

    `conversation` is the turn's, if it is not the default one.
    """

    def __init__(self, agent_cache: AgentCache, agent_ref: AgentRef, conversation: str | None = None) -> None:
        self._agent_cache = agent_cache
        self._agent_ref = agent_ref
        self._conversation = conversation
        self._original: Binding | None = None
        self._current: Binding | None = None
        self._fitted: FittedContext | None = None

    @property
    def original(self) -> Binding | None:
        """The agent's own binding, once it was bound to another model."""
        return self._original

    async def to(self, binding: Binding) -> None:
        """Bind the agent. The gate of the binding's provider must be passed."""
        if self._original is None:
            # Read from Letta, because the agent may have been switched since it was cached.
            self._original = self._current = (await self._agent_cache.reload(self._agent_ref)).binding
        binding = await self._agent_cache.placed(binding)
        if self._current != binding:
            # Set before the request: if its answer is lost, the agent may be bound there anyway.
            self._current = binding
            bound = await self._agent_cache.bind(self._agent_ref.id, binding, conversation=self._conversation)
            self._current = bound.binding
            if bound.fitted is not None:
                self._fitted = bound.fitted

    async def __aenter__(self) -> TemporaryBinding:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._original is None or self._current is None or self._current == self._original:
            return
        agent_cache, agent = self._agent_cache, self._agent_ref
        with anyio.CancelScope(shield=True), anyio.move_on_after(_BIND_SECONDS):
            try:
                # Without passing the gate, which may be closed for long: no message is sent here, and if the provider
                # moves meanwhile, the agent is moved with it.
                original = await agent_cache.placed(self._original)
                if original != self._current and (await agent_cache.reload(agent)).binding == self._current:
                    bound = await agent_cache.bind(agent.id, original, conversation=self._conversation)
                    if self._fitted is not None and required_id_form(bound.binding) is None:
                        letta = agent_cache.registry.letta
                        await context.restore(letta, agent.id, self._fitted, conversation=self._conversation)
            except IsabellaError as error:
                log.warning("agent not bound back", agent=agent.name, to=self._original.handle, error=error.what)


def _of_record(record: AgentRecord) -> AgentRef:
    definition = record.definition
    agent_ref = AgentRef(
        id=record.id,
        name=record.name,
        handle=record.handle,
        provider="-",
        model="-",
        handles=record.handles,
        window=definition.window if definition is not None else None,
        reflects=definition is not None and definition.reflects_on is not None,
    )
    return _with_model(agent_ref, record.llm)


def _with_model(agent_ref: AgentRef, llm: LlmConfig | None) -> AgentRef:
    if llm is None:
        return agent_ref
    return replace(
        agent_ref,
        handle=llm.handle or f"{llm.provider or llm.endpoint_type}/{llm.model}",
        provider=llm.provider or "-",
        model=llm.model,
        binding=llm.binding,
        type=llm.agent_type,
    )
