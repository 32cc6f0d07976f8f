"""Agents that cannot work, and what would mend them: a pure decision.

What is wrong is told from what Letta has of an agent, the providers that live in Letta, and what is known of the
vendors' models. Nothing is asked here, and nothing is changed.
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
from isabella.system.urls import is_placeholder_url, same_address

#: Endpoint types whose clients never use the stored key (facts M3, O11).
_KEYLESS = ("groq", "deepseek", "xai")
#: The prefix under which Letta lists the models of every OpenAI-type provider (fact M4).
_PROXY = "openai-proxy/"
#: The windows that Letta takes where it knows none (facts M1, M4).
_GUESSES = (8192, 30_000)


class BindingFault(StrEnum):
    """What is wrong with an agent."""

    #: Its client never uses the stored key (fact M3).
    KEY_IGNORED = "key_ignored"
    #: Its client cannot stream for its type of agent (fact M26).
    CANNOT_STREAM = "cannot_stream"
    #: Its client sends fields that the vendor refuses (fact M13).
    WRONG_CLIENT = "wrong_client"
    #: Its handle is one that several providers share (fact M4).
    PROXY_HANDLE = "proxy_handle"
    #: Its provider is not in Letta.
    PROVIDER_GONE = "provider_gone"
    #: Its provider's address is another one by now.
    BASE_URL_MOVED = "base_url_moved"
    #: Its vendor has its model no longer.
    MODEL_GONE = "model_gone"
    #: Its context window is Letta's guess, and far below the model's (facts M1, M4).
    SMALL_WINDOW = "small_window"
    #: Its summaries of long conversations go through a handle that does not work (facts M1, M3, M4).
    SUMMARIES = "summaries"


@dataclass(frozen=True)
class AvailableBindings:
    """What agents can be bound to.

    Attributes:
        live: base URLs of the providers in Letta, by name; None where Letta leaves it to the type.
        windows: true context windows in tokens, by handle, as far as they are known.
        client: which of Letta's clients we bind with, for its release.
        vendors: names of the providers that we bind with it.
        listed: the models that a vendor lists, by provider, where it has been asked and has answered.
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
        binding: the same model, spelled out, where that mends it.
        instead: handles to try where it does not, in order.
    """

    fault: BindingFault
    why: str
    binding: Binding | None = None
    instead: tuple[str, ...] = ()


def diagnose(
    llm: LlmConfig | None, available: AvailableBindings, preferred: Sequence[str] = ()
) -> BindingDiagnosis | None:
    """What is wrong with an agent; None where nothing is, or where it cannot be told.

    Args:
        llm: what it speaks through.
        available: what it could be bound to.
        preferred: handles that its definition prefers.
    """
    if llm is None or not llm.provider:
        return None
    if llm.category == "base" and not (llm.handle or "").startswith(_PROXY):
        # Of what Letta got from its own environment, only Letta knows whether it works.
        return None
    if llm.provider not in available.live:
        return BindingDiagnosis(
            BindingFault.PROVIDER_GONE,
            f"its provider {llm.provider} is not in Letta",
            instead=_instead(llm, available, preferred),
        )
    listed = available.listed.get(llm.provider)
    if listed is not None and llm.model not in listed:
        return BindingDiagnosis(
            BindingFault.MODEL_GONE,
            f"{llm.provider} has no model {llm.model} any more",
            instead=_instead(llm, available, preferred),
        )
    wanted = _spelled_out(llm, available)
    if wanted is None:
        return None
    fault = _fault(llm, wanted)
    return None if fault is None else BindingDiagnosis(*fault, binding=wanted, instead=tuple(preferred))


def _spelled_out(llm: LlmConfig, available: AvailableBindings) -> Binding | None:
    """The same provider and model as an explicit binding."""
    provider = llm.provider or ""
    base_url = available.live[provider] or llm.endpoint
    if base_url is None:
        return None
    known = available.windows.get(f"{provider}/{llm.model}", 0)
    # A window that somebody chose is kept; a guess of Letta's is not.
    window = known if llm.window in (0, *_GUESSES) and known > llm.window else llm.window
    # OpenAI's own client is right for OpenAI itself; of a provider that we do not know we keep what it has.
    client = llm.endpoint_type if llm.endpoint_type in (GENERIC, OPENAI) else available.client
    if provider in available.vendors:
        client = available.client
    return Binding(provider, llm.model, base_url.rstrip("/"), window, client=client).suited(llm.agent_type)


def _fault(llm: LlmConfig, wanted: Binding) -> tuple[BindingFault, str] | None:
    if llm.endpoint_type in _KEYLESS:
        return BindingFault.KEY_IGNORED, f"as type {llm.endpoint_type}, Letta never uses the key stored for it"
    if (llm.handle or "").startswith(_PROXY):
        return (
            BindingFault.PROXY_HANDLE,
            f"its handle {llm.handle} is one that every provider of type openai shares",
        )
    if not streams(llm.endpoint_type, llm.agent_type):
        kind = f"agents of type {llm.agent_type}"
        return BindingFault.CANNOT_STREAM, f"Letta's {llm.endpoint_type} client cannot stream for {kind}"
    if llm.endpoint_type != wanted.client:
        return (
            BindingFault.WRONG_CLIENT,
            f"Letta's {llm.endpoint_type} client sends it fields that the vendor may refuse",
        )
    if not same_address(llm.endpoint, wanted.base_url):
        return (
            BindingFault.BASE_URL_MOVED,
            f"it calls {llm.endpoint}, but {wanted.provider} is at {wanted.base_url}",
        )
    if llm.window < wanted.window:
        return BindingFault.SMALL_WINDOW, f"its window is {llm.window} tokens, the model's is {wanted.window}"
    if llm.binding is not None and llm.compaction == llm.handle:
        return BindingFault.SUMMARIES, f"its summaries look {llm.handle} up in Letta, instead of using its binding"
    return None


def _instead(llm: LlmConfig, available: AvailableBindings, preferred: Sequence[str]) -> tuple[str, ...]:
    """What to try in its place: the same model at the same address, what is preferred, the same model anywhere."""
    same_place = [name for name, url in available.live.items() if url is not None and same_address(url, llm.endpoint)]
    same_model = [name for name, models in available.listed.items() if llm.model in models]
    return tuple(
        dict.fromkeys(
            [
                *(f"{name}/{llm.model}" for name in same_place),
                *preferred,
                *(f"{name}/{llm.model}" for name in same_model),
            ]
        )
    )


@dataclass(frozen=True)
class AgentRepair:
    """An agent that cannot work as it is, and what would mend it.

    Attributes:
        agent_id: Letta's id of it.
        name: what it is called.
        ours: whether Isabella keeps it.
        fault: what is wrong.
        why: one clause, for people.
        before: the handle and window that it has.
        binding: what it would be bound to; None where nothing works.
        done: whether it has been.
        problem: why it cannot be mended, or was not.
        notes: what is to be known about it since, one sentence each.
    """

    agent_id: str
    name: str
    ours: bool
    fault: BindingFault
    why: str
    before: str
    binding: Binding | None = None
    done: bool = False
    problem: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def after(self) -> str | None:
        """The handle and window that it would have."""
        return None if self.binding is None else f"{self.binding.handle} ({self.binding.window})"

    def as_json(self) -> dict[str, Any]:
        """The form in which `--json` gives it."""
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
    """What agents can be bound to: the providers in Letta, and their models.

    Args:
        registry: the agents' Letta.
        models: what the configuration knows.
        ask: also ask every vendor for its models.

    Raises:
        LettaError: the providers cannot be listed.
    """
    stored = await registry.letta.providers.all()
    # Of one that is between two addresses, each agent's own is as good as any.
    live = {one.name: None if is_placeholder_url(one.base_url) else one.base_url for one in stored}
    windows, listed = await models.census() if ask else (models.catalog(), {})
    vendors = frozenset(provider.name for provider in models.providers)
    return AvailableBindings(live, windows, listed, client=models.client, vendors=vendors)


async def find_broken(registry: AgentRegistry, models: ModelCatalog) -> list[AgentRepair]:
    """Every agent that cannot work, with what would mend it. Changes nothing.

    Raises:
        LettaError: Letta cannot be read.
    """
    available = await available_bindings(registry, models, ask=True)
    found = []
    for record in await registry.all():
        preferred = record.definition.handles if record.definition else ()
        finding = diagnose(record.llm, available, preferred)
        if finding is not None:
            found.append(await _repair(record, finding, models))
    return found


async def apply_repairs(registry: AgentRegistry, repairs: list[AgentRepair]) -> list[AgentRepair]:
    """Bind them anew; memory and history stay. One that fails does not stop the others."""
    mended = []
    for repair in repairs:
        if repair.binding is None:
            mended.append(repair)
            continue
        try:
            bound = await registry.bind(repair.agent_id, repair.binding)
        except IsabellaError as error:
            mended.append(replace(repair, problem=str(error)))
        else:
            mended.append(replace(repair, done=True, notes=bound.notes))
    return mended


async def _repair(record: AgentRecord, finding: BindingDiagnosis, models: ModelCatalog) -> AgentRepair:
    llm = record.llm
    repair = AgentRepair(
        agent_id=record.id,
        name=record.name,
        ours=record.ours,
        fault=finding.fault,
        why=finding.why,
        before=f"{record.handle} ({llm.window if llm else 0})",
        binding=finding.binding,
    )
    if repair.binding is not None:
        return repair
    try:
        return replace(repair, binding=await models.choose(finding.instead))
    except ModelUnknown as error:
        return replace(repair, problem=str(error))
