"""Agents that cannot work: a pure diagnosis of their bindings, and the repair.

The diagnosis compares what Letta has of an agent with the providers in Letta and the known models of the vendors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.registry import AgentRecord, AgentRegistry, agents_url
from isabella.errors import IsabellaError, ModelUnknown
from isabella.letta.llm_config import Binding, LlmConfig, streams
from isabella.letta.releases import GENERIC, OPENAI
from isabella.system import audit
from isabella.system.english import english
from isabella.system.urls import is_gateway_url, is_placeholder_url, same_address

#: Letta's clients that never use a stored key (facts M3, O11), and the variable of its environment that they read.
_KEYLESS = {"groq": "GROQ_API_KEY", "deepseek": "DEEPSEEK_API_KEY", "xai": "XAI_API_KEY"}
_PROXY = "openai-proxy/"  # the prefix under which Letta lists the models of every OpenAI-type provider (fact M4)
_GUESSES = (8192, 30_000)  # the windows that Letta assumes if it does not know a model's (facts M1, M4)


class BindingFault(StrEnum):
    """A fault of an agent's binding."""

    KEY_IGNORED = "key_ignored"  # its client never uses the stored key (fact M3)
    CANNOT_STREAM = "cannot_stream"  # its client cannot stream for its type of agent (fact M26)
    WRONG_CLIENT = "wrong_client"  # its client sends fields that the vendor refuses (fact M13)
    PROXY_HANDLE = "proxy_handle"  # several providers share its handle (fact M4)
    PROVIDER_GONE = "provider_gone"  # its provider is not in Letta
    BASE_URL_MOVED = "base_url_moved"  # its provider has another base URL by now
    MODEL_GONE = "model_gone"  # its vendor no longer has its model
    SMALL_WINDOW = "small_window"  # its context window is Letta's guess, and far below the model's (facts M1, M4)
    LARGE_WINDOW = "large_window"  # its context window is larger than the model's, so long conversations are refused
    SUMMARIES = "summaries"  # its summaries of long conversations use a handle that does not work (facts M1, M3, M4)


@dataclass(frozen=True)
class AvailableBindings:
    """The bindings that agents can have."""

    #: base URLs of the providers in Letta, by name; None if Letta derives it from the type
    live: Mapping[str, str | None]
    #: true context windows in tokens, by handle, as far as they are known
    windows: Mapping[str, int] = field(default_factory=dict)
    #: the models that a vendor lists, by provider, if it was asked and answered
    listed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    #: windows by handle that no agent may exceed
    limits: Mapping[str, int] = field(default_factory=dict)
    client: str = GENERIC  # Letta's client that agents are bound with, by its release
    vendors: frozenset[str] = frozenset()  # names of the providers that are bound with this client


@dataclass(frozen=True)
class BindingDiagnosis:
    """The diagnosis of one agent's binding."""

    fault: BindingFault
    why: str  # one clause, for people
    binding: Binding | None = None  # an explicit binding to the same model, if that repairs the agent
    instead: tuple[str, ...] = ()  # handles to try if it does not, in order


def diagnose(
    llm: LlmConfig | None, available: AvailableBindings, preferred: Sequence[str] = ()
) -> BindingDiagnosis | None:
    """Return the fault of an agent; None if there is none, or if that is unknown."""
    if llm is None or not llm.provider:
        return None
    if llm.category == "base" and not (llm.handle or "").startswith(_PROXY):
        # Only Letta knows whether a provider from its own environment works.
        return None
    instead = _instead(llm, available, preferred)
    if llm.provider not in available.live:
        why = english("its provider %(provider)s is not in Letta", provider=llm.provider)
        return BindingDiagnosis(BindingFault.PROVIDER_GONE, why, instead=instead)
    if llm.model not in available.listed.get(llm.provider, {llm.model}):
        why = english("%(provider)s no longer has the model %(model)s", provider=llm.provider, model=llm.model)
        return BindingDiagnosis(BindingFault.MODEL_GONE, why, instead=instead)
    explicit = explicit_binding(llm, available)
    fault = None if explicit is None else next(binding_faults(llm, explicit), None)
    return None if fault is None else BindingDiagnosis(*fault, binding=explicit, instead=tuple(preferred))


def explicit_binding(llm: LlmConfig, available: AvailableBindings) -> Binding | None:
    """Return the explicit binding to the same provider and model; None if no base URL is known."""
    provider = llm.provider or ""
    base_url = available.live.get(provider) or llm.endpoint
    if base_url is None:
        return None
    known = available.windows.get(f"{provider}/{llm.model}", 0)
    # A chosen window stays; a guess of Letta's does not.
    window = known if llm.window in (0, *_GUESSES) and known > llm.window else llm.window
    window = min(window, available.limits.get(f"{provider}/{llm.model}", window))
    # OpenAI's own client is right for OpenAI; an agent of a provider that is not configured keeps its client.
    keeps = llm.endpoint_type in (GENERIC, OPENAI) and provider not in available.vendors
    client = llm.endpoint_type if keeps else available.client
    return Binding(provider, llm.model, base_url.rstrip("/"), window, client=client).suited(llm.agent_type)


