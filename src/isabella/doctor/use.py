"""The fourth layer: how Letta's agents use the keys. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from isabella.doctor import releases
from isabella.doctor.evidence import Agent, Evidence
from isabella.doctor.findings import (
    Diagnosis,
    Finding,
    Fine,
    Layer,
    Remedy,
    Severity,
    Treatment,
    Unknown,
    env_option,
    name_some,
)
from isabella.providers.desired import Desired

#: Letta's clients that never look at a stored key (facts M3, O11), and what they read instead.
DEAF = {"groq": "GROQ_API_KEY", "deepseek": "DEEPSEEK_API_KEY", "xai": "XAI_API_KEY"}
#: The windows that Letta takes where it knows nothing (facts M1, M4).
BLIND_WINDOWS = (8192, 30_000)
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
class _Words:
    """How the faults of a code are told."""

    severity: Severity
    summary: str
    cause: str
    facts: tuple[str, ...]


_WORDS = {
    "agent-ignores-key": _Words(
        Severity.ERROR,
        "{agents}: Letta's own client for this vendor never uses the stored key.",
        "Agents of the types groq, deepseek and xai read a variable of Letta's own environment instead. No way of "
        "writing the key to the provider can help; an explicit binding does.",
        ("M3", "O11", "M6"),
    ),
    "agent-proxy-handle": _Words(
        Severity.WARNING,
        "{agents}: bound by an openai-proxy handle.",
        "Handles of providers of type openai do not name the provider: two of them with the same model collide, "
        "and a change of the provider's type leaves the agent without a model.",
        ("M4", "M5", "M6"),
    ),
    "agent-window-small": _Words(
        Severity.WARNING,
        "{agents}: a context window far below the model's.",
        "Letta does not know the model's window and takes 8192 (type cerebras) or 30000 (type openai): agents forget "
        "what they could still see.",
        ("M1", "M4", "M6"),
    ),
    "agent-address-old": _Words(
        Severity.ERROR,
        "{agents}: still sends to an address that the provider had before.",
        "Agents keep a copy of the base URL; a change of the provider does not reach them, and the key goes to the "
        "old address.",
        ("M6",),
    ),
    "agent-provider-gone": _Words(
        Severity.ERROR,
        "{agents}: bound to a provider that is not in Letta.",
        "Letta finds no key, and does not always stop there: its client for OpenAI sends the OPENAI_API_KEY of its "
        "own environment, or DUMMY_API_KEY, to the agent's address.",
        ("P7", "M14"),
    ),
    "agent-sends-lettas-key": _Words(
        Severity.ERROR,
        "{agents}: not bound to the provider, only to its address.",
        "Without provider_category byok Letta does not look for a stored key: it sends the OPENAI_API_KEY of its own "
        "environment, or DUMMY_API_KEY, to this vendor.",
        ("P7", "M6"),
    ),
}


def judge(evidence: Evidence) -> Diagnosis:
    """Judge how every agent in Letta is bound."""
    seen = evidence.seen
    if seen.rows is None:
        return Diagnosis()
    if seen.agents is None:
        because = seen.agents_error or "Letta did not list them"
        return Diagnosis(unknowns=(Unknown(Layer.USE, "which agents use it, and how", because),))
    groups: dict[tuple[str, str | None], list[tuple[Agent, str]]] = {}
    for agent in seen.agents:
        for fault in _faults(agent, evidence):
            groups.setdefault((fault.code, fault.provider), []).append((agent, fault.line))
    findings = tuple(_finding(code, provider, found, evidence) for (code, provider), found in groups.items())
    faulty = {agent.id for found in groups.values() for agent, _ in found}
    well = [agent for agent in seen.agents if agent.id not in faulty]
    fine = (Fine(Layer.USE, f"{len(well)} of {len(seen.agents)} agents use their providers as they should"),)
    return Diagnosis(findings + tuple(_notes(evidence)), fine=fine if well or not seen.agents else ())


def _faults(agent: Agent, evidence: Evidence) -> Iterator[_Fault]:
    seen = evidence.seen
    row = seen.row(agent.provider) if agent.provider else None
    desired = _desired(agent, evidence)
    if agent.category != "byok":
        here = _at(agent.endpoint, evidence)
        if here is not None:
            line = f"{agent.name}: provider_category {agent.category or 'not given'}, address of {here.name}"
            yield _Fault("agent-sends-lettas-key", here.name, line)
        return
    if row is None:
        # One that is wanted and absent is told with the provider itself: that is the cause.
        if desired is None or not desired.wanted:
            yield _Fault(
                "agent-provider-gone", None, f"{agent.name}: provider {agent.provider or '-'}, {agent.endpoint}"
            )
        return
    proxied = (agent.handle or "").startswith("openai-proxy/")
    if agent.endpoint_type in DEAF:
        line = f"{agent.name}: type {agent.endpoint_type}, reads {DEAF[agent.endpoint_type]} of Letta's environment"
        yield _Fault("agent-ignores-key", agent.provider, line)
    if proxied:
        yield _Fault("agent-proxy-handle", agent.provider, f"{agent.name}: {agent.handle}, window {agent.window}")
    known = _window(agent, desired, evidence)
    if not proxied and agent.window in BLIND_WINDOWS and known is not None and known > agent.window:
        line = f"{agent.name}: window {agent.window}, {agent.model} has {known}"
        yield _Fault("agent-window-small", agent.provider, line)
    wanted = desired.base_url if desired is not None and desired.wanted else row.stored.base_url
    if wanted is not None and agent.endpoint is not None and agent.endpoint.rstrip("/") != wanted.rstrip("/"):
        yield _Fault(
            "agent-address-old", agent.provider, f"{agent.name}: {agent.endpoint}, the provider has {wanted}"
        )


def _finding(code: str, provider: str | None, found: list[tuple[Agent, str]], evidence: Evidence) -> Finding:
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
    remedy = Remedy(f"Bind them explicitly: `{command}`.", command=command, treatment=Treatment.REBIND)
    if not any(rebound(agent, evidence) for agent, _ in found):
        names = [desired.name for desired in evidence.configured.desired if desired.wanted]
        there = f" ({', '.join(names)})" if names else ""
        remedy = Remedy(
            f"Register the provider again, or bind the agents to one that is there{there}: PATCH of llm_config."
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


def _notes(evidence: Evidence) -> Iterator[Finding]:
    abilities = evidence.seen.abilities
    if abilities is None or not releases.at_least(abilities.release, "0.16.7"):
        return
    found = [
        agent.name
        for agent in evidence.seen.agents or ()
        if agent.endpoint_type == "openai"
        and (desired := _desired(agent, evidence))
        and desired.vendor.name in _STRICT
    ]
    if found:
        yield Finding(
            code="agent-client-strict",
            layer=Layer.USE,
            severity=Severity.NOTE,
            summary=f"{name_some(tuple(found))}: Letta's client for OpenAI sends fields that this vendor may refuse.",
            cause="max_completion_tokens (Mistral), and the reasoning of earlier answers (Cerebras, Groq).",
            remedy=Remedy("Where turns fail with 400 or 422, bind the agent with model_endpoint_type zai."),
            facts=("M13",),
        )


#: Vendors that are publicly known to refuse what Letta's client for OpenAI sends (fact M13).
_STRICT = frozenset({"cerebras", "groq", "mistral"})


def rebound(agent: Agent, evidence: Evidence) -> Desired | None:
    """The provider that an agent would be bound to: its own, or the one whose address it has."""
    own = _desired(agent, evidence)
    if own is not None and own.wanted and own.obstacle is None:
        return own
    return _at(agent.endpoint, evidence)


def known_window(agent: Agent, evidence: Evidence) -> int | None:
    """The model's window, by the vendor's list or the catalog; None where neither tells."""
    return _window(agent, rebound(agent, evidence), evidence)


def _desired(agent: Agent, evidence: Evidence) -> Desired | None:
    return next((one for one in evidence.configured.desired if one.name == agent.provider), None)


def _at(endpoint: str | None, evidence: Evidence) -> Desired | None:
    if endpoint is None:
        return None
    wanted = (one for one in evidence.configured.desired if one.wanted and one.obstacle is None)
    return next((one for one in wanted if one.base_url.rstrip("/") == endpoint.rstrip("/")), None)


def _window(agent: Agent, desired: Desired | None, evidence: Evidence) -> int | None:
    if desired is None:
        return None
    asked = evidence.asked.get(desired.name)
    listed = None if asked is None else asked.answer.models.get(agent.model)
    return listed or desired.vendor.models.get(agent.model)
