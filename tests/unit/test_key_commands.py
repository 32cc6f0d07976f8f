"""Keys that a command prints: run once and without a shell, ended in time, and run again when a vendor refuses."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import psutil
import pytest
import yaml
from dotenv import dotenv_values

from isabella.config import key_commands
from isabella.config.settings import load_settings
from isabella.errors import ConfigurationError
from isabella.gateway.keys import KeyKind, KeyRing, NotAdmitted
from isabella.letta.client import Connection
from isabella.practice.overlay import ConfigSnapshot
from isabella.providers.desired import Desired, RemarkKind, desired_providers
from isabella.system.processes import has_ended
from isabella.system.redaction import redact
from isabella.watch.events import SyncCause, Synced
from tests.unit.test_watcher import Scene

FIRST, SECOND = "gsk_canary-of-the-vault-0001", "gsk_canary-of-the-vault-0002"


@dataclass
class Vault:
    """A program that prints a key, and counts how often it was run."""

    folder: Path
    script: Path = field(init=False)

    def __post_init__(self) -> None:
        self.script = self.folder / "a vault"
        self.script.write_text(
            f"#!{sys.executable}\nimport os, sys, time\nfolder = {str(self.folder)!r}\n"
            "open(folder + '/runs', 'a').write(repr(sys.argv[1:]) + '\\n')\n"
            "exec(open(folder + '/does').read())\n"
        )
        self.script.chmod(0o700)
        self.holds(FIRST)

    @property
    def command(self) -> str:
        return f"{shlex.quote(str(self.script))} get groq"

    @property
    def runs(self) -> list[str]:
        return (self.folder / "runs").read_text().splitlines()

    def holds(self, key: str) -> None:
        """Let it print this key."""
        self.does(f"print({key!r})")

    def does(self, code: str) -> None:
        """Let it do something else."""
        (self.folder / "does").write_text(code)

    def desired(self, **variables: str) -> Desired:
        settings = load_settings(environment={"GROQ_API_KEY_COMMAND": self.command, **variables}, home=self.folder)
        return next(one for one in desired_providers(settings) if one.name == "byok-groq")


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """One that holds a key."""
    key_commands.forget()
    yield Vault(tmp_path)
    key_commands.forget()


def key_of(desired: Desired) -> str | None:
    """The key, if there is one."""
    return None if desired.key is None else desired.key.get_secret_value()


def test_the_key_is_what_the_command_prints(vault: Vault) -> None:
    """It is run once in a process, without a shell; its key is never shown."""
    desired = vault.desired()
    assert (key_of(desired), desired.problem, desired.notes) == (FIRST, None, ())
    assert desired.key_source == "GROQ_API_KEY_COMMAND (environment)"
    assert key_of(vault.desired()) == FIRST
    assert vault.runs == ["['get', 'groq']"]
    assert FIRST not in redact(f"said {FIRST}")


def test_a_shell_is_never_involved(vault: Vault) -> None:
    """What a shell would carry out is a word of the command."""
    marker = vault.folder / "marker"
    command = f"{vault.command} ; touch {marker} $(touch {marker}) `touch {marker}` | tee {marker} > {marker} ~ $HOME"
    assert key_of(vault.desired(GROQ_API_KEY_COMMAND=command)) == FIRST
    assert not marker.exists()
    assert "'$HOME'" in vault.runs[0]
    assert "'~'" in vault.runs[0]


def test_the_variable_wins_over_the_file_and_the_file_over_the_command(vault: Vault) -> None:
    """And it is said that another one is set; the command is not run in vain."""
    file = vault.folder / "groq"
    file.write_text(SECOND)
    file.chmod(0o600)
    desired = vault.desired(GROQ_API_KEY_FILE=str(file))
    assert (key_of(desired), desired.key_source) == (SECOND, f"GROQ_API_KEY_FILE ({file})")
    assert desired.notes == ("GROQ_API_KEY_FILE wins over GROQ_API_KEY_COMMAND: both are set",)
    desired = vault.desired(GROQ_API_KEY_FILE=str(file), GROQ_API_KEY="gsk_canary-direct-0003")
    assert key_of(desired) == "gsk_canary-direct-0003"
    assert len(desired.notes) == 2
    assert not (vault.folder / "runs").exists()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("sys.exit('permission denied')", "failed with exit code 1: permission denied"),
        ("sys.exit(7)", "failed with exit code 7"),
        ("print()", "has printed nothing"),
        ("sys.stdout.buffer.write(b'\\xff\\xfe')", "not UTF-8"),
        ("print('x' * 100_000)", "more than 64 KiB"),
    ],
)
def test_a_command_without_a_key_is_a_problem_of_its_provider(vault: Vault, code: str, reason: str) -> None:
    """With its exit code and the first line of its errors, and it is not run again for every look."""
    vault.does(code)
    desired = vault.desired()
    assert desired.key is None
    assert reason in str(desired.problem)
    assert desired.obstacle is not None
    assert desired.obstacle.kind is RemarkKind.KEY_COMMAND_FAILED
    assert desired.remedy
    vault.desired()
    assert len(vault.runs) == 1
    vault.holds(FIRST)
    assert key_commands.renew()
    assert key_of(vault.desired()) == FIRST


@pytest.mark.parametrize(
    ("command", "reason"),
    [("", "is empty"), ("'unclosed", "no closing quotation"), ("/nowhere/vault get", "/nowhere/vault cannot be run")],
)
def test_a_command_that_cannot_be_run_is_named(vault: Vault, command: str, reason: str) -> None:
    """As a problem, not as an error of the whole configuration."""
    assert reason in str(vault.desired(GROQ_API_KEY_COMMAND=command).problem)


def test_one_that_hangs_is_ended_with_all_it_has_started(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time limit; a program that holds its output open does not outlast it."""
    started = vault.folder / "started"
    vault.does(
        "import subprocess\nchild = subprocess.Popen(['sleep', '600'])\n"
        "open(folder + '/child', 'w').write(str(child.pid))\nos.rename(folder + '/child', folder + '/started')\n"
        "time.sleep(600)"
    )

    class Started(subprocess.Popen[bytes]):
        """A process whose time begins when it has started its own."""

        def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:
            while not started.exists():
                time.sleep(0.01)
            return super().communicate(input, timeout)

    monkeypatch.setattr(key_commands, "SECONDS", 0.2)
    monkeypatch.setattr("isabella.config.key_commands.subprocess.Popen", Started)
    assert "did not end within 0.2 s" in str(vault.desired().problem)
    child = int(started.read_text())
    # The signal may be under way; the test's time limit ends this.
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(child)
        while not has_ended(process):
            time.sleep(0.01)