def binding_faults(llm: LlmConfig, explicit: Binding) -> Iterator[tuple[BindingFault, str]]:
    """Yield what is wrong with a binding, compared with the explicit one, the worst first."""
    client = llm.endpoint_type
    if client in _KEYLESS:
        why = english(
            "Letta's %(client)s client uses %(variable)s of Letta's environment, never the stored key",
            client=client,
            variable=_KEYLESS[client],
        )
        yield BindingFault.KEY_IGNORED, why
    if (llm.handle or "").startswith(_PROXY):
        yield (
            BindingFault.PROXY_HANDLE,
            english("its handle %(handle)s is one that every provider of type openai shares", handle=llm.handle),
        )
    if not streams(client, llm.agent_type):
        why = english(
            "Letta's %(client)s client cannot stream for agents of type %(agent_type)s",
            client=client,
            agent_type=llm.agent_type,
        )
        yield BindingFault.CANNOT_STREAM, why
    if not same_address(llm.endpoint, explicit.base_url):
        yield (
            BindingFault.BASE_URL_MOVED,
            english(
                "it calls %(endpoint)s, but %(provider)s is at %(base_url)s",
                endpoint=llm.endpoint,
                provider=llm.provider,
                base_url=explicit.base_url,
            ),
        )
    # The gateway adapts the requests of both clients.
    adapted = is_gateway_url(explicit.base_url) and client in (GENERIC, OPENAI)
    if client != explicit.client and not adapted:
        yield (
            BindingFault.WRONG_CLIENT,
            english("Letta's %(client)s client sends it fields that the vendor may refuse", client=client),
        )
    if llm.window < explicit.window:
        yield (
            BindingFault.SMALL_WINDOW,
            english(
                "its window is %(window)s tokens, the model's is %(own)s",
                window=llm.window,
                own=explicit.window,
            ),
        )
    if llm.window > explicit.window:
        yield (
            BindingFault.LARGE_WINDOW,
            english(
                "its window is %(window)s tokens, the model has only %(own)s",
                window=llm.window,
                own=explicit.window,
            ),
        )
    if llm.binding is not None and llm.compaction == llm.handle:
        yield (
            BindingFault.SUMMARIES,
            english("its summaries look %(handle)s up in Letta, instead of using its binding", handle=llm.handle),
        )


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
    managed: bool
    fault: BindingFault
    why: str
    before: str
    binding: Binding | None = None  # None if nothing works
    done: bool = False
    problem: str | None = None  # why it cannot be repaired, or was not
    notes: tuple[str, ...] = ()

    @property
    def after(self) -> str | None:
        """The handle and window after the repair."""
        return None if self.binding is None else f"{self.binding.handle} ({self.binding.window})"

    def as_json(self) -> dict[str, Any]:
        """Return the form in which `--json` prints it."""
        names = ("name", "fault", "why", "before", "after", "done", "problem", "notes")
        return {"id": self.agent_id, "ours": self.managed} | {name: getattr(self, name) for name in names}


async def available_bindings(registry: AgentRegistry, models: ModelCatalog, *, ask: bool) -> AvailableBindings:
    """Return the bindings that agents can have. With `ask`, every vendor is asked for its models."""
    usable = models.usable
    configured = {provider.name: provider.base_url for provider in models.providers if provider.name in usable}
    # The base URL of a provider that is between two is a placeholder: an agent's own is as good as any.
    live = {
        stored.name: None
        if is_placeholder_url(stored.base_url)
        else agents_url(configured.get(stored.name), stored.base_url)
        for stored in await registry.letta.providers.all()
    }
    windows, listed = await models.listings() if ask else (models.catalog(), {})
    vendors = frozenset(provider.name for provider in models.providers)
    limits = await models.limits(ask=ask)
    return AvailableBindings(live, windows, listed, limits, client=models.client, vendors=vendors)


async def problems_of(
    registry: AgentRegistry, models: ModelCatalog, records: Sequence[AgentRecord]
) -> dict[str, str]:
    """Return why agents cannot work, by their ids, as far as it is known without asking a vendor."""
    available = await available_bindings(registry, models, ask=False)
    diagnoses = {record.id: diagnose(record.llm, available) for record in records}
    return {id: diagnosis.why for id, diagnosis in diagnoses.items() if diagnosis is not None}


async def find_broken(registry: AgentRegistry, models: ModelCatalog) -> list[AgentRepair]:
    """Return every agent that cannot work, with its repair. Nothing is changed."""
    available = await available_bindings(registry, models, ask=True)
    repairs = []
    for record in await registry.all():
        diagnosis = diagnose(record.llm, available, record.handles)
        if diagnosis is not None:
            repairs.append(await _repair(record, diagnosis, models))
    return repairs


async def apply_repairs(registry: AgentRegistry, repairs: Sequence[AgentRepair]) -> list[AgentRepair]:
    """Bind the agents again; memory and history stay. A failure does not stop the others."""
    results = []
    for repair in repairs:
        if repair.binding is not None:
            try:
                with audit.change("agent.repaired", repair.name, reason=repair.why, to=repair.binding.handle):
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
        managed=record.managed,
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
