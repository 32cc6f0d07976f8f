"""What Isabella does with each file of her home if it is damaged: the real readers and writers, on a prepared home.

`python -m tests.support.home_files` writes the tables of `docs/home.md`; a test compares them with the document.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
from pydantic import SecretStr
from structlog.testing import capture_logs

from isabella.agents.block_history import BlockFiles, BlockHistory
from isabella.agents.embeddings import address_secret
from isabella.config.gateway_address import mark_file
from isabella.config.settings import Settings, load_settings
from isabella.embedded import (
    Server,
    backup_keys,
    encrypted_columns,
    file_locks,
    instance,
    instance_postgres,
    letta_process,
    os_users,
    postgres,
    restoring,
)
from isabella.embedded.encrypted_columns import StoredValue
from isabella.embedded.install import installed
from isabella.embedded.instance_postgres import InstancePostgres
from isabella.embedded.key_rotation import RotationJournal
from isabella.embedded.letta_process import ServerRun
from isabella.embedded.postgres import Cluster, Postmaster
from isabella.embedded.progress import no_progress
from isabella.errors import IsabellaError
from isabella.gateway import process as gateway
from isabella.gateway import server as gateway_server
from isabella.gateway.traffic import OutcomeMark, Traffic, VendorTraffic
from isabella.letta.encryption import ProofMemo
from isabella.locks.sync_lock import sync_lock
from isabella.practice import daemon as practice
from isabella.practice.vendor import load_or_make_keys
from isabella.providers.health import HealthFile, HealthState, ProviderHealth
from isabella.server.answer_log import AnswerLog, AnswerRecord
from isabella.server.running_backend import address_published, ensure_token, only_backend, published_backend
from isabella.server.sessions import Sessions
from isabella.system import audit, processes, state
from isabella.system.daemon import Daemon
from isabella.system.processes import ChildProcess
from isabella.turns.events import Ended, EndReason

DOCUMENT = Path(__file__).parents[2] / "docs" / "home.md"
_LETTA = "http://127.0.0.1:8283"
_KEY = SecretStr("ab" * 32)
_HEAD = "1c28e167b74f"  # the last migration of Letta 0.16.8
_NOBODY = 65534
_HUGE = 1 << 40
_BLOCK = "block-00000000-0000-4000-8000-000000000000"
_AGENT = "agent-00000000-0000-4000-8000-000000000000"
_ENCRYPTED = StoredValue("providers", "api_key_enc", "1", "groq", "encrypted")


# --- a home, and what uses its files ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Home:
    """A home in a folder of its own."""

    path: Path

    @property
    def settings(self) -> Settings:
        """Settings of this home, and nothing of the reader's own."""
        return load_settings(environment={"GROQ_API_KEY": "gsk_of-the-table-of-files"}, home=self.path)

    @property
    def server(self) -> Server:
        """Its embedded server."""
        return Server(self.path)

    @property
    def cluster(self) -> Cluster:
        """Its database cluster."""
        paths = self.server.paths
        return Cluster(paths.folder / "postgres-18", paths.postgres_log, None)

    def token(self) -> None:
        """Read or make the backend's token."""
        ensure_token(self.settings)

    def backend(self) -> None:
        """Look for a backend, and publish one."""
        published_backend(self.settings)
        with address_published(self.path, "http://127.0.0.1:8000"):
            pass
        state.save(self.path / "backend.json", {"address": "http://127.0.0.1:8000", "pid": 1, "started": 1.0})

    def sessions(self) -> None:
        """Read the sessions of browsers, and begin one."""
        Sessions(_KEY, self.path / "sessions.json").begin("a browser", "127.0.0.1")

    def audit(self) -> None:
        """Record a change."""
        with audit.change("agent.created", "Ada", home=self.path):
            pass

    def stop(self) -> None:
        """Stop Letta and Postgres."""
        self.server.down()

    def embeddings(self) -> None:
        """Read or make the secret of the embeddings' URL."""
        address_secret(self.path)

    def backup_key(self) -> None:
        """Read or make the key of the backups."""
        backup_keys.own_key_or_new(self.path)

    def backup_lock(self) -> None:
        """Take the lock of the databases beside Letta's."""
        with restoring._alone(self.server):
            pass

    def blocks(self) -> None:
        """Read and write the history of a memory block."""
        files = BlockFiles(self.path / "blocks")
        for value in ("Has a cat.", f"Has a dog. {os.urandom(4).hex()}"):
            BlockHistory(files).note(_BLOCK, "human", value, "agent-1")

    def answers(self) -> None:
        """Read and write what is known of an agent's answers."""
        log = AnswerLog(self.path / "answers")
        log.find(_AGENT, "message-1")
        log.add(_AGENT, os.urandom(4).hex(), AnswerRecord(ended=Ended(EndReason.COMPLETED, "groq/m", True, 1.0)))
        log.save(_AGENT)

    def health(self) -> None:
        """Read and write the providers' health."""
        file = HealthFile(self.path, _LETTA)
        file.read()
        file.write({"groq": ProviderHealth(HealthState.IN_SYNC, "as configured", datetime(2026, 1, 1, tzinfo=UTC))})

    def proofs(self) -> None:
        """Read and write the proofs."""
        memo = ProofMemo.of(self.path, _LETTA, _KEY)
        memo.add("encrypted", os.urandom(8).hex())
        memo.save()

    def gateway(self) -> None:
        """Start and stop the gateway."""
        gateway.start(self.settings)
        gateway.daemon(self.path).stop()
        processes.save(self.path / "gateway" / "process.json", ChildProcess(1, 1.0))

    def traffic(self) -> None:
        """Read and write the gateway's counts."""
        file = self.path / "gateway" / "traffic.json"
        traffic = Traffic(gateway_server._load(file))
        traffic.vendors["groq"] = VendorTraffic(answers=1)
        gateway_server._save(traffic, file)

    def outcomes(self) -> None:
        """Write and read the mark of the gateway's outcomes."""
        file = mark_file(self.path / "gateway")
        mark = OutcomeMark(file)
        before = OutcomeMark.read(file)
        mark.write(1)
        assert before != OutcomeMark.read(file)

    def practice(self) -> None:
        """Start and stop the practice vendors."""
        practice.up(self.path)
        load_or_make_keys(practice.keys_file(self.path))
        practice.down(self.path)
        processes.save(self.path / "practice" / "process.json", ChildProcess(1, 1.0))

    def letta(self) -> None:
        """Start Letta, as far as files are concerned."""
        server = self.server
        with server._locked(no_progress):
            letta_process.running(server.paths)
            instance_postgres.superuser_password(server.paths)
            RotationJournal.load(server.paths)
            postmaster = Postmaster(ChildProcess.of(os.getpid()), 5433, ready=True)
            database = InstancePostgres(server.paths, self.cluster, postmaster)
            server._start_letta(database, _HEAD, no_progress)

    def database(self) -> None:
        """Start Postgres, as far as Isabella's own files are concerned."""
        server = self.server
        with server._locked(no_progress):
            instance_postgres.start(server.paths, self.cluster, no_progress)

    def installation(self) -> str | None:
        """Look whether Letta is installed."""
        return None if installed(self.server.paths) else "installed again"

    def installation_log(self) -> None:
        """Begin the log of an installation."""
        state.write(self.server.paths.install_log, "")

    def release_lock(self) -> None:
        """Take the lock of an installation."""
        with file_locks.hold(self.server.paths.home, self.server.paths.release_lock, no_progress):
            pass

    def backend_lock(self) -> None:
        """Take the lock of the backend."""
        with only_backend(self.settings):
            pass

    def sync(self) -> None:
        """Take the lock of a sync."""

        async def take() -> None:
            async with sync_lock(_LETTA, home=self.path, database_url=None):
                pass

        anyio.run(take)


