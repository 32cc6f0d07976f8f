"""Folders that agents are exported to: written as a whole or not at all, and messages that survive the way."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZipFile

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message, Scope

from isabella.agents.block_history import Author, BlockVersion
from isabella.agents.conversations import ConversationRecord
from isabella.agents.exports import letta_code, markdown, zipped
from isabella.agents.exports.folder import new_folder, remove_leftovers, temporary_folder
from isabella.agents.exports.markdown import Exported, file_names, slug
from isabella.agents.exports.messages import CallRecord, MessageRecord, ResultRecord, record_of
from isabella.agents.exports.zipped import unpack
from isabella.agents.history import HistoryEntry
from isabella.agents.memory import ArchivalPassage
from isabella.agents.transcript import transcript
from isabella.errors import ExportFailed, ExportRefused, LettaUnreachable
from isabella.server import agent_download
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
        self.conversations = [SimpleNamespace(record=name, context=["2"])]
        self.document: dict[str, Any] = {"agents": [{}]}
        self.own: dict[str, Any] = {}
        self.letta = "0.16.8"

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


class Held:
    """A service whose agent's turns are held back while the agent is read."""

    def __init__(self, home: Path, events: list[str]) -> None:
        self.connection = SimpleNamespace(home=home)
        self.models = None
        self.memory = self
        self._events = events

    @asynccontextmanager
    async def hold(self, agent_id: str) -> AsyncIterator[None]:
        """Note when turns are held back."""
        self._events.append(f"held {agent_id}")
        try:
            yield
        finally:
            self._events.append("released")


@pytest.fixture
def zip_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., IO[bytes]]:
    """Makes the ZIP file of an agent, with `tmp_path` as home."""
    monkeypatch.setattr(zipped, "configured_secrets", lambda *_: ["configured-only"])

    def make(source: Source, events: list[str] | None = None) -> IO[bytes]:
        async def read_source(_service: object, _record: object) -> Any:
            return source

        monkeypatch.setattr(markdown, "read_source", read_source)
        service: Any = Held(tmp_path, [] if events is None else events)
        return anyio.run(zipped.export_zip, service, source.record, "Ann-2026")  # type: ignore[arg-type]

    return make


def test_a_download_has_the_files_of_the_folder(zip_of: Callable[..., IO[bytes]], tmp_path: Path) -> None:
    """All of its manifest, for the owner only when unpacked; turns wait until it is read, and no file has a name."""
    events: list[str] = []
    with zip_of(Source({"human": "Rex"}, ["2026-10"]), events) as file, ZipFile(file) as archive:
        manifest = json.loads(archive.read("Ann-2026/manifest.json"))
        assert {*archive.namelist()} == {f"Ann-2026/{name}" for name in (*manifest["files"], "manifest.json")}
        assert {one.external_attr >> 16 & 0o777 for one in archive.infolist()} == {0o600}
        for name, about in manifest["files"].items():
            assert len(archive.read(f"Ann-2026/{name}")) == about["bytes"]
        assert "Hello" in archive.read("Ann-2026/conversations/00-about-dogs/messages.md").decode()
        assert (manifest["counts"]["messages"], manifest["counts"]["passages"]) == (2, 1)
        assert names(tmp_path) == []
    assert events == ["held agent-1", "released"]


def test_nothing_is_left_of_a_download_that_failed(zip_of: Callable[..., IO[bytes]], tmp_path: Path) -> None:
    """A configured key in memory, and a Letta that breaks off: no file stays, and turns run again."""
    events: list[str] = []
    with pytest.raises(ExportRefused, match="would have held a key"):
        zip_of(Source({"human": "configured-only"}, []), events)

    class Broken(Source):
        async def messages(self, _conversation: object) -> AsyncIterator[MessageRecord]:
            yield MessageRecord(id="1", role="user", text="Hello")
            raise LettaUnreachable("Letta is gone.")

    with pytest.raises(LettaUnreachable):
        zip_of(Broken({"human": "Rex"}, []), events)
    assert events == ["held agent-1", "released"] * 2
    assert names(tmp_path) == []


def test_a_home_that_cannot_be_written_is_an_answer(zip_of: Callable[..., IO[bytes]], tmp_path: Path) -> None:
    """It says where, and what to do."""
    tmp_path.rmdir()
    with pytest.raises(ExportFailed, match="cannot be written: No such file") as failed:
        zip_of(Source({"human": "Rex"}, []))
    assert "isabella agents export" in str(failed.value.remedy)


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    """Temporary folders of exports, but not that of an export that is being made."""
    (tmp_path / "blocks").mkdir()
    (tmp_path / ".export-link").symlink_to(tmp_path / "blocks")
    with temporary_folder(tmp_path) as folder:
        folder.text("deep/inside.md", "text")
        assert folder.root.stat().st_mode & 0o777 == 0o700
        left = tmp_path / ".export-killed"
        shutil.copytree(folder.root, left)
        remove_leftovers(tmp_path)
        assert (folder.root / "deep/inside.md").read_text() == "text"
        assert not left.exists()
    assert names(tmp_path) == [".export-link", "blocks"]


