"""`isabella providers`: exit codes, options and streams. The work is replaced here; it is tested on a real Letta."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest
from typer.testing import CliRunner

from isabella.cli import app, main
from isabella.config.choices import Strategy
from isabella.config.settings import load_settings
from isabella.config.sources import ConfigValue
from isabella.errors import IsabellaError, LettaUnreachable, LockTimeout
from isabella.providers.plan import Action
from isabella.providers.report import Proof, ProviderReport, Receipt, Report
from tests.support.sample_reports import FOREIGN, IN_SYNC, MENDED

FINE = replace(IN_SYNC, receipt=Receipt.ACCEPTED)
HEALED = replace(MENDED, receipt=Receipt.ACCEPTED)
STALE = replace(HEALED, proof=Proof.NOT_ASKED)
UNPROVEN = replace(HEALED, proof=Proof.UNPROVEN)
FAILED = replace(HEALED, action=Action.REFUSE, proof=Proof.FAILED)
NOT_TAKEN = replace(FINE, receipt=Receipt.REFUSED)


CODES: list[tuple[str, ProviderReport, int]] = [
    ("plan", FINE, 0),
    ("plan", FOREIGN, 0),
    ("plan", STALE, 2),
    ("plan", FAILED, 2),
    ("status", FINE, 0),
    ("status", FOREIGN, 0),
    ("status", STALE, 2),
    ("status", FAILED, 2),
    ("sync", FINE, 0),
    ("sync", FOREIGN, 0),
    ("sync", HEALED, 0),
    ("sync", UNPROVEN, 1),
    ("sync", FAILED, 1),
    ("verify", FINE, 0),
    ("verify", FOREIGN, 0),
    ("verify", NOT_TAKEN, 1),
    ("verify", replace(FINE, receipt=Receipt.FAILED), 1),
    ("verify", STALE, 1),
]
COMMANDS = ("plan", "status", "sync", "verify")
FUNCTIONS = {
    "plan": "compare_providers",
    "status": "compare_providers",
    "sync": "ensure_providers",
    "verify": "verify_providers",
}


class Work:
    """Stands in for `isabella.api`: remembers what it was asked, and answers as told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answer: Report | BaseException = Report("http://127.0.0.1:8283", "0.16.8", [FINE])

    def gives(self, *entries: ProviderReport) -> None:
        """Answer with these."""
        self.answer = Report("http://127.0.0.1:8283", "0.16.8", entries)

    async def do(self, name: str, options: dict[str, Any]) -> Report:
        """Note the call, and answer."""
        self.asked.append((name, options))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Work:
    """The work replaced, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    done = Work()
    for name in set(FUNCTIONS.values()):

        async def call(settings: Any = None, *, _name: str = name, **options: Any) -> Report:
            return await done.do(_name, {"settings": settings, **options})

        monkeypatch.setattr(f"isabella.api.{name}", call)
    return done


@pytest.mark.parametrize("arguments", [[], ["--json"]])
@pytest.mark.parametrize(("command", "entry", "code"), CODES)
def test_exit_codes_are_as_promised(
    command: str, entry: ProviderReport, code: int, arguments: list[str], work: Work
) -> None:
    """Plan and status: 0, 2 where there is something to do; sync and verify: 0 only when all is proven; else 1."""
    work.gives(FINE, entry)
    result = CliRunner().invoke(app, ["providers", command, *arguments])
    assert result.exit_code == code, result.output
    assert [name for name, _ in work.asked] == [FUNCTIONS[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_object_on_standard_output(command: str, work: Work) -> None:
    """With --json, nothing but one object stands on standard output."""
    work.gives(FINE, STALE, FOREIGN)
    result = CliRunner().invoke(app, ["providers", command, "--json"])
    document = json.loads(result.stdout)
    assert [entry["stored"] for entry in document["providers"]] == ["in_sync", "stale", "foreign"]
    assert document["letta"] == {"base_url": "http://127.0.0.1:8283", "version": "0.16.8"}


@pytest.mark.parametrize("command", COMMANDS)
def test_without_json_there_is_a_table(command: str, work: Work) -> None:
    """People get a table, without colour where it is no terminal."""
    result = CliRunner().invoke(app, ["providers", command])
    assert "cerebras" in result.stdout
    assert "in sync" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("arguments", [*([command] for command in COMMANDS), ["sync", "--watch"]])
def test_each_speaks_of_the_vendors_that_the_backend_speaks_to(
    arguments: list[str], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where practice vendors stand in for the backend, they do for every command, the watch included."""
    served = load_settings(environment={})
    monkeypatch.setattr("isabella.practice.overlay.as_served", lambda settings: served)
    monkeypatch.setattr("isabella.watch.watcher.Watcher.run", AsyncMock())
    CliRunner().invoke(app, ["providers", *arguments])
    ((_, options),) = work.asked
    assert options["settings"] is served


