"""The `llm_config` of an agent, and its binding to a provider and a model: read, merged and written only here.

A handle alone is not enough. Letta gives native Groq agents no key at all (M3), lists the models of an OpenAI-type
provider under another prefix (M4), and assumes a context window of 8192 tokens for Cerebras (M1). With an explicit
binding, Letta uses the key that is stored in the provider, whatever its type (M6).

The binding also names Letta's client. Its client `openai` sends fields that Cerebras, Groq and Mistral refuse, and
sends another key if the provider is gone. Its client `zai` is the same one without both faults (facts M13, M14).

Letta replaces an agent's `llm_config` as a whole (fact M25). So everything that a binding does not name, such as the
temperature, is read first and written back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from isabella.letta.releases import GENERIC, OPENAI
from isabella.system.urls import is_gateway_url, same_address

#: The agent types with which the generic client streams. Letta runs all others in an older loop (fact M26).
_GENERIC_TYPES = frozenset({"letta_v1_agent", "sleeptime_agent"})
#: Letta's clients with which the older loop cannot stream, although it requests tokens (fact M26).
_MUTE_IN_OLDER_LOOP = frozenset({GENERIC, "zai_coding", "deepseek", "chatgpt_oauth"})
#: Fields that describe one model, and are wrong for another.
_OF_ONE_MODEL = ("display_name", "model_wrapper", "compatibility_type", "tier")


def is_older(agent_type: str | None) -> bool:
    """Return whether Letta runs agents of this type in its older loop. Its default type is `letta_v1_agent`."""
    return agent_type is not None and agent_type not in _GENERIC_TYPES


def streams(client: str, agent_type: str | None) -> bool:
    """Return whether an agent of this type can stream through one of Letta's clients (fact M26)."""
    return not (is_older(agent_type) and client in _MUTE_IN_OLDER_LOOP)


@dataclass(frozen=True)
class Binding:
    """The binding of an agent to a provider and a model."""

    provider: str  # the provider's name in Letta
    model: str  # the vendor's id of the model
    base_url: str  # the vendor's base URL
    window: int  # the model's context window in tokens
    client: str = GENERIC  # the name of Letta's client

    @property
    def handle(self) -> str:
        """`provider/model`."""
        return f"{self.provider}/{self.model}"

    def as_llm_config(self) -> dict[str, Any]:
        """Return the fields of an `llm_config` that the binding sets."""
        return {
            "model": self.model,
            "model_endpoint_type": self.client,
            "model_endpoint": self.base_url,
            "provider_name": self.provider,
            "provider_category": "byok",
            "context_window": self.window,
            "handle": self.handle,
        }

    def suited(self, agent_type: str | None) -> Binding:
        """Return the binding with a client that can stream for this agent type.

        The gateway adapts requests to each vendor, so every agent behind it has Letta's plain client.
        """
        plain = is_gateway_url(self.base_url) or not streams(self.client, agent_type)
        return replace(self, client=OPENAI) if plain else self


