"""The nightly refresh of the model lists: models that appeared or vanished, and agents that lost their model."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial

from isabella.agents.registry import AgentRegistry
from isabella.config.settings import Settings
from isabella.errors import LettaError
from isabella.letta.client import Connection, LettaClient
from isabella.letta.releases import Capabilities
from isabella.letta.store import Store, StoredProvider
from isabella.providers.apply import Ask
from isabella.providers.desired import Desired, desired_providers
from isabella.providers.report import join_some
from isabella.system.english import english
from isabella.system.tasks import gather
from isabella.vendors.client import KeyVerdict, VendorAnswer, ask_vendor
from isabella.vendors.model_lists import ListedModel

_CONCURRENCY = 4
_MAX_AGENTS = 3


@dataclass(frozen=True)
class BoundAgent:
    """An agent, the name of its provider in Letta, and the vendor's id of its model."""

    name: str
    provider: str
    model: str


@dataclass(frozen=True)
class EndingModel:
    """A model of agents that its vendor ends."""

    provider: str
    model: ListedModel
    agents: tuple[str, ...]  #: the names of the agents that use it

    @property
    def sentence(self) -> str:
        """The model, its date of retirement, the agents concerned, and the remedy."""
        model, agents = self.model, join_some(self.agents, _MAX_AGENTS)
        end = english("before long") if model.end is None else english("on %(day)s", day=model.end.isoformat())
        instead = f"{self.provider}/{model.replacement}" if model.replacement else "PROVIDER/MODEL"
        named = english(", and names %(model)s in its place", model=model.replacement) if model.replacement else ""
        switch = f"`isabella agents switch {shlex.quote(self.agents[0])} {instead}`"
        return english(
            "%(provider)s retires %(model)s %(end)s%(named)s. It is the model of %(agents)s: %(switch)s.",
            provider=self.provider,
            model=model.id,
            end=end,
            named=named,
            agents=agents,
            switch=switch,
        )


def ending_models(
    provider: str, listed: Mapping[str, ListedModel], agents: Iterable[BoundAgent]
) -> tuple[EndingModel, ...]:
    """Return the models of agents that a provider's vendor ends, the earliest first."""
    users: dict[str, list[str]] = {}
    for agent in agents:
        if agent.provider == provider and agent.model in listed and listed[agent.model].ending:
            users.setdefault(agent.model, []).append(agent.name)
    ending = [EndingModel(provider, listed[model], tuple(names)) for model, names in users.items()]
    return tuple(sorted(ending, key=lambda one: one.model.end or date.min))


@dataclass(frozen=True)
class ProviderModels:
    """The models of one provider, compared with the former list."""

    provider: str
    appeared: tuple[str, ...] = ()  #: models that Letta did not list before
    vanished: tuple[str, ...] = ()  #: models that Letta no longer lists
    lost: tuple[BoundAgent, ...] = ()  #: agents whose model the vendor no longer has
    ending: tuple[EndingModel, ...] = ()  #: models of agents that the vendor ends
    problem: str | None = None  #: why the list could not be read; nothing is known of its models then
    answer: VendorAnswer | None = None  #: the vendor's own answer to the configured key; None if it was not asked

    @property
    def changed(self) -> bool:
        """Whether there is anything to report."""
        return bool(self.appeared or self.vanished or self.lost or self.ending or self.problem)


@dataclass(frozen=True)
class ModelRefresh:
    """The result of one refresh."""

    at: datetime
    providers: tuple[ProviderModels, ...]
    agents: tuple[BoundAgent, ...] = ()  #: all agents that are bound to a provider


def compare_models(
    provider: str, before: frozenset[str], after: frozenset[str], answer: VendorAnswer, agents: Sequence[BoundAgent]
) -> ProviderModels:
    """Compare two lists of models in Letta, and find the agents of the provider that lost their model.

    The vendor's own list, in `answer`, may have models that Letta leaves out, and that agents are bound to.
    """
    offered = frozenset(answer.models)
    gone = before - after - offered
    bound = [agent for agent in agents if agent.provider == provider]
    return ProviderModels(
        provider,
        appeared=tuple(sorted(after - before)),
        vanished=tuple(sorted(before - after)),
        lost=tuple(agent for agent in bound if agent.model in gone or (offered and agent.model not in offered)),
        ending=ending_models(provider, answer.listed, bound),
    )


async def refresh_models(settings: Settings, connection: Connection) -> ModelRefresh:
    """Make Letta read the model list of every configured provider again."""
    ask = partial(ask_vendor, timeout=min(connection.timeout, 10.0))
    async with LettaClient.open(connection) as letta:
        store = letta.providers
        abilities = await store.abilities()
        stored = {record.name: record for record in await store.all()}
        records = await AgentRegistry(letta).all()
        agents = [
            BoundAgent(record.name, record.llm.provider, record.llm.model)
            for record in records
            if record.llm is not None and record.llm.provider is not None
        ]
        usable = [one for one in desired_providers(settings) if one.key is not None and one.problem is None]
        calls = [partial(_refresh, store, abilities, one, stored, ask, agents) for one in usable]
        providers = tuple(await gather(calls, at_once=_CONCURRENCY))
        return ModelRefresh(datetime.now(UTC).replace(microsecond=0), providers, tuple(agents))


async def _refresh(
    store: Store,
    abilities: Capabilities,
    desired: Desired,
    stored: Mapping[str, StoredProvider],
    ask: Ask,
    agents: Sequence[BoundAgent],
) -> ProviderModels:
    record, key = stored.get(desired.name), desired.key
    if record is None or key is None:
        return ProviderModels(desired.name, problem=english("it is not in Letta"))
    answer = await ask(desired.reached_at, key)
    if answer.verdict is not KeyVerdict.ACCEPTED:
        # Letta would answer 200 anyway, and keep its list or empty it (fact P11).
        problem = english(
            "%(title)s does not list its models: %(said)s", title=desired.vendor.title, said=answer.said
        )
        return ProviderModels(desired.name, problem=problem, answer=answer)
    try:
        before = await store.model_names(desired.name)
        if abilities.refreshes:
            await store.refresh(record.id)
        models = compare_models(desired.name, before, await store.model_names(desired.name), answer, agents)
        return replace(models, answer=answer)
    except LettaError as error:
        return ProviderModels(desired.name, problem=error.what, answer=answer)
