"""The history of memory blocks: who wrote which text, how much is kept, and what becomes of a damaged file."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from isabella.agents.block_history import (
    Author,
    BlockFiles,
    BlockHistory,
    Limits,
    NoStore,
    Writing,
    by_person,
    by_reflection,
    digest,
)
from isabella.agents.memory import MemoryBlock

BLOCK, AGENT = "block-00000000-0000-4000-8000-000000000000", "agent-1"
START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """A time that a test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock at the start of the year."""
    return Clock()


def history(folder: Path, clock: Clock, limits: Limits | None = None) -> BlockHistory:
    """A history in files."""
    return BlockHistory(BlockFiles(folder), limits, now=clock)


def written(of: BlockHistory) -> list[tuple[str, str]]:
    """Author and text of each version."""
    return [(version.author.value, version.value) for version in of.versions(BLOCK)]


def test_each_text_has_its_author(tmp_path: Path, clock: Clock) -> None:
    """What was there first, a person, the agent by a tool call for the block, a reflection, and nobody known."""
    record = history(tmp_path, clock)
    record.note(BLOCK, "human", "a", AGENT)
    record.note(BLOCK, "human", "b", AGENT, by_person())
    assert record.expect(AGENT, "memory_insert", Writing('{"label": "human"}', agent="Isabella", message="message-1"))
    record.note(BLOCK, "human", "c", AGENT)
    record.settle(AGENT, record.written(AGENT))
    record.note(BLOCK, "human", "d", AGENT)
    record.note(BLOCK, "human", "e", AGENT, by_reflection("Reflection"))
    record.note(BLOCK, "human", "a", AGENT, by_person(restored=1))
    assert written(record) == [
        ("first", "a"),
        ("person", "b"),
        ("agent", "c"),
        ("unknown", "d"),
        ("reflection", "e"),
        ("person", "a"),
    ]
    agent, restored = record.versions(BLOCK)[2], record.versions(BLOCK)[5]
    assert (agent.agent, agent.message, agent.number) == ("Isabella", "message-1", 3)
    assert restored.restored == 1


def test_a_text_that_stays_is_no_version(tmp_path: Path, clock: Clock) -> None:
    """The same text again, by whomever, adds nothing; a text that comes back does."""
    record = history(tmp_path, clock)
    for value in ("a", "a", "b", "b", "a"):
        record.note(BLOCK, "human", value, AGENT, by_person())
    assert [version.value for version in record.versions(BLOCK)] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("tool", "arguments"), [("archival_memory_insert", "human"), ("conversation_search", "human"), ("memory", "self")]
)
def test_an_agent_is_no_author_of_what_it_did_not_write(
    tmp_path: Path, clock: Clock, tool: str, arguments: str
) -> None:
    """A tool that writes no block, or another block, does not make it the author; nor does another agent's call."""
    record = history(tmp_path, clock)
    record.note(BLOCK, "human", "a", AGENT)
    record.expect(AGENT, tool, Writing(arguments))
    record.expect("agent-2", "memory_insert", Writing("human"))
    record.note(BLOCK, "human", "b", AGENT)
    assert written(record)[-1] == (Author.UNKNOWN, "b")


def test_only_settled_calls_are_forgotten(tmp_path: Path, clock: Clock) -> None:
    """A call that comes while texts are read is the reason of a later change."""
    record = history(tmp_path, clock)
    record.note(BLOCK, "human", "a", AGENT)
    record.expect(AGENT, "memory_insert", Writing("human 1"))
    before = record.written(AGENT)
    record.expect(AGENT, "memory_insert", Writing("human 2"))
    record.settle(AGENT, before)
    record.note(BLOCK, "human", "b", AGENT)
    assert written(record)[-1] == (Author.AGENT, "b")


def test_old_versions_go(tmp_path: Path, clock: Clock) -> None:
    """A version that was replaced longer ago than the limit goes; the present one stays, however old it is."""
    record = history(tmp_path, clock, Limits(days=10))
    for day, value in ((0, "a"), (1, "b"), (12, "c"), (50, "d")):
        clock.now = START + timedelta(days=day)
        record.note(BLOCK, "human", value, AGENT, by_person())
    # "c" was the text until day 50.
    assert [(version.number, version.value) for version in record.versions(BLOCK)] == [(3, "c"), (4, "d")]


def test_many_and_long_versions_go(tmp_path: Path, clock: Clock) -> None:
    """The number and the size are limited; a text above the size is kept while it is the newest."""
    record = history(tmp_path, clock, Limits(versions=3, characters=100))
    for number in range(10):
        record.note(BLOCK, "human", f"text {number}", AGENT)
    assert [version.number for version in record.versions(BLOCK)] == [8, 9, 10]
    record.note(BLOCK, "human", "x" * 500, AGENT)
    assert [version.number for version in record.versions(BLOCK)] == [11]


def test_it_outlives_the_process_and_is_private(tmp_path: Path, clock: Clock) -> None:
    """Another process reads the same versions from a file that only its owner can read."""
    history(tmp_path / "blocks", clock).note(BLOCK, "human", "a", AGENT)
    (file,) = (tmp_path / "blocks").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert written(history(tmp_path / "blocks", clock)) == [("first", "a")]
    history(tmp_path / "blocks", clock).forget(BLOCK)
    assert not file.exists()


def test_a_damaged_file_is_kept_aside(tmp_path: Path, clock: Clock) -> None:
    """It is the only record of the former texts: it is renamed, and a new record begins."""
    record = history(tmp_path, clock)
    record.note(BLOCK, "human", "a", AGENT)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:-5])
    record.note(BLOCK, "human", "b", AGENT)
    assert written(record) == [("first", "b")]
    assert (tmp_path / f"{file.name}.damaged").exists()


def test_entries_of_another_shape_are_left_out(tmp_path: Path, clock: Clock) -> None:
    """The others are shown."""
    record = history(tmp_path, clock)
    record.note(BLOCK, "human", "a", AGENT)
    (file,) = tmp_path.iterdir()
    document = json.loads(file.read_text())
    document["versions"] += [{"number": "2"}, None, {**document["versions"][0], "author": "nobody"}]
    file.write_text(json.dumps(document))
    assert written(record) == [("first", "a")]


def test_an_id_is_never_a_path(tmp_path: Path, clock: Clock) -> None:
    """An id of another form than Letta's does not lead out of the folder."""
    history(tmp_path / "blocks", clock).note("../../evil", "human", "a", AGENT)
    assert [path.name for path in (tmp_path / "blocks").iterdir()] == [f"{digest('../../evil')}.json"]


def test_nothing_is_kept_without_a_store() -> None:
    """With zero days there is no record, and no error."""
    record = BlockHistory(NoStore())
    record.note(BLOCK, "human", "a", AGENT)
    record.forget(BLOCK)
    assert record.versions(BLOCK) == []


def test_a_version_is_that_of_the_block() -> None:
    """The digest that an editor states is the same for a block and for a version of it."""
    assert MemoryBlock(BLOCK, "human", "a", 10, "", False).version == digest("a")
