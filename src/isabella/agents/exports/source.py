"""An agent as it is exported: what both kinds of folders are written from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from isabella.agents import context
from isabella.agents.block_history import BlockVersion
from isabella.agents.conversations import ConversationRecord
from isabella.agents.exports.messages import MessageRecord, all_rows, record_of
from isabella.agents.import_export import agent_document
from isabella.agents.metadata import AgentMetadata, definition_id
from isabella.agents.registry import AgentRecord
from isabella.agents.service import AgentService
from isabella.letta.conversations import DEFAULT

_BLOCK_FIELDS = ("label", "value", "limit", "description", "read_only", "metadata")


@dataclass(frozen=True)
class SourceConversation:
    """A conversation that is exported."""

    record: ConversationRecord
    system: str | None  # the id of the message that holds the compiled system prompt
    context: Sequence[str]  # the ids of the other messages in its context


@dataclass(frozen=True)
class SourceAgent:
    """An agent that is exported, without its messages and passages, which are read page by page."""

    service: AgentService
    record: AgentRecord
    document: Mapping[str, Any]  # its agent file, without messages and blocks
    blocks: Sequence[Mapping[str, Any]]
    versions: Mapping[str, Sequence[BlockVersion]]  # the kept versions of each block's text, by label, oldest first
    own: Mapping[str, Any]  # what Isabella keeps of it: its definition, its metadata, and what was reflected on
    conversations: Sequence[SourceConversation]
    letta: str | None  # Letta's release

    @property
    def persona(self) -> str:
        """Its system prompt."""
        return str(self.document["agents"][0].get("system") or "")

    async def messages(self, conversation: SourceConversation) -> AsyncIterator[MessageRecord]:
        """Yield the messages of a conversation, oldest first, without the compiled system prompt."""
        async for id, rows in all_rows(self.service.letta, self.record.id, conversation.record.id):
            # The system prompt is made of persona and memory, which are exported themselves.
            if id != conversation.system:
                yield record_of(id, rows)


async def read_source(service: AgentService, record: AgentRecord) -> SourceAgent:
    """Read an agent, in whose conversations no turn should run. Raises `LettaError`."""
    registry = service.registry
    document = await agent_document(registry, record)
    # An agent of Letta's own for sleep time may come along.
    agent = next((one for one in document["agents"] if one.get("name") == record.name), document["agents"][0])
    document["agents"] = [agent]
    agent["messages"], agent["in_context_message_ids"] = [], []
    by_id = {block.get("id"): block for block in document.pop("blocks", None) or ()}
    blocks = [
        {name: by_id[id].get(name) for name in _BLOCK_FIELDS} for id in agent.pop("block_ids", ()) if id in by_id
    ]
    present = await service.memory.observe(record.id)
    return SourceAgent(
        service=service,
        record=record,
        document=document,
        blocks=sorted(blocks, key=lambda block: str(block["label"])),
        versions={block.label: service.memory.history.versions(block.id) for block in present},
        own=await _own(service, record),
        conversations=[await _conversation(service, record, one) for one in await _conversations(service, record)],
        letta=(await service.letta.providers.abilities()).release,
    )


async def _conversations(service: AgentService, record: AgentRecord) -> list[ConversationRecord]:
    default, *others = await service.conversations.all(record.id, record.agent_type)
    return [default, *reversed(others)]


async def _conversation(service: AgentService, record: AgentRecord, one: ConversationRecord) -> SourceConversation:
    within = None if one.id == DEFAULT else one.id
    ids = await context.context_ids(service.letta, record.id, within)
    # The first message of a context is the system prompt.
    return SourceConversation(one, ids[0] if ids else None, ids[1:])


async def _own(service: AgentService, record: AgentRecord) -> dict[str, Any]:
    own = record.own_metadata
    definition = definition_id(record.tags)
    reflected = {
        other.definition.id: other.own_metadata.reflected
        for other in await service.registry.all()
        if other.definition is not None and definition is not None and other.definition.reflects_on == definition
    }
    kept = AgentMetadata(written=own.written, tools=own.tools, lowered=own.lowered, handles=record.handles)
    return {
        "definition": definition,
        "metadata": kept.into(None),
        # Of an agent that Isabella does not manage, the window may be Letta's guess (fact M1).
        "window": record.llm.window if record.managed and record.llm is not None else None,
        "reflected": {id: message for id, message in reflected.items() if message is not None},
    }


def version_fields(version: BlockVersion) -> dict[str, Any]:
    """Return a version of a block as a record, without empty fields."""
    return {name: value for name, value in asdict(version).items() if value not in (None, "")} | {
        "value": version.value
    }