@dataclass(frozen=True)
class HomeFile:
    """A file of the home: its path, what it is for, whether Isabella can make it anew, and what uses it.

    The content of a file that is `opaque` does not matter.
    """

    path: str
    purpose: str
    anew: bool
    use: Callable[[Home], str | None]
    opaque: bool = False


_D = "letta/0.16.8"
FILES = [
    HomeFile("token", "the token that clients of the backend send", True, Home.token),
    HomeFile("backend.json", "address and process of the running backend", True, Home.backend),
    HomeFile("sessions.json", "the sessions of browsers", True, Home.sessions),
    HomeFile("audit/audit.jsonl", "who changed a key, an agent or a setting", True, Home.audit, opaque=True),
    HomeFile("embeddings-secret", "the secret in the URL at which Letta asks for embeddings", True, Home.embeddings),
    HomeFile("backup-key", "the key that opens the backups", False, Home.backup_key),
    HomeFile(f"blocks/{_BLOCK}.json", "the former texts of a memory block", True, Home.blocks),
    HomeFile(f"answers/{_AGENT}.json", "model, times and tokens of an agent's answers", True, Home.answers),
    HomeFile("conditions/d062d902b4ae81d5.json", "the providers' last results of a sync", True, Home.health),
    HomeFile("proofs/d062d902b4ae81d5.json", "which stored keys were proven", True, Home.proofs),
    HomeFile("gateway/state.json", "port, control token and supervisor of the gateway", True, Home.gateway),
    HomeFile("gateway/process.json", "the gateway's process", True, Home.gateway),
    HomeFile("gateway/outcomes", "changes when a request was not answered in full", True, Home.outcomes, opaque=True),
    HomeFile("gateway/traffic.json", "counts of requests per vendor", True, Home.traffic),
    HomeFile("gateway/gateway.log", "its log", True, Home.gateway, opaque=True),
    HomeFile("gateway/lock", "one start at a time", True, Home.gateway, opaque=True),
    HomeFile("practice/state.json", "port and control token of the practice vendors", True, Home.practice),
    HomeFile("practice/process.json", "their process", True, Home.practice),
    HomeFile("practice/keys.json", "the keys that they accept", True, Home.practice),
    HomeFile("practice/practice.log", "their log", True, Home.practice, opaque=True),
    HomeFile("practice/lock", "one start at a time", True, Home.practice, opaque=True),
    HomeFile(f"{_D}/master-key", "the key with which Letta encrypts secrets", False, Home.letta),
    HomeFile(f"{_D}/rekey.json", "the keys of a change of the master key under way", False, Home.letta),
    HomeFile(f"{_D}/postgres-password", "the password of the database's superuser", False, Home.letta),
    HomeFile(f"{_D}/database-password", "the password of Letta's role in the database", True, Home.letta),
    HomeFile(f"{_D}/server-password", "the password that Letta asks of its clients", True, Home.letta),
    HomeFile(f"{_D}/ports.json", "the last ports of Letta and Postgres", True, Home.letta),
    HomeFile(f"{_D}/letta.json", "Letta's process, port, and a fingerprint of its master key", True, Home.letta),
    HomeFile(f"{_D}/tool-sandbox", "whether Letta's tools run in a sandbox", True, Home.letta, opaque=True),
    HomeFile(f"{_D}/stopped", "exists while Letta is stopped on purpose", True, Home.stop, opaque=True),
    HomeFile(f"{_D}/logs/letta.log", "Letta's log", True, Home.letta, opaque=True),
    HomeFile(f"{_D}/logs/postgres.log", "Postgres' log", True, Home.database, opaque=True),
    HomeFile("releases/0.16.8/isabella-complete.json", "says that Letta is installed", True, Home.installation),
    HomeFile("releases/0.16.8.log", "the log of the installation", True, Home.installation_log, opaque=True),
    HomeFile("locks/backend.lock", "one backend per home", True, Home.backend_lock, opaque=True),
    HomeFile("locks/0.16.8.lock", "one start of Letta at a time", True, Home.letta, opaque=True),
    HomeFile("locks/0.16.8-backup.lock", "one restore at a time", True, Home.backup_lock, opaque=True),
    HomeFile("locks/ports.lock", "one choice of ports at a time", True, Home.letta, opaque=True),
    HomeFile("locks/release-0.16.8.lock", "one installation at a time", True, Home.release_lock, opaque=True),
    HomeFile("locks/d062d902b4ae81d5.lock", "one sync at a time, without a database", True, Home.sync, opaque=True),
]


