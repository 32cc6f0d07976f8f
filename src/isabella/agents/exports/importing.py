"""An exported agent comes back: with memory, former texts, conversations, and its place in the agents file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio

from isabella.agents import context, metadata
from isabella.agents.exports.folder import temporary_folder
from isabella.agents.exports.messages import MessageRecord, all_rows, record_of
from isabella.agents.exports.read import ExportedAgent, ExportedConversation, read_export
from isabella.agents.exports.zipped import MAGIC, unpack
from isabella.agents.import_export import Additions, ImportedAgent, import_agent, import_read
from isabella.agents.memory import MemoryBlock
from isabella.agents.metadata import AgentMetadata
from isabella.agents.registry import AgentRecord
from isabella.agents.service import AgentService
from isabella.errors import AgentError
from isabella.letta.conversations import DEFAULT
from isabella.letta.llm_config import is_older

_COMPARED = ("user", "assistant")  # the roles of messages whose text Letta gives back as it got it


async def import_file(
    service: AgentService,
    content: bytes,
    *,
    name: str | None = None,
    with_tools: bool | None = None,
    dry_run: bool = False,
) -> ImportedAgent:
    """Import an agent file, or an exported folder in a ZIP file. See `import_agent` and `import_folder`."""
    if not content.startswith(MAGIC):
        return await import_agent(
            service.registry,
            service.models,
            content,
            name=name,
            with_tools=with_tools,
            vectors=service.vectors,
            dry_run=dry_run,
        )
    with temporary_folder(service.connection.home) as unpacked:
        folder = await anyio.to_thread.run_sync(unpack, io.BytesIO(content), unpacked.root)
        return await import_folder(service, folder, name=name, with_tools=with_tools, dry_run=dry_run)


async def import_folder(
    service: AgentService,
    folder: Path,
    *,
    name: str | None = None,
    with_tools: bool | None = None,
    dry_run: bool = False,
) -> ImportedAgent:
    """Import an exported folder; `name`, `with_tools` and `dry_run` are those of `import_agent`.

    If the agents file has the definition that the agent followed, and no agent follows it here, the agent takes that
    place, under its own name. Raises as `import_agent` does; then nothing of the agent stays behind.
    """
    letta = service.letta
    # Only Letta's database can put messages into a conversation beside the default one.
    several = letta.conversations.database_url is not None and await letta.conversations.offered()
    exported = await _read(folder, several=several)
    if several and is_older(exported.file.agent["agent_type"]):
        exported = await _read(folder, several=False)
    completion = _Completion(service, exported, await _place(service, exported, name))
    imported = await import_read(
        service.registry,
        service.models,
        exported.file,
        name=name,
        with_tools=with_tools,
        vectors=service.vectors,
        additions=completion.additions(),
        dry_run=dry_run,
    )
    notes = (*imported.notes, *completion.notes)
    return replace(imported, notes=notes, left_out=(*imported.left_out, *exported.left_out))


async def _read(folder: Path, *, several: bool) -> ExportedAgent:
    return await anyio.to_thread.run_sync(partial(read_export, folder, several=several))


async def _place(service: AgentService, exported: ExportedAgent, name: str | None) -> str | None:
    """Return the id of the definition whose agent the imported one becomes; None for a separate agent."""
    if name is not None or exported.definition not in service.registry.definitions:
        return None
    taken = await service.registry.all(tags=[metadata.definition_tag(exported.definition)])
    return None if taken else exported.definition


@dataclass
class _Completion:
    """The additions to an agent after Letta has imported its agent file."""

    service: AgentService
    exported: ExportedAgent
    definition: str | None  # the definition whose agent it becomes
    notes: tuple[str, ...] = ()

    def additions(self) -> Additions:
        """Return it in the form that an import takes."""
        own, window = self.exported.own, self.exported.window
        if self.definition is None:
            kept = AgentMetadata(handles=own.handles, lowered=own.lowered)
            return Additions(kept, window=window, complete=self.complete)
        # What the definition wrote last is known, so that only later changes of it are written.
        kept = AgentMetadata(written=own.written, tools=own.tools, lowered=own.lowered)
        tag = metadata.definition_tag(self.definition)
        return Additions(kept, (tag,), window, self.complete)

    async def complete(self, agent_id: str) -> list[str]:
        """Add conversations and former texts, and give the agent its place. Return the parts that were left out."""
        ids = await self._new_ids(agent_id)
        await self._add_conversations(agent_id, ids)
        record = await self.service.registry.get(agent_id)
        history = self.service.memory.history
        for label, versions in self.exported.versions.items():
            if label in record.blocks:
                history.adopt(
                    record.blocks[label], [replace(one, message=ids.get(one.message, "")) for one in versions]
                )
        await self.service.memory.observe(agent_id)
        if self.definition is not None:
            await self._take_place(record, ids)
        return []

    async def _new_ids(self, agent_id: str) -> Mapping[str, str]:
        """Return Letta's ids of the messages by those of the export. Every message is compared with the export."""
        expected = [message for one in self.exported.conversations for message in one.messages]
        ids: dict[str, str] = {}
        number = -1  # the first message is the system prompt
        async for id, rows in all_rows(self.service.letta, agent_id, DEFAULT):
            if 0 <= number < len(expected):
                if not _same(expected[number], record_of(id, rows)):
                    raise AgentError(
                        f"Letta returns message {number + 1} of {len(expected)} other than it was imported.",
                        remedy="The agent was deleted again. Please report this, with the version of Letta.",
                    )
                ids[expected[number].id] = id
            number += 1
        if number != len(expected):
            raise AgentError(
                f"Of {len(expected)} messages, Letta has stored {number}.",
                remedy="The agent was deleted again. Look at Letta's log.",
            )
        return ids

    async def _add_conversations(self, agent_id: str, ids: Mapping[str, str]) -> None:
        archived = []
        for one in self.exported.conversations[1:]:
            id = await self._add_conversation(agent_id, one, ids)
            archived += [id] if one.archived else []
        if archived:
            row = await self.service.letta.agents.get(agent_id)
            own = replace(AgentMetadata.read(row.metadata), archived=tuple(archived))
            await self.service.letta.agents.update(agent_id, {"metadata": own.into(row.metadata)})

    async def _add_conversation(self, agent_id: str, one: ExportedConversation, ids: Mapping[str, str]) -> str:
        letta = self.service.letta
        id = (await letta.conversations.create(agent_id, one.name or None)).id
        system = await context.context_ids(letta, agent_id, id)
        # The messages become part of the conversation with the first call, and the second selects its context.
        for messages in ([message.id for message in one.messages], one.context):
            await letta.conversations.set_context(id, [*system, *(ids[each] for each in messages)])
        return id

    async def _take_place(self, record: AgentRecord, ids: Mapping[str, str]) -> None:
        """Make the agents that reflect on this one share its blocks and continue where they were."""
        registry = self.service.registry
        definition = registry.definitions[self.definition or ""]
        for other in await registry.all():
            if other.definition is None or other.definition.reflects_on != definition.id:
                continue
            for label in definition.shared_labels:
                if label in record.blocks:
                    await self._share(other, await self.service.memory.block(record.id, label))
            reflected = ids.get(self.exported.reflected.get(other.definition.id, ""))
            own = replace(other.own_metadata, reflected=reflected)
            await registry.letta.agents.update(other.id, {"metadata": own.into(other.metadata)})

    async def _share(self, other: AgentRecord, block: MemoryBlock) -> None:
        """Give an agent this block in place of its own. A text other than that of the block is kept in Letta."""
        letta = self.service.letta
        for former in await letta.blocks.of_agent(other.id):
            if former.get("label") != block.label:
                continue
            await letta.blocks.detach(other.id, former["id"])
            if (former.get("value") or "") in ("", block.value):
                await letta.blocks.delete(former["id"])
                self.service.memory.history.forget(former["id"])
            else:
                self.notes += (
                    f"{other.name} had another text in its block {block.label}. Letta keeps it as {former['id']}, "
                    "attached to no agent.",
                )
        await letta.blocks.attach(other.id, block.id)


def _same(one: MessageRecord, other: MessageRecord) -> bool:
    texts = (one.text, other.text) if one.role in _COMPARED and not one.images else ("", "")
    return (one.role, len(one.calls), len(one.results)) == (other.role, len(other.calls), len(other.results)) and (
        texts[0] == texts[1]
    )
