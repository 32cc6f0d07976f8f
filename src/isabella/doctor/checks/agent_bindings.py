"""The fourth layer: how Letta's agents use the keys. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from isabella.agents.repair import AvailableBindings, BindingFault, diagnose
from isabella.doctor.evidence import AgentEvidence, Evidence
from isabella.doctor.findings import (
    Finding,
    Fix,
    Layer,
    LayerResult,
    PassedCheck,
    Remedy,
    Severity,
    Unknown,
    env_option,
    name_some,
)
from isabella.letta import releases
from isabella.letta.llm_config import Binding, streams
from isabella.providers.desired import Desired
from isabella.system.urls import same_address
from isabella.vendors.client import KeyVerdict

#: Letta's clients that never look at a stored key (facts M3, O11), and what they read instead.
DEAF = {"groq": "GROQ_API_KEY", "deepseek": "DEEPSEEK_API_KEY", "xai": "XAI_API_KEY"}
#: The windows that Letta takes where it knows nothing (facts M1, M4).
BLIND_WINDOWS = (8192, 30_000)
#: Of many agents with the same fault so many tell whether it can be treated.
_LOOKED_AT = 20
_ADDRESS_IN_DOUBT = frozenset(
    {"base-url-wrong", "vendor-dns", "vendor-tls", "vendor-unreachable", "base-url-malformed"}
)


@dataclass(frozen=True)
class _Fault:
    """A fault of one agent, before those of many are told together."""

    code: str
    provider: str | None
    line: str


@dataclass(frozen=True)
class _FaultText:
    """How the faults of a code are told."""

    severity: Severity
    summary: str
    cause: str
    facts: tuple[str, ...]


_WORDS = {
    "agent-ignores-key": _FaultText(
        Severity.ERROR,
        "{agents}: Letta's own client for this vendor never uses the stored key.",
        "Agents of the types groq, deepseek and xai read a variable of Letta's own environment instead. No way of "
        "writing the key to the provider can help; an explicit binding does.",
        ("M3", "O11", "M6"),
    ),
    "agent-proxy-handle": _FaultText(
        Severity.WARNING,
        "{agents}: bound by an openai-proxy handle.",
        "Handles of providers of type openai do not name the provider: two of them with the same model collide, "
        "and a change of the provider's type leaves the agent without a model.",
        ("M4", "M5", "M6"),
    ),
    "agent-window-small": _FaultText(
        Severity.WARNING,
        "{agents}: a context window far below the model's.",
        "Letta does not know the model's window and takes 8192 (type cerebras) or 30000 (type openai): agents forget "
        "what they could still see.",
        ("M1", "M4", "M6"),
    ),
    "agent-address-old": _FaultText(
        Severity.ERROR,
        "{agents}: still sends to an address that the provider had before.",
        "Agents keep a copy of the base URL; a change of the provider does not reach them, and the key goes to the "
        "old address.",
        ("M6",),
    ),
    "agent-provider-gone": _FaultText(
        Severity.ERROR,
        "{agents}: bound to a provider that is not in Letta.",
        "Letta finds no key, and does not always stop there: its client for OpenAI sends the OPENAI_API_KEY of its "
        "own environment, or DUMMY_API_KEY, to the agent's address.",
        ("P7", "M14"),
    ),
    "agent-sends-lettas-key": _FaultText(
        Severity.ERROR,
        "{agents}: not bound to the provider, only to its address.",
        "Without provider_category byok Letta does not look for a stored key: it sends the OPENAI_API_KEY of its own "
        "environment, or DUMMY_API_KEY, to this vendor.",
        ("P7", "M6"),
    ),
    "agent-cannot-stream": _FaultText(
        Severity.ERROR,
        "{agents}: Letta's client for it cannot stream for this type of agent.",
        "Letta runs agents of older types (memgpt_agent, memgpt_v2_agent, react_agent, workflow_agent and others) "
        "in a loop that streams with few of its clients. Every streamed turn ends with an error; with its openai "
        "client they answer.",
        ("M26",),
    ),
    "agent-client-refused": _FaultText(
        Severity.WARNING,
        "{agents}: Letta's client for it sends fields that the vendor may refuse.",
        "max_completion_tokens in every request (Mistral: 422), and the reasoning of earlier answers (Cerebras and "
        "Groq: 400 from the second turn on).",
        ("M13",),
    ),
    "agent-summaries-elsewhere": _FaultText(
        Severity.WARNING,
        "{agents}: summaries of long conversations do not use its binding.",
        "Letta looks the model for summaries up by the handle, and finds another client or window there: a long "
        "conversation fails when it is to be summed up.",
        ("M15",),
    ),
    "agent-model-gone": _FaultText(
        Severity.ERROR,
        "{agents}: the vendor has its model no longer.",
        "Model ids change every few weeks. The vendor's own list, asked just now, does not have it.",
        ("M6",),
    ),
}

#: How faults that `isabella agents repair` mends are called here.
_REPAIRED = {
    BindingFault.KEY_IGNORED: "agent-ignores-key",
    BindingFault.CANNOT_STREAM: "agent-cannot-stream",
    BindingFault.WRONG_CLIENT: "agent-client-refused",
    BindingFault.PROXY_HANDLE: "agent-proxy-handle",
    BindingFault.PROVIDER_GONE: "agent-provider-gone",
    BindingFault.BASE_URL_MOVED: "agent-address-old",
    BindingFault.MODEL_GONE: "agent-model-gone",
    BindingFault.SMALL_WINDOW: "agent-window-small",
    BindingFault.SUMMARIES: "agent-summaries-elsewhere",
}


def judge(evidence: Evidence) -> LayerResult:
    """Judge how every agent in Letta is bound."""
    seen = evidence.seen
    if seen.rows is None:
        return LayerResult()
    if seen.agents is None:
        because = seen.agents_error or "Letta did not list them"
        return LayerResult(unknowns=(Unknown(Layer.USE, "which agents use it, and how", because),))
    land = available_bindings(evidence)
    groups: dict[tuple[str, str | None], list[tuple[AgentEvidence, str]]] = {}
    for agent in seen.agents:
        for fault in _faults(agent, evidence, land):
            groups.setdefault((fault.code, fault.provider), []).append((agent, fault.line))
    findings = tuple(_finding(code, provider, found, evidence) for (code, provider), found in groups.items())
    faulty = {agent.id for found in groups.values() for agent, _ in found}
    well = [agent for agent in seen.agents if agent.id not in faulty]
    fine = (PassedCheck(Layer.USE, f"{len(well)} of {len(seen.agents)} agents use their providers as they should"),)
    return LayerResult(findings, fine=fine if well or not seen.agents else ())


def _faults(agent: AgentEvidence, evidence: Evidence, land: AvailableBindings) -> Iterator[_Fault]:
    llm = agent.llm
    row = evidence.seen.row(llm.provider) if llm.provider else None
    desired = _desired(agent, evidence)
    if llm.category != "byok":
        if not streams(llm.endpoint_type, llm.agent_type):
            line = f"{agent.name}: type {llm.agent_type}, client {llm.endpoint_type}"
            yield _Fault("agent-cannot-stream", None, line)
            return
        here = _at(llm.endpoint, evidence)
        if here is not None:
            line = f"{agent.name}: provider_category {llm.category or 'not given'}, address of {here.name}"
            yield _Fault("agent-sends-lettas-key", here.name, line)
        return
    if row is None:
        # One that is wanted and absent is told with the provider itself: that is the cause.
        if desired is None or not desired.wanted:
            line = f"{agent.name}: provider {llm.provider or '-'}, {llm.endpoint}"
            yield _Fault("agent-provider-gone", None, line)
        return
    found = [*_at_once(agent, evidence, land)]
    if not found:
        # What is left to be found is what `isabella agents repair` would mend, one thing at a time.
        other = diagnose(llm, land)
        if other is not None:
            found.append(_Fault(_REPAIRED[other.fault], llm.provider, f"{agent.name}: {other.why}"))
    yield from found


def _at_once(agent: AgentEvidence, evidence: Evidence, land: AvailableBindings) -> Iterator[_Fault]:
    """The faults of which one agent may have several."""
    llm, name = agent.llm, agent.llm.provider or ""
    proxied = (llm.handle or "").startswith("openai-proxy/")
    if llm.endpoint_type in DEAF:
        line = f"{agent.name}: type {llm.endpoint_type}, reads {DEAF[llm.endpoint_type]} of Letta's environment"
        yield _Fault("agent-ignores-key", name, line)
    if not streams(llm.endpoint_type, llm.agent_type):
        line = f"{agent.name}: type {llm.agent_type}, client {llm.endpoint_type}"
        yield _Fault("agent-cannot-stream", name, line)
    if proxied:
        yield _Fault("agent-proxy-handle", name, f"{agent.name}: {llm.handle}, window {llm.window}")
    known = land.windows.get(f"{name}/{llm.model}", 0)
    if not proxied and llm.window in BLIND_WINDOWS and known > llm.window:
        line = f"{agent.name}: window {llm.window}, {llm.model} has {known}"
        yield _Fault("agent-window-small", name, line)
    wanted = land.live[name]
    if wanted is not None and llm.endpoint is not None and not same_address(llm.endpoint, wanted):
        yield _Fault("agent-address-old", name, f"{agent.name}: {llm.endpoint}, the provider has {wanted}")


def _finding(code: str, provider: str | None, found: list[tuple[AgentEvidence, str]], evidence: Evidence) -> Finding:
    words = _WORDS[code]
    agents = tuple(agent.name for agent, _ in found)
    lines = [line for _, line in found[:10]]
    if len(found) > len(lines):
        lines.append(f"and {len(found) - len(lines)} more")
    if code in ("agent-provider-gone", "agent-sends-lettas-key"):
        process = evidence.seen.process
        if process is not None and "OPENAI_API_KEY" in process.base_keys:
            lines.append("OPENAI_API_KEY is in Letta's environment: that is what is sent")
    option = env_option(evidence.configured.named)
    command = f"isabella doctor --fix{option}"
    remedy = Remedy(f"Bind them explicitly: `{command}`.", command=command, treatment=Fix.REBIND)
    if not any(new_binding(agent, evidence) for agent, _ in found[:_LOOKED_AT]):
        names = [desired.name for desired in evidence.configured.desired if desired.wanted]
        there = f" ({', '.join(names)})" if names else ""
        remedy = Remedy(
            f"Switch each to a model that is there: isabella agents switch NAME {_example(evidence)}."
            if code in ("agent-model-gone", "agent-cannot-stream")
            else f"Register the provider again, or bind the agents to one that is there{there}: PATCH of llm_config."
        )
    return Finding(
        code=code,
        layer=Layer.USE,
        severity=words.severity,
        summary=words.summary.format(agents=name_some(agents)),
        cause=words.cause,
        remedy=remedy,
        provider=provider,
        agents=agents if provider is not None else (),
        agent_ids=tuple(agent.id for agent, _ in found),
        evidence=tuple(lines),
        facts=words.facts,
        explained_by=_ADDRESS_IN_DOUBT if code == "agent-address-old" else frozenset(),
    )


def _example(evidence: Evidence) -> str:
    """A handle that could be bound to now."""
    for one in evidence.configured.desired:
        if one.wanted and one.vendor.default_model is not None:
            return f"{one.name}/{one.vendor.default_model}"
    return "PROVIDER/MODEL"


def available_bindings(evidence: Evidence) -> AvailableBindings:
    """What agents can be bound to: the providers that are live, at the addresses that are configured for them."""
    seen = evidence.seen
    wanted = [one for one in evidence.configured.desired if one.wanted and one.obstacle is None]
    moved = {one.name: one.base_url for one in wanted}
    live = {row.stored.name: moved.get(row.stored.name, row.stored.base_url) for row in seen.rows or ()}
    windows: dict[str, int] = {}
    listed: dict[str, frozenset[str]] = {}
    for one in wanted:
        known: dict[str, int | None] = dict(one.vendor.models)
        asked = evidence.asked.get(one.name)
        if asked is not None and asked.answer.verdict is KeyVerdict.ACCEPTED:
            listed[one.name] = frozenset(asked.answer.models)
            known |= {model: window for model, window in asked.answer.models.items() if window}
        windows |= {f"{one.name}/{model}": window for model, window in known.items() if window}
    return AvailableBindings(
        live, windows, listed, client=client_for_release(evidence), vendors=frozenset(one.name for one in wanted)
    )


def client_for_release(evidence: Evidence) -> str:
    """Which of Letta's clients agents are bound with on this release (fact M13)."""
    release = evidence.seen.abilities.release if evidence.seen.abilities is not None else None
    return releases.client_for(release)


