"""Checks of the agents in Letta: how they are bound, and whether a completion of one succeeds."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from isabella.agents.model_catalog import window_limits
from isabella.agents.repair import AvailableBindings, BindingFault, binding_faults, diagnose, explicit_binding
from isabella.doctor.evidence import AgentEvidence, Evidence
from isabella.doctor.findings import Finding, Outcome, PassedCheck, Unknown, finding
from isabella.doctor.layers import Layer
from isabella.letta.llm_config import Binding, streams
from isabella.providers.desired import Desired
from isabella.providers.report import Receipt
from isabella.system.english import english
from isabella.system.urls import is_gateway_url, same_address
from isabella.watch.model_refresh import BoundAgent, ending_models

if TYPE_CHECKING:
    from isabella.turns.probe import ProbeResult

#: How many of many agents with the same fault decide whether `--fix` can help, and how many are listed.
_EXAMINED, _LISTED = 20, 10

#: Codes of the faults that `isabella agents repair` finds.
_CODES = {
    BindingFault.KEY_IGNORED: "agent-ignores-key",
    BindingFault.CANNOT_STREAM: "agent-cannot-stream",
    BindingFault.WRONG_CLIENT: "agent-client-refused",
    BindingFault.PROXY_HANDLE: "agent-proxy-handle",
    BindingFault.PROVIDER_GONE: "agent-provider-gone",
    BindingFault.BASE_URL_MOVED: "agent-address-old",
    BindingFault.MODEL_GONE: "agent-model-gone",
    BindingFault.SMALL_WINDOW: "agent-window-small",
    BindingFault.LARGE_WINDOW: "agent-window-large",
    BindingFault.SUMMARIES: "agent-summaries-elsewhere",
}

_Fault = tuple[str, str | None, str]  # a fault of one agent: code, provider, and one line of evidence


def check_agents(evidence: Evidence) -> Iterator[Outcome]:
    """Check how each agent in Letta is bound. Agents with the same fault make one finding."""
    letta = evidence.letta
    if letta.rows is None:
        return
    if letta.agents is None:
        because = letta.agents_error or english("Letta did not list them")
        yield Unknown(Layer.USE, english("which agents use the providers, and how"), because)
        return
    available = available_bindings(evidence)
    groups: dict[tuple[str, str | None], list[tuple[AgentEvidence, str]]] = {}
    for agent in letta.agents:
        for code, provider, line in _faults(agent, evidence, available):
            groups.setdefault((code, provider), []).append((agent, line))
    for (code, provider), group in groups.items():
        yield _finding(code, provider, group, evidence)
    yield from _endings(letta.agents, evidence)
    faulty = {agent.id for group in groups.values() for agent, _ in group}
    bound_well = len(letta.agents) - len(faulty)
    if bound_well or not letta.agents:
        yield PassedCheck(Layer.USE, f"{bound_well} of {len(letta.agents)} agents are bound correctly")


def _endings(agents: Sequence[AgentEvidence], evidence: Evidence) -> Iterator[Finding]:
    """Find the agents whose model its vendor has announced to end."""
    bound = [BoundAgent(one.name, one.llm.provider, one.llm.model) for one in agents if one.llm.provider]
    for provider, vendor in evidence.vendors.items():
        for ending in ending_models(provider, vendor.answer.listed, bound):
            model = ending.model
            yield finding(
                "agent-model-ending",
                provider=provider,
                agents=ending.agents,
                agent_ids=tuple(one.id for one in agents if one.name in ending.agents),
                evidence=(ending.sentence,),
                end=english("before long") if model.end is None else english("on %(day)s", day=model.end.isoformat()),
                model=model.id,
                replacement=english(", and names %(model)s in its place", model=model.replacement)
                if model.replacement
                else "",
                agent=shlex.quote(ending.agents[0]),
                instead=f"{provider}/{model.replacement}" if model.replacement else _example_handle(evidence),
            )


def _faults(agent: AgentEvidence, evidence: Evidence, available: AvailableBindings) -> Iterator[_Fault]:
    llm, name, provider = agent.llm, agent.name, agent.llm.provider
    desired = evidence.configuration.provider(provider)
    if llm.category != "byok":
        same_url = _at_base_url(llm.endpoint, evidence)
        if not streams(llm.endpoint_type, llm.agent_type):
            yield "agent-cannot-stream", None, f"{name}: type {llm.agent_type}, client {llm.endpoint_type}"
        elif same_url is not None:
            line = f"{name}: provider_category {llm.category or 'not set'}, base URL of {same_url.name}"
            yield "agent-sends-lettas-key", same_url.name, line
    elif provider and evidence.letta.row(provider) is not None:
        explicit = explicit_binding(llm, available)
        faults = {} if explicit is None else dict(binding_faults(llm, explicit))
        # These follow from another fault, or are repaired with it.
        for follows in (BindingFault.WRONG_CLIENT, BindingFault.SUMMARIES):
            faults.pop(follows, None)
        if BindingFault.PROXY_HANDLE in faults:
            faults.pop(BindingFault.SMALL_WINDOW, None)
        if not faults and (other := diagnose(llm, available)) is not None:
            faults = {other.fault: other.why}
        yield from _over_window(agent, available)
        for fault, why in faults.items():
            code = _code_of_address(llm.endpoint, desired) if fault is BindingFault.BASE_URL_MOVED else _CODES[fault]
            yield code, provider, f"{name}: {why}"
    # A configured provider that is absent has its own finding, which is the cause.
    elif desired is None or not desired.configured:
        yield "agent-provider-gone", None, f"{name}: provider {provider or '-'}, {llm.endpoint}"


def _over_window(agent: AgentEvidence, available: AvailableBindings) -> Iterator[_Fault]:
    """Find an agent whose prompt does not fit, and that no summary helps."""
    llm, prompt = agent.llm, agent.prompt
    window = min(llm.window, available.limits.get(f"{llm.provider}/{llm.model}", llm.window))
    # Behind the gateway Letta recognises that a conversation is too long, and summarises.
    helped = prompt is not None and is_gateway_url(llm.endpoint)
    if prompt is not None and (prompt.fixed if helped else prompt.total) > window:
        rest = prompt.parts["conversation"]
        line = f"{agent.name}: about {prompt.total} tokens, {rest} of them conversation, in a window of {window}"
        yield "agent-over-window", llm.provider, line


def _code_of_address(endpoint: str | None, desired: Desired | None) -> str:
    """Return the code of an agent with another base URL than the configured one."""
    if desired is not None and desired.behind_gateway is not None and same_address(endpoint, desired.upstream):
        return "agent-past-gateway"
    return "agent-at-other-gateway" if is_gateway_url(endpoint) else "agent-address-old"


def _finding(code: str, provider: str | None, group: list[tuple[AgentEvidence, str]], evidence: Evidence) -> Finding:
    configuration, process = evidence.configuration, evidence.letta.process
    lines = [line for _, line in group[:_LISTED]]
    if len(group) > len(lines):
        lines.append(f"and {len(group) - len(lines)} more")
    sends_environment_key = code in ("agent-provider-gone", "agent-sends-lettas-key")
    if sends_environment_key and process is not None and "OPENAI_API_KEY" in process.base_keys:
        lines.append("OPENAI_API_KEY is in Letta's environment: Letta sends that key")
    bindable = any(new_binding(agent, evidence) for agent, _ in group[:_EXAMINED])
    names = ", ".join(desired.name for desired in configuration.desired if desired.configured)
    return finding(
        code,
        *([] if bindable else ["no-binding"]),
        provider=provider,
        agents=tuple(agent.name for agent, _ in group),
        agent_ids=tuple(agent.id for agent, _ in group),
        evidence=tuple(lines),
        env_option=configuration.env_option,
        available=f" ({names})" if names else "",
        example=_example_handle(evidence),
    )


def _example_handle(evidence: Evidence) -> str:
    """Return a handle that an agent could be bound to now."""
    for desired in evidence.configuration.desired:
        if desired.configured and desired.vendor.default_model is not None:
            return f"{desired.name}/{desired.vendor.default_model}"
    return "PROVIDER/MODEL"


def available_bindings(evidence: Evidence) -> AvailableBindings:
    """Return the bindings that agents can have: the live providers, at their configured base URLs."""
    usable = evidence.configuration.usable
    configured_urls = {desired.name: desired.base_url for desired in usable}
    stored = (row.stored for row in evidence.letta.rows or ())
    windows: dict[str, int] = {}
    listed: dict[str, frozenset[str]] = {}
    limits: dict[str, int] = {}
    for desired in usable:
        models: dict[str, int | None] = dict(desired.vendor.models)
        if evidence.vendor_accepts(desired.name):
            listed[desired.name] = frozenset(evidence.vendors[desired.name].answer.models)
            models |= {m: window for m, window in evidence.vendors[desired.name].answer.models.items() if window}
        answer = evidence.vendors[desired.name].answer if desired.name in evidence.vendors else None
        limits |= {f"{desired.name}/{name}": size for name, size in window_limits(desired.vendor, answer).items()}
        windows |= {f"{desired.name}/{model}": window for model, window in models.items() if window}
    return AvailableBindings(
        live={row.name: configured_urls.get(row.name, row.base_url) for row in stored},
        windows=windows,
        listed=listed,
        limits=limits,
        client=evidence.letta.client,
        vendors=frozenset(configured_urls),
    )


def new_binding(agent: AgentEvidence, evidence: Evidence) -> Binding | None:
    """Return the binding that repairs an agent; None if its provider is not known or its model is gone."""
    llm, available = agent.llm, available_bindings(evidence)
    diagnosis = diagnose(llm, available)
    if diagnosis is not None and diagnosis.binding is not None:
        return diagnosis.binding
    desired = evidence.configuration.provider(llm.provider)
    if desired is None or not desired.configured or desired.obstacle is not None:
        # Its own provider is gone; another one may have the same base URL.
        desired = _at_base_url(llm.endpoint, evidence)
    if desired is None or llm.model not in available.listed.get(desired.name, {llm.model}):
        return None
    window = llm.window or desired.vendor.default_window
    moved = replace(llm, provider=desired.name, endpoint=desired.base_url, window=window)
    return explicit_binding(moved, available)


def _at_base_url(endpoint: str | None, evidence: Evidence) -> Desired | None:
    """Return the configured provider with this base URL, at the gateway or at the vendor."""
    if endpoint is None:
        return None
    usable = evidence.configuration.usable
    return next(
        (
            desired
            for desired in usable
            if same_address(desired.base_url, endpoint) or same_address(desired.upstream, endpoint)
        ),
        None,
    )


def check_probes(evidence: Evidence) -> Iterator[Outcome]:
    """Check the completions through Letta, if any were requested."""
    for name, result in (evidence.probes or {}).items():
        if result.receipt is Receipt.ACCEPTED:
            text = f"{name}: a completion through Letta succeeded, and the vendor accepted the key"
            yield PassedCheck(Layer.RECEIPT, text)
            continue
        if result.gateway_code is not None:
            yield _refused_by_gateway(name, result, evidence)
            continue
        yield finding(
            "receipt-refused" if result.receipt is Receipt.REFUSED else "receipt-failed",
            provider=name,
            evidence=(result.said,),
            answer=result.said,
            quotable=result.said.replace("'", "")[:120],
        )


def _refused_by_gateway(provider: str, result: ProbeResult, evidence: Evidence) -> Finding:
    return finding(
        "receipt-refused-by-gateway",
        *(["wrong-key"] if result.gateway_code == "invalid_api_key" else []),
        provider=provider,
        evidence=(result.said,),
        answer=result.said,
        gateway_code=result.gateway_code,
        sync=evidence.configuration.sync_command(provider),
    )
