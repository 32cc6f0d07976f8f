"""The history of memory blocks: which texts a block had, since when, and who wrote each.

Letta records none of it over its REST API. So the texts are noted here: after each turn that wrote into memory,
before and after each edit, and whenever a history is shown. A text written outside Isabella has an unknown author.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from isabella.errors import FileUnreadable
from isabella.system import state

#: The names of tools that write memory blocks.
_WRITING_TOOL = re.compile(r"^(?!.*(search|archival)).*memory")
_DIGITS = 16
_BLOCK_ID = re.compile(r"block-[0-9a-f-]{36}")


class Author(StrEnum):
    """The author of a text."""

    FIRST = "first"  # it was there when the record began
    PERSON = "person"  # by the console or the API
    AGENT = "agent"  # with a tool, in a turn
    REFLECTION = "reflection"  # an agent that reflects, or what a reflection had to restore
    UNKNOWN = "unknown"  # past Isabella, or while it did not run


@dataclass(frozen=True)
class BlockVersion:
    """A text that a block had."""

    number: int  # counted from 1 for each block; the first numbers may be gone
    at: str  # when it was noted; ISO 8601
    author: Author
    value: str
    agent: str = ""  # the name of the agent that wrote it
    message: str = ""  # Letta's id of the user's message in whose turn it was written
    restored: int | None = None  # the number of the version that it restores

    @property
    def version(self) -> str:
        """A digest of the text, as that of a `MemoryBlock`."""
        return digest(self.value)


@dataclass(frozen=True)
class Limits:
    """The number and age of the versions kept of each block. The newest version is always kept."""

    days: int = 365
    versions: int = 200
    characters: int = 1_000_000


class BlockHistoryStore(Protocol):
    """The storage of the histories."""

    def versions(self, block_id: str) -> list[BlockVersion]:
        """Return the versions of a block, oldest first."""

    def keep(self, block_id: str, versions: Sequence[BlockVersion]) -> None:
        """Replace the versions of a block. A failure is reported, and loses only the history."""

    def forget(self, block_id: str) -> None:
        """Delete the versions of a block."""


class BlockFiles:
    """A store with a file for each block, which only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def versions(self, block_id: str) -> list[BlockVersion]:
        """Return the versions of a block, oldest first. Entries of another shape are left out."""
        path = self._path(block_id)
        try:
            document = state.read(path) or {}
        except FileUnreadable as error:
            # Kept, because it is the only record.
            with suppress(OSError):
                state.set_aside(path, error.reason)
            return []
        found = document.get("versions", [])
        versions = [version for entry in found if (version := version_of(entry))] if isinstance(found, list) else []
        if not isinstance(found, list) or len(versions) != len(found):
            state.report_fields(path)
        return sorted(versions, key=lambda version: version.number)

    def keep(self, block_id: str, versions: Sequence[BlockVersion]) -> None:
        """Replace the versions of a block. A failure is reported, and loses only the history."""
        state.keep(self._path(block_id), {"versions": [asdict(version) for version in versions]})

    def forget(self, block_id: str) -> None:
        """Delete the versions of a block."""
        path = self._path(block_id)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            state.report(path, f"it cannot be deleted ({state.why(error)})")

    def _path(self, block_id: str) -> Path:
        # Letta's ids have this form; another one must not lead out of the folder.
        name = block_id if _BLOCK_ID.fullmatch(block_id) else digest(block_id)
        return self._folder / f"{name}.json"


class NoStore:
    """A store that keeps nothing."""

    def versions(self, _block_id: str) -> list[BlockVersion]:
        """Return nothing."""
        return []

    def keep(self, _block_id: str, _versions: Sequence[BlockVersion]) -> None:
        """Keep nothing."""

    def forget(self, _block_id: str) -> None:
        """Delete nothing."""


@dataclass(frozen=True)
class Writing:
    """A tool call with which an agent writes into its memory, in a turn that may still be under way."""

    arguments: str
    author: Author = Author.AGENT
    agent: str = ""
    text: str = ""  # the user's message that the turn answers
    message: str = ""  # Letta's id of that message, once it is known


