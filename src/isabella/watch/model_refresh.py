"""The nightly census: every provider's model list read anew, what came and went, and who lost a model."""

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
from isabella.providers.desired import Desired, desired_providers
from isabella.providers.dry_run import Ask
from isabella.system.tasks import gather
from isabella.vendors.client import KeyVerdict, VendorAnswer, ask_vendor

_AT_ONCE = 4


@dataclass(frozen=True)
class BoundAgent:
    """An agent, and what it speaks through.

    Attributes:
        name: what it is called.
        provider: the provider's name in Letta.
        model: the vendor's id of the model.
    """

    name: str
    provider: str
    model: str


@dataclass(frozen=True)
class ProviderModels:
    """What the census has found of one provider.

    Attributes:
        provider: its name in Letta.
        appeared: models that Letta did not list before.
        vanished: models that it listed, and does not any more.
        lost: agents whose model the vendor does not have any more, with that model.
        problem: why its list could not be read; nothing is known of its models then.
        answer: what the vendor itself said to the configured key; None where it was not asked.
    """

    provider: str
    appeared: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    lost: tuple[BoundAgent, ...] = ()
    problem: str | None = None
    answer: VendorAnswer | None = None

    @property
    def remarkable(self) -> bool:
        """Whether there is anything to say."""
        return bool(self.appeared or self.vanished or self.lost or self.problem)

    def as_json(self) -> dict[str, Any]:
        """The form that the HTTP API shows."""
        return {
            "provider": self.provider,
            "appeared": list(self.appeared),
            "vanished": list(self.vanished),
            "lost": [{"agent": one.name, "model": one.model} for one in self.lost],
            "problem": self.problem,
        }


@dataclass(frozen=True)
class ModelRefresh:
    """What one night has shown.

    Attributes:
        at: when.
        counts: the providers.
    """

    at: datetime
    counts: tuple[ProviderModels, ...]

    def as_json(self) -> dict[str, Any]:
        """The form that the HTTP API shows."""
        return {"at": self.at.isoformat(timespec="seconds"), "providers": [count.as_json() for count in self.counts]}


def compare_models(
    provider: str, before: frozenset[str], after: frozenset[str], answer: VendorAnswer, agents: Sequence[BoundAgent]
) -> ProviderModels:
    """Compare two lists, and find the agents that lost their model.

    Args:
        provider: its name in Letta.
        before: what Letta listed.
        after: what it lists now.
        answer: what the vendor itself lists: Letta leaves models out that agents may well be bound to.
        agents: the agents.
    """
    offered = frozenset(answer.models)
    gone = before - after - offered
    mine = [agent for agent in agents if agent.provider == provider]
    return ProviderModels(
        provider,
        appeared=tuple(sorted(after - before)),
        vanished=tuple(sorted(before - after)),
        lost=tuple(one for one in mine if one.model in gone or (offered and one.model not in offered)),
    )


async def refresh_models(settings: Settings, connection: Connection) -> ModelRefresh:
    """Have Letta read every configured provider's model list anew.

    Raises:
        LettaError: Letta cannot be read.
        ConfigurationError: `isabella.toml` is malformed.
    """
    ask = partial(ask_vendor, timeout=min(connection.timeout, 10.0))
    async with LettaClient.open(connection) as letta:
        store = letta.providers
        abilities = await store.abilities()
        stored = {record.name: record for record in await store.all()}
        agents = await _speakers(letta)
        wanted = [one for one in desired_providers(settings) if one.key is not None and one.problem is None]
        calls = [partial(_count, store, abilities, one, stored, ask, agents) for one in wanted]
        return ModelRefresh(datetime.now(UTC), tuple(await gather(calls, at_once=_AT_ONCE)))


async def _count(
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
    answer = await ask(desired.base_url, key)
    if answer.verdict is not KeyVerdict.ACCEPTED:
        # Letta would answer 200 all the same, and keep its list, or empty it (fact P11).
        problem = f"{desired.vendor.title} does not list its models: {answer.said}"
        return ProviderModels(desired.name, problem=problem, answer=answer)
    try:
        before = await store.model_names(desired.name)
        if abilities.refreshes:
            await store.refresh(record.id)
        found = compare_models(desired.name, before, await store.model_names(desired.name), answer, agents)
        return replace(found, answer=answer)
    except LettaError as error:
        return ProviderModels(desired.name, problem=error.what, answer=answer)


async def _speakers(letta: LettaClient) -> list[BoundAgent]:
    from isabella.agents.registry import AgentRegistry

    return [
        BoundAgent(one.name, one.llm.provider, one.llm.model)
        for one in await AgentRegistry(letta).all()
        if one.llm is not None and one.llm.provider is not None
    ]
