"""Folders that agents are exported to: written as a whole or not at all, and messages that survive the way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isabella.agents.block_history import Author, BlockVersion
from isabella.agents.conversations import ConversationRecord
from isabella.agents.exports import letta_code
from isabella.agents.exports.folder import new_folder
from isabella.agents.exports.markdown import Exported, file_names, slug
from isabella.agents.exports.messages import CallRecord, MessageRecord, ResultRecord, record_of
from isabella.agents.history import HistoryEntry
from isabella.agents.memory import ArchivalPassage
from isabella.agents.transcript import transcript
from isabella.errors import ExportRefused
from isabella.system.redaction import remember

MARKER = "manifest.json"


def write(target: Path, text: str = "{}", **options: Any) -> None:
    """Write a folder with two files."""
    with new_folder(target, MARKER, **options) as folder:
        folder.text("deep/inside.md", text)
        folder.text(MARKER, "{}")


def names(folder: Path) -> list[str]:
    """What is in a folder, hidden files included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    """Files have the mode 0600, folders 0700."""
    write(tmp_path / "out")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()} == {0o600}
    assert {(tmp_path / "out" / each).stat().st_mode & 0o777 for each in ("", "deep")} == {0o700}


def test_nothing_is_left_of_a_folder_that_failed(tmp_path: Path) -> None:
    """Neither the folder nor a part of it; and an export that it should have replaced is as it was."""
    write(tmp_path / "out", "before")

    def fail() -> None:
        with new_folder(tmp_path / "out", MARKER, replace=True) as folder:
            folder.text("half.md", "half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path) == ["out", "out/deep", "out/deep/inside.md", f"out/{MARKER}"]
    assert (tmp_path / "out/deep/inside.md").read_text() == "before"


def test_only_an_earlier_export_is_replaced_and_only_if_told(tmp_path: Path) -> None:
    """Any existing folder is refused; with `replace`, one with other content, a file and a link are."""
    write(tmp_path / "out", "before")
    with pytest.raises(ExportRefused, match="exists"):
        write(tmp_path / "out")
    write(tmp_path / "out", "after", replace=True)
    assert (tmp_path / "out/deep/inside.md").read_text() == "after"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.jpg").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    for other in ("photos", "file", "link"):
        with pytest.raises(ExportRefused, match="not an earlier export"):
            write(tmp_path / other, replace=True)
    write(tmp_path / "empty", replace=True)
    assert names(tmp_path / "photos") == ["one.jpg"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A parent that does not exist."""
    with pytest.raises(ExportRefused, match="cannot be written: No such file"):
        write(tmp_path / "gone/out")


def test_no_key_gets_into_a_folder(tmp_path: Path) -> None:
    """A key that this process knows is masked; one that is only configured prevents the export."""
    remember("gsk_told-in-a-conversation-0123456789")
    write(tmp_path / "out", "my key is gsk_told-in-a-conversation-0123456789")
    assert (tmp_path / "out/deep/inside.md").read_text() == "my key is gsk_…6789"
    with pytest.raises(ExportRefused, match="would have held a key"):
        write(tmp_path / "other", "my key is configured-only", secrets=["configured-only"])
    assert not (tmp_path / "other").exists()


@given(st.lists(st.text(max_size=80), max_size=20))
def test_every_label_gets_a_file_name_of_its_own(labels: list[str]) -> None:
    """Names are distinct without regard to case, stay in their folder, and fit into a file system."""
    found = file_names(labels)
    assert found.keys() == set(labels)
    assert len({name.casefold() for name in found.values()}) == len(found)
    for name in found.values():
        assert "/" not in name
        assert not name.startswith(".")
        assert len(f"{name}.history.md".encode()) <= 255


def test_names_are_readable() -> None:
    """As in the title of a conversation."""
    assert slug("Über Hunde & Katzen: ../../etc") == "über-hunde-katzen-etc"


STORABLE = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)


@given(STORABLE, STORABLE, st.booleans(), st.lists(STORABLE, max_size=2))
def test_a_record_is_one_line_and_comes_back(text: str, arguments: str, ok: bool, stdout: list[str]) -> None:
    """Whatever the text, line separators of Unicode included."""
    record = MessageRecord(
        id="message-1",
        role="assistant",
        text=text,
        calls=(CallRecord(id="c", tool="t", arguments=arguments),),
        results=(ResultRecord(call="c", ok=ok, text=text, stdout=tuple(stdout)),),
    )
    line = record.line()
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert MessageRecord.model_validate_json(line) == record


def row(kind: str, **fields: Any) -> dict[str, Any]:
    """A row of Letta's."""
    return {"id": "message-1", "date": "2026-11-01T10:00:00+00:00", "message_type": kind, **fields}


def test_rows_of_one_message_become_one_record() -> None:
    """Reasoning, text and all calls, also those that Letta's older field does not have."""
    calls = [{"tool_call_id": id, "name": "memory_insert", "arguments": "{}"} for id in ("a", "b")]
    rows = [
        row("reasoning_message", reasoning="Hm.", source="reasoner_model"),
        row("assistant_message", content="I will."),
        row("tool_call_message", tool_call=calls[0], tool_calls=calls),
    ]
    record = record_of("message-1", rows)
    assert (record.role, record.reasoning, record.native, record.text) == ("assistant", "Hm.", True, "I will.")
    assert [call.id for call in record.calls] == ["a", "b"]
    message = record.for_agent_file()
    assert message is not None
    assert message["content"] == [
        {"type": "reasoning", "reasoning": "Hm.", "is_native": True},
        {"type": "text", "text": "I will."},
    ]
    assert [call["id"] for call in message["tool_calls"]] == ["a", "b"]


def test_a_result_is_packed_as_letta_reads_it() -> None:
    """Its status is in the text, and Letta fails on a text that is not JSON."""
    returns = [{"tool_call_id": "a", "status": "error", "tool_return": "no\nsuch", "stdout": ["out"], "stderr": None}]
    record = record_of("message-1", [row("tool_return_message", name="t", tool_return="old", tool_returns=returns)])
    message = record.for_agent_file()
    assert message is not None
    (result,) = message["tool_returns"]
    assert json.loads(result["func_response"]) == {
        "status": "Failed",
        "message": "no\nsuch",
        "time": "2026-11-01T10:00:00+00:00",
    }
    assert (result["tool_call_id"], result["status"], result["stdout"]) == ("a", "error", ["out"])
    assert message["tool_call_id"] == "a"


@pytest.mark.parametrize(
    "rows",
    [
        row("summary_message", summary="They spoke of dogs."),
        row("user_message", content=json.dumps({"type": "system_alert", "message": "They spoke of dogs."})),
    ],
)
def test_summaries_stay_summaries(rows: dict[str, Any]) -> None:
    """Whichever way a release gives them; they are packed as Letta does it."""
    record = record_of("message-1", [rows])
    assert (record.role, record.text) == ("summary", "They spoke of dogs.")
    message = record.for_agent_file()
    assert message is not None
    assert json.loads(message["content"][0]["text"])["message"] == "They spoke of dogs."


def test_messages_of_unknown_kinds_are_kept_as_they_are() -> None:
    """Nothing is lost, and nothing is guessed at an import."""
    unknown = row("novel_message", novel={"deep": 1})
    record = record_of("message-1", [unknown])
    assert record.row == (unknown,)
    assert record.for_agent_file() is None
    assert MessageRecord.model_validate_json(record.line()).row == (unknown,)


def test_images_leave_the_record_and_have_a_place_in_the_message() -> None:
    """The data goes into a file of its own, never into a line."""
    source = {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}
    content = [{"type": "text", "text": "Look."}, {"type": "image", "source": source}]
    record = record_of("message-1", [row("user_message", content=content)])
    assert record.images[0].data == "aGVsbG8="
    assert "aGVsbG8=" not in record.line()
    message = record.for_agent_file()
    assert message is not None
    assert [part["type"] for part in message["content"]] == ["text", "image"]


def test_a_transcript_shows_everything_or_what_was_said() -> None:
    """The text of a tool cannot end the block of code that it is shown in."""
    entries = [
        HistoryEntry("1", "2026-11-01T10:00:00", "user", "Hello"),
        HistoryEntry("2", "2026-11-01T10:00:01", "reasoning", "A greeting.\nI greet."),
        HistoryEntry("3", "2026-11-01T10:00:01", "tool_call", "````", tool="look"),
        HistoryEntry("4", "2026-11-01T10:00:02", "tool_return", "no", tool="look", failed=True),
        HistoryEntry("5", "2026-11-01T10:00:03", "assistant", "Hi"),
    ]
    said = "".join(transcript(entries, "Ann", handle=lambda _: "groq/x"))
    assert "**Ann** (2026-11-01 10:00, groq/x)" in said
    assert "Tool call: look" in said
    assert "I greet" not in said
    whole = "".join(transcript(entries, "Ann", whole=True))
    assert "> A greeting.\n> I greet.\n" in whole
    assert "\n`````\n````\n`````\n" in whole
    assert "*Result of look, failed*" in whole


def git(folder: Path, *arguments: str) -> str:
    """What git says about a folder."""
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Archive:
    """An archive of passages."""

    def __init__(self, passages: list[ArchivalPassage]) -> None:
        self._passages = passages

    async def every(self, _agent_id: str) -> AsyncIterator[ArchivalPassage]:
        """All of them."""
        for passage in self._passages:
            yield passage


class Source:
    """An agent with two blocks, whose texts changed, passages of two months and one conversation."""

    def __init__(self, blocks: dict[str, str], months: list[str]) -> None:
        self.record = SimpleNamespace(id="agent-1", name="Ann")
        self.persona = "You are Ann."
        self.blocks = [{"label": label, "value": value, "description": "a: b"} for label, value in blocks.items()]
        first = {label: BlockVersion(1, "2026-10-01T10:00:00+00:00", Author.FIRST, "") for label in blocks}
        last = {
            label: BlockVersion(2, "2026-10-02T10:00:00+00:00", Author.AGENT, value, "Ann")
            for label, value in blocks.items()
        }
        self.versions = {label: [first[label], last[label]] for label in blocks}
        self.service = SimpleNamespace(
            archive=Archive([ArchivalPassage("1", f"In {month}", ("t",), f"{month}-02") for month in months])
        )
        name = ConversationRecord("default", "About: dogs")
        self.conversations = [SimpleNamespace(record=name)]

    async def messages(self, _conversation: object) -> AsyncIterator[MessageRecord]:
        """Its messages."""
        yield MessageRecord(id="1", at="2026-11-02T10:00:00", role="user", text="Hello")
        yield MessageRecord(id="2", at="2026-11-02T10:00:01", role="assistant", text="Hi")


def memory_folder(target: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> Exported:
    """The folder that is written from an agent."""

    async def read_source(_service: object, _record: object) -> Any:
        return source

    monkeypatch.setattr(letta_code, "read_source", read_source)
    monkeypatch.setattr(letta_code, "configured_secrets", lambda *_: ["configured-only"])
    service: Any = SimpleNamespace(models=None, connection=None)
    return anyio.run(partial(letta_code.export_letta_code, service, source.record, target))  # type: ignore[arg-type]


def test_a_memory_folder_has_the_layout_of_letta_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes without a head, all else with exactly `name` and `description`, and nothing uncommitted."""
    months = ["2026-10", "2026-11", "2026-10"]
    source = Source({"human": "Rex\n", "memory": "x", "archive": "y"}, months)
    done = memory_folder(tmp_path / "mem", source, monkeypatch)
    assert (done.blocks, done.versions, done.passages, done.messages) == (3, 6, 3, 2)
    found = [name for name in names(tmp_path / "mem") if not name.startswith(".git") and name.endswith(".md")]
    assert found == [
        "MEMORY.md",
        "archive-2.md",
        "archive/2026-10-2.md",
        "archive/2026-10.md",
        "archive/2026-11.md",
        "archive/MEMORY.md",
        "history/00-about-dogs-2026-11.md",
        "history/MEMORY.md",
        "human.md",
        "memory-2.md",
        "persona.md",
    ]
    for name in found:
        lines = (tmp_path / "mem" / name).read_text().splitlines()
        if name.endswith("MEMORY.md"):
            assert lines[0].startswith("# ")
        else:
            head = [line.partition(": ") for line in lines[1 : lines.index("---", 1)]]
            assert (lines[0], [key for key, _, _ in head]) == ("---", ["name", "description"])
            assert all(value for _, _, value in head)
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "mem").rglob("*")}
    assert modes == {0}
    assert git(tmp_path / "mem", "status", "--porcelain") == ""
    assert git(tmp_path / "mem", "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(tmp_path / "mem", "fsck", "--strict") == ""


def test_former_texts_are_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of their times, with their authors, and readable at each."""
    memory_folder(tmp_path / "mem", Source({"human": "Rex", "self": "kind"}, []), monkeypatch)
    log = git(tmp_path / "mem", "log", "--reverse", "--format=%cI %s").splitlines()
    assert log[:4] == [
        "2026-10-01T10:00:00+00:00 human: version 1, by first",
        "2026-10-01T10:00:00+00:00 self: version 1, by first",
        "2026-10-02T10:00:00+00:00 human: version 2, by agent, Ann",
        "2026-10-02T10:00:00+00:00 self: version 2, by agent, Ann",
    ]
    assert log[4].endswith("Export from Isabella")
    assert "Rex" in git(tmp_path / "mem", "show", "HEAD~2:human.md")
    assert "Rex" not in git(tmp_path / "mem", "show", "HEAD~4:human.md")


def test_a_block_called_persona_is_the_persona(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system prompt has another file then."""
    memory_folder(tmp_path / "mem", Source({"persona": "I am kind."}, []), monkeypatch)
    assert "I am kind." in (tmp_path / "mem/persona.md").read_text()
    assert "You are Ann." in (tmp_path / "mem/instructions.md").read_text()


def test_no_key_gets_into_the_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A former text is masked as all others; one with a configured key prevents the export."""
    remember("gsk_in-a-former-text-0123456789")
    source = Source({"human": "now"}, [])
    former = BlockVersion(1, "", Author.FIRST, "gsk_in-a-former-text-0123456789")
    source.versions["human"].insert(0, former)
    memory_folder(tmp_path / "mem", source, monkeypatch)
    assert "gsk_…6789" in git(tmp_path / "mem", "log", "-p", "--format=%s")
    assert "former-text" not in git(tmp_path / "mem", "log", "-p", "--format=%s")
    source.versions["human"].insert(0, BlockVersion(1, "", Author.FIRST, "configured-only"))
    with pytest.raises(ExportRefused, match="would have held a key"):
        memory_folder(tmp_path / "other", source, monkeypatch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mem"]


def test_without_git_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal says what to do instead."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportRefused, match="git is not installed"):
        memory_folder(tmp_path / "mem", Source({}, []), monkeypatch)
    assert not (tmp_path / "mem").exists()
