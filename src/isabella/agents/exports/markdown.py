"""An agent as a folder of Markdown, for people, and JSON Lines, for programs. Reading it needs no Letta.

Every text is there twice: in a `.md` file, and in a `.jsonl` file, which an import reads. The manifest comes last and
has size and digest of every file.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isabella.agents.exports.folder import FolderWriter, Write, manifest_text, new_folder
from isabella.agents.exports.messages import MessageRecord
from isabella.agents.exports.source import SourceAgent, SourceConversation, read_source, version_fields
from isabella.agents.import_export import configured_secrets, passage_fields
from isabella.agents.registry import AgentRecord
from isabella.agents.service import AgentService
from isabella.agents.transcript import transcript

MANIFEST = "manifest.json"
AGENT = "agent.json"
BLOCKS = "memory/blocks.jsonl"
VERSIONS = "memory/history.jsonl"
PASSAGES = "archive/passages.jsonl"
CONVERSATIONS = "conversations/conversations.jsonl"
MESSAGES = "messages.jsonl"  # in the folder of a conversation
FORMAT = "isabella-agent"
FORMAT_VERSION = 1

_SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp"}


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    blocks: int = 0
    versions: int = 0
    passages: int = 0
    conversations: int = 0
    messages: int = 0


async def export_markdown(
    service: AgentService, record: AgentRecord, target: Path, *, replace: bool = False
) -> Exported:
    """Write an agent with all its memory and all its messages into a new folder.

    Memory and messages should not change meanwhile: hold back the agent's turns. Raises `ExportRefused` or
    `LettaError`, and then there is no folder.
    """
    secrets = configured_secrets(service.models, service.connection)
    with new_folder(target, MANIFEST, replace=replace, secrets=secrets) as folder:
        return await write_markdown(service, record, folder)


async def write_markdown(service: AgentService, record: AgentRecord, folder: FolderWriter) -> Exported:
    """Write an agent into a folder that is being written; see `export_markdown`."""
    source = await read_source(service, record)
    folder.text(AGENT, manifest_text({**source.document, "isabella": source.own}))
    folder.text("persona.md", source.persona)
    done = replace(_write_memory(source, folder), passages=await _write_passages(source, folder))
    with folder.file(CONVERSATIONS) as write:
        for number, conversation in enumerate(source.conversations):
            written = await _write_conversation(source, folder, _path(number, conversation), conversation)
            write(_line(written))
            done = replace(done, conversations=number + 1, messages=done.messages + written["messages"])
    folder.text("README.md", _readme(source, done))
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "isabella": version("isabella"),
        "letta": source.letta,
        "agent": {"id": source.record.id, "name": source.record.name},
        "counts": done.__dict__,
        "files": dict(folder.written),
    }
    folder.text(MANIFEST, manifest_text(manifest))
    return done


def _write_memory(source: SourceAgent, folder: FolderWriter) -> Exported:
    names = file_names([str(block["label"]) for block in source.blocks])
    with folder.file(BLOCKS) as write:
        for block in source.blocks:
            write(_line(block))
            about = [f"*{block['description']}*\n\n"] if block.get("description") else []
            text = "".join([f"# {block['label']}\n\n", *about, str(block["value"] or ""), "\n"])
            folder.text(f"memory/{names[str(block['label'])]}.md", text)
    number = 0
    with folder.file(VERSIONS) as write:
        for label, versions in source.versions.items():
            for one in versions:
                write(_line({"label": label, **version_fields(one)}))
            number += len(versions)
            if label in names and versions:
                with folder.file(f"memory/{names[label]}.history.md") as write_history:
                    write_history(f"# {label}: its versions, oldest first\n")
                    for one in versions:
                        by = f"{one.author}{f', {one.agent}' if one.agent else ''}"
                        write_history(f"\n## {one.number} ({one.at}, {by})\n\n{one.value}\n")
    return Exported(blocks=len(source.blocks), versions=number)


async def _write_passages(source: SourceAgent, folder: FolderWriter) -> int:
    number = 0
    with folder.file(PASSAGES) as write, folder.file("archive/passages.md") as write_text:
        write_text(f"# The archival memory of {source.record.name}, oldest first\n")
        async for passage in source.service.archive.every(source.record.id):
            number += 1
            write(_line(passage_fields(passage)))
            tags = f" [{', '.join(passage.tags)}]" if passage.tags else ""
            write_text(f"\n## {number}{f' ({passage.created_at})' if passage.created_at else ''}{tags}\n")
            write_text(f"\n{passage.text}\n")
    return number


async def _write_conversation(
    source: SourceAgent, folder: FolderWriter, path: str, conversation: SourceConversation
) -> dict[str, Any]:
    """Write a conversation, and return its line in the list of conversations."""
    record = conversation.record
    ids = set()
    with folder.file(f"{path}/{MESSAGES}") as write, folder.file(f"{path}/messages.md") as write_text:
        write_text(f"# {record.name}\n\nA conversation with {source.record.name}.\n")
        async for message in _with_images(folder, path, source.messages(conversation)):
            ids.add(message.id)
            write(message.line())
            write_message(write_text, message, source.record.name)
    return {
        "id": record.id,
        "name": record.name,
        "archived": record.archived,
        "folder": path,
        "messages": len(ids),
        "context": [id for id in conversation.context if id in ids],
    }


def _path(number: int, conversation: SourceConversation) -> str:
    return f"conversations/{number:02}-{slug(conversation.record.name)}"


def write_message(write: Write, message: MessageRecord, agent: str) -> None:
    """Write a message as Markdown, with its images."""
    for text in transcript(message.entries(), agent, whole=True):
        write(text)
    for image in message.images:
        if image.file:
            write(f"\n![{image.media_type}]({image.file})\n")


async def _with_images(
    folder: FolderWriter, path: str, messages: AsyncIterator[MessageRecord]
) -> AsyncIterator[MessageRecord]:
    """Yield the messages, whose images were written into files."""
    number = 0
    async for message in messages:
        images = []
        for image in message.images:
            number += 1
            name = f"images/{number:04}.{_SUFFIXES.get(image.media_type, 'bin')}"
            try:
                folder.data(f"{path}/{name}", base64.b64decode(image.data))
            except binascii.Error:
                name = ""
            images.append(image.model_copy(update={"file": name}))
        yield message.model_copy(update={"images": tuple(images)}) if images else message


def file_names(labels: Sequence[str], taken: Collection[str] = ()) -> dict[str, str]:
    """Return a name for a file for each label, without a suffix. None is taken twice, whatever the case."""
    names: dict[str, str] = {}
    for label in labels:
        name = base = slug(label, "block")
        number = 1
        while name in names.values() or name in taken:
            number += 1
            name = f"{base}-{number}"
        names[label] = name
    return names


def slug(text: str, instead: str = "unnamed") -> str:
    """Return a text as a name for a file: at most 60 letters, digits, `_` and `-`, in lower case."""
    return re.sub(r"[^\w]+", "-", text.casefold()).strip("-_")[:60].strip("-_") or instead


def _line(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"


def _readme(source: SourceAgent, done: Exported) -> str:
    conversations = "\n".join(
        f"- [{one.record.name}]({_path(number, one)}/messages.md)" for number, one in enumerate(source.conversations)
    )
    return f"""# {source.record.name}

An agent, exported by Isabella: {done.messages} messages in {done.conversations} conversations, {done.blocks} memory
blocks with {done.versions} versions, and {done.passages} passages of archival memory. No file holds a key.

- [persona.md](persona.md): the instructions that it follows
- [memory](memory): its memory blocks, and their former texts
- [archive/passages.md](archive/passages.md): its archival memory
{conversations}

The `.jsonl` files beside them have the same for programs, one JSON object a line. `agent.json` has its settings and
tools. `manifest.json` has size and SHA-256 of every file.

`isabella agents import FOLDER` imports the agent again. It refuses a folder in which a file was changed.
"""
