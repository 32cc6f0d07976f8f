"""What an agent speaks through, as Letta has it now, bound by us or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isabella.addresses import same_address
from isabella.agents.binding import GENERIC, OPENAI, Binding


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
    def of(cls, llm_config: Mapping[str, Any], agent_type: str | None = None) -> LlmConfig:
        """What Letta has, as it has it."""
        return cls(
            model=str(llm_config.get("model") or "-"),
            endpoint_type=str(llm_config.get("model_endpoint_type")),
            endpoint=llm_config.get("model_endpoint"),
            provider=llm_config.get("provider_name"),
            category=llm_config.get("provider_category"),
            window=int(llm_config.get("context_window") or 0),
            handle=llm_config.get("handle"),
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
