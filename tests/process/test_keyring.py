"""Keys in a keyring: read and stored by a real process, with a backend that keeps them in a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from pytest_httpserver import HTTPServer
from typer.testing import CliRunner, Result

from isabella.cli import app
from isabella.config import key_commands, keyring_entries
from isabella.config.key_commands import Failed
from isabella.config.keyring_entries import KeyringEntry
from isabella.config.settings import load_settings
from isabella.errors import ConfigurationError
from isabella.gateway.keys import KeyRing, NotAdmitted
from isabella.letta.client import Connection
from isabella.practice.overlay import ConfigSnapshot
from isabella.providers.desired import Desired, RemarkKind, desired_providers
from isabella.system.redaction import redact
from tests.unit.test_cli_vendors import ITEM, lists

FIRST, SECOND = "gsk_canary-of-the-keyring-0001", "gsk_canary-of-the-keyring-0002"
GROQ = KeyringEntry("isabella", "groq")
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Desktop:
    """A user's folder with a keyring in a file."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def has(self, fault: str = "") -> None:
        """Replace the keyring by one that may fail."""
        self.monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "tests.support.keyring_backend.FaultyKeyring")
        self.monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
        self.monkeypatch.setenv("KEYRING_FILE", str(self.folder / "entry"))
        self.monkeypatch.setenv("KEYRING_FAULT", fault)

    def holds(self, key: str) -> None:
        """Store a key with the command of the package, as a user does."""
        words = [sys.executable, "-m", "keyring", "set", GROQ.service, GROQ.username]
        subprocess.run(words, input=key.encode(), check=True, capture_output=True)

    def desired(self, entry: str = str(GROQ), **variables: str) -> Desired:
        environment = {"GROQ_API_KEY_KEYRING": entry, **variables}
        settings = load_settings(environment=environment, home=self.folder)
        return next(one for one in desired_providers(settings) if one.name == "byok-groq")


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desktop]:
    """One with an empty keyring."""
    key_commands.forget()
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "user"))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyrings.alt.file.PlaintextKeyring")
    yield Desktop(tmp_path, monkeypatch)
    key_commands.forget()


def key_of(desired: Desired) -> str | None:
    """The key, if there is one."""
    return None if desired.key is None else desired.key.get_secret_value()


def problem_of(desired: Desired) -> tuple[str, str]:
    """Its problem and its remedy, both without the key."""
    assert desired.key is None
    assert desired.obstacle is not None
    assert desired.obstacle.kind is RemarkKind.KEY_KEYRING_FAILED
    problem, remedy = str(desired.problem), str(desired.remedy)
    assert "canary" not in problem + remedy
    return problem, remedy


def test_the_key_is_what_the_entry_holds(desktop: Desktop) -> None:
    """As the package's own command has stored it; its origin is the entry."""
    desktop.holds(FIRST)
    desired = desktop.desired()
    assert (key_of(desired), desired.problem, desired.notes) == (FIRST, None, ())
    assert desired.key_source == "GROQ_API_KEY_KEYRING (entry isabella/groq)"
    assert FIRST not in redact(f"said {FIRST}")
    assert FIRST not in repr(key_commands._printed)


def test_every_other_source_wins_over_the_keyring(desktop: Desktop) -> None:
    """And it is said that both are set; the keyring is not asked."""
    desktop.has("hangs")
    file = desktop.folder / "groq"
    file.write_text(SECOND)
    file.chmod(0o600)
    command = {"GROQ_API_KEY_COMMAND": f"cat '{file}'"}
    named = {"GROQ_API_KEY_FILE": str(file)}
    for variables in (command, named | command, {"GROQ_API_KEY": SECOND} | named | command):
        desired = desktop.desired(**variables)
        assert key_of(desired) == SECOND
        assert len(desired.notes) == len(variables)
        assert desired.notes[-1].endswith("wins over GROQ_API_KEY_KEYRING: both are set")
        assert RemarkKind.KEY_SET_TWICE in {remark.kind for remark in desired.remarks}


