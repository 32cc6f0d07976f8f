"""An agent as a memory folder of Letta Code: a Git repository of Markdown files, in the layout of its release 0.34.

Files at the top are in the agent's context: its persona, and a file for each block. `archive/` and `history/` are
not; they have an index each, which Letta Code requires. The former texts of blocks are commits.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO

import anyio

from isabella.agents.block_history import BlockVersion
from isabella.agents.exports.folder import FolderWriter, Write, manifest_text, new_folder
from isabella.agents.exports.markdown import Exported, file_names, slug, write_message
from isabella.agents.exports.source import SourceAgent, SourceConversation, read_source
from isabella.agents.import_export import configured_secrets
from isabella.agents.registry import AgentRecord
from isabella.agents.service import AgentService
from isabella.errors import ExportRefused

MARKER = ".git/isabella-export.json"
INDEX = "MEMORY.md"

#: Names at the top that have their own meaning; `memory` is that of the index on some file systems.
_TAKEN = ("memory", "persona", "instructions", "archive", "history", "skills")
_PART = 200_000  # the length of a file with passages or messages, in characters, after which another one begins
_GIT_SECONDS = 300


async def export_letta_code(
    service: AgentService, record: AgentRecord, target: Path, *, replace: bool = False
) -> Exported:
    """Write an agent into a new memory folder. Hold back its turns meanwhile.

    Raises `ExportRefused` or `LettaError`, and then there is no folder.
    """
    git = shutil.which("git")
    if git is None:
        raise ExportRefused(
            "A memory folder of Letta Code is a Git repository, and git is not installed.",
            remedy="Install git, or export with `--format markdown`.",
        )
    secrets = configured_secrets(service.models, service.connection)
    with new_folder(target, MARKER, replace=replace, secrets=secrets) as folder:
        source = await read_source(service, record)
        done, blocks = await _write(source, folder)
        await anyio.to_thread.run_sync(partial(_commit, Path(git), folder, source, blocks))
        folder.text(MARKER, manifest_text({"exported_at": datetime.now(UTC).isoformat(), "counts": done.__dict__}))
        return done


async def _write(source: SourceAgent, folder: FolderWriter) -> tuple[Exported, dict[str, str]]:
    """Write the files. Return also the path of each block's file by its label."""
    blocks = _block_paths(source)
    persona = "persona.md" if "persona.md" not in blocks.values() else "instructions.md"
    folder.text(persona, _file("persona", f"The instructions that {source.record.name} follows.", source.persona))
    for block in source.blocks:
        label = str(block["label"])
        about = str(block.get("description") or "") or f"The memory block {label}."
        folder.text(blocks[label], _file(label, about, str(block.get("value") or "")))
    done = Exported(blocks=len(blocks), versions=sum(map(len, source.versions.values())))
    done = replace(done, passages=await _write_archive(source, folder))
    lists = []
    for number, conversation in enumerate(source.conversations):
        messages, files = await _write_history(source, folder, number, conversation)
        done = replace(done, conversations=number + 1, messages=done.messages + messages)
        lists.append(f"## {conversation.record.name}\n\n{_links(files)}")
    folder.text(f"history/{INDEX}", "# Conversations before the move to Letta Code\n\n" + "\n".join(lists))
    folder.text(INDEX, _index(source, persona, blocks))
    return done, blocks


def _block_paths(source: SourceAgent) -> dict[str, str]:
    labels = [str(block["label"]) for block in source.blocks]
    # A block that is called persona is what Letta Code calls so.
    names = file_names([label for label in labels if label != "persona"], _TAKEN)
    return {label: "persona.md" if label == "persona" else f"{names[label]}.md" for label in labels}


async def _write_archive(source: SourceAgent, folder: FolderWriter) -> int:
    parts = _Parts(folder, "archive", "", "Archival memory")
    with closing(parts):
        async for passage in source.service.archive.every(source.record.id):
            tags = f" [{', '.join(passage.tags)}]" if passage.tags else ""
            write = parts.begin(passage.created_at or "")
            write(f"\n## {passage.created_at or 'without a date'}{tags}\n\n{passage.text}\n")
    folder.text(f"archive/{INDEX}", f"# Archival memory\n\n{_links(parts.files)}")
    return parts.entries


async def _write_history(
    source: SourceAgent, folder: FolderWriter, number: int, conversation: SourceConversation
) -> tuple[int, Mapping[str, str]]:
    name = conversation.record.name
    parts = _Parts(folder, "history", f"{number:02}-{slug(name)}-", name)
    with closing(parts):
        async for message in source.messages(conversation):
            write_message(parts.begin(message.at), message, source.record.name)
    return parts.entries, parts.files


