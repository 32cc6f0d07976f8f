"""Agents follow their provider to another address.

Letta sends the key that is stored for a provider to the address that stands in the agent (fact M6), not to the one
that stands in the provider. Whoever moves a provider takes its agents along, or its key goes to the former address.
"""

from __future__ import annotations

from functools import partial

from isabella.agents.client import open_client
from isabella.agents.engine import Engine
from isabella.agents.residents import Resident, Residents
from isabella.agents.wire import Wire
from isabella.concurrency import together
from isabella.connection import Connection
from isabella.errors import LettaError, LettaRefused

_AT_ONCE = 8
#: A turn that is just ending may bind its agent back to what was true when it looked.
_PASSES = 3


async def move(wire: Wire, agent_id: str, provider: str, base_url: str) -> bool:
    """Have one agent call this address, if it is bound to the provider. All else in its `llm_config` stays.

    Args:
        wire: to Letta.
        agent_id: Letta's id of it.
        provider: the provider's name in Letta.
        base_url: where its vendor answers now.

    Returns:
        Whether it called another address; not so where somebody has bound it to another provider meanwhile.

    Raises:
        LettaError: Letta refuses or fails.
    """
    config = (await wire.agent(agent_id)).get("llm_config") or {}
    if not Engine.of(config).strays_from(provider, base_url):
        return False
    await wire.patch(f"/v1/agents/{agent_id}", {"llm_config": {**config, "model_endpoint": base_url}})
    return True


async def follow(connection: Connection, provider: str, base_url: str) -> tuple[str, ...]:
    """Have every agent of a provider call this address, with nothing else about it changed.

    Args:
        connection: which Letta.
        provider: its name in Letta.
        base_url: where its vendor answers now.

    Returns:
        The names of the agents that called another address.

    Raises:
        LettaError: they cannot be listed, or some of them cannot be changed; all others have been.
    """
    moved: dict[str, str] = {}
    trouble: dict[str, LettaError] = {}
    async with open_client(connection) as client:
        residents = Residents(client)

        async def one(resident: Resident) -> None:
            try:
                if await move(residents.wire, resident.id, provider, base_url):
                    moved[resident.id] = resident.name
            except LettaError as error:
                # One that is gone calls nobody any more.
                if not (isinstance(error, LettaRefused) and error.status == 404):
                    trouble[resident.id] = error

        for _ in range(_PASSES):
            behind = [
                resident
                for resident in await residents.all()
                if resident.engine is not None
                and resident.engine.strays_from(provider, base_url)
                and resident.id not in trouble
            ]
            if not behind:
                break
            await together([partial(one, resident) for resident in behind], at_once=_AT_ONCE)
    for error in trouble.values():
        raise error
    return tuple(moved.values())
