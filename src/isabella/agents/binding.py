"""The binding of an agent to a provider and a model: an explicit `llm_config` (fact M6).

A handle alone is not enough. Letta gives native Groq agents no key at all (M3), lists the models of an
OpenAI-type provider under another prefix (M4), and takes a window of 8192 for Cerebras (M1). With the binding
spelled out, the key stored in the provider is used whatever its type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Binding:
    """What ties an agent to a provider and a model.

    Attributes:
        provider: the provider's name in Letta.
        model: the vendor's id of the model.
        base_url: where the vendor answers.
        window: the model's context window in tokens.
    """

    provider: str
    model: str
    base_url: str
    window: int

    @property
    def handle(self) -> str:
        """`provider/model`, as agents name models."""
        return f"{self.provider}/{self.model}"

    def as_llm_config(self) -> dict[str, Any]:
        """The form in which Letta takes it."""
        return {
            "model": self.model,
            "model_endpoint_type": "openai",
            "model_endpoint": self.base_url,
            "provider_name": self.provider,
            "provider_category": "byok",
            "context_window": self.window,
            "handle": self.handle,
        }
