"""Agents that cannot work: a pure diagnosis of their bindings, and the repair.

The diagnosis compares what Letta has of an agent with the providers in Letta and the known models of the vendors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.registry import AgentRecord, AgentRegistry
from isabella.errors import IsabellaError, ModelUnknown
from isabella.letta.llm_config import Binding, LlmConfig, streams
from isabella.letta.releases import GENERIC, OPENAI
from isabella.system.urls import is_gateway_url, is_placeholder_url, same_address

#: Endpoint types whose clients never use the stored key (facts M3, O11).
_KEYLESS = ("groq", "deepseek", "xai")
#: The prefix under which Letta lists the models of every OpenAI-type provider (fact M4).
_PROXY = "openai-proxy/"
#: The windows that Letta assumes if it does not know a model's (facts M1, M4).
_GUESSES = (8192, 30_000)


class BindingFault(StrEnum):
    """What is wrong with an agent's binding."""

    #: Its client never uses the stored key (fact M3).
    KEY_IGNORED = "key_ignored"
    #: Its client cannot stream for its type of agent (fact M26).
    CANNOT_STREAM = "cannot_stream"
    #: Its client sends fields that the vendor refuses (fact M13).
    WRONG_CLIENT = "wrong_client"
    #: Several providers share its handle (fact M4).
    PROXY_HANDLE = "proxy_handle"
    #: Its provider is not in Letta.
    PROVIDER_GONE = "provider_gone"
    #: Its provider has another base URL by now.
    BASE_URL_MOVED = "base_url_moved"
    #: Its vendor no longer has its model.
    MODEL_GONE = "model_gone"
    #: Its context window is Letta's guess, and far below the model's (facts M1, M4).
    SMALL_WINDOW = "small_window"
    #: Its summaries of long conversations use a handle that does not work (facts M1, M3, M4).
    SUMMARIES = "summaries"


@dataclass(frozen=True)
class AvailableBindings:
    """What agents can be bound to.

    Attributes:
        live: base URLs of the providers in Letta, by name; None if Letta derives it from the type.
        windows: true context windows in tokens, by handle, as far as they are known.
        listed: the models that a vendor lists, by provider, if it was asked and answered.
        client: Letta's client that agents are bound with, by its release.
        vendors: names of the providers that are bound with this client.
    """

    live: Mapping[str, str | None]
    windows: Mapping[str, int] = field(default_factory=dict)
    listed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    client: str = GENERIC
    vendors: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BindingDiagnosis:
    """What is wrong with one agent.

    Attributes:
        fault: the kind.
        why: one clause, for people.
        binding: an explicit binding to the same model, if that repairs the agent.
        instead: handles to try if it does not, in order.
    """

    fault: BindingFault
    why: str
    binding: Binding | None = None
    instead: tuple[str, ...] = ()


def diagnose(
    llm: LlmConfig | None, available: AvailableBindings, preferred: Sequence[str] = ()
) -> BindingDiagnosis | None:
    """Return what is wrong with an agent; None if nothing is, or if it cannot be told.

    Args:
        llm: its `llm_config`.
        available: what it could be bound to.
        preferred: the handles that its definition prefers.
    """
    if llm is None or not llm.provider:
        return None
    if llm.category == "base" and not (llm.handle or "").startswith(_PROXY):
        # Only Letta knows whether a provider from its own environment works.
        return None
    gone: tuple[BindingFault, str] | None = None
    if llm.provider not in available.live:
        gone = BindingFault.PROVIDER_GONE, f"its provider {llm.provider} is not in Letta"
    elif llm.model not in available.listed.get(llm.provider, {llm.model}):
        gone = BindingFault.MODEL_GONE, f"{llm.provider} has no model {llm.model} any more"
    if gone is not None:
        return BindingDiagnosis(*gone, instead=_instead(llm, available, preferred))
    explicit = _explicit(llm, available)
    fault = None if explicit is None else _fault(llm, explicit)
    return None if fault is None else BindingDiagnosis(*fault, binding=explicit, instead=tuple(preferred))


def _explicit(llm: LlmConfig, available: AvailableBindings) -> Binding | None:
    """Return the explicit binding to the same provider and model."""
    provider = llm.provider or ""
    base_url = available.live[provider] or llm.endpoint
    if base_url is None:
        return None
    known = available.windows.get(f"{provider}/{llm.model}", 0)
    # A window that somebody has chosen stays; a guess of Letta's does not.
    window = known if llm.window in (0, *_GUESSES) and known > llm.window else llm.window
    # OpenAI's own client is right for OpenAI; an agent of a provider that is not configured keeps its client.
    client = llm.endpoint_type if llm.endpoint_type in (GENERIC, OPENAI) else available.client
    if provider in available.vendors:
        client = available.client
    return Binding(provider, llm.model, base_url.rstrip("/"), window, client=client).suited(llm.agent_type)


