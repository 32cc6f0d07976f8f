"""What an agent speaks through, as Letta has it now, bound by us or not."""

from __future__ import annotations

from dataclasses import dataclass

from isabella.agents.binding import GENERIC, OPENAI, Binding


@dataclass(frozen=True)
class Engine:
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
    """

    model: str
    endpoint_type: str
    endpoint: str | None = None
    provider: str | None = None
    category: str | None = None
    window: int = 0
    handle: str | None = None
    compaction: str | None = None

    @property
    def binding(self) -> Binding | None:
        """The explicit binding that it amounts to (fact M6); None where it is none."""
        if self.endpoint_type not in (GENERIC, OPENAI) or self.category != "byok":
            return None
        if not self.provider or not self.endpoint or self.handle != f"{self.provider}/{self.model}":
            return None
        return Binding(self.provider, self.model, self.endpoint, self.window, client=self.endpoint_type)