@pytest.mark.parametrize("entry", ["", "isabella", "isabella/", "/groq"])
def test_a_malformed_entry_is_a_problem(desktop: Desktop, entry: str) -> None:
    """With an example of a right one."""
    problem, remedy = problem_of(desktop.desired(entry))
    assert "SERVICE/USERNAME, such as isabella/groq" in problem
    assert remedy == "Write it as GROQ_API_KEY_KEYRING=isabella/groq, or remove the line."


def test_a_service_may_have_slashes() -> None:
    """The last part is the user name."""
    assert KeyringEntry.parse("https://api.groq.com/me") == KeyringEntry("https://api.groq.com", "me")


def test_an_absent_entry_is_named_with_the_command_that_stores_it(desktop: Desktop) -> None:
    """It is found as soon as it is there and the keyring is asked again."""
    problem, remedy = problem_of(desktop.desired())
    assert "GROQ_API_KEY_KEYRING (isabella/groq) has no key: file PlaintextKeyring has no entry" in problem
    assert remedy == "Store it: keyring set isabella groq"
    desktop.holds(FIRST)
    assert key_commands.renew()
    assert key_of(desktop.desired()) == FIRST


def test_a_chain_of_keyrings_is_the_desktops(desktop: Desktop) -> None:
    """As the package makes it if a desktop offers several; the chain's own name says nothing."""
    desktop.monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.chainer.ChainerBackend")
    assert "has no key: the desktop's keyring has no entry" in problem_of(desktop.desired())[0]


def test_a_machine_without_a_keyring_is_told_where_else_keys_can_be(desktop: Desktop) -> None:
    """As on a server without a desktop."""
    desktop.monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    problem, remedy = problem_of(desktop.desired())
    assert "this machine has no keyring that a program can use here" in problem
    assert "keep the key in a file" in remedy


def test_a_missing_extra_is_named(desktop: Desktop) -> None:
    """With the command that installs it."""
    package = desktop.folder / "without" / "keyring.py"
    package.parent.mkdir()
    package.write_text("raise ModuleNotFoundError(\"No module named 'keyring'\", name='keyring')")
    desktop.monkeypatch.setenv("PYTHONPATH", str(package.parent))
    problem, remedy = problem_of(desktop.desired())
    assert "the package keyring is not installed" in problem
    assert remedy == "Run: pip install 'isabella[keyring]'"


def test_a_backend_that_cannot_be_loaded_is_named(desktop: Desktop) -> None:
    """With the places that name it."""
    desktop.monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "nowhere.Keyring")
    problem, remedy = problem_of(desktop.desired())
    assert "its backend cannot be loaded (ModuleNotFoundError: No module named 'nowhere')" in problem
    assert "PYTHON_KEYRING_BACKEND or keyringrc.cfg" in remedy


@pytest.mark.parametrize(
    ("fault", "reason", "next_step"),
    [
        ("locked", "is locked and was not unlocked (KeyringLocked: Failed to unlock", "Unlock the keyring"),
        ("dismissed", "is locked and was not unlocked (InitError", "Unlock the keyring"),
        ("asks", "is locked and was not unlocked (EOFError", "Unlock the keyring"),
        ("breaks", "the faulty keyring failed (RuntimeError: the bus is gone)", "keyring diagnose"),
        ("dies", "the keyring failed with exit code 3", "keyring diagnose"),
    ],
)
def test_a_keyring_that_fails_is_a_problem_of_its_provider(
    desktop: Desktop, fault: str, reason: str, next_step: str
) -> None:
    """With the reason in one line, and what to do."""
    desktop.has(fault)
    problem, remedy = problem_of(desktop.desired())
    assert reason in problem
    assert "Traceback" not in problem
    assert next_step in remedy


