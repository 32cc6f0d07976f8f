"""Deletion of an agent with the memory that no other agent uses."""

from __future__ import annotations

from collections.abc import Sequence

from isabella.agents.registry import AgentRecord, AgentRegistry
from isabella.errors import AgentError, IsabellaError
from isabella.system.english import english


async def delete_with_memory(registry: AgentRegistry, record: AgentRecord) -> list[str]:
    """Delete an agent, its archives, and the blocks that no other agent uses. Return the ids of the deleted blocks.

    Letta keeps the blocks and archives of a deleted agent, so each is deleted by itself. Raises `LettaError` if the
    agent was not deleted, and `AgentError` if it was, but a part of its memory was not.
    """
    letta = registry.letta
    kept = {id for other in others_of(await registry.all(hidden=True), record) for id in other.blocks.values()}
    archives = await own_archives(registry, record)
    await letta.agents.delete(record.id)
    deleted = [id for id in record.blocks.values() if id not in kept]
    try:
        for id in deleted:
            await letta.blocks.delete(id)
        for archive in archives:
            await letta.passages.delete_archive(archive)
    except IsabellaError as error:
        raise AgentError(
            english(
                "%(name)s is deleted, but Letta still holds a part of its memory: %(what)s",
                name=record.name,
                what=error.what,
            ),
            remedy=english("No agent has it. Delete the remaining blocks and archives through Letta's API."),
        ) from None
    return deleted


def others_of(records: Sequence[AgentRecord], record: AgentRecord) -> list[AgentRecord]:
    """Return all agents but one."""
    return [other for other in records if other.id != record.id]


async def own_archives(registry: AgentRegistry, record: AgentRecord) -> list[str]:
    """Return the ids of the archives that are attached to this agent only."""
    passages = registry.letta.passages
    return [id for id in await passages.archives(record.id) if await passages.agents_of(id) == [record.id]]