@contextmanager
def _no_servers() -> Iterator[None]:
    """Start no server: a program that waits stands in for it."""
    spawn = processes.spawn

    def stand_in(_argv: Sequence[str], **options: Any) -> ChildProcess:
        options["cwd"] = None
        return spawn(["/bin/sleep", "60"], **options)

    def start(paths: Any, port: int, _environ: object, key: SecretStr | None, *_how: object) -> ServerRun:
        process = spawn(["/bin/sh", "-c", "exit 0"], env={}, log=paths.letta_log)
        run = ServerRun(process, port, instance.fingerprint(key))
        run.save(paths.run_file)
        paths.tool_sandbox_file.write_text("bubblewrap\n")  # as confine.py does
        return run

    with ExitStack() as stack:
        stack.enter_context(patch.object(processes, "spawn", stand_in))
        stack.enter_context(patch.object(postgres, "current_revision", lambda *_address: _HEAD))
        stack.enter_context(patch.object(letta_process, "wait_until_started", lambda *_how: None))
        stack.enter_context(patch.object(Daemon, "answers", lambda _self, _running: True))
        stack.enter_context(patch.object(letta_process, "start", start))
        stack.enter_context(patch.object(encrypted_columns, "read_values", lambda _url, _keys: [_ENCRYPTED]))
        stack.enter_context(patch.object(encrypted_columns, "reencrypt", lambda *_arguments: None))
        stack.enter_context(patch.object(Cluster, "_run", lambda *_arguments: None))
        stack.enter_context(patch.object(Cluster, "running", lambda _self: None))
        stack.enter_context(patch.object(Cluster, "wait", lambda _self: None))
        started = Postmaster(ChildProcess.of(os.getpid()), 5433, ready=True)
        stack.enter_context(patch.object(Cluster, "start", _until_started(Cluster.start, started)))
        stack.enter_context(patch("isabella.embedded.file_locks.postgres_user", lambda: None))
        stack.enter_context(patch("isabella.server.running_backend.postgres_user", lambda: None))
        yield