def test_one_that_hangs_is_ended(desktop: Desktop) -> None:
    """After the time limit, as one that waits for a dialog that nobody sees."""
    desktop.has("hangs")
    desktop.monkeypatch.setattr(keyring_entries, "SECONDS", 0.5)
    problem, remedy = problem_of(desktop.desired())
    assert "the keyring has not answered within 0.5 s" in problem
    assert "Unlock the keyring" in remedy


def test_a_backend_may_print(desktop: Desktop) -> None:
    """What it prints is not part of the key."""
    desktop.has("prints")
    (desktop.folder / "entry").write_text(FIRST)
    assert key_of(desktop.desired()) == FIRST


def test_the_last_key_stays_if_the_keyring_is_locked_later(desktop: Desktop) -> None:
    """With a remark, until it is unlocked; a rotated key is found then. An error that quotes the key is redacted."""
    desktop.has()
    (desktop.folder / "entry").write_text(FIRST)
    assert key_of(desktop.desired()) == FIRST
    for fault in ("locked", "quotes"):
        desktop.has(fault)
        assert key_commands.renew()
        desired = desktop.desired()
        assert (key_of(desired), desired.problem) == (FIRST, None)
        assert [remark.kind for remark in desired.remarks] == [RemarkKind.KEY_KEYRING_STALE]
        assert FIRST not in desired.notes[0]
    desktop.has()
    (desktop.folder / "entry").write_text(SECOND)
    assert key_commands.renew()
    assert (key_of(desktop.desired()), desktop.desired().notes) == (SECOND, ())


def test_the_gateway_asks_the_keyring_again_after_a_refusal(desktop: Desktop) -> None:
    """A key that was rotated in the keyring needs no restart."""
    desktop.has()
    (desktop.folder / "entry").write_text(FIRST)
    desktop.monkeypatch.setattr("isabella.gateway.keys._COMMAND_SECONDS", 0.0)
    desktop.monkeypatch.setattr("isabella.gateway.keys._UNKNOWN_KEY_SECONDS", 0.0)

    async def find() -> Connection:
        raise ConfigurationError("There is no Letta.")

    async def play() -> None:
        settings = load_settings(environment={"GROQ_API_KEY_KEYRING": str(GROQ)}, home=desktop.folder)
        keys = KeyRing(ConfigSnapshot.of(settings), find)
        here, there = ("127.0.0.1", 1), ("127.0.0.1", 2)
        assert (await keys.admit("byok-groq", FIRST, here, there)).key.get_secret_value() == FIRST
        (desktop.folder / "entry").write_text(SECOND)
        keys.refused()
        with pytest.raises(NotAdmitted):
            await keys.admit("byok-groq", FIRST, here, there)
        assert (await keys.admit("byok-groq", SECOND, here, there)).key.get_secret_value() == SECOND

    anyio.run(play)


def test_settings_and_models_say_what_to_do(desktop: Desktop) -> None:
    """Not only what is wrong."""
    desktop.has("locked")
    desktop.monkeypatch.chdir(desktop.folder)
    desktop.monkeypatch.setenv("ISABELLA_HOME", str(desktop.folder / "home"))
    (desktop.folder / ".env").write_text("GROQ_API_KEY_KEYRING=isabella/groq\n")
    assert "byok-groq: Unlock the keyring" in run("settings").output
    error = run("vendors", "models", "groq").exception
    assert isinstance(error, ConfigurationError)
    assert "Unlock the keyring" in str(error.remedy)


# --- isabella vendors add --keyring ---------------------------------------------------------------------------------


@pytest.fixture
def user(desktop: Desktop) -> Desktop:
    """Its folder is the working directory, with an `.env`."""
    for name in ("OPENROUTER_API_KEY", "OPENROUTER_API_KEY_FILE"):
        desktop.monkeypatch.delenv(name, raising=False)
    desktop.monkeypatch.chdir(desktop.folder)
    desktop.monkeypatch.setenv("ISABELLA_HOME", str(desktop.folder / "home"))
    (desktop.folder / ".env").write_text("ISABELLA_PORT=0\n")
    return desktop