def _fault(llm: LlmConfig, explicit: Binding) -> tuple[BindingFault, str] | None:
    client = llm.endpoint_type
    if client in _KEYLESS:
        return BindingFault.KEY_IGNORED, f"as type {client}, Letta never uses the key stored for it"
    if (llm.handle or "").startswith(_PROXY):
        return BindingFault.PROXY_HANDLE, f"its handle {llm.handle} is one that every provider of type openai shares"
    if not streams(client, llm.agent_type):
        return (
            BindingFault.CANNOT_STREAM,
            f"Letta's {client} client cannot stream for agents of type {llm.agent_type}",
        )
    if not same_address(llm.endpoint, explicit.base_url):
        return BindingFault.BASE_URL_MOVED, f"it calls {llm.endpoint}, but {llm.provider} is at {explicit.base_url}"
    # The gateway adapts the requests of both clients.
    adapted = is_gateway_url(explicit.base_url) and client in (GENERIC, OPENAI)
    if client != explicit.client and not adapted:
        return BindingFault.WRONG_CLIENT, f"Letta's {client} client sends it fields that the vendor may refuse"
    if llm.window < explicit.window:
        return BindingFault.SMALL_WINDOW, f"its window is {llm.window} tokens, the model's is {explicit.window}"
    if llm.binding is not None and llm.compaction == llm.handle:
        return BindingFault.SUMMARIES, f"its summaries look {llm.handle} up in Letta, instead of using its binding"
    return None


def _instead(llm: LlmConfig, available: AvailableBindings, preferred: Sequence[str]) -> tuple[str, ...]:
    """Return handles to try: the same model at the same base URL, preferred ones, the same model anywhere."""
    same_url = [name for name, url in available.live.items() if url is not None and same_address(url, llm.endpoint)]
    same_model = [name for name, models in available.listed.items() if llm.model in models]
    handles = [f"{name}/{llm.model}" for name in same_url]
    return tuple(dict.fromkeys([*handles, *preferred, *(f"{name}/{llm.model}" for name in same_model)]))


@dataclass(frozen=True)
class AgentRepair:
    """An agent that cannot work, and its repair."""

    agent_id: str
    name: str
    ours: bool
    fault: BindingFault
    why: str
    before: str
    #: None if nothing works.
    binding: Binding | None = None
    done: bool = False
    #: Why it cannot be repaired, or was not.
    problem: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def after(self) -> str | None:
        """The handle and window after the repair."""
        return None if self.binding is None else f"{self.binding.handle} ({self.binding.window})"

    def as_json(self) -> dict[str, Any]:
        """Return the form in which `--json` prints it."""
        return {
            "id": self.agent_id,
            "name": self.name,
            "ours": self.ours,
            "fault": self.fault.value,
            "why": self.why,
            "before": self.before,
            "after": self.after,
            "done": self.done,
            "problem": self.problem,
            "notes": list(self.notes),
        }


async def available_bindings(registry: AgentRegistry, models: ModelCatalog, *, ask: bool) -> AvailableBindings:
    """Return what agents can be bound to. With `ask`, every vendor is asked for its models.

    Raises:
        LettaError: the providers cannot be listed.
    """
    # The base URL of a provider that is between two is a placeholder: an agent's own is as good as any.
    live = {
        stored.name: None if is_placeholder_url(stored.base_url) else stored.base_url
        for stored in await registry.letta.providers.all()
    }
    windows, listed = await models.listings() if ask else (models.catalog(), {})
    vendors = frozenset(provider.name for provider in models.providers)
    return AvailableBindings(live, windows, listed, client=models.client, vendors=vendors)


async def find_broken(registry: AgentRegistry, models: ModelCatalog) -> list[AgentRepair]:
    """Return every agent that cannot work, with its repair. Nothing is changed.

    Raises:
        LettaError: Letta cannot be read.
    """
    available = await available_bindings(registry, models, ask=True)
    repairs = []
    for record in await registry.all():
        preferred = record.definition.handles if record.definition else ()
        diagnosis = diagnose(record.llm, available, preferred)
        if diagnosis is not None:
            repairs.append(await _repair(record, diagnosis, models))
    return repairs


async def apply_repairs(registry: AgentRegistry, repairs: Sequence[AgentRepair]) -> list[AgentRepair]:
    """Bind the agents again; memory and history stay. A failure does not stop the others."""
    results = []
    for repair in repairs:
        if repair.binding is not None:
            try:
                bound = await registry.bind(repair.agent_id, repair.binding)
            except IsabellaError as error:
                repair = replace(repair, problem=str(error))
            else:
                repair = replace(repair, done=True, notes=bound.notes)
        results.append(repair)
    return results


async def _repair(record: AgentRecord, diagnosis: BindingDiagnosis, models: ModelCatalog) -> AgentRepair:
    repair = AgentRepair(
        agent_id=record.id,
        name=record.name,
        ours=record.ours,
        fault=diagnosis.fault,
        why=diagnosis.why,
        before=f"{record.handle} ({record.llm.window if record.llm else 0})",
        binding=diagnosis.binding,
    )
    if repair.binding is not None:
        return repair
    try:
        return replace(repair, binding=await models.choose(diagnosis.instead))
    except ModelUnknown as error:
        return replace(repair, problem=str(error))
