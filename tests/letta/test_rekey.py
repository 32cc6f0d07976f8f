"""`isabella letta rekey`, on a real Letta: everything sealed is carried over, whatever is cut off in the middle."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from isabella.embedded import Letta, Server, Step, encrypted_columns, instance_postgres
from isabella.embedded.encrypted_columns import ValueState
from isabella.letta.llm_config import Binding
from isabella.practice import PracticeVendors
from isabella.system import audit
from isabella.system.audit import ChangeOutcome
from tests.support.letta_admin import LettaAdmin, open_admin
from tests.support.letta_encryption import OTHER_MASTER_KEY, seal

COMMAND = Path(sys.executable).with_name("isabella")
VARIABLE, HEADER = "canary-variable-5e1f", "canary-header-77aa"


@dataclass
class House:
    """An instance of its own with secrets of every kind in it, and an agent that speaks through one of them."""

    server: Server
    vendors: PracticeVendors
    folder: Path
    agent: str = ""

    def isabella(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `isabella letta …` on it, as an operator would."""
        where = ["--home", str(self.server.home), "--instance", self.server.instance]
        plain = {name: value for name, value in os.environ.items() if "_API_KEY" not in name}
        return subprocess.run(
            [COMMAND, "letta", *arguments, *where],
            cwd=self.folder,
            # The home is that of all tests: backups of instances of other names would stay there.
            env=plain | {"ISABELLA_BACKUP_BEFORE_CHANGES": "false"} | environment,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )

    def plain(self) -> dict[str, tuple[ValueState, str | None]]:
        """Everything that is sealed, as far as the kept key opens it."""
        key = self.server._key()
        assert key is not None
        opened = encrypted_columns.read_values(self.address(), [key])
        return {
            one.place: (one.state, None if one.plaintext is None else one.plaintext.get_secret_value())
            for one in opened
        }

    def address(self) -> SecretStr:
        """The database, which has to run."""
        running = instance_postgres.find(self.server.paths)
        assert running is not None
        return running.url

    def says_something(self, letta: Letta) -> bool:
        """Whether the agent gets an answer."""
        with open_admin(letta) as there:
            return there.say(self.agent).is_success