def test_rekey_proves_the_providers_that_the_backend_speaks_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sealed anew is proven against the keys that the backend uses."""
    served, carry_out = load_settings(environment={}), Mock(return_value=True)
    monkeypatch.setattr("isabella.practice.overlay.as_served", lambda settings: served)
    monkeypatch.setattr("isabella.cli.rekey.rekey", carry_out)
    assert CliRunner().invoke(app, ["letta", "rekey", "--yes"]).exit_code == 0
    assert carry_out.call_args.args[0] is served


def test_chat_and_settings_speak_of_the_vendors_that_the_backend_speaks_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A chat without a backend is with the practice vendors where they stand in, and `settings` shows them."""
    monkeypatch.chdir(tmp_path)
    sources = replace(
        load_settings(environment={}).sources, overlay={"GROQ_API_KEY": ConfigValue("gsk_1", "practice vendors")}
    )
    served, line = load_settings(environment={}).model_copy(update={"sources": sources}), MagicMock()
    monkeypatch.setattr("isabella.practice.overlay.as_served", lambda settings: served)
    monkeypatch.setattr(sys.modules["isabella.cli.backend"], "_backend_client", line)
    CliRunner().invoke(app, ["chat"])
    assert line.call_args.args[0] is served
    shown = json.loads(CliRunner().invoke(app, ["settings", "--json"]).stdout)["settings"]
    assert shown["GROQ_API_KEY"]["from"] == "GROQ_API_KEY (practice vendors)"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_leaves_by_one_door(
    command: str,
    arguments: list[str],
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What and remedy on standard error, exit 1; with --json an object, too; never a traceback."""
    work.answer = LettaUnreachable("No Letta server answers.", remedy="Start it.")
    monkeypatch.setattr(sys, "argv", ["isabella", "providers", command, *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert left.value.code == 1
    assert err == "isabella: No Letta server answers.\n  Start it.\n"
    if arguments:
        assert json.loads(out) == {"error": {"what": "No Letta server answers.", "remedy": "Start it."}}
    else:
        assert out == ""


@pytest.mark.parametrize("error", [LockTimeout("Another process is at work."), IsabellaError("It broke.")])
def test_an_error_without_a_remedy_is_one_line(
    error: IsabellaError, work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody knows what to do, one line says what happened."""
    work.answer = error
    monkeypatch.setattr(sys, "argv", ["isabella", "providers", "sync"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert capsys.readouterr().err == f"isabella: {error.what}\n"


def test_an_error_is_a_json_object_in_the_json_format(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ISABELLA_LOG_FORMAT=json, standard error holds nothing but JSON."""
    work.answer = LockTimeout("Another process is at work.", remedy="Wait.")
    monkeypatch.setenv("ISABELLA_LOG_FORMAT", "json")
    monkeypatch.setattr(sys, "argv", ["isabella", "providers", "sync"])
    with pytest.raises(SystemExit) as left:
        main()
    error = json.loads(capsys.readouterr().err)
    assert left.value.code == 1
    assert (error["event"], error["remedy"], error["level"]) == ("Another process is at work.", "Wait.", "error")


def test_ctrl_c_is_no_traceback(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interruption is said in one line and ends with 130."""
    work.answer = KeyboardInterrupt()
    monkeypatch.setattr(sys, "argv", ["isabella", "providers", "sync"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["providers", "sync", "--strategy", "fast"], "--strategy"),
        (["providers", "sync", "--what"], "--what"),
        (["providers", "status", "--strategy", "auto"], "--strategy"),
        (["providers", "verify", "--no-probe"], "--no-probe"),
        (["providers", "sync", "--only"], "--only"),
        (["providers", "mend"], "mend"),
        (["providers", "sync", "cerebras"], "cerebras"),
        (["providers", "sync", "--watch", "--only", "cerebras"], "--only"),
        (["nonsense"], "nonsense"),
        (["--nonsense"], "--nonsense"),
        (["agents", "show"], "NAME"),
        (["agents", "import"], "PATH"),
        (["agents", "delete", "--yes"], "NAME"),
        (["chat", "--agent"], "--agent"),
        (["doctor", "nonsense"], "nonsense"),
        (["doctor", "explain", "401", "--log", "letta.log"], "--log"),
        (["letta", "up", "--version", "newest"], "newest"),
        (["letta", "status", "--instance", "../x"], "../x"),
        (["letta", "logs", "--lines", "-1"], "--lines"),
        (["letta", "rekey", "--version", "newest"], "newest"),
        (["practice", "up", "--port", "0"], "--port"),
        (["practice", "keys", "nobody"], "nobody"),
        (["practice", "rotate"], "VENDOR"),
        (["practice", "fault", "groq", "--share", "7"], "7.0"),
        (["practice", "fault", "groq", "--on", "mondays", "--hang", "1"], "mondays"),
        (["practice", "fault", "groq", "--times", "3"], "does nothing"),
        (["settings", "extra"], "extra"),
        (["up", "--env-file"], "--env-file"),
        (["demo", "--fast"], "--fast"),
        (["login", "extra"], "extra"),
    ],
)
def test_usage_errors_are_64_with_a_message_on_standard_error(arguments: list[str], said: str, work: Work) -> None:
    """What the command line does not know is told on standard error; nothing is done, and nothing looks pending."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 64, result.output
    assert said in result.stderr
    assert result.stdout == ""
    assert work.asked == []


@pytest.mark.parametrize("group", [[], ["providers"], ["agents"], ["letta"], ["practice"]])
def test_no_command_is_a_usage_error_and_help_is_none(group: list[str]) -> None:
    """Without a command the help is shown, with 64; where it is asked for, with 0."""
    assert CliRunner().invoke(app, group).exit_code == 64
    assert CliRunner().invoke(app, [*group, "--help"]).exit_code == 0
    assert CliRunner().invoke(app, ["--version"]).exit_code == 0


def test_completion_is_no_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell's questions are answered, also behind a value that no command would take."""
    monkeypatch.setenv("_ISABELLA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "isabella practice keys nobody --acc")
    monkeypatch.setenv("COMP_CWORD", "4")
    result = CliRunner().invoke(app, [], prog_name="isabella")
    assert (result.exit_code, result.stdout.strip()) == (0, "--accept")


@pytest.mark.parametrize("strategy", Strategy)
def test_options_reach_the_work(strategy: Strategy, work: Work) -> None:
    """--only (repeatable), --strategy and --no-probe arrive as they were given."""
    arguments = ["--only", "a", "--only", "b", "--strategy", strategy.value, "--no-probe"]
    CliRunner().invoke(app, ["providers", "sync", *arguments])
    ((_, options),) = work.asked
    assert (list(options["only"]), options["strategy"], options["probe"]) == (["a", "b"], strategy, False)


def test_without_options_the_settings_decide(work: Work) -> None:
    """No strategy on the command line leaves it to the settings, and vendors are asked about new keys."""
    CliRunner().invoke(app, ["providers", "sync"])
    ((_, options),) = work.asked
    assert (list(options["only"]), options["strategy"], options["probe"]) == ([], None, True)


@pytest.mark.parametrize("command", COMMANDS)
def test_another_env_file_is_read(command: str, work: Work, tmp_path: Path) -> None:
    """--env-file names the file in place of `.env`; one that is not there is an error."""
    other = tmp_path / "other.env"
    other.write_text("ISABELLA_PORT=1234\n")
    CliRunner().invoke(app, ["providers", command, "--env-file", str(other)])
    ((_, options),) = work.asked
    assert options["settings"].port == 1234
    absent = CliRunner().invoke(app, ["providers", command, "--env-file", str(tmp_path / "absent.env")])
    assert isinstance(absent.exception, IsabellaError)


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("isabella.cli", "letta_client fastapi uvicorn psycopg pydantic httpx2 cryptography rich.table"),
        ("isabella.cli, isabella.server.up", "letta_client fastapi psycopg httpx2 cryptography structlog rich"),
    ],
)
def test_help_and_the_first_page_import_nothing_heavy(modules: str, heavy: str) -> None:
    """What they do not need is not imported before them."""
    code = f"import sys, {modules}; print([name for name in {heavy.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
