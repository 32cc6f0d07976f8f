"""The audit log: two lines for each change, who made it, and what a killed process or a full disk leaves of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
import structlog
import typer
from typer.testing import CliRunner

from isabella.cli import app
from isabella.errors import LettaError
from isabella.letta import paths
from isabella.letta.http import LettaHttp
from isabella.system import audit, redaction
from isabella.system.audit import Actor, ActorKind, ChangeOutcome, Record
from tests.support import access_table
from tests.support.audit_table import COMMANDS, ROUTES

runner = CliRunner()


def log_of(home: Path) -> Path:
    """The file that is appended to."""
    return home / "audit" / "audit.jsonl"


def lines(home: Path) -> list[dict[str, Any]]:
    """Every line of the log."""
    return [json.loads(line) for line in log_of(home).read_text().splitlines()]


def made(home: Path, kind: str = "agent.created", subject: str = "Ada") -> None:
    """Record a change."""
    with audit.change(kind, subject, home=home):
        pass


def test_a_change_has_two_lines_with_one_id(tmp_path: Path) -> None:
    """Who, what, when; one line before the change and one after it. Only the owner can read them."""
    with (
        audit.acting(Actor(ActorKind.SESSION, "ab12", "192.0.2.7", "POST /api/agents")),
        audit.change("agent.created", "Ada", home=tmp_path, model="byok-groq/m", note=None),
    ):
        (begun,) = lines(tmp_path)
    first, second = lines(tmp_path)
    assert first == begun
    assert (first["outcome"], second["outcome"]) == ("begun", "done")
    assert first["id"] == second["id"]
    assert first["actor"] == {
        "kind": "session",
        "name": "ab12",
        "address": "192.0.2.7",
        "via": "POST /api/agents",
    }
    assert (first["change"], first["subject"], first["details"]) == ("agent.created", "Ada", {"model": "byok-groq/m"})
    assert stat.S_IMODE(log_of(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE(log_of(tmp_path).parent.stat().st_mode) == 0o700


def test_a_failure_says_why_and_an_interruption_is_no_success(tmp_path: Path) -> None:
    """An error ends the second line; a process that was killed leaves the first one alone."""
    with pytest.raises(LettaError), audit.change("agent.deleted", "Ada", home=tmp_path):
        raise LettaError("Letta is gone.")
    with pytest.raises(ValueError, match="secret"), audit.change("agent.deleted", "Ada", home=tmp_path):
        raise ValueError("a secret of somebody")
    unfinished = audit.Change("agent.renamed", "Ada", {})
    unfinished.begin(tmp_path)
    failed, unforeseen, interrupted = audit.records(tmp_path)
    assert (failed.entry.outcome, failed.entry.error) == (ChangeOutcome.FAILED, "Letta is gone.")
    assert unforeseen.entry.error == "ValueError"
    assert (failed.interrupted, interrupted.interrupted) == (False, True)
    shown = runner.invoke(app, ["audit", "--failed", "--home", str(tmp_path)])
    assert [line.rpartition("  ")[2] for line in shown.output.splitlines()] == [
        "failed: Letta is gone.",
        "failed: ValueError",
        "interrupted",
    ]


def test_writes_within_a_change_are_part_of_it(tmp_path: Path) -> None:
    """A change inside another one, and writes at Letta, make no lines of their own; without a write there is none."""
    with audit.change("agent.duplicated", "Ada"):
        with audit.change("agent.imported", "Grace"):
            assert not log_of(tmp_path).exists()
            with audit.writing(tmp_path, "agent.created", ""):
                pass
        with audit.writing(tmp_path, "memory.created", ""):
            pass
    with audit.change("agent.switched", "Ada"):
        pass
    (only,) = audit.records(tmp_path)
    assert (only.entry.change, only.entry.outcome) == ("agent.duplicated", ChangeOutcome.DONE)
    with audit.temporary(), audit.writing(tmp_path, "agent.created", "probe"):
        pass
    assert len(list(audit.records(tmp_path))) == 1


def test_a_secret_is_masked_whatever_text_it_stands_in(tmp_path: Path) -> None:
    """An error of a vendor quotes a key: the log has prefix and last four characters."""
    redaction.remember("gsk_AuditCanary0123456789")
    with pytest.raises(LettaError), audit.change("provider.updated", "byok-groq", home=tmp_path):
        raise LettaError("The vendor refuses gsk_AuditCanary0123456789.")
    text = log_of(tmp_path).read_text()
    assert "AuditCanary" not in text
    assert "gsk_…6789" in text


def _append(home: Path, number: int) -> None:
    for each in range(100):
        made(home, subject=f"{number}.{each}")


def test_processes_append_and_rotate_without_losing_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processes write at once into files that are full after a few lines: every line is there, and whole."""
    monkeypatch.setattr(audit, "_LARGEST", 20_000)
    monkeypatch.setattr(audit, "_KEPT", 1000)
    forks = multiprocessing.get_context("fork")
    workers = [forks.Process(target=_append, args=(tmp_path, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted(one.entry.subject for one in audit.records(tmp_path)) == sorted(
        f"{number}.{each}" for number in range(4) for each in range(100)
    )
    files = list((tmp_path / "audit").iterdir())
    assert len(files) > 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert max(path.stat().st_size for path in files) <= 20_000


def test_the_oldest_full_files_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many full files are kept beside the current one, the newest."""
    monkeypatch.setattr(audit, "_LARGEST", 1)
    monkeypatch.setattr(audit, "_KEPT", 3)
    for number in range(10):
        made(tmp_path, subject=str(number))
    assert len(list((tmp_path / "audit").iterdir())) == 4
    assert [one.entry.subject for one in audit.records(tmp_path)] == ["8", "9"]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    """After a full disk the next line begins a new one; what is damaged is left out when it is read."""
    made(tmp_path, subject="one")
    with log_of(tmp_path).open("ab") as file:
        file.write(b'{"at": "2026-11-27T0')
    made(tmp_path, subject="two")
    with log_of(tmp_path).open("ab") as file:
        file.write(b"[1]\n\xff\xfe\n" + b"[" * 5000 + b'\n{"actor": 1}\n')
    made(tmp_path, subject="three")
    assert [one.entry.subject for one in audit.records(tmp_path)] == ["one", "two", "three"]


def test_a_log_that_cannot_be_written_is_a_warning_with_the_line(tmp_path: Path) -> None:
    """The change goes on, and the line stands in the log of the process."""
    (tmp_path / "audit").touch()
    with structlog.testing.capture_logs() as logged:
        made(tmp_path)
    assert [one["event"] for one in logged] == ["audit log not written"] * 2
    assert '"change": "agent.created"' in logged[0]["sentence"]


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    """It is set aside, and the log begins anew."""
    (tmp_path / "audit").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    log_of(tmp_path).symlink_to(elsewhere)
    made(tmp_path)
    assert elsewhere.read_text() == ""
    assert len(list(audit.records(tmp_path))) == 1


def test_by_default_the_user_of_the_process_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever became another user by sudo is named, too."""
    import pwd

    user = pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.delenv("SUDO_USER", raising=False)
    assert (audit.current_actor().kind, audit.current_actor().name) == (ActorKind.OPERATOR, user)
    monkeypatch.setenv("SUDO_USER", "grace")
    assert audit.current_actor().name == f"{user} (sudo by grace)"


def test_a_command_is_known_in_every_thread_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`isabella up` serves in a thread, and what it does at the start is its doing."""
    monkeypatch.setattr(audit, "_command", "")
    audit.set_command("isabella up")
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(audit.current_actor).result().via == "isabella up"


def test_an_actor_holds_in_tasks_that_are_started_meanwhile(tmp_path: Path) -> None:
    """As for a job that a page starts: it ends after the request, and is attributed to its session."""

    async def job(go: anyio.Event) -> None:
        await go.wait()
        made(tmp_path)

    async def serve() -> None:
        go = anyio.Event()
        async with anyio.create_task_group() as tasks:
            with audit.acting(Actor(ActorKind.SESSION, "ab12")):
                tasks.start_soon(job, go)
            go.set()

    anyio.run(serve)
    (only,) = audit.records(tmp_path)
    assert only.entry.actor == Actor(ActorKind.SESSION, "ab12")


# --- what is recorded -----------------------------------------------------------------------------------------------


def test_a_write_at_letta_that_nobody_has_named_is_recorded(tmp_path: Path) -> None:
    """The client of Letta is the last place: a request that changes something has a line, with names of fields."""

    async def write(method: str, path: str) -> None:
        transport = httpx2.MockTransport(lambda _request: httpx2.Response(200, json={}))
        http = LettaHttp("http://letta.test", transport=transport, audit_home=tmp_path)
        await http.write(method, path, json={"system": "the text of a user", "name": "Ada"})
        await http.close()

    anyio.run(write, "PATCH", paths.agent("agent-1"))
    anyio.run(write, "POST", paths.agent("agent-1", "messages", "capture"))
    anyio.run(write, "DELETE", paths.provider("provider-1"))
    first, second = audit.records(tmp_path)
    assert (first.entry.change, first.entry.subject) == ("agent.changed", "agent-1")
    assert first.entry.details == {"fields": ["name", "system"]}
    assert (second.entry.change, second.entry.subject) == ("provider.deleted", "provider-1")
    assert "the text of a user" not in log_of(tmp_path).read_text()


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", paths.AGENTS, ("agent.created", "")),
        ("POST", paths.AGENT_IMPORT, ("agent.created", "import")),
        ("PATCH", paths.agent("a"), ("agent.changed", "a")),
        ("DELETE", paths.agent("a"), ("agent.deleted", "a")),
        ("PATCH", paths.agent("a", "tools", "attach", "t"), ("agent.changed", "a")),
        ("POST", paths.agent("a", "archival-memory"), ("agent.changed", "a")),
        ("POST", paths.agent("a", "summarize"), ("agent.changed", "a")),
        ("POST", paths.PROVIDERS, ("provider.created", "")),
        ("PATCH", f"{paths.BLOCKS}b", ("block.changed", "b")),
        ("DELETE", f"{paths.ARCHIVES}x/passages/p", ("archive.changed", "x")),
        ("POST", "/v2/something", ("letta.created", "/v2/something")),
        ("PATCH", f"{paths.provider('p')}/refresh", None),
        ("POST", f"{paths.provider('p')}/check", None),
        ("POST", paths.agent("a", "messages"), None),
        ("POST", paths.agent("a", "messages", "cancel"), None),
        ("POST", paths.agent("a", "recompile"), None),
        ("POST", paths.conversation("c", "messages"), None),
        ("POST", f"{paths.PASSAGES}search", None),
        ("GET", paths.agent("a"), None),
    ],
)
def test_what_a_write_changes(method: str, path: str, expected: tuple[str, str] | None) -> None:
    """Messages and searches change nothing; whatever is not known does."""
    assert paths.written(method, path) == expected


def test_every_route_that_writes_is_in_the_table(tmp_path: Path) -> None:
    """A new route has to say which change it records, or why it makes none."""
    routes = {f"{method} {path}" for method, path in access_table.Backend(tmp_path).routes() if method != "GET"}
    assert routes == ROUTES.keys()


def test_every_command_is_in_the_table() -> None:
    """A new command has to say which change it records, or why it makes none."""
    assert set(_commands(typer.main.get_command(app))) == COMMANDS.keys()


def _commands(command: Any, name: str = "") -> Iterator[str]:
    if not hasattr(command, "commands"):
        yield name
        return
    if command.invoke_without_command and name:
        yield name
    for word, one in command.commands.items():
        yield from _commands(one, f"{name} {word}".strip())


# --- the command ----------------------------------------------------------------------------------------------------


def _shown(home: Path, *arguments: str) -> list[str]:
    result = runner.invoke(app, ["audit", "--json", "--home", str(home), *arguments])
    assert result.exit_code == 0, result.output
    return [json.loads(line)["subject"] for line in result.output.splitlines()]


def test_the_command_filters(tmp_path: Path) -> None:
    """By kind, by who, by what, by age, and the last so many."""
    with audit.acting(Actor(ActorKind.TOKEN, "", "192.0.2.7", "POST /api/agents")):
        made(tmp_path, "agent.created", "Ada")
    with audit.acting(Actor(ActorKind.WATCHER)):
        made(tmp_path, "provider.updated", "byok-groq")
        made(tmp_path, "agents.other", "Not an agent")
    assert _shown(tmp_path) == ["Ada", "byok-groq", "Not an agent"]
    assert _shown(tmp_path, "--change", "agent") == ["Ada"]
    assert _shown(tmp_path, "--change", "provider.updated") == ["byok-groq"]
    assert _shown(tmp_path, "--by", "WATCHER", "--subject", "groq") == ["byok-groq"]
    assert _shown(tmp_path, "--by", "192.0.2.7") == ["Ada"]
    assert _shown(tmp_path, "-n", "1") == ["Not an agent"]
    assert _shown(tmp_path, "--since", "1h", "-n", "0") == ["Ada", "byok-groq", "Not an agent"]
    assert _shown(tmp_path, "--since", "2999-01-01") == []
    assert runner.invoke(app, ["audit", "--since", "soon", "--home", str(tmp_path)]).exit_code == 64
    text = runner.invoke(app, ["audit", "--home", str(tmp_path)]).output.splitlines()[0]
    assert text.endswith("agent.created  Ada  by token from 192.0.2.7 (POST /api/agents)")
    nothing = runner.invoke(app, ["audit", "--home", str(tmp_path / "new")])
    assert "There is no such change" in nothing.output


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    """What the log holds is what a program finds in it."""
    made(tmp_path)
    (record,) = audit.records(tmp_path)
    assert isinstance(record, Record)
    assert audit.Entry.read(json.dumps(record.entry.as_json())) == record.entry