def downloaded(monkeypatch: pytest.MonkeyPatch, export: Callable[..., Awaitable[IO[bytes]]], *received: str) -> Sent:
    """What a client gets who asks for an export, and of whom the server then receives messages of these types."""

    async def work() -> Sent:
        monkeypatch.setattr(agent_download, "export_zip", export)
        runtime: Any = SimpleNamespace(exporting=anyio.Lock(), agents=None)
        record: Any = SimpleNamespace(name='Änn "B"')
        pending = list(received)

        async def receive() -> Message:
            if not pending:
                await anyio.sleep_forever()
            await anyio.lowlevel.checkpoint()
            return {"type": pending.pop(0)}

        sent = Sent()
        scope: Scope = {"type": "http", "method": "GET", "headers": [], "asgi": {"spec_version": "2.3"}}
        response = await agent_download.download_agent(Request(scope, receive), runtime, record)
        await response(scope, receive, sent.send)
        assert not runtime.exporting.locked()
        return sent

    return anyio.run(work)


class Sent:
    """What an application has sent."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    async def send(self, message: Message) -> None:
        """Take a message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        self.body += message.get("body", b"")


def test_a_download_is_a_file_of_known_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a browser sees whether it is whole; its name is that of the agent, in ASCII. The file is closed."""
    content = os.urandom(3 * 256 * 1024 + 1)
    file = TemporaryFile()  # noqa: SIM115 - the download closes it
    file.write(content)
    file.seek(0)

    async def export(_service: object, _record: object, name: str) -> IO[bytes]:
        assert re.fullmatch(r"nn-B-\d{4}-\d\d-\d\d", name)
        return file

    sent = downloaded(monkeypatch, export, "http.request")
    assert sent.body == content
    assert (sent.status, sent.headers["content-length"]) == (200, str(len(content)))
    assert sent.headers["content-disposition"].startswith('attachment; filename="nn-B-')
    assert file.closed


def test_a_client_that_leaves_ends_its_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets it any more, and others wait for it."""
    ended: list[str] = []

    async def export(*_: object) -> IO[bytes]:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("ended")
        raise AssertionError

    sent = downloaded(monkeypatch, export, "http.request", "http.disconnect")
    assert (ended, sent.status) == (["ended"], 499)


def test_an_export_that_fails_is_an_error_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a group of errors, which no handler knows."""

    async def export(*_: object) -> IO[bytes]:
        raise LettaUnreachable("Letta is gone.")

    with pytest.raises(LettaUnreachable):
        downloaded(monkeypatch, export, "http.request")


def zip_with(**members: str | bytes) -> io.BytesIO:
    """A ZIP file; `__` in a name stands for a slash, and `_` for a point."""
    content = io.BytesIO()
    with ZipFile(content, "w", ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), data)
    content.seek(0)
    return content


def test_a_zip_file_is_unpacked(tmp_path: Path) -> None:
    """With its folder or without it, and beside what programs of other systems add."""
    assert unpack(zip_with(manifest_json="{}"), tmp_path) == tmp_path
    assert unpack(zip_with(Ann__manifest_json="{}", Other__Ann__x="?"), tmp_path) == tmp_path / "Ann"
    assert names(tmp_path) == ["Ann", "Ann/manifest.json", "Other", "Other/Ann", "Other/Ann/x", "manifest.json"]


def test_nothing_is_unpacked_outside_its_folder(tmp_path: Path) -> None:
    """Whatever the names of its members."""
    (tmp_path / "in").mkdir()
    content = io.BytesIO()
    with ZipFile(content, "w") as archive:
        for name in ("manifest.json", "../up.md", "/absolute.md", "a/../../../b.md"):
            archive.writestr(name, "{}")
    unpack(content, tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert not Path("/absolute.md").exists()


def damaged(content: io.BytesIO) -> io.BytesIO:
    """The same with one byte of its first member changed."""
    data = bytearray(content.getvalue())
    data[data.index(b"manifest.json") + len("manifest.json") + 3] ^= 0x55
    return io.BytesIO(bytes(data))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (io.BytesIO(b"PK\x03\x04 and no more"), "damaged"),
        (damaged(zip_with(manifest_json="{" + "x" * 500 + "}")), "damaged"),
        (zip_with(readme_md="?"), "not an Isabella export"),
        (zip_with(a__manifest_json="{}", b__manifest_json="{}"), "not an Isabella export"),
        (zip_with(a__b__manifest_json="{}"), "not an Isabella export"),
        (zip_with(manifest_json="{}", zeros=bytes(2_000_000)), "more than 1 MB"),
        (zip_with(manifest_json="{}", **{f"n{number}": "" for number in range(10)}), "more than 1 MB or 10 files"),
    ],
)
def test_a_zip_file_that_is_no_export_is_refused(
    content: io.BytesIO, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it takes much disk, and with what to do."""
    monkeypatch.setattr(zipped, "_MOST_BYTES", 1_000_000)
    monkeypatch.setattr(zipped, "_MOST_FILES", 10)
    with pytest.raises(ExportRefused, match=why) as refused:
        unpack(content, tmp_path)
    assert refused.value.remedy
    assert not (tmp_path / "zeros").exists()
