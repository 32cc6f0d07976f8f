"""`isabella backup`, on a real Letta: one state, restored elsewhere under another master key, whatever is cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from pydantic import SecretStr
from pyrage import x25519

from isabella.api import ensure_providers
from isabella.config.settings import Settings, load_settings
from isabella.connect import embedded_connection
from isabella.embedded import Server, databases, instance_postgres, key_rotation, letta_process, restoring
from isabella.embedded.backups import BackupPolicy, BackupReason, list_backups
from isabella.embedded.databases import DatabaseAccess, Snapshot
from isabella.letta.llm_config import Binding
from isabella.practice import PracticeVendors
from isabella.system import audit, state
from isabella.system.audit import ChangeOutcome
from tests.support.backup_rows import AGENTS, all_rows, copy_rows, furnish, secrets
from tests.support.letta_admin import open_admin

COMMAND = Path(sys.executable).with_name("isabella")
MESSAGES, PASSAGES = 10_000, 1_000
HISTORY = "block-0a1b.json"  # a file with the former texts of a memory block
FORMER_TEXTS = {"versions": [{"number": 1, "text": "Ada likes tea."}]}
ELSEWHERE = "0ba5" * 16  # the master key of the other home


@dataclass
class Case:
    """An instance with much in it, a home of another machine, and what opens the backups."""

    source: Server
    settings: Settings  # of the source
    folder: Path
    vendors: PracticeVendors
    identity: x25519.Identity
    file: Path = field(init=False)
    rows: dict[str, list[str]] = field(init=False)
    secrets: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.file = self.folder / "isabella.age"

    @property
    def home(self) -> Path:
        """The home of the other machine, which has the installed Letta and nothing else."""
        return self.folder / "elsewhere"

    @property
    def target(self) -> Server:
        """Its server."""
        return Server(self.home)

    def isabella(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `isabella …` on the other machine, as an operator would."""
        plain = {name: value for name, value in os.environ.items() if "_API_KEY" not in name}
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=self.folder,
            env=plain | {"ISABELLA_HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )

    def restored(self) -> tuple[dict[str, list[str]], dict[str, Any]]:
        """Everything in the database of the other machine, with the secrets that its master key decrypts."""
        with self.target.database() as access:
            with psycopg.connect(access.admin_url().get_secret_value()) as database:
                names = [name for (name,) in database.execute("SELECT datname FROM pg_database").fetchall()]
            assert "letta" in names
            return all_rows(access.url()), secrets(access.url(), [SecretStr(ELSEWHERE)])


@pytest.fixture(scope="module")
def case(new_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """One for all tests of this file, which go on from each other."""
    folder = tmp_path_factory.mktemp("backup")
    identity = x25519.Identity.generate()
    (folder / "identity").write_text(f"{identity}\n")
    with PracticeVendors() as vendors:
        key, address = vendors.key("cerebras").get_secret_value(), vendors.base_url("cerebras")
        common = f"CEREBRAS_API_KEY={key}\nCEREBRAS_BASE_URL={address}\n"
        common += f"ISABELLA_BACKUP_RECIPIENTS={identity.to_public()}\n"
        (folder / ".env").write_text(f"{common}ISABELLA_BACKUP_FOLDER={folder}/made\n")
        groq = f"GROQ_API_KEY={vendors.key('groq').get_secret_value()}\nGROQ_BASE_URL={vendors.base_url('groq')}\n"
        (folder / "source.env").write_text(
            f"{common}{groq}ISABELLA_GATEWAY=off\nISABELLA_BACKUP_FOLDER={folder}/own\n"
        )
        state.keep(folder / "state" / "blocks" / HISTORY, FORMER_TEXTS)
        state.keep(folder / "state" / "blocks" / "UNUSUAL.json", FORMER_TEXTS)
        source = new_server("backup")
        settings = load_settings(folder / "source.env", environment={}, home=folder / "state")
        letta = source.up()
        anyio.run(_sync, settings, source)
        furnish(letta, Binding("cerebras", "gpt-oss-120b", address, 65_536), messages=MESSAGES, passages=PASSAGES)
        here = Case(source, settings, folder, vendors, identity)
        here.home.mkdir(mode=0o700)
        (here.home / "releases").symlink_to(source.home / "releases")
        yield here
        here.target.down()


async def _sync(settings: Settings, server: Server) -> None:
    report = await ensure_providers(settings, connection=embedded_connection(settings, server.up()))
    assert report.all_proven


def test_a_backup_is_one_state_while_messages_arrive(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written after it began is not in it; the file is for its owner, and nothing in it can be read."""
    case.rows = all_rows(_url(case.source))
    case.secrets = secrets(_url(case.source), case.source.current_keys())
    real = Snapshot.dump

    def dump(snapshot: Snapshot) -> Iterator[bytes]:
        with psycopg.connect(_url(case.source).get_secret_value(), autocommit=True) as database:
            copy_rows(database, "messages", 7)
            for piece in real(snapshot):
                copy_rows(database, "archival_passages", 3)
                yield piece

    monkeypatch.setattr(Snapshot, "dump", dump)
    made = restoring.back_up(case.source, BackupPolicy.of(case.settings), BackupReason.MANUAL, to=case.file)
    assert len(all_rows(_url(case.source))["messages"]) == len(case.rows["messages"]) + 7
    assert case.file.stat().st_mode & 0o777 == 0o600
    assert (made.size, [*case.folder.glob(".isabella*")]) == (case.file.stat().st_size, [])
    content = case.file.read_bytes()
    keys = [key.get_secret_value() for key in case.source.current_keys()]
    for text in ("tin of tea", "of-the-weather", case.vendors.key("cerebras").get_secret_value(), *keys):
        assert text.encode() not in content
    print(f"{made.size / 1e6:.1f} MB for {len(case.rows['messages'])} messages")


def test_it_is_verified_on_a_bare_machine(case: Case) -> None:
    """Into a database of its own, which is gone afterwards; every count is as it was, and every secret decrypts."""
    finished = case.isabella("backup", "verify", case.file, "--identity", "identity", "--json")
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["counts"]["agents"] == AGENTS
    assert found["counts"]["messages"] == len(case.rows["messages"]) > MESSAGES
    assert found["counts"]["passages"] == len(case.rows["archival_passages"]) > PASSAGES
    assert found["counts"]["blocks"] == len(case.rows["block"]) >= AGENTS
    assert found["secrets"] == {"encrypted": len(case.secrets)}
    with case.target.database() as access:
        assert _databases(access) == {"letta"}


def test_a_flipped_bit_is_refused(case: Case) -> None:
    """The part is named, and nothing is restored; neither by another key."""
    # It runs on for the tests that follow, which would start and stop it again and again.
    case.target.start_postgres()
    damaged = case.folder / "damaged.age"
    content = bytearray(case.file.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    for command in (("verify",), ("restore", "--yes")):
        finished = case.isabella("backup", *command, damaged, "--identity", "identity")
        assert finished.returncode == 1
        assert "is damaged: the part database" in finished.stderr
    other = case.folder / "other"
    other.write_text(f"{x25519.Identity.generate()}\n")
    finished = case.isabella("backup", "restore", "--yes", case.file, "--identity", other)
    assert finished.returncode == 1
    assert "No key here opens" in finished.stderr
    with case.target.database() as access:
        assert _databases(access) == {"letta"}
        assert all_rows(access.url()) == {}
    assert not case.target.paths.master_key_file.exists()


def test_every_row_comes_back_under_another_master_key(case: Case) -> None:
    """Killed right after the exchange, before Letta has written anything: all rows are those of the backup."""
    case.target.paths.master_key_file.write_text(ELSEWHERE + "\n")
    _cut_off(case, "isabella.embedded.databases.take_place", "after")
    rows, found = case.restored()
    assert rows.keys() == case.rows.keys()
    for table, expected in case.rows.items():
        assert rows[table] == expected, table
    assert found == case.secrets
    assert None not in found.values()


# In the order in which they are come by.
BLOWS = [
    ("isabella.embedded.databases.restore", "before"),
    ("isabella.embedded.backups.read_into", "after"),
    ("isabella.embedded.encrypted_columns._write", "after"),
    ("isabella.embedded.databases.take_place", "before"),
]


def test_a_killed_restore_leaves_the_former_data(case: Case) -> None:
    """As they were, in every row, wherever it is killed; what it has left is dropped by the next one."""
    with case.target.database() as access, psycopg.connect(access.url().get_secret_value()) as database:
        database.execute("UPDATE block SET value = 'as it was before the restore' WHERE label = 'human'")
    before = case.restored()
    for function, when in BLOWS:
        _cut_off(case, function, when)
        assert case.restored() == before, function
    with case.target.database() as access:
        with databases.scratch_database(access) as name:
            assert _databases(access) == {"letta", name}
        assert _databases(access) == {"letta"}


def test_it_is_restored_with_proven_providers(case: Case) -> None:
    """By the command: with the keys of `.env`, and the names of those that are missing there."""
    finished = case.isabella("backup", "restore", case.file, "--identity", "identity", "--yes")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "proven" in finished.stdout
    assert f"{AGENTS} agents" in finished.stdout
    assert "not here: GROQ_API_KEY" in finished.stdout
    assert "former texts were missing, and are those of the backup now: 1." in finished.stdout
    assert [path.name for path in (case.home / "blocks").iterdir()] == [HISTORY]
    assert state.load(case.home / "blocks" / HISTORY) == FORMER_TEXTS
    rows, found = case.restored()
    assert rows["messages"] == case.rows["messages"]
    assert rows["archival_passages"] == case.rows["archival_passages"]
    assert rows["block"] == case.rows["block"]
    assert found["agent_environment_variables.value_enc of WEATHER_TOKEN"] == "of-the-weather"
    assert not case.target.status().running
    (before,) = list_backups(case.folder / "made")
    assert before.reason is BackupReason.RESTORE
    restored = [one for one in audit.records(case.home) if one.entry.change == "backup.restored"][-1]
    assert (restored.entry.actor.via, restored.entry.outcome) == ("isabella backup restore", ChangeOutcome.DONE)
    # What was there before it can be brought back.
    verified = restoring.verify(case.target, before.path, [case.identity])
    assert verified.contents.counted()["messages"] == len(case.rows["messages"])


def test_agents_remember(case: Case) -> None:
    """After the start: an agent has its memory and its history, and answers through the restored provider."""
    finished = case.isabella("letta", "up")
    assert finished.returncode == 0, finished.stderr
    try:
        # Another program may have taken the gateway's port meanwhile; `isabella up` would follow it.
        assert case.isabella("providers", "sync").returncode == 0
        letta = case.target.running()
        assert letta is not None
        with open_admin(letta) as admin:
            agents = {one["name"]: one["id"] for one in admin.http.get("/v1/agents/").raise_for_status().json()}
            first = agents["of-the-backup-0"]
            said = admin.http.get(f"/v1/agents/{first}/messages", params={"order": "asc", "limit": 5})
            assert "Remember the tin of tea." in said.text
            assert admin.say(first).is_success
            block = admin.http.get(f"/v1/agents/{agents['of-the-backup-3']}/core-memory/blocks/human").json()
            assert block["value"] == "The human's number is 3."
    finally:
        case.isabella("letta", "down")


def test_one_is_made_before_a_change(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the master key, and of the tables: before anything is written. If the settings say no, none is made."""
    own = case.folder / "own"
    server = replace(case.source, backups=BackupPolicy.of(case.settings))

    class Stop(Exception):
        """Ends the change where it would begin."""

    def stop(*_arguments: object, **_options: object) -> None:
        raise Stop

    monkeypatch.setattr(key_rotation, "begin", stop)
    with pytest.raises(Stop):
        server.rekey()
    assert [one.reason for one in list_backups(own)] == [BackupReason.REKEY]
    case.source.down()
    monkeypatch.setattr(letta_process, "start", stop)
    with server.database() as access:
        with psycopg.connect(access.url().get_secret_value()) as database:
            database.execute("UPDATE alembic_version SET version_num = 'of an earlier release'")
        for policy, made in (("false", 1), ("true", 2)):
            settings = load_settings(case.folder / "source.env", {"ISABELLA_BACKUP_BEFORE_CHANGES": policy})
            with pytest.raises(Stop):
                replace(server, backups=BackupPolicy.of(settings)).up()
            assert len(list_backups(own)) == made
    assert list_backups(own)[0].reason is BackupReason.MIGRATION


def _url(server: Server) -> SecretStr:
    running = instance_postgres.find(server.paths)
    assert running is not None
    return running.url


def _databases(access: DatabaseAccess) -> set[str]:
    with psycopg.connect(access.admin_url().get_secret_value()) as database:
        names = database.execute("SELECT datname FROM pg_database WHERE datname LIKE 'letta%'").fetchall()
    return {name for (name,) in names}


_CUT_OFF = """
import os, signal, sys
from importlib import import_module
from pathlib import Path

from isabella.embedded import Server, backup_keys, restoring

home, file, identity, function, when = sys.argv[1:]
module, _, name = function.rpartition(".")
module = import_module(module)
real = getattr(module, name)

def struck(*arguments, **options):
    if when == "after":
        real(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(module, name, struck)
restoring.restore(Server(Path(home)), Path(file), backup_keys.load_keys(Path(identity), None))
"""


def _cut_off(case: Case, function: str, when: str) -> None:
    """Restore in a process that is killed before or after a function is called."""
    finished = subprocess.run(
        [sys.executable, "-c", _CUT_OFF, case.home, case.file, case.folder / "identity", function, when],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr
