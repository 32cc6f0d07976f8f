"""Isabella's data on an agent in Letta: tags to find it, and metadata with the values that Isabella last wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from isabella.agents.definitions import AgentDefinition
from isabella.letta.llm_config import LoweredLimit

MANAGED_TAG = "isabella"  # the tag of every agent that Isabella created or imported
DEFINITION = "isabella:agent:"  # the prefix of the tag that names an agent's definition
IMPORTED = "isabella:imported"  # the tag of imported agents
#: The tag of the temporary agents of `turns.probe`, so that abandoned ones are found and deleted.
PROBE_TAG = "isabella:receipt"
KEY = "isabella"  # the key of Isabella's part of an agent's metadata


@dataclass(frozen=True)
class AgentMetadata:
    """Isabella's part of an agent's metadata."""

    #: digests of what the definition last wrote, by field. Only fields that changed in the file are written again, so
    #: that changes made in Letta stay.
    written: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()  # the tools that the definition last gave the agent
    embedding: Mapping[str, Any] | None = None  # how its archival memory is searched, once that is decided
    reflected: str | None = None  # the id of the last message that was reflected on
    lowered: LoweredLimit | None = None  # what Isabella has made of `max_tokens`
    archived: tuple[str, ...] = ()  # the ids of archived conversations, which Letta does not know as such
    handles: tuple[str, ...] = ()  # the models that an agent without a definition prefers, in order

    @classmethod
    def read(cls, metadata: Mapping[str, Any] | None) -> AgentMetadata:
        """Return Isabella's part of an agent's metadata. A field of another shape counts as absent."""
        own = (metadata or {}).get(KEY)
        if not isinstance(own, dict):
            return cls()
        written, tools, archived = own.get("written"), own.get("tools"), own.get("archived")
        handles = own.get("handles")
        embedding, reflected = own.get("embedding"), own.get("reflected")
        lowered: LoweredLimit | None = None
        match own.get("max_tokens"):
            case {"wanted": int() | None as wanted, "to": int(to)}:
                lowered = LoweredLimit(wanted, to)
        return cls(
            written={str(k): str(v) for k, v in written.items()} if isinstance(written, dict) else {},
            tools=tuple(str(tool) for tool in tools) if isinstance(tools, list) else (),
            embedding=embedding if isinstance(embedding, dict) else None,
            reflected=reflected if isinstance(reflected, str) else None,
            lowered=lowered,
            archived=tuple(str(id) for id in archived) if isinstance(archived, list) else (),
            handles=tuple(str(handle) for handle in handles) if isinstance(handles, list) else (),
        )

    def into(self, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return an agent's metadata with this as Isabella's part; all else stays."""
        own = {
            "written": self.written,
            "tools": list(self.tools),
            "embedding": self.embedding,
            "reflected": self.reflected,
            "max_tokens": self.lowered and asdict(self.lowered),
            "archived": list(self.archived),
            "handles": list(self.handles),
        }
        return {**(metadata or {}), KEY: {name: value for name, value in own.items() if value}}


def definition_tag(id: str) -> str:
    """Return the tag of the agents of a definition."""
    return f"{DEFINITION}{id}"


def definition_id(tags: Sequence[str]) -> str | None:
    """Return the id of the definition that an agent's tags name; None if they name none."""
    return next((tag.removeprefix(DEFINITION) for tag in tags if tag.startswith(DEFINITION)), None)


def fingerprints(definition: AgentDefinition) -> dict[str, str]:
    """Return digests of what a definition writes, by field."""
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
    """Return a short digest of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