@contextmanager
def prepared_home() -> Iterator[Home]:
    """A home in which every file is as it should be."""
    with tempfile.TemporaryDirectory(prefix="isabella-home-") as folder:
        home = Home(Path(folder) / "home")
        with _no_servers():
            _fill(home)
        yield home


def _until_started(start: Callable[..., Postmaster], started: Postmaster) -> Callable[..., Postmaster]:
    def begin(cluster: Cluster, port: int) -> Postmaster:
        """Do everything that comes before the start of Postgres."""
        with patch.object(Cluster, "running", lambda _self: started):
            return start(cluster, port)

    return begin


def _fill(home: Home) -> None:
    paths = home.server.paths
    for folder in (paths.folder, paths.logs, paths.server_home, paths.program, paths.python.parent):
        folder.mkdir(parents=True, exist_ok=True)
    home.cluster.data.mkdir()
    (home.cluster.data / "PG_VERSION").write_text("18\n")
    for path in (paths.master_key_file, paths.superuser_password_file):
        path.write_text(_KEY.get_secret_value() + "\n")
    paths.python.touch(mode=0o755)
    state.save(paths.program / "isabella-complete.json", {"release": "0.16.8", "migration_head": _HEAD})
    for file in FILES:
        file.use(home)
    RotationJournal(_KEY, (SecretStr("cd" * 32),)).save(paths)


