"""The nightly refresh of the model lists: models that appeared or vanished, and agents that lost their model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from isabella.config.settings import Settings
from isabella.errors import LettaError
from isabella.letta.client import LettaClient
from isabella.letta.connection import Connection
from isabella.letta.releases import Capabilities
from isabella.letta.store import Store, StoredProvider
from isabella.providers.apply import Ask
from isabella.providers.desired import Desired, desired_providers
from isabella.system.tasks import gather
from isabella.vendors.client import KeyVerdict, VendorAnswer, ask_vendor

_CONCURRENCY = 4


@dataclass(frozen=True)
class BoundAgent:
    """An agent, the name of its provider in Letta, and the vendor's id of its model."""

    name: str
    provider: str
    model: str


@dataclass(frozen=True)
class ProviderModels:
    """The models of one provider, compared with the former list.

    Attributes:
        appeared: models that Letta did not list before.
        vanished: models that Letta does not list any more.
        lost: agents whose model the vendor does not have any more.
        problem: why the list could not be read; nothing is known of its models then.
        answer: the vendor's own answer to the configured key; None if it was not asked.
    """

    provider: str
    appeared: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    lost: tuple[BoundAgent, ...] = ()
    problem: str | None = None
    answer: VendorAnswer | None = None

    @property
    def changed(self) -> bool:
        """Whether there is anything to report."""
        return bool(self.appeared or self.vanished or self.lost or self.problem)

    def as_json(self) -> dict[str, Any]:
        """Return the form that the HTTP API shows."""
        return {
            "provider": self.provider,
            "appeared": list(self.appeared),
            "vanished": list(self.vanished),
            "lost": [{"agent": agent.name, "model": agent.model} for agent in self.lost],
            "problem": self.problem,
        }


@dataclass(frozen=True)
class ModelRefresh:
    """The result of one refresh."""

    at: datetime
    providers: tuple[ProviderModels, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the form that the HTTP API shows."""
        providers = [provider.as_json() for provider in self.providers]
        return {"at": self.at.isoformat(timespec="seconds"), "providers": providers}


def compare_models(
    provider: str, before: frozenset[str], after: frozenset[str], answer: VendorAnswer, agents: Sequence[BoundAgent]
) -> ProviderModels:
    """Compare two lists of models, and find the agents that lost their model.

    Args:
        provider: the provider's name in Letta.
        before: the models that Letta listed.
        after: the models that Letta lists now.
        answer: the vendor's own list. It may have models that Letta leaves out, and that agents are bound to.
        agents: the agents of all providers.
    """
    offered = frozenset(answer.models)
    gone = before - after - offered
    bound = [agent for agent in agents if agent.provider == provider]
    return ProviderModels(
        provider,
        appeared=tuple(sorted(after - before)),
        vanished=tuple(sorted(before - after)),
        lost=tuple(agent for agent in bound if agent.model in gone or (offered and agent.model not in offered)),
    )


async def refresh_models(settings: Settings, connection: Connection) -> ModelRefresh:
    """Have Letta read the model list of every configured provider again.

    Raises:
        LettaError: Letta cannot be read.
        ConfigurationError: `isabella.toml` is malformed.
    """
    ask = partial(ask_vendor, timeout=min(connection.timeout, 10.0))
    async with LettaClient.open(connection) as letta:
        store = letta.providers
        abilities = await store.abilities()
        stored = {record.name: record for record in await store.all()}
        agents = await _bound_agents(letta)
        usable = [one for one in desired_providers(settings) if one.key is not None and one.problem is None]
        calls = [partial(_refresh, store, abilities, one, stored, ask, agents) for one in usable]
        return ModelRefresh(datetime.now(UTC), tuple(await gather(calls, at_once=_CONCURRENCY)))


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
        return ProviderModels(desired.name, problem="it is not in Letta")
    answer = await ask(desired.upstream, key)
    if answer.verdict is not KeyVerdict.ACCEPTED:
        # Letta would answer 200 all the same, and keep its list or empty it (fact P11).
        problem = f"{desired.vendor.title} does not list its models: {answer.said}"
        return ProviderModels(desired.name, problem=problem, answer=answer)
    try:
        before = await store.model_names(desired.name)
        if abilities.refreshes:
            await store.refresh(record.id)
        models = compare_models(desired.name, before, await store.model_names(desired.name), answer, agents)
        return replace(models, answer=answer)
    except LettaError as error:
        return ProviderModels(desired.name, problem=error.what, answer=answer)


async def _bound_agents(letta: LettaClient) -> list[BoundAgent]:
    from isabella.agents.registry import AgentRegistry

    return [
        BoundAgent(record.name, record.llm.provider, record.llm.model)
        for record in await AgentRegistry(letta).all()
        if record.llm is not None and record.llm.provider is not None
    ]
