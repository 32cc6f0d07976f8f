"""Pointing agents at the address that makes their vectors: decided once for each agent, re-pointed when it moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isabella.agents.embedding import TEXT, EmbeddingSetup, SearchMethod
from isabella.agents.residents import AgentRecord, AgentRegistry


async def set_embedding(
    residents: AgentRegistry, resident: AgentRecord, vectors: EmbeddingSetup | None
) -> str | None:
    """Decide how an agent's archival memory is searched, where that is not decided, and point Letta there.

    Returns:
        What was changed, for people; None where nothing was.

    Raises:
        LettaError: Letta refuses or fails.
    """
    if vectors is None:
        return None
    choice, change = await embedding_change(residents, resident, vectors)
    if not change:
        return None
    await residents.wire.patch(f"/v1/agents/{resident.id}", change)
    return f"archival memory searched by {choice.model or 'text'}"


async def embedding_change(
    residents: AgentRegistry, resident: AgentRecord, vectors: EmbeddingSetup
) -> tuple[SearchMethod, dict[str, Any]]:
    """How an agent's archival memory is searched, and the change that makes it so; empty where it is."""
    decided = SearchMethod.of_mark(resident.marks.embedding)
    choice = decided or await _decide(residents, resident, vectors)
    change: dict[str, Any] = {}
    if decided is None:
        noted = replace(resident.marks, embedding=choice.as_mark())
        change["metadata"] = noted.into(resident.metadata)
    config = choice.as_config(vectors.address)
    if config is not None and any((resident.embedding or {}).get(key) != value for key, value in config.items()):
        change["embedding_config"] = config
    return choice, change


async def _decide(residents: AgentRegistry, resident: AgentRecord, vectors: EmbeddingSetup) -> SearchMethod:
    """What the settings say, unless there are passages without such vectors already: they would not be found."""
    if resident.embedding is not None:
        return TEXT
    path = f"/v1/agents/{resident.id}/archival-memory"
    return TEXT if await residents.wire.get(path, limit=1) else vectors.choice