def _start_real_database(home: Home) -> None:
    """Start and stop the real Postgres of a home."""
    server, cluster = home.server, _real_cluster(home)
    with server._locked(no_progress):
        instance_postgres.start(server.paths, cluster, no_progress)
        cluster.stop()


DATABASE_FILES = [
    HomeFile(f"{_D}/postgres-18/PG_VERSION", "the version of the database", False, _start_real_database),
    HomeFile(f"{_D}/postgres-18/global/pg_control", "the state of the database", False, _start_real_database),
    HomeFile(f"{_D}/postgres-18/postmaster.pid", "Postgres' process, left by one that was killed", True,
             _start_real_database, opaque=True),
]  # fmt: skip


def _real_cluster(home: Home) -> Cluster:
    return replace(home.cluster, user=os_users.postgres_user())


@contextmanager
def prepared_database() -> Iterator[Home]:
    """A home with a real database, which was started once."""
    with tempfile.TemporaryDirectory(prefix="isabella-home-") as folder:
        home = Home(Path(folder) / "home")
        cluster, paths = _real_cluster(home), home.server.paths
        paths.logs.mkdir(parents=True)
        _let_pass(home)
        paths.superuser_password_file.write_text(_KEY.get_secret_value())
        cluster.make(_KEY)
        paths.database_password_file.write_text(_KEY.get_secret_value())
        pid_file = cluster.data / "postmaster.pid"
        pid_file.write_text(f"{1 << 22}\n{cluster.data}\n1795723442\n5433\n\n127.0.0.1\n  1  1\nready   \n")
        shutil.copystat(cluster.data / "PG_VERSION", pid_file)
        if cluster.user is not None:
            os.chown(pid_file, cluster.user.uid, cluster.user.gid)
        yield home


def _let_pass(home: Home) -> None:
    """Let the user that Postgres runs as reach its data and its log."""
    for folder in (home.path.parent, home.path, *home.cluster.data.parent.relative_to(home.path).parents):
        (home.path / folder).chmod(0o711)
    for folder in (home.cluster.data.parent, home.cluster.log.parent):
        folder.chmod(0o711)


# --- damages ------------------------------------------------------------------------------------------------------


def _missing(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:10])


def _text(path: Path) -> None:
    path.write_text("This text is of another program.\n")


def _wrong_types(path: Path) -> None:
    with suppress(ValueError):
        document = json.loads(path.read_text())
        if isinstance(document, dict):
            path.write_text(json.dumps({name: [None] for name in document}))
            return
    path.write_text("[null]")


def _not_utf8(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00" + path.read_bytes())


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(_HUGE)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "of-somebody").write_text("something\n")


def _link(path: Path) -> None:
    home = next(folder for folder in path.parents if folder.name == "home")
    path.unlink()
    path.symlink_to(home.parent / "elsewhere")


def _unreadable(path: Path) -> None:
    path.chmod(0)


DAMAGES = {
    "missing": _missing,
    "empty": _empty,
    "cut off": _cut_off,
    "other text": _text,
    "wrong types": _wrong_types,
    "not UTF-8": _not_utf8,
    "1 TiB": _huge,
    "a directory": _directory,
    "a link elsewhere": _link,
    "unreadable": _unreadable,
}


@dataclass(frozen=True)
class Outcome:
    """What became of a damaged file: a word for the table, and everything that was said."""

    word: str
    said: str


