"""The binding of an agent to a provider and a model: an explicit `llm_config` (fact M6).

A handle alone is not enough. Letta gives native Groq agents no key at all (M3), lists the models of an
OpenAI-type provider under another prefix (M4), and takes a window of 8192 for Cerebras (M1). With the binding
spelled out, the key stored in the provider is used whatever its type.

Which of Letta's clients speaks to the vendor is spelled out, too. The one it calls `openai` sends fields that
Cerebras, Groq and Mistral refuse, and where a provider is gone it sends another key. The one it calls `zai` is
the same client without both (facts M13, M14).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

#: Letta's client for OpenAI-compatible vendors that sends nothing but what they all take, since 0.16.7 (fact M13).
GENERIC = "zai"
#: The only one that uses a stored key in older releases.
OPENAI = "openai"

_GENERIC_SINCE = (0, 16, 7)
#: The types of agent for which the generic client streams. Letta runs all others in an older loop (fact M26).
_GENERIC_TYPES = frozenset({"letta_v1_agent", "sleeptime_agent"})
#: Letta's clients that the older loop cannot stream with, although tokens are asked of them (fact M26).
_MUTE_IN_OLDER_LOOP = frozenset({GENERIC, "zai_coding", "deepseek", "chatgpt_oauth"})


def client_for(release: str) -> str:
    """Which of Letta's clients to bind with in a release; one whose number cannot be read counts as new."""
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", release)
    return OPENAI if numbers and tuple(map(int, numbers.groups())) < _GENERIC_SINCE else GENERIC


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