def test_the_last_key_stays_if_the_command_fails_later(vault: Vault) -> None:
    """With a remark, until it prints a key again; it is not run again too soon."""
    assert key_of(vault.desired()) == FIRST
    vault.does("sys.exit('the vault is sealed')")
    assert not key_commands.renew(older_than=60)
    assert len(vault.runs) == 1
    assert key_commands.renew()
    desired = vault.desired()
    assert (key_of(desired), desired.problem) == (FIRST, None)
    assert [remark.kind for remark in desired.remarks] == [RemarkKind.KEY_COMMAND_STALE]
    assert "the vault is sealed" in desired.notes[0]
    vault.holds(SECOND)
    assert key_commands.renew()
    assert (key_of(vault.desired()), vault.desired().notes) == (SECOND, ())
    assert not key_commands.renew()


def test_the_commands_of_several_vendors_run_at_the_same_time(vault: Vault) -> None:
    """Each waits here for the other one to begin, so none of them ends if they run one after the other."""
    vault.does(
        "open(folder + '/begun-' + sys.argv[2], 'w').close()\n"
        "other = {'groq': 'mistral', 'mistral': 'groq'}[sys.argv[2]]\n"
        "while not os.path.exists(folder + '/begun-' + other): time.sleep(0.01)\n"
        "print('key-canary-of-' + sys.argv[2])"
    )
    desired = vault.desired(MISTRAL_API_KEY_COMMAND=vault.command.replace("groq", "mistral"))
    assert key_of(desired) == "key-canary-of-groq"
    assert len(vault.runs) == 2


