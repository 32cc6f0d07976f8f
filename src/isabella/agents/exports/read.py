"""An exported folder, read for an import. It may come from anybody: nothing outside of it is opened.

Every file is compared with the manifest before anything is imported, and a folder that was truncated, damaged or
edited is refused as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from isabella.agents.agent_file import ARCHIVE_KEY, LARGEST_FILE, AgentFile, read_document
from isabella.agents.agent_file_format import Text
from isabella.agents.block_history import BlockVersion, version_of
from isabella.agents.conversations import LONGEST_NAME
from isabella.agents.exports.markdown import (
    AGENT,
    BLOCKS,
    CONVERSATIONS,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    MESSAGES,
    PASSAGES,
    VERSIONS,
)
from isabella.agents.exports.messages import MessageRecord
from isabella.agents.metadata import AgentMetadata
from isabella.errors import ExportRefused, FileAbsent, FileUnreadable
from isabella.letta.conversations import DEFAULT
from isabella.system import files
from isabella.system.redaction import redact

_REMEDY = "Export the agent again with `isabella agents export NAME FOLDER --format markdown`."
_CHUNK = 1024 * 1024
_LARGEST_MANIFEST = 16 * 1024 * 1024
#: How much of the messages is imported, in characters: Letta takes one request with all of them.
_MOST_IMPORTED = 32 * 1024 * 1024
_SYSTEM = "the system prompt"  # the id of a message that stands for it

Parsed = TypeVar("Parsed", bound=BaseModel)


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _File(_Model):
    bytes: Annotated[int, Field(ge=0)]
    sha256: str


class _Manifest(_Model):
    format: str
    version: int
    files: dict[str, _File]


class _Own(_Model):
    definition: Text | None = None
    metadata: dict[str, Any] = {}
    reflected: dict[Text, Text] = {}
    window: Annotated[int, Field(ge=1)] | None = None


class _Conversation(_Model):
    id: Text
    name: Annotated[Text, Field(max_length=LONGEST_NAME)] = ""
    archived: bool = False
    folder: Text
    context: tuple[Text, ...] = ()


@dataclass(frozen=True)
class ExportedConversation:
    """A conversation of an export."""

    id: str
    name: str
    archived: bool
    messages: Sequence[MessageRecord]  # those that can be imported, oldest first
    context: Sequence[str]  # the ids of the messages in its context


@dataclass(frozen=True)
class ExportedAgent:
    """An export, reduced to what is imported."""

    file: AgentFile  # with the messages of all conversations that are imported, one conversation after the other
    conversations: Sequence[ExportedConversation]  # the default one first
    versions: Mapping[str, Sequence[BlockVersion]]  # the former texts of its blocks, by label
    definition: str | None  # the id of the definition that it was the agent of
    own: AgentMetadata
    reflected: Mapping[str, str]  # the last message that was reflected on, by the id of the reflecting definition
    window: int | None  # its context window, in tokens; None if the model's own is right
    left_out: tuple[str, ...]


def require_manifest(root: Path) -> None:
    """Raise `ExportRefused` if a folder is not an export, before anything else is asked for."""
    if not (root / MANIFEST).is_file():
        raise _no_export(root)


def read_export(root: Path, *, several: bool) -> ExportedAgent:
    """Verify and read an export. Without `several`, only its default conversation is imported.

    Raises `ExportRefused`, or `AgentFileRefused` for its settings.
    """
    folder = _Folder.verified(root)
    document = folder.document(AGENT)
    if not isinstance(document, dict) or not isinstance(document.get("agents"), list) or len(document["agents"]) != 1:
        raise _malformed(AGENT, "it does not have one agent")
    agent = document["agents"][0]
    if not isinstance(agent, dict):
        raise _malformed(AGENT, "its agent is not a JSON object")
    own = folder.parsed(_Own, document.pop(ARCHIVE_KEY, {}), AGENT)
    listed = [folder.parsed(_Conversation, line, where) for where, line in folder.lines(CONVERSATIONS)]
    if [one.id for one in listed].count(DEFAULT) != 1 or listed[0].id != DEFAULT:
        raise _malformed(CONVERSATIONS, "the default conversation is not the first one")
    taken, others = (listed, []) if several else (listed[:1], listed[1:])
    conversations, out = _conversations(folder, taken)
    if others:
        out.append(
            f"conversations beside the default one ({len(others)}): Letta takes them only if its database is known "
            "(ISABELLA_DATABASE_URL)"
        )
    messages = [message for one in conversations for message in one.messages]
    system = {"id": _SYSTEM, "role": "system", "content": "", "created_at": messages[0].at if messages else None}
    agent["messages"] = [system, *filter(None, (message.for_agent_file() for message in messages))]
    agent["in_context_message_ids"] = [_SYSTEM, *conversations[0].context]
    blocks = [line for _, line in folder.lines(BLOCKS)]
    document["blocks"] = [{**block, "id": f"block-{number}"} for number, block in enumerate(blocks)]
    agent["block_ids"] = [block["id"] for block in document["blocks"]]
    document[ARCHIVE_KEY] = {"passages": [line for _, line in folder.lines(PASSAGES)]}
    file = read_document(document)
    return ExportedAgent(
        file=file,
        conversations=conversations,
        versions=_versions(folder),
        definition=own.definition,
        own=AgentMetadata.read(own.metadata),
        reflected=own.reflected,
        window=own.window,
        left_out=tuple(out),
    )


def _conversations(folder: _Folder, listed: Sequence[_Conversation]) -> tuple[list[ExportedConversation], list[str]]:
    """Return the conversations, without the oldest messages if all of them are more than one import takes."""
    kept: deque[tuple[int, MessageRecord, int]] = deque()
    ids: set[str] = set()
    size = dropped = unknown = 0
    for number, one in enumerate(listed):
        for where, line in folder.lines(f"{one.folder}/{MESSAGES}"):
            message = folder.parsed(MessageRecord, line, where)
            if message.id in ids:
                raise _malformed(where, "another message has the same id")
            ids.add(message.id)
            if message.role == "other":
                unknown += 1
                continue
            length = len(message.line())
            kept.append((number, message, length))
            size += length
            while size > _MOST_IMPORTED:
                size -= kept.popleft()[2]
                dropped += 1
    out = [f"the oldest messages ({dropped}), beyond what one import takes"] if dropped else []
    out += [f"messages of kinds that Letta cannot import ({unknown})"] if unknown else []
    there = {message.id for _, message, _ in kept}
    found = []
    for number, one in enumerate(listed):
        mine = [message for index, message, _ in kept if index == number]
        if lost := [id for id in one.context if id not in ids]:
            raise _malformed(CONVERSATIONS, f"there is no message {lost[0]!r}, which is in a context")
        context = [id for id in dict.fromkeys(one.context) if id in there]
        found.append(ExportedConversation(one.id, one.name, one.archived, mine, context))
    return found, out


def _versions(folder: _Folder) -> dict[str, list[BlockVersion]]:
    versions: dict[str, list[BlockVersion]] = {}
    for where, line in folder.lines(VERSIONS):
        version = version_of(line)
        if version is None or not isinstance(line.get("label"), str):
            raise _malformed(where, "it is not a version of a block")
        versions.setdefault(line["label"], []).append(version)
    return versions


@dataclass(frozen=True)
class _Folder:
    """A folder whose files are those of its manifest."""

    root: Path
    files: Mapping[str, _File]

    @classmethod
    def verified(cls, root: Path) -> _Folder:
        """Compare every file with the manifest."""
        folder = cls(root, {})
        try:
            content = files.read(root / MANIFEST, largest=_LARGEST_MANIFEST)
            document = json.loads(content.text)
        except FileAbsent:
            raise _no_export(root) from None
        except (FileUnreadable, ValueError, RecursionError):
            raise ExportRefused(f"{root / MANIFEST} is damaged: it is not JSON text.", remedy=_REMEDY) from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise _no_export(root)
        if document.get("version") != FORMAT_VERSION:
            found = str(document.get("version"))[:20]
            raise ExportRefused(
                f"The export has the version {found}; this Isabella reads {FORMAT_VERSION}.",
                remedy="Import it with the release of Isabella that wrote it, or a later one.",
            )
        manifest = folder.parsed(_Manifest, document, MANIFEST)
        for path, file in manifest.files.items():
            folder._verify(path, file)
        return cls(root, manifest.files)

    def document(self, path: str) -> Any:
        """Return the JSON of a file."""
        self._known(path)
        try:
            return json.loads(files.read(self.root / path, largest=LARGEST_FILE).text)
        except FileUnreadable as error:
            raise _malformed(path, error.reason) from None
        except (ValueError, RecursionError):
            raise _malformed(path, "it is not JSON") from None

    def lines(self, path: str) -> Iterator[tuple[str, Any]]:
        """Yield the JSON objects of a file, each with its place, for errors."""
        self._known(path)
        with (self.root / path).open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LARGEST_FILE), b""), start=1):
                where = f"{path}, line {number}"
                try:
                    document = json.loads(line.decode())
                except UnicodeDecodeError:
                    raise _malformed(where, "it is not UTF-8 text") from None
                except (ValueError, RecursionError):
                    raise _malformed(where, "it is not JSON") from None
                if not isinstance(document, dict):
                    raise _malformed(where, "it is not a JSON object")
                yield where, document

    def parsed(self, model: type[Parsed], value: Any, where: str) -> Parsed:
        """Return a record of a file."""
        try:
            return model.model_validate(value)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, found["loc"]))
            raise _malformed(where, f"{field}: {found['msg']}" if field else found["msg"]) from None

    def _known(self, path: str) -> None:
        if path not in self.files:
            raise _malformed(MANIFEST, f"it does not have the file {path}")

    def _verify(self, path: str, expected: _File) -> None:
        parts = PurePosixPath(path)
        if parts.is_absolute() or not parts.parts or ".." in parts.parts or "\x00" in path:
            raise _malformed(MANIFEST, f"{path!r} is not in the folder")
        target = self.root / path
        if any((self.root / each).is_symlink() for each in [parts, *parts.parents]):
            raise ExportRefused(f"{target} is a link, which an export does not have.", remedy=_REMEDY)
        if not target.is_file():
            raise ExportRefused(f"The export is incomplete: {path} is missing.", remedy=_REMEDY)
        digest, size = hashlib.sha256(), 0
        try:
            with target.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
        except OSError as error:
            raise ExportRefused(
                f"{target} cannot be read: {error.strerror}.", remedy="Check that it exists and can be read."
            ) from None
        if size < expected.bytes:
            raise ExportRefused(
                f"The export is damaged: {path} has {size} of {expected.bytes} bytes.", remedy=_REMEDY
            )
        if (size, digest.hexdigest()) != (expected.bytes, expected.sha256):
            raise ExportRefused(
                f"The export was changed or damaged: {path} is not as it was written.",
                remedy="Import it as it was written, and change memory afterwards. " + _REMEDY,
            )


def _malformed(where: str, why: str) -> ExportRefused:
    return ExportRefused(f"The export is malformed: {redact(where)[:200]}: {redact(why)[:300]}.", remedy=_REMEDY)


def _no_export(root: Path) -> ExportRefused:
    if (root / "MEMORY.md").is_file():
        return ExportRefused(
            f"{root} is a memory folder of Letta Code, which Isabella does not import.",
            remedy="Import a folder written with `--format markdown`, or an agent file.",
        )
    return ExportRefused(
        f"{root} is not an Isabella export, or is incomplete: its {MANIFEST} is missing or another program's.",
        remedy=_REMEDY,
    )
