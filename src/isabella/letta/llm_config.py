"""The binding of an agent to a provider and a model: an explicit `llm_config` (fact M6).

A handle alone is not enough. Letta gives native Groq agents no key at all (M3), lists the models of an
OpenAI-type provider under another prefix (M4), and takes a window of 8192 for Cerebras (M1). With the binding
spelled out, the key stored in the provider is used whatever its type.

Which of Letta's clients speaks to the vendor is spelled out, too. The one it calls `openai` sends fields that
Cerebras, Groq and Mistral refuse, and where a provider is gone it sends another key. The one it calls `zai` is
the same client without both (facts M13, M14).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from isabella.letta.releases import GENERIC, OPENAI
from isabella.system.urls import same_address

#: The types of agent for which the generic client streams. Letta runs all others in an older loop (fact M26).
_GENERIC_TYPES = frozenset({"letta_v1_agent", "sleeptime_agent"})
#: Letta's clients that the older loop cannot stream with, although tokens are asked of them (fact M26).
_MUTE_IN_OLDER_LOOP = frozenset({GENERIC, "zai_coding", "deepseek", "chatgpt_oauth"})


def is_older(agent_type: str | None) -> bool:
    """Whether Letta runs agents of this type in its older loop. Without a type, Letta makes a `letta_v1_agent`."""
    return agent_type is not None and agent_type not in _GENERIC_TYPES


def streams(client: str, agent_type: str | None) -> bool:
    """Whether an agent of this type answers a streamed turn through one of Letta's clients (fact M26)."""
    return not (is_older(agent_type) and client in _MUTE_IN_OLDER_LOOP)


@dataclass(frozen=True)
class Binding:
    """What ties an agent to a provider and a model.

    Attributes:
        provider: the provider's name in Letta.
        model: the vendor's id of the model.
        base_url: where the vendor answers.
        window: the model's context window in tokens.
        client: which of Letta's clients speaks to the vendor.
    """

    provider: str
    model: str
    base_url: str
    window: int
    client: str = GENERIC

    @property
    def handle(self) -> str:
        """`provider/model`, as agents name models."""
        return f"{self.provider}/{self.model}"

    def as_llm_config(self) -> dict[str, Any]:
        """The fields of an `llm_config` that it sets. `llm_config.bind` writes them."""
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
        """The same with a client that streams for this type of agent."""
        return self if streams(self.client, agent_type) else replace(self, client=OPENAI)


@dataclass(frozen=True)
class LlmConfig:
    """An agent's `llm_config`.

    Attributes:
        model: the vendor's id of the model.
        endpoint_type: which of Letta's clients speaks.
        endpoint: where.
        provider: the provider's name.
        category: `base` for what Letta got from its own environment, `byok` for what was registered.
        window: the context window in tokens.
        handle: as Letta or somebody named it.
        compaction: the handle that sums up long conversations; None for the same as the agent's own.
        agent_type: Letta's type of the agent, which decides what its client has to be able to do.
    """

    model: str
    endpoint_type: str
    endpoint: str | None = None
    provider: str | None = None
    category: str | None = None
    window: int = 0
    handle: str | None = None
    compaction: str | None = None
    agent_type: str | None = None

    @classmethod
    def of(
        cls, llm_config: Mapping[str, Any], agent_type: str | None = None, compaction: str | None = None
    ) -> LlmConfig:
        """Return an `llm_config` as Letta has it."""
        window = llm_config.get("context_window")
        return cls(
            model=str(llm_config.get("model") or "-"),
            endpoint_type=str(llm_config.get("model_endpoint_type")),
            endpoint=llm_config.get("model_endpoint"),
            provider=llm_config.get("provider_name"),
            category=llm_config.get("provider_category"),
            window=window if isinstance(window, int) else 0,
            handle=llm_config.get("handle"),
            compaction=compaction,
            agent_type=agent_type,
        )

    def strays_from(self, provider: str, base_url: str | None) -> bool:
        """Whether it speaks through this provider, but calls another address than this one."""
        # What Letta got from its own environment is none of ours, whatever it is called.
        return self.provider == provider and self.category != "base" and not same_address(self.endpoint, base_url)

    @property
    def binding(self) -> Binding | None:
        """The explicit binding that it amounts to (fact M6); None where it is none."""
        if self.endpoint_type not in (GENERIC, OPENAI) or self.category != "byok":
            return None
        if not self.provider or not self.endpoint or self.handle != f"{self.provider}/{self.model}":
            return None
        return Binding(self.provider, self.model, self.endpoint, self.window, client=self.endpoint_type)
