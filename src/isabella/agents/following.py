"""Agents follow their provider to another address.

Letta sends the key that is stored for a provider to the address that stands in the agent (fact M6), not to the one
that stands in the provider. Whoever moves a provider takes its agents along, or its key goes to the former address.
"""

from __future__ import annotations

from isabella.agents.client import open_client
from isabella.agents.residents import Residents
from isabella.connection import Connection


async def follow(connection: Connection, provider: str, base_url: str) -> tuple[str, ...]:
    """Have every agent of a provider call this address, with nothing else about it changed.

    Args:
        connection: which Letta.
        provider: its name in Letta.
        base_url: where its vendor answers now.

    Returns:
        The names of the agents that called another address.

    Raises:
        LettaError: they cannot be listed, or one cannot be changed; those before it have been.
    """
    moved: list[str] = []
    async with open_client(connection) as client:
        residents = Residents(client)
        for resident in await residents.all():
            engine = resident.engine
            if engine is None or engine.provider != provider or engine.category == "base":
                continue
            if (engine.endpoint or "").rstrip("/") == base_url.rstrip("/"):
                continue
            row = await residents.wire.get(f"/v1/agents/{resident.id}", include_relationships="")
            config = {**row["llm_config"], "model_endpoint": base_url}
            await residents.change(resident.id, {"llm_config": config})
            moved.append(resident.name)
    return tuple(moved)