@pytest.fixture(scope="module")
def deps(new_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for all tests of this file, which go on from each other."""
    folder = tmp_path_factory.mktemp("rekey")
    with PracticeVendors() as vendors:
        key, address = vendors.key("cerebras").get_secret_value(), vendors.base_url("cerebras")
        (folder / ".env").write_text(f"CEREBRAS_API_KEY={key}\nCEREBRAS_BASE_URL={address}\n")
        here = House(new_server("rekey"), vendors, folder)
        with open_admin(here.server.up()) as there:
            here.agent = _furnish(there, vendors)
        yield here


def _furnish(there: LettaAdmin, vendors: PracticeVendors) -> str:
    address = vendors.base_url("cerebras")
    there.provider("cerebras", "cerebras", address, vendors.key("cerebras").get_secret_value())
    lost = there.provider("lost", "openai", address, "never-seen-again")
    there.write_key(lost, seal("never-seen-again", OTHER_MASTER_KEY))
    plain = there.provider("plain", "openai", address, "ak_for-everybody-to-see")
    there.write_key(plain, "ak_for-everybody-to-see")
    agent = there.agent(Binding("cerebras", "gpt-oss-120b", address, 65_536))
    there.http.patch(f"/v1/agents/{agent}", json={"secrets": {"WEATHER_TOKEN": VARIABLE}}).raise_for_status()
    config = {
        "mcp_server_type": "streamable_http",
        "server_url": "https://mcp.example/mcp",
        "custom_headers": {"X-Token": HEADER},
    }
    there.http.post("/v1/mcp-servers/", json={"server_name": "weather", "config": config}).raise_for_status()
    return agent


def test_a_dry_run_names_what_there_is_and_changes_nothing(deps: House) -> None:
    """It says how many secrets there are and which cannot be carried over; Letta goes on under its key."""
    before, status = deps.plain(), deps.server.status()
    finished = deps.isabella("rekey", "--dry-run")
    assert finished.returncode == 0, finished.stderr
    for line in ("providers.api_key_enc", "agent_environment_variables.value_enc", "mcp_server.custom_headers_enc"):
        assert line in finished.stdout
    assert "1 of them are stored in plaintext" in finished.stdout
    assert "providers.api_key_enc of lost" in finished.stdout
    assert "Nothing was changed" in finished.stdout
    assert (deps.plain(), deps.server.status()) == (before, status)
    for secret in (VARIABLE, HEADER, "never-seen-again"):
        assert secret not in finished.stdout + finished.stderr


def test_nobody_to_ask_and_a_configured_key_are_told(deps: House) -> None:
    """Without a terminal it wants `--yes`; with LETTA_ENCRYPTION_KEY set it would not be the one to decide."""
    assert "--yes" in deps.isabella("rekey").stderr
    refused = deps.isabella("rekey", "--yes", LETTA_ENCRYPTION_KEY="ab" * 32)
    assert "--from-env" in refused.stderr
    assert "LETTA_ENCRYPTION_KEY" in deps.isabella("rekey", "--from-env", "--yes").stderr
    assert deps.server.status().running


def test_the_master_key_is_changed_and_agents_answer(deps: House) -> None:
    """Afterwards all is under a new key: providers, other secrets, and plaintext; what nobody can open is left."""
    before, key = deps.plain(), deps.server._key()
    finished = deps.isabella("rekey", "--yes")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert deps.server._key() != key
    assert not deps.server.paths.rekey_file.exists()

    after = deps.plain()
    assert {place: plain for place, (_, plain) in after.items()} == {
        place: plain for place, (_, plain) in before.items()
    }
    assert {place: how for place, (how, _) in after.items() if how is not ValueState.ENCRYPTED} == {
        "providers.api_key_enc of lost": ValueState.UNREADABLE
    }
    assert VARIABLE in [plain for _, plain in after.values()]
    assert any(HEADER in (plain or "") for _, plain in after.values())
    letta = deps.server.up()
    assert not letta.started
    assert deps.says_something(letta)
    of_this = [one for one in audit.records(deps.server.home) if one.entry.subject == deps.server.paths.folder.name]
    assert [one.entry.change for one in of_this if one.entry.change.startswith("master_key")] == [
        "master_key.made",
        "master_key.changed",
    ]
    assert (of_this[-1].entry.actor.via, of_this[-1].entry.outcome) == ("isabella letta rekey", ChangeOutcome.DONE)
    for text in (finished.stdout, finished.stderr, deps.server.paths.letta_log.read_text()):
        for secret in (key, deps.server._key()):
            assert secret is not None
            assert secret.get_secret_value() not in text


def test_one_that_was_cut_off_before_it_began_is_dropped(deps: House) -> None:
    """Killed with the journal written and Letta still running: nothing has changed, and the next start says so."""
    key = deps.server._key()
    cut_off(deps.server, "isabella.embedded.key_rotation.begin", "after")
    events: list[Step] = []
    letta = deps.server.up(events.append)
    assert (letta.started, letta.master_key, deps.server.paths.rekey_file.exists()) == (False, key, False)
    assert any("had not begun" in event.detail for event in events)


# In the order in which they are come by. `begin` is the journal, `write_private` the file with the kept key.
BLOWS = [
    ("isabella.embedded.letta_process.stop", "after", 1),
    ("isabella.embedded.key_rotation.store_new_key", "before", 1),
    ("isabella.embedded.key_rotation.store_new_key", "after", 1),
    ("isabella.embedded.encrypted_columns._encrypt_all", "after", 1),
    ("isabella.embedded.encrypted_columns._write", "after", 2),
    ("isabella.embedded.encrypted_columns._verify_written", "after", 1),
    ("isabella.embedded.encrypted_columns.reencrypt", "after", 1),
    ("isabella.embedded.letta_process.start", "before", 1),
]


def test_wherever_it_is_cut_off_no_key_is_lost_and_the_next_start_heals(deps: House) -> None:
    """Killed at each step, one after the other, with no good end in between; then one start, and all is there."""
    before = {place: plain for place, (_, plain) in deps.plain().items()}
    first = deps.server._key()
    for function, when, times in BLOWS:
        cut_off(deps.server, function, when, times)
        assert deps.server.paths.rekey_file.stat().st_mode & 0o777 == 0o600
        # What somebody would read who had all keys that are written down.
        with_all_keys = {
            one.place: None if one.plaintext is None else one.plaintext.get_secret_value()
            for one in deps.server.encrypted_values()
        }
        assert with_all_keys == before, function

    letta = deps.server.up()

    assert letta.started
    assert letta.master_key not in (None, first)
    assert {place: plain for place, (_, plain) in deps.plain().items()} == before
    assert not deps.server.paths.rekey_file.exists()
    assert deps.says_something(letta)
    print(f"cut off at {len(BLOWS) + 1} points")


def test_a_configured_key_takes_the_place_of_the_kept_one(deps: House) -> None:
    """`--from-env` seals all under LETTA_ENCRYPTION_KEY; the kept key, which opens nothing now, is forgotten."""
    before = {place: plain for place, (_, plain) in deps.plain().items()}
    key = secrets.token_hex(32)
    finished = deps.isabella("rekey", "--from-env", "--yes", LETTA_ENCRYPTION_KEY=key)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert not deps.server.paths.master_key_file.exists()
    configured = replace(deps, server=replace(deps.server, master_key=SecretStr(key)))
    assert {place: plain for place, (_, plain) in configured.plain().items()} == before
    assert configured.says_something(configured.server.up())

    # Without the line in the configuration nobody here knows the key: nothing is begun then.
    lost = deps.isabella("rekey", "--yes")
    assert (lost.returncode, "--former-key-file" in lost.stderr) == (1, True)
    assert not deps.server.paths.rekey_file.exists()
    former = deps.folder / "former-key"
    former.write_text(f"{key}\n")
    assert "Nothing was changed" in deps.isabella("rekey", "--dry-run", "--former-key-file", str(former)).stdout


_CUT_OFF = """
import os, signal, sys
from importlib import import_module
from pathlib import Path
from isabella.embedded import Server

home, instance, function, when, times = sys.argv[1:]
module, _, name = function.rpartition(".")
module = import_module(module)
real = getattr(module, name)
calls = 0

def struck(*arguments, **options):
    global calls
    calls += 1
    if when == "before" and calls == int(times):
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **options)
    if calls == int(times):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(module, name, struck)
Server(Path(home), instance=instance).rekey()
"""


def cut_off(server: Server, function: str, when: str, times: int = 1) -> None:
    """Change the master key in a process that is killed before or after a function is called so many times."""
    finished = subprocess.run(
        [sys.executable, "-c", _CUT_OFF, server.home, server.instance, function, when, str(times)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr
