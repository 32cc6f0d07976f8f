"""What Isabella notes in Letta about an agent: tags to find it by, and in its metadata what she last wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isabella.agents.definitions import AgentDefinition
from isabella.letta.llm_config import LoweredLimit

#: On every agent that Isabella keeps or has taken in.
MANAGED_TAG = "isabella"
#: Begins the tag that says of which definition an agent is.
DEFINITION = "isabella:agent:"
#: On agents that came from a file.
IMPORTED = "isabella:imported"
#: On the temporary agents of `turns.probe`, so that those of a run that was killed are found and removed.
PROBE_TAG = "isabella:receipt"
#: The key in an agent's metadata below which everything of Isabella's stands.
KEY = "isabella"


@dataclass(frozen=True)
class AgentMetadata:
    """What the metadata of an agent holds of Isabella's.

    Attributes:
        written: fingerprints of what its definition last wrote, by field, so that only what the file changed is
            changed, and what somebody changed in Letta stays.
        tools: the tools that its definition last gave it.
        embedding: how its archival memory is searched, once that is decided.
        reflected: up to where what was said has been reflected on.
        lowered: what a smaller window has made of the agent's `max_tokens`.
    """

    written: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    embedding: Mapping[str, Any] | None = None
    reflected: str | None = None
    lowered: LoweredLimit | None = None

    @classmethod
    def read(cls, metadata: Mapping[str, Any] | None) -> AgentMetadata:
        """The marks in an agent's metadata; what has another shape counts as absent."""
        found = (metadata or {}).get(KEY)
        if not isinstance(found, dict):
            return cls()
        written, tools = found.get("written"), found.get("tools")
        embedding, reflected = found.get("embedding"), found.get("reflected")
        return cls(
            written={str(k): str(v) for k, v in written.items()} if isinstance(written, dict) else {},
            tools=tuple(str(tool) for tool in tools) if isinstance(tools, list) else (),
            embedding=embedding if isinstance(embedding, dict) else None,
            reflected=reflected if isinstance(reflected, str) else None,
            lowered=_lowered(found.get("max_tokens")),
        )

    def into(self, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
        """The agent's metadata with these marks; what is not Isabella's stays."""
        mine: dict[str, Any] = {}
        if self.written:
            mine["written"] = dict(self.written)
        if self.tools:
            mine["tools"] = list(self.tools)
        if self.embedding is not None:
            mine["embedding"] = dict(self.embedding)
        if self.reflected is not None:
            mine["reflected"] = self.reflected
        if self.lowered is not None:
            mine["max_tokens"] = {"wanted": self.lowered.wanted, "to": self.lowered.to}
        return {**(metadata or {}), KEY: mine}


def _lowered(found: Any) -> LoweredLimit | None:
    match found:
        case {"wanted": int(wanted), "to": int(to)}:
            return LoweredLimit(wanted, to)
    return None


def definition_tag(id: str) -> str:
    """The tag of the agents of a definition."""
    return f"{DEFINITION}{id}"


def definition_id(tags: Sequence[str]) -> str | None:
    """The definition that an agent's tags name."""
    return next((tag.removeprefix(DEFINITION) for tag in tags if tag.startswith(DEFINITION)), None)


def fingerprints(definition: AgentDefinition) -> dict[str, str]:
    """What a definition would write, by field."""
    fields: dict[str, Any] = {
        "name": definition.name,
        "description": definition.description,
        "persona": definition.persona,
        "tools": sorted(definition.tools),
        "models": [list(definition.handles), definition.window],
    }
    for block in definition.blocks:
        fields[f"{block.label}.description"] = block.description
        fields[f"{block.label}.limit"] = [block.limit, block.read_only]
    return {name: fingerprint(value) for name, value in fields.items()}


def fingerprint(value: Any) -> str:
    """A short digest of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
