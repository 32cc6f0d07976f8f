"""The lifecycle of agents: create from a definition, rename, duplicate, and delete with their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from isabella.agents import metadata
from isabella.agents.definitions import AgentDefinition
from isabella.agents.deletion import delete_with_memory, others_of, own_archives
from isabella.agents.import_export import ImportedAgent, configured_secrets, export_agent, import_agent
from isabella.agents.memory import check_text
from isabella.agents.metadata import AgentMetadata
from isabella.agents.reconcile import new_agent_fields, tool_ids
from isabella.agents.registry import AgentRecord, AgentRegistry
from isabella.agents.service import AgentService
from isabella.errors import AgentUnknown, IsabellaError
from isabella.system import audit
from isabella.system.english import english

_MOST_COUNTED = 5000  # messages; Letta counts none
_MOST_PASSAGES_COUNTED = 200  # each row of a passage has its vector, about 40 kB
_PAGE = 1000
_SPOKEN = ("user_message", "assistant_message")


@dataclass(frozen=True)
class NewAgent:
    """An agent to create."""

    name: str
    definition: str | None = None  # the id of the definition that it is created after; None for the first one
    handle: str | None = None  # its model; None for the first of its definition that works
    description: str | None = None  # for people; None for the one of the definition
    persona: str | None = None  # its system prompt; None for the one of the definition


@dataclass(frozen=True)
class Count:
    """A number of rows, counted up to a limit."""

    number: int
    more: bool = False  # whether there are more than were counted


@dataclass(frozen=True)
class Losses:
    """The losses when an agent is deleted."""

    messages: Count  # messages of the user and of the agent
    passages: Count  # of archival memory; none if another agent has the same archive
    blocks: tuple[str, ...]  # the labels of the blocks that no other agent has
    shared: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # labels of blocks that stay, with their agents
    defined: bool = False  # whether the agents file defines the agent, so that the next start creates a new one

    def as_json(self) -> dict[str, Any]:
        """Return the form in which `--json` prints it."""
        return asdict(self)


def templates(definitions: Sequence[AgentDefinition]) -> list[AgentDefinition]:
    """Return the definitions that new agents can be created after: those of agents to talk with."""
    return [definition for definition in definitions if definition.reflects_on is None]


@audit.recorded(
    "agent.created",
    lambda agents, wanted: {"subject": wanted.name, "definition": wanted.definition, "model": wanted.handle},
)
async def create_agent(agents: AgentService, wanted: NewAgent) -> AgentRecord:
    """Create an agent from a definition, with its own memory, and return it.

    Raises `AgentNameRefused`, `AgentExists`, `ModelUnknown` or `LettaError`. No incomplete agent stays behind.
    """
    registry, definition = agents.registry, _template(agents.definitions, wanted)
    for text in (definition.description, definition.persona):
        check_text(text)
    async with registry.naming:
        await registry.check_name(definition.name)
        await tool_ids(registry, definition.tools)
        if wanted.handle is None:
            binding = await agents.models.choose(definition.handles, window=definition.window)
        else:
            binding = await registry.usable(wanted.handle, agents.models, window=definition.window)
        own = AgentMetadata(handles=tuple(dict.fromkeys((binding.handle, *definition.handles))))
        fields = new_agent_fields(definition, binding, own, agents.vectors)
        id = await registry.letta.agents.create({**fields, "tags": [metadata.MANAGED_TAG]})
        try:
            await registry.bind(id, binding)
        except IsabellaError:
            await registry.letta.agents.delete(id)
            raise
    # Its blocks have a history from the beginning.
    await agents.memory.observe(id)
    return await registry.get(id)


@audit.recorded("agent.renamed", lambda registry, record, name: {"subject": record.name, "to": name})
async def rename_agent(registry: AgentRegistry, record: AgentRecord, name: str) -> AgentRecord:
    """Give an agent another name, and return it. Raises `AgentNameRefused`, `AgentExists` or `LettaError`."""
    async with registry.naming:
        await registry.check_name(name, of=record.id)
        await registry.letta.agents.update(record.id, {"name": name})
    return await registry.get(record.id)


@audit.recorded("agent.duplicated", lambda agents, record, name: {"subject": record.name, "to": name})
async def duplicate_agent(agents: AgentService, record: AgentRecord, name: str) -> ImportedAgent:
    """Create an agent like another one, with copies of its memory and the messages in its context.

    Raises as `import_agent` does.
    """
    secrets = configured_secrets(agents.models, agents.connection)
    text = await export_agent(agents.registry, record, secrets)
    handles = tuple(dict.fromkeys((record.handle, *record.handles)))
    # Its tools are in this Letta already.
    copied = await import_agent(
        agents.registry, agents.models, text, name=name, with_tools=True, vectors=agents.vectors, handles=handles
    )
    await agents.memory.observe(copied.id)
    return copied


async def losses_of(registry: AgentRegistry, record: AgentRecord) -> Losses:
    """Return the losses when an agent is deleted. Raises `LettaError`."""
    others = others_of(await registry.all(hidden=True), record)
    shared = {
        label: names
        for label, id in record.blocks.items()
        if (names := tuple(other.name for other in others if id in other.blocks.values()))
    }
    archived = await own_archives(registry, record)
    return Losses(
        messages=await _messages(registry, record.id),
        passages=await _passages(registry, record.id) if archived else Count(0),
        blocks=tuple(sorted(label for label in record.blocks if label not in shared)),
        shared=shared,
        defined=record.definition is not None,
    )


@audit.recorded("agent.deleted", lambda agents, record: {"subject": record.name, "agent": record.id})
async def delete_agent(agents: AgentService, record: AgentRecord) -> None:
    """Delete an agent with its messages, its archival memory, and the blocks that no other agent has.

    Letta itself keeps blocks and archives of a deleted agent. No turn of the agent may run. Raises `LettaError`, or
    an `AgentError` if the agent is deleted and a part of its memory is not.
    """
    for id in await delete_with_memory(agents.registry, record):
        agents.memory.history.forget(id)


def _template(definitions: Sequence[AgentDefinition], wanted: NewAgent) -> AgentDefinition:
    usable = templates(definitions)
    matches = [one for one in usable if wanted.definition in (None, one.id)]
    if not matches:
        ids = ", ".join(one.id for one in usable)
        raise AgentUnknown(
            english("No agent can be created from the definition %(id)s.", id=repr((wanted.definition or "")[:60])),
            remedy=english("Available: %(ids)s.", ids=ids) if ids else english("The agents file defines none."),
        )
    definition = replace(matches[0], name=wanted.name)
    if wanted.description is not None:
        definition = replace(definition, description=wanted.description)
    if wanted.persona is not None and wanted.persona.strip():
        definition = replace(definition, persona=wanted.persona.strip())
    return definition


async def _messages(registry: AgentRegistry, agent_id: str) -> Count:
    """Count the messages of the user and of the agent."""
    spoken: set[str] = set()
    after: str | None = None
    while len(spoken) < _MOST_COUNTED:
        rows = await registry.letta.messages.page(agent_id, limit=_PAGE, order="asc", after=after)
        spoken |= {row["id"] for row in rows if row.get("message_type") in _SPOKEN}
        last = rows[-1]["id"] if rows else None
        if last is None or last == after or len({row["id"] for row in rows}) < _PAGE:
            return Count(len(spoken))
        after = last
    return Count(_MOST_COUNTED, more=True)


async def _passages(registry: AgentRegistry, agent_id: str) -> Count:
    rows = await registry.letta.passages.page(agent_id, limit=_MOST_PASSAGES_COUNTED + 1)
    number = len(rows)
    return Count(min(number, _MOST_PASSAGES_COUNTED), more=number > _MOST_PASSAGES_COUNTED)