class BlockHistory:
    """Notes the texts of blocks, with their authors. `now` is for tests."""

    def __init__(
        self,
        store: BlockHistoryStore,
        limits: Limits | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self.limits = limits or Limits()
        self._now = now
        #: By agent id: the writing tool calls since its blocks were last noted.
        self._writings: dict[str, list[Writing]] = {}

    def versions(self, block_id: str) -> list[BlockVersion]:
        """Return the kept versions of a block, oldest first."""
        return self._store.versions(block_id)

    def forget(self, block_id: str) -> None:
        """Delete the history of a block."""
        self._store.forget(block_id)

    def adopt(self, block_id: str, versions: Sequence[BlockVersion]) -> None:
        """Give a block the versions of another one, oldest first."""
        if versions:
            self._store.keep(block_id, self._trimmed(versions, self._now()))

    def expect(self, agent_id: str, tool: str, writing: Writing) -> bool:
        """Remember a tool call of an agent, if it writes into blocks, and return whether it does."""
        if not _WRITING_TOOL.search(tool):
            return False
        self._writings.setdefault(agent_id, []).append(writing)
        return True

    def written(self, agent_id: str) -> list[Writing]:
        """Return the writing tool calls of an agent that `settle` has not removed yet."""
        return list(self._writings.get(agent_id, ()))

    def settle(self, agent_id: str, writings: Sequence[Writing]) -> None:
        """Remove tool calls whose effects are noted."""
        left = [writing for writing in self._writings.pop(agent_id, ()) if writing not in writings]
        if left:
            self._writings[agent_id] = left

    def note(
        self,
        block_id: str,
        label: str,
        value: str,
        agent_id: str,
        version: BlockVersion | None = None,
        *,
        writings: Sequence[Writing] | None = None,
    ) -> None:
        """Note the text of a block of an agent, unless it is that of the last version.

        `version` says who wrote it. Without it, it was the agent if one of its tool calls names the block, by default
        those that are not settled; otherwise it is unknown.
        """
        known = self._store.versions(block_id)
        if known and known[-1].value == value:
            return
        if version is None:
            calls = self.written(agent_id) if writings is None else writings
            version = _attributed(label, calls) if known else _blank(Author.FIRST)
        number = known[-1].number + 1 if known else 1
        at = self._now()
        new = replace(version, number=number, at=at.isoformat(timespec="seconds"), value=value)
        self._store.keep(block_id, self._trimmed([*known, new], at))

    def _trimmed(self, versions: Sequence[BlockVersion], now: datetime) -> list[BlockVersion]:
        """Return the newest versions within the limits, at least the last one."""
        oldest = (now - timedelta(days=self.limits.days)).isoformat(timespec="seconds")
        kept: list[BlockVersion] = []
        size = 0
        for version in reversed(versions):
            size += len(version.value)
            full = len(kept) >= self.limits.versions or size > self.limits.characters
            # A version is as old as the moment at which the next one replaced it.
            gone = bool(kept) and kept[-1].at < oldest
            if kept and (full or gone):
                break
            kept.append(version)
        return kept[::-1]


def by_person(restored: int | None = None) -> BlockVersion:
    """Return the arguments of `note` for an edit by a person."""
    return replace(_blank(Author.PERSON), restored=restored)


def by_reflection(agent: str) -> BlockVersion:
    """Return the arguments of `note` for a reflection."""
    return replace(_blank(Author.REFLECTION), agent=agent)


def digest(value: str) -> str:
    """Return a short digest of a text."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def _attributed(label: str, writings: Sequence[Writing]) -> BlockVersion:
    for writing in reversed(writings):
        if label in writing.arguments:
            return replace(_blank(writing.author), agent=writing.agent, message=writing.message)
    return _blank(Author.UNKNOWN)


def _blank(author: Author) -> BlockVersion:
    return BlockVersion(0, "", author, "")


def version_of(entry: Any) -> BlockVersion | None:
    """Return a version from its record; None if that has another shape."""
    if not isinstance(entry, Mapping):
        return None
    match dict(entry):
        case {"number": int(number), "at": str(at), "author": str(author), "value": str(value)} if author in list(
            Author
        ):
            restored = entry.get("restored")
            return BlockVersion(
                number,
                at,
                Author(author),
                value,
                agent=str(entry.get("agent") or ""),
                message=str(entry.get("message") or ""),
                restored=restored if isinstance(restored, int) else None,
            )
    return None