def outcome(prepared: Home, file: HomeFile, damage: str) -> Outcome:
    """Damage a file in a copy of a prepared home, and use it.

    Raises:
        AssertionError: something was lost, the damage was not named, or the next use finds it again.
    """
    with tempfile.TemporaryDirectory(prefix="isabella-home-") as folder:
        home = Home(Path(folder) / "home")
        subprocess.run(["cp", "-a", prepared.path, home.path], check=True)
        _let_pass(home)
        path, elsewhere = home.path / file.path, home.path.parent / "elsewhere"
        elsewhere.write_text("This text is of another program.\n")
        if file.path != f"{_D}/rekey.json":
            (home.path / _D / "rekey.json").unlink(missing_ok=True)
        DAMAGES[damage](path)
        before, siblings = _content(path), _names(path.parent)
        real = file in DATABASE_FILES
        servers = nullcontext() if real else _no_servers()
        with servers, _as_owner(home.path.parent, drop=damage == "unreadable" and not real):
            word, said = _use(file, home)
            if word != "refused":
                again = _use(file, home)
                assert word == "installed again" or again == (None, ""), again
        aside = path.with_name(f"{path.name}.damaged")
        if word == "refused":
            assert _content(path) == before
            assert _names(path.parent) == siblings
        elif os.path.lexists(aside):
            assert _content(aside) == before
            word = word or "set aside"
        elif _content(path) == before:
            word = word or "as it is"
        if damage not in ("missing", "empty") and word != "as it is" and not (file.opaque and word is None):
            assert any(name in said for name in (path.name, path.parent.name, "postgres-18")), said
        assert elsewhere.read_text() == "This text is of another program.\n"
        return Outcome(word or "new", said)


def _use(file: HomeFile, home: Home) -> tuple[str | None, str]:
    with capture_logs() as lines, _reports() as reports:
        try:
            word = file.use(home)
            said = ""
        except IsabellaError as error:
            assert error.remedy, error  # noqa: PT017 - every error says what to do
            word, said = "refused", str(error)
    events = [line["event"] for line in lines if line["log_level"] != "info"]
    return word, "\n".join([said, *events, *reports]).strip()


@contextmanager
def _reports() -> Iterator[list[str]]:
    """Collect the warnings of `system.state`, which logs without structlog."""
    collected: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            collected.append(record.getMessage())

    collector = Collector()
    state.log.addHandler(collector)
    try:
        yield collected
    finally:
        state.log.removeHandler(collector)


@contextmanager
def _as_owner(folder: Path, *, drop: bool) -> Iterator[None]:
    """Go on as a user without root's rights, to whom everything in the folder belongs."""
    if os.geteuid() != 0 or not drop:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def _content(path: Path) -> object:
    if not os.path.lexists(path):
        return None
    status = path.lstat()
    if path.is_symlink():
        return path.readlink()
    if path.is_dir():
        return _names(path)
    with suppress(PermissionError):
        return status.st_mtime_ns, status.st_size if status.st_size >= _HUGE else path.read_bytes()
    return status.st_mtime_ns, status.st_size


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- the document -------------------------------------------------------------------------------------------------

_TABLES = re.compile(r"(?<=<!-- tables -->\n).*(?=<!-- end -->)", re.DOTALL)


def tables() -> str:
    """Return the two tables of the document: the files, and every file with every damage."""
    lines = ["| file | content | can be made anew |", "|---|---|---|"]
    lines += [
        f"| `{file.path}` | {file.purpose} | {'yes' if file.anew else '**no**'} |"
        for file in (*FILES, *DATABASE_FILES)
    ]
    lines += ["", "| file | " + " | ".join(DAMAGES) + " |", "|---" * (len(DAMAGES) + 1) + "|"]
    for prepared, files in ((prepared_home, FILES), (prepared_database, DATABASE_FILES)):
        with prepared() as home:
            for file in files:
                words = " | ".join(outcome(home, file, damage).word for damage in DAMAGES)
                lines.append(f"| `{file.path}` | {words} |")
    return "\n".join(lines) + "\n"


def write() -> None:
    """Write the tables into the document."""
    DOCUMENT.write_text(_TABLES.sub(lambda _match: tables(), DOCUMENT.read_text()))


if __name__ == "__main__":
    write()