def new_binding(agent: AgentEvidence, evidence: Evidence) -> Binding | None:
    """What an agent would be bound to; None where no provider can be told, or its model is gone."""
    llm, land = agent.llm, available_bindings(evidence)
    found = diagnose(llm, land)
    if found is not None and found.binding is not None:
        return found.binding
    desired = _desired(agent, evidence)
    if desired is None or not desired.wanted or desired.obstacle is not None:
        # Its own provider is gone: there may be another one at its address.
        desired = _at(llm.endpoint, evidence)
    if desired is None or llm.model not in land.listed.get(desired.name, {llm.model}):
        return None
    known = land.windows.get(f"{desired.name}/{llm.model}", 0)
    guessed = llm.window in (0, *BLIND_WINDOWS)
    window = known if guessed and known else llm.window or desired.vendor.default_window
    return Binding(desired.name, llm.model, desired.base_url, window, land.client).suited(llm.agent_type)


def passing_binding(desired: Desired, evidence: Evidence) -> Binding:
    """The binding of a passing agent to a provider, with a model that its vendor is known to have."""
    vendor = desired.vendor
    asked = evidence.asked.get(desired.name)
    listed = {} if asked is None else asked.answer.models
    model = vendor.default_model or next(iter(listed), "default")
    window = vendor.models.get(model) or listed.get(model) or vendor.default_window
    return Binding(desired.name, model, desired.base_url, window, client_for_release(evidence))


def _desired(agent: AgentEvidence, evidence: Evidence) -> Desired | None:
    return next((one for one in evidence.configured.desired if one.name == agent.llm.provider), None)


def _at(endpoint: str | None, evidence: Evidence) -> Desired | None:
    if endpoint is None:
        return None
    wanted = (one for one in evidence.configured.desired if one.wanted and one.obstacle is None)
    return next((one for one in wanted if same_address(one.base_url, endpoint)), None)