@dataclass(frozen=True)
class LlmConfig:
    """An agent's `llm_config`."""

    model: str  # the vendor's id of the model
    endpoint_type: str  # the name of Letta's client
    endpoint: str | None = None  # the base URL that the agent calls
    provider: str | None = None
    category: str | None = None  # `base` for providers from Letta's own environment, `byok` for registered ones
    window: int = 0  # the context window in tokens
    handle: str | None = None  # the handle, as Letta or another program wrote it
    compaction: str | None = None  # the handle of the model for summaries; None for the agent's own
    agent_type: str | None = None  # Letta's type of the agent, which decides about its client
    max_tokens: int | None = None  # the limit of an answer; None if there is none

    @classmethod
    def of(
        cls, llm_config: Mapping[str, Any], agent_type: str | None = None, compaction: str | None = None
    ) -> LlmConfig:
        """Return an `llm_config` from Letta's JSON."""
        window = llm_config.get("context_window")
        return cls(
            model=str(llm_config.get("model") or "-"),
            endpoint_type=str(llm_config.get("model_endpoint_type")),
            endpoint=llm_config.get("model_endpoint"),
            provider=llm_config.get("provider_name"),
            category=llm_config.get("provider_category"),
            window=window if isinstance(window, int) else 0,
            max_tokens=limit if isinstance(limit := llm_config.get("max_tokens"), int) else None,
            handle=llm_config.get("handle"),
            compaction=compaction,
            agent_type=agent_type,
        )

    def calls_elsewhere(self, provider: str, base_url: str | None) -> bool:
        """Return whether it is bound to this provider, but calls another base URL."""
        # A provider from Letta's own environment is not one that Isabella manages, whatever its name is.
        return self.provider == provider and self.category != "base" and not same_address(self.endpoint, base_url)

    @property
    def binding(self) -> Binding | None:
        """Its explicit binding (fact M6); None if it has none."""
        if self.endpoint_type not in (GENERIC, OPENAI) or self.category != "byok":
            return None
        if not self.provider or not self.endpoint or self.handle != f"{self.provider}/{self.model}":
            return None
        return Binding(self.provider, self.model, self.endpoint, self.window, client=self.endpoint_type)


@dataclass(frozen=True)
class LoweredLimit:
    """A `max_tokens` that Isabella set: the owner's does not fit into the model's window, or there is none."""

    wanted: int | None  # the `max_tokens` that the agent's owner has set; None if the owner has set none
    to: int  # the `max_tokens` that the agent has instead


def creation_fields(binding: Binding, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the fields of a new agent that bind it, with these settings of an `llm_config`."""
    return {"llm_config": _merged(settings or {}, binding, None)[0]}


def answer_limit(window: int, answer_tokens: int) -> int | None:
    """Return the `max_tokens` of an agent whose owner has set none; None to send no limit.

    At most a quarter of the window: vendors refuse a prompt that leaves too little room for the answer.
    """
    return min(answer_tokens, window // 4) or None


def binding_fields(
    current: Mapping[str, Any], binding: Binding, lowered: LoweredLimit | None, answer_tokens: int = 0
) -> tuple[dict[str, Any], LoweredLimit | None]:
    """Return the fields of an agent that bind it, and what became of its `max_tokens`.

    The other settings of `current`, its `llm_config`, stay. `lowered` is the effect of the former binding,
    `answer_tokens` the limit of an answer if its owner has set none; 0 for no limit.
    """
    config, lowered = _merged(current, binding, lowered, answer_tokens)
    # Without a model for summaries Letta uses the agent's own; it would look up a handle (facts M1, M3 and M4).
    return {"llm_config": config, "compaction_settings": {"model": None}}, lowered


def base_url_fields(current: Mapping[str, Any], base_url: str | None, client: str | None = None) -> dict[str, Any]:
    """Return the fields of an agent that have it call another base URL, through another client if one is given."""
    config = {**current, "model_endpoint": base_url}
    return {"llm_config": config if client is None else {**config, "model_endpoint_type": client}}


def _merged(
    current: Mapping[str, Any], binding: Binding, lowered: LoweredLimit | None, answer_tokens: int = 0
) -> tuple[dict[str, Any], LoweredLimit | None]:
    config = {**current, **binding.as_llm_config()}
    if current.get("model") != binding.model:
        config = {name: value for name, value in config.items() if name not in _OF_ONE_MODEL}
    max_tokens = config.get("max_tokens")
    if lowered is not None and max_tokens == lowered.to:
        max_tokens = lowered.wanted
    now: LoweredLimit | None = None
    if not isinstance(max_tokens, int):
        limit = answer_limit(binding.window, answer_tokens)
        now = None if limit is None else LoweredLimit(None, limit)
    elif max_tokens >= binding.window > 1:
        now = LoweredLimit(max_tokens, to=binding.window // 2)
    if "max_tokens" in config or now is not None:
        config["max_tokens"] = max_tokens if now is None else now.to
    return config, now