@dataclass
class _Parts:
    """Files of dated entries: one for each month, or several for a long one."""

    folder: FolderWriter
    path: str
    prefix: str
    title: str
    files: dict[str, str] = field(default_factory=dict)  # the names of the files, each with its month
    entries: int = 0
    _open: ExitStack = field(default_factory=ExitStack)
    _month: str = ""
    _length: int = 0
    _sink: Write | None = None

    def begin(self, at: str) -> Write:
        """Begin an entry with this time, and return its writer."""
        month = at[:7] if len(at) >= len("2026-11") else "undated"
        if self._sink is None or month != self._month or self._length > _PART:
            self._next(month)
        self.entries += 1
        return self._write

    def close(self) -> None:
        """Close the last file."""
        self._open.close()

    def _next(self, month: str) -> None:
        self._open.close()
        name = f"{self.prefix}{slug(month)}.md"
        number = 1
        while name in self.files:
            number += 1
            name = f"{self.prefix}{slug(month)}-{number}.md"
        self.files[name] = month
        self._month, self._length = month, 0
        self._sink = self._open.enter_context(self.folder.file(f"{self.path}/{name}"))
        self._write(_file(self.title, f"{self.title}, {month}", ""))

    def _write(self, text: str) -> None:
        self._length += len(text)
        if self._sink is not None:
            self._sink(text)


def _file(name: str, description: str, body: str) -> str:
    """Return a memory file. Letta Code takes exactly these two fields, of one line each, and removes no quotes."""
    head = "\n".join(["---", f"name: {_one_line(name)}", f"description: {_one_line(description)}", "---"])
    return f"{head}\n{body}\n" if body else f"{head}\n"


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "-"


def _links(files: Iterable[str]) -> str:
    return "".join(f"- [{name.removesuffix('.md')}]({name})\n" for name in files)


def _index(source: SourceAgent, persona: str, blocks: Mapping[str, str]) -> str:
    return "".join(
        [
            f"# Memory of {source.record.name}\n\n",
            _links(dict.fromkeys([persona, *blocks.values()])),
            f"- [Archival memory](archive/{INDEX})\n",
            f"- [Conversations before the move to Letta Code](history/{INDEX})\n",
        ]
    )


def _commit(git: Path, folder: FolderWriter, source: SourceAgent, blocks: Mapping[str, str]) -> None:
    """Make the folder a repository: a commit for each former text of a block, and one for all files."""
    run = partial(_git, git, folder.root)
    run("init", "--quiet", "--template=")
    run("symbolic-ref", "HEAD", "refs/heads/main")
    commits = folder.root / ".git" / "isabella-commits"
    with os.fdopen(os.open(commits, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as stream:
        _write_commits(stream, folder, source, blocks)
        stream.flush()
        stream.seek(0)
        run("fast-import", "--quiet", "--date-format=raw", stdin=stream)
    commits.unlink()
    run("read-tree", "HEAD")
    run("update-index", "-q", "--refresh")


def _write_commits(stream: IO[bytes], folder: FolderWriter, source: SourceAgent, blocks: Mapping[str, str]) -> None:
    texts = {str(block["label"]): str(block.get("description") or "") for block in source.blocks}
    for label, version in _in_order(source.versions):
        if label in blocks:
            by = f"{version.author}{f', {version.agent}' if version.agent else ''}"
            about = texts[label] or f"The memory block {label}."
            text = folder.masked(_file(label, about, version.value)).encode()
            _begin_commit(stream, folder.masked(f"{label}: version {version.number}, by {by}"), version.at)
            stream.write(f"M 100644 inline {blocks[label]}\ndata {len(text)}\n".encode() + text + b"\n")
    _begin_commit(stream, "Export from Isabella", datetime.now(UTC).isoformat())
    for path in folder.written:
        stream.write(f"M 100644 inline {path}\ndata {folder.written[path]['bytes']}\n".encode())
        with (folder.root / path).open("rb") as file:
            shutil.copyfileobj(file, stream)
        stream.write(b"\n")


def _in_order(versions: Mapping[str, Sequence[BlockVersion]]) -> Iterator[tuple[str, BlockVersion]]:
    every = [(label, one) for label, several in versions.items() for one in several]
    yield from sorted(every, key=lambda each: (_seconds(each[1].at), each[0], each[1].number))


def _begin_commit(stream: IO[bytes], message: str, at: str) -> None:
    data = message.encode()
    head = f"commit refs/heads/main\ncommitter Isabella <isabella@localhost> {_seconds(at)} +0000\n"
    stream.write(f"{head}data {len(data)}\n".encode() + data + b"\n")


def _seconds(at: str) -> int:
    try:
        return max(0, int(datetime.fromisoformat(at).timestamp()))
    except ValueError:
        return 0


def _git(git: Path, root: Path, *arguments: str, stdin: IO[bytes] | int = subprocess.DEVNULL) -> None:
    done = subprocess.run(
        [str(git), "-C", str(root), *arguments],
        stdin=stdin,
        env=_environment(),
        umask=0o077,
        capture_output=True,
        timeout=_GIT_SECONDS,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[:300]
        raise ExportRefused(
            f"git could not make the memory folder: {said}",
            remedy="Correct what git reports, or export with `--format markdown`.",
        )


def _environment() -> dict[str, str]:
    """Return an environment in which git reads no user configuration and runs no hooks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**kept, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C"}