def test_many_at_once_run_it_once(vault: Vault) -> None:
    """Those that come meanwhile wait for its end."""
    vault.does(f"time.sleep(0.2)\nprint({FIRST!r})")
    found: list[str | None] = []
    threads = [threading.Thread(target=lambda: found.append(key_of(vault.desired()))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [FIRST] * 5
    assert len(vault.runs) == 1


# --- read again -----------------------------------------------------------------------------------------------------


def test_a_refused_key_is_read_again_and_synced(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated in the vault: the vendor refuses the former key, and the watcher syncs the new one, unasked."""
    monkeypatch.setattr("isabella.watch.watcher._RENEW_SECONDS", 0.0)

    async def play() -> None:
        scene = Scene(vault.folder)
        scene.write(GROQ_API_KEY_COMMAND=f'"{vault.command}"')
        await scene.watcher.reread()
        scene.asked.clear()
        scene.refused = {"byok-groq"}
        await scene.watcher.resync()
        vault.holds(SECOND)
        scene.refused = set()
        scene.go_on(10)
        scene.told.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scene.watcher._keep_schedule)
            event = await scene.until(Synced)
            tasks.cancel_scope.cancel()
        assert isinstance(event, Synced)
        assert event.cause is SyncCause.CHANGE
        assert [entry.name for entry in event.part.configured] == ["byok-groq"]
        assert key_of(next(one for one in scene.watcher.desired if one.name == "byok-groq")) == SECOND

    anyio.run(play)


def test_the_gateway_reads_it_again_for_an_unknown_key_and_after_a_refusal(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that the backend has stored in Letta is known at its first request; strangers do not cause runs."""
    monkeypatch.setattr("isabella.gateway.keys._COMMAND_SECONDS", 0.0)
    monkeypatch.setattr("isabella.gateway.keys._UNKNOWN_KEY_SECONDS", 0.0)

    async def find() -> Connection:
        raise ConfigurationError("There is no Letta.")

    async def play() -> None:
        settings = load_settings(environment={"GROQ_API_KEY_COMMAND": vault.command}, home=vault.folder)
        keys = KeyRing(ConfigSnapshot.of(settings), find)
        here, there = ("127.0.0.1", 1), ("127.0.0.1", 2)
        vault.holds(SECOND)
        admission = await keys.admit("byok-groq", SECOND, here, there)
        assert (admission.kind, admission.key.get_secret_value()) == (KeyKind.CONFIGURED, SECOND)
        assert len(vault.runs) == 2
        vault.holds(FIRST)
        assert (await keys.admit("byok-groq", SECOND, here, there)).key.get_secret_value() == SECOND
        keys.refused()
        with pytest.raises(NotAdmitted):
            await keys.admit("byok-groq", SECOND, here, there)
        assert (await keys.admit("byok-groq", FIRST, here, there)).key.get_secret_value() == FIRST
        monkeypatch.setattr("isabella.gateway.keys._COMMAND_SECONDS", 60.0)
        runs = len(vault.runs)
        for _ in range(3):
            with pytest.raises(NotAdmitted):
                await keys.admit("byok-groq", "gsk_of-a-stranger", here, there)
        assert len(vault.runs) == runs

    anyio.run(play)


def test_the_command_has_the_environment_of_isabella(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vault is found by its variables; nothing is read from standard input."""
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:8200")
    vault.does(f"assert sys.stdin.read() == ''\nprint({FIRST!r} + os.environ['VAULT_ADDR'][-4:])")
    assert key_of(vault.desired()) == f"{FIRST}8200"
    assert os.environ["VAULT_ADDR"]


# --- the recipes of docs/secrets.md ---------------------------------------------------------------------------------

SECRETS = (Path(__file__).parents[2] / "docs" / "secrets.md").read_text()
LINES = {line for block in re.findall(r"^```ini\n(.*?)^```", SECRETS, re.M | re.S) for line in block.splitlines()}
COMMANDS = {
    "op": ["read", "op://Private/Groq/credential"],
    "vault": ["kv", "get", "-field=key", "secret/isabella/groq"],
    "aws": [
        *("secretsmanager", "get-secret-value", "--secret-id", "isabella/groq"),
        *("--query", "SecretString", "--output", "text"),
    ],
    "gcloud": ["secrets", "versions", "access", "latest", "--secret=isabella-groq"],
    "az": [
        *("keyvault", "secret", "show", "--vault-name", "isabella", "--name", "mistral"),
        *("--query", "value", "--output", "tsv"),
    ],
    "pass": ["show", "api/groq"],
    "sops": ["decrypt", "--extract", '["mistral"]', "/etc/isabella/keys.yaml"],
    "security": ["find-generic-password", "-s", "isabella", "-a", "mistral", "-w"],
}


def test_every_command_of_the_recipes_is_tested() -> None:
    """And nothing else than what follows is in them."""
    commands = {line.split("=", 1)[1].split()[0] for line in LINES if "_COMMAND=" in line}
    assert commands == set(COMMANDS)
    others = {line for line in LINES if "_COMMAND=" not in line}
    assert others == {"GROQ_API_KEY_KEYRING=isabella/groq", "GROQ_API_KEY_FILE=/run/secrets/groq"}


@pytest.mark.parametrize("program", COMMANDS)
def test_the_recipe_gives_the_key(vault: Vault, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of the documentation in an `.env`, with a program in place of the vault's: each word arrives whole."""
    (line,) = (line for line in LINES if f"_COMMAND={program} " in line)
    vault.script.rename(vault.folder / program)
    monkeypatch.setenv("PATH", f"{vault.folder}:{os.environ['PATH']}")
    vault.does(f"assert sys.argv[1:] == {COMMANDS[program]!r}, sys.argv\nprint({FIRST!r})")
    file = vault.folder / ".env"
    file.write_text(f"{line}\n")
    variable = line.split("=")[0]
    settings = load_settings(file, environment={}, home=vault.folder)
    (desired,) = (one for one in desired_providers(settings) if one.configured)
    assert (key_of(desired), desired.problem) == (FIRST, None)
    assert desired.key_source == f"{variable} ({file})"


def test_external_secrets_writes_a_file_that_the_manifests_mount() -> None:
    """The recipe makes the secret of the deployment, with a valid `.env`."""
    (text,) = re.findall(r"^```yaml\n(.*?)^```", SECRETS, re.M | re.S)
    recipe = yaml.safe_load(text)
    names = {entry["secretKey"] for entry in recipe["spec"]["data"]}
    template = recipe["spec"]["target"]["template"]["data"][".env"]
    assert set(re.findall(r"\{\{ \.(\w+) \}\}", template)) == names
    rendered = re.sub(r"\{\{ \.(\w+) \}\}", r"canary-of-\1", template)
    assert dotenv_values(stream=io.StringIO(rendered)) == {
        "GROQ_API_KEY": "canary-of-groq",
        "MISTRAL_API_KEY": "canary-of-mistral",
    }
    manifest = (Path(__file__).parents[2] / "deploy/kubernetes/base/isabella.yaml").read_text()
    assert f"secretName: {recipe['metadata']['name']}," in manifest
