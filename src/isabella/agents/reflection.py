"""Reflection: between conversations, an agent reads the new messages of another one and tidies the blocks they share.

Without new messages it costs nothing, and it loses nothing. Before its turn a snapshot of the blocks is stored in
Letta. After the turn, lines that were removed go to archival memory, and a block that was nearly emptied is restored.
If a reflection is killed, the next one does this.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

import anyio
import structlog

from isabella.agents import metadata
from isabella.agents.block_history import BlockVersion, by_reflection
from isabella.agents.history import HistoryEntry
from isabella.agents.memory import MemoryBlock
from isabella.agents.registry import AgentRecord
from isabella.agents.service import AgentService
from isabella.errors import IsabellaError, LettaError
from isabella.system import audit

log = structlog.get_logger()

#: A function that sends a message to an agent, by its id, and returns after a successful turn; raises otherwise.
SendMessage = Callable[[str, str], Awaitable[None]]

LABEL = "isabella-before-reflection"  # the label of a snapshot, which is a block that is attached to no agent
TAG = "reflection"  # the tag of passages with lines that a reflection removed from the blocks

_MOST_READ = 24_000  # the most characters that one reflection reads; the next one reads the rest
_LONGEST_ENTRY = 4_000
_SECONDS = 90.0
_EMPTIED = 0.35  # a block of which less than this share is left was emptied, not tidied
_FEW_LINES = 3  # fewer lines, or less text, may have been wrong as a whole
_LONG = 120
_SNAPSHOT_LIMIT = 1_000_000


class ReflectionOutcome(StrEnum):
    """The outcome of a reflection."""

    NOTHING = "nothing"  # there were no new messages
    WAITING = "waiting"  # the conversation is still going on
    DONE = "done"


@dataclass(frozen=True)
class Reflection:
    """The result of a reflection."""

    outcome: ReflectionOutcome
    read: int = 0
    archived: int = 0  # lines that went from the blocks to archival memory
    restored: tuple[str, ...] = ()


@audit.recorded("agent.reflected", lambda agent_service, reflector, send, **_: {"subject": reflector.name})
async def reflect(
    agent_service: AgentService,
    reflector: AgentRecord,
    send: SendMessage,
    *,
    quiet_for: float = 0.0,
    now: datetime | None = None,
) -> Reflection:
    """Make an agent reflect on the messages since its last reflection, if the last one is `quiet_for` seconds old.

    `agent_service.memory.hold` delays the other agent's turns meanwhile. If the turn or Letta fails, nothing is lost:
    the next reflection reads the messages again. `now` is for tests.
    """
    target = await _target(agent_service, reflector)
    if target is None:
        return Reflection(ReflectionOutcome.NOTHING)
    await recover(agent_service, target)
    messages, _ = await _new_messages(agent_service, target, reflector)
    if not messages:
        return Reflection(ReflectionOutcome.NOTHING)
    if _age(messages[-1], now or datetime.now(UTC)) < quiet_for:
        return Reflection(ReflectionOutcome.WAITING)
    async with agent_service.memory.hold(target.id):
        # There may be new messages since the hold was requested.
        messages, last = await _new_messages(agent_service, target, reflector)
        if not messages:
            return Reflection(ReflectionOutcome.NOTHING)
        before = await _shared(agent_service, target)
        _note(agent_service, target, before)
        snapshot = await _store_snapshot(agent_service, target, before)
        try:
            with anyio.fail_after(_SECONDS):
                await send(reflector.id, _request(messages))
        except TimeoutError:
            raise LettaError(
                f"{reflector.name} did not end its reflection within {_SECONDS:g} s.",
                remedy="The next reflection reads the messages again. If this is repeated, switch to a faster model.",
            ) from None
        finally:
            # What the turn removed from the blocks is kept, whether or not it succeeded.
            with anyio.CancelScope(shield=True):
                archived, restored = await _keep_removed(agent_service, target, before, snapshot)
                _note(agent_service, target, await _shared(agent_service, target), by_reflection(reflector.name))
        noted = await agent_service.registry.get(reflector.id)
        metadata = replace(noted.own_metadata, reflected=last).into(noted.metadata)
        await agent_service.letta.agents.update(reflector.id, {"metadata": metadata})
    return Reflection(ReflectionOutcome.DONE, len(messages), archived, restored)


def _note(
    agent_service: AgentService,
    target: AgentRecord,
    blocks: Sequence[MemoryBlock],
    version: BlockVersion | None = None,
) -> None:
    """Note the texts of shared blocks in their histories."""
    for block in blocks:
        agent_service.memory.history.note(block.id, block.label, block.value, target.id, version)


async def recover(agent_service: AgentService, target: AgentRecord) -> None:
    """Complete reflections of this agent that were killed."""
    for row in await agent_service.letta.blocks.labelled(LABEL):
        try:
            kept = json.loads(row.get("value") or "")
            if kept["agent"] != target.id:
                continue
            before = [MemoryBlock(b["id"], b["label"], b["value"], b["limit"], "", False) for b in kept["blocks"]]
        except (ValueError, KeyError, TypeError):
            continue
        async with agent_service.memory.hold(target.id):
            await _keep_removed(agent_service, target, before, row["id"])


async def _target(agent_service: AgentService, reflector: AgentRecord) -> AgentRecord | None:
    wanted = reflector.definition.reflects_on if reflector.definition else None
    if wanted is None:
        return None
    return next(iter(await agent_service.registry.all(tags=[metadata.definition_tag(wanted)])), None)


async def _new_messages(
    agent_service: AgentService, target: AgentRecord, reflector: AgentRecord
) -> tuple[list[HistoryEntry], str | None]:
    """Return the new messages, as many as one reflection reads, and the id of the last one."""
    entries, last = await agent_service.history.since(target.id, reflector.own_metadata.reflected)
    messages: list[HistoryEntry] = []
    size = 0
    for entry in entries:
        if entry.kind in ("user", "assistant") and entry.text.strip():
            size += min(len(entry.text), _LONGEST_ENTRY)
            if size > _MOST_READ and messages:
                last = messages[-1].id
                break
            messages.append(entry)
    # Messages of the agent alone are nothing new.
    return (messages if any(entry.kind == "user" for entry in messages) else []), last


def _age(entry: HistoryEntry, now: datetime) -> float:
    try:
        return (now - datetime.fromisoformat(entry.at)).total_seconds()
    except (ValueError, TypeError):
        return float("inf")


def _request(messages: Sequence[HistoryEntry]) -> str:
    lines = "\n".join(f"{entry.kind}: {_one_line(entry.text)}" for entry in messages)
    start = "This was said since you last looked, oldest first. Tidy the memory blocks accordingly, and finish."
    return f"{start}\n\n{lines}"


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _LONGEST_ENTRY else flat[:_LONGEST_ENTRY] + " …"


async def _shared(agent_service: AgentService, target: AgentRecord) -> list[MemoryBlock]:
    labels = target.definition.shared_labels if target.definition else ()
    return [block for block in await agent_service.memory.blocks(target.id) if block.label in labels]


async def _store_snapshot(agent_service: AgentService, target: AgentRecord, blocks: Sequence[MemoryBlock]) -> str:
    """Store a snapshot of the blocks in Letta, and return its id."""
    kept = {
        "agent": target.id,
        "blocks": [{"id": b.id, "label": b.label, "value": b.value, "limit": b.limit} for b in blocks],
    }
    body = {
        "label": LABEL,
        "value": json.dumps(kept, ensure_ascii=False),
        "limit": _SNAPSHOT_LIMIT,
        "description": f"The shared blocks of {target.name} before a reflection that is under way.",
    }
    return await agent_service.letta.blocks.create(body)


async def _keep_removed(
    agent_service: AgentService, target: AgentRecord, before: Sequence[MemoryBlock], snapshot: str
) -> tuple[int, tuple[str, ...]]:
    """Restore emptied blocks, archive other removed lines, and delete the snapshot."""
    after = {block.label: block for block in await agent_service.memory.blocks(target.id)}
    emptied = [block for block in before if _emptied(block, after.get(block.label))]
    restored = []
    for block in emptied:
        now = after.get(block.label)
        added = _lines_out_of(now.value, [block.value]) if now else []
        text = "\n".join([block.value, *added]) if added else block.value
        if len(text) > block.limit >= len(block.value):
            text = block.value
        await agent_service.letta.blocks.update(block.id, {"value": text})
        after[block.label] = replace(block, value=text)
        restored.append(block.label)
        log.warning("a reflection emptied a memory block; it was restored", agent=target.name, block=block.label)
    gone = lost(before, {label: block.value for label, block in after.items()})
    for label, lines in gone.items():
        try:
            text = f"Taken out of the memory block {label!r}:\n" + "\n".join(lines)
            await agent_service.archive.add(target.id, text, [TAG, label])
        except IsabellaError:
            # If the archive refuses the passage, the block keeps the lines.
            block = next(one for one in before if one.label == label)
            text = "\n".join([after[label].value, *lines]) if label in after else block.value
            await agent_service.letta.blocks.update(block.id, {"value": text})
            restored.append(label)
    await agent_service.letta.blocks.delete(snapshot)
    return sum(map(len, gone.values())), tuple(restored)


def lost(before: Sequence[MemoryBlock], after: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the lines, by label, that a block had before and no block has now. Pure."""
    texts = list(after.values())
    found = {block.label: _lines_out_of(block.value, texts) for block in before}
    return {label: lines for label, lines in found.items() if lines}


def _lines_out_of(text: str, texts: Sequence[str]) -> list[str]:
    there = " ".join(" ".join(other.split()) for other in texts).casefold()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [line for line in lines if line and line.casefold() not in there]


def _emptied(before: MemoryBlock, after: MemoryBlock | None) -> bool:
    """Return whether a block was emptied: all of it, most of its lines, or most of its text is gone."""
    if not before.value.strip():
        return False
    if after is None or not after.value.strip():
        return True
    lines = [line for line in before.value.splitlines() if line.strip()]
    gone = len(_lines_out_of(before.value, [after.value]))
    if gone >= _FEW_LINES and gone > (1 - _EMPTIED) * len(lines):
        return True
    return len(before.value) >= _LONG and len(after.value) < _EMPTIED * len(before.value)