def run(*arguments: str, typed: str = "") -> Result:
    """Run a command."""
    return CliRunner().invoke(app, list(arguments), input=typed)


def add(server: HTTPServer, key: str) -> Result:
    """Add OpenRouter, at a server that accepts only the first key, and keep the key in the keyring."""
    root = lists(server, ITEM, key=FIRST)
    lists(server, key=FIRST, path="/v1/key")
    return run(
        *("vendors", "add", "openrouter", "--base-url", f"{root}/v1", "--key-stdin", "--keyring"), typed=f"{key}\n"
    )


OPENROUTER = KeyringEntry("isabella", "openrouter")


def test_add_stores_the_key_in_the_keyring_and_not_in_the_file(user: Desktop, httpserver: HTTPServer) -> None:
    """A former key is removed from `.env`; the settings show the entry; the audit log shows no key."""
    (user.folder / ".env").write_text(f"# ours\nOPENROUTER_API_KEY={SECOND}\nISABELLA_PORT=0\n")
    result = add(httpserver, FIRST)
    assert result.exit_code == 0, result.output
    assert "Stored the key in file PlaintextKeyring, entry isabella/openrouter." in result.stdout
    text = (user.folder / ".env").read_text()
    assert text.startswith("# ours\nISABELLA_PORT=0\nOPENROUTER_API_KEY_KEYRING=isabella/openrouter\n")
    assert OPENROUTER.key() == FIRST
    key_commands.forget()
    shown = run("vendors", "--json").stdout
    assert "OPENROUTER_API_KEY_KEYRING (entry isabella/openrouter)" in shown
    assert "(entry isabella/openrouter)" in run("settings").stdout
    log = "".join(path.read_text() for path in (user.folder / "home" / "audit").iterdir())
    assert "keyring entry isabella/openrouter" in log
    assert "canary" not in result.output + shown + text + log
    assert "keeps its entry isabella/openrouter" in run("vendors", "remove", "openrouter").output
    assert OPENROUTER.key() == FIRST


def test_add_stores_nothing_that_the_vendor_refuses(user: Desktop, httpserver: HTTPServer) -> None:
    """Neither in the keyring nor in `.env`."""
    assert isinstance(add(httpserver, SECOND).exception, ConfigurationError)
    with pytest.raises(Failed, match="has no entry"):
        OPENROUTER.key()
    assert (user.folder / ".env").read_text() == "ISABELLA_PORT=0\n"


@pytest.mark.parametrize("name", ["OPENROUTER_API_KEY", "OPENROUTER_API_KEY_FILE", "OPENROUTER_API_KEY_COMMAND"])
def test_add_refuses_an_entry_that_would_not_be_used(user: Desktop, httpserver: HTTPServer, name: str) -> None:
    """Because another variable wins, which is named."""
    user.monkeypatch.setenv(name, "anything")
    error = add(httpserver, FIRST).exception
    assert isinstance(error, ConfigurationError)
    assert f"{name} (environment) is set and would win over the keyring" in str(error)
    with pytest.raises(Failed, match="has no entry"):
        OPENROUTER.key()


@pytest.mark.parametrize(
    ("fault", "reason"), [("locked", "the keyring is locked"), ("forgets", "has no entry"), ("dies", "exit code 3")]
)
def test_add_writes_nothing_if_the_keyring_does_not_keep_the_key(
    user: Desktop, httpserver: HTTPServer, fault: str, reason: str
) -> None:
    """What was stored is read back."""
    user.has(fault)
    error = add(httpserver, FIRST).exception
    assert isinstance(error, ConfigurationError)
    assert "cannot be stored in entry isabella/openrouter of the keyring, so nothing was written" in str(error)
    assert reason in str(error)
    assert error.remedy
    assert "canary" not in str(error)
    assert (user.folder / ".env").read_text() == "ISABELLA_PORT=0\n"
