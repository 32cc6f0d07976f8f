"""Letta's database as a stream, and databases beside it: a dump is read back into one, which can take its place.

A dump is one snapshot, so it is consistent while agents have turns. It goes from `pg_dump`, and to `pg_restore`,
through pipes: nothing of it is stored in plaintext.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, quote, unquote, urlsplit

from pydantic import SecretStr

from isabella.embedded import child_processes, postgres
from isabella.embedded.archive import PIECE
from isabella.errors import EmbeddedError, LockTimeout
from isabella.locks.postgres import lock_key
from isabella.system.redaction import redact

if TYPE_CHECKING:
    from psycopg import Connection

_SCRATCH, _FORMER = "letta_scratch_", "letta_former_"
_ATTEMPTS = 20
#: Variables for Postgres' programs, and the parts of a URL in them.
_VARIABLES = {
    "PGHOST": "host",
    "PGPORT": "port",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGDATABASE": "dbname",
    "PGSSLMODE": "sslmode",
    "PGSSLROOTCERT": "sslrootcert",
    "PGREQUIREAUTH": "require_auth",
}
_TABLES = """
SELECT table_name FROM information_schema.tables
WHERE table_schema = 'public' AND table_type = 'BASE TABLE' ORDER BY table_name
"""


@dataclass(frozen=True)
class DatabaseAccess:
    """Letta's database in a Postgres that runs, and databases beside it."""

    letta: SecretStr  # its URL, as the role that owns it
    admin: SecretStr  # the URL of the database `postgres`, as a role that may create others
    own: bool = False  # whether the Postgres is the operator's own

    @classmethod
    def of_instance(cls, port: int, superuser_password: SecretStr, password: SecretStr) -> DatabaseAccess:
        """Return the access to the Postgres of an instance, at a port of loopback."""
        admin = postgres.database_url(port, superuser_password, user=postgres.SUPERUSER, name="postgres")
        return cls(postgres.database_url(port, password), admin)

    @classmethod
    def of_own(cls, url: SecretStr) -> DatabaseAccess:
        """Return the access to the operator's own Postgres, with the role in the URL of Letta's database."""
        return cls(url, _named(url, "postgres"), own=True)

    @property
    def name(self) -> str:
        """The name of Letta's database."""
        return unquote(urlsplit(self.letta.get_secret_value()).path[1:])

    @property
    def role(self) -> str:
        """The role that owns it."""
        return unquote(urlsplit(self.letta.get_secret_value()).username or "")

    def url(self, name: str | None = None) -> SecretStr:
        """Return the URL of a database, by default Letta's, as the role that owns it."""
        return self.letta if name is None else _named(self.letta, name)

    def admin_url(self, name: str | None = None) -> SecretStr:
        """Return the URL of a database, by default `postgres`, as the role that may create others."""
        return self.admin if name is None else _named(self.admin, name)


def _named(url: SecretStr, name: str) -> SecretStr:
    return SecretStr(urlsplit(url.get_secret_value())._replace(path=f"/{quote(name, safe='')}").geturl())


@dataclass(frozen=True)
class Snapshot:
    """A state of a database, which stays as it is while the snapshot is open."""

    url: SecretStr
    id: str
    connection: Connection[Any]

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each table."""
        return count_rows(self.connection)

    def dump(self) -> Iterator[bytes]:
        """Yield the database in the format of `pg_dump --format=custom`, which is compressed."""
        # The extension belongs to the superuser; it is created before a dump is restored.
        options = ("--format=custom", f"--snapshot={self.id}", f"--exclude-extension={postgres.EXTENSION}")
        with _program("pg_dump", self.url, *options, stdout=subprocess.PIPE) as output:
            while data := output.read(PIECE):
                yield data


@contextmanager
def snapshot(url: SecretStr) -> Iterator[Snapshot]:
    """Open a snapshot of a database. Raises `EmbeddedError` if it cannot be read."""
    import psycopg

    try:
        with postgres.connect(url) as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            ((id,),) = connection.execute("SELECT pg_export_snapshot()").fetchall()
            yield Snapshot(url, str(id), connection)
    except psycopg.Error as error:
        raise EmbeddedError(
            f"Letta's database cannot be read: {redact(str(error)).strip()}", remedy=postgres.UNUSABLE
        ) from error


def count_rows(connection: Connection[Any]) -> dict[str, int]:
    """Return the number of rows of each of Letta's tables."""
    from psycopg import sql

    counts = {}
    for (table,) in connection.execute(_TABLES).fetchall():
        row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()
        counts[str(table)] = int(row[0]) if row else 0
    return counts


@contextmanager
def scratch_database(access: DatabaseAccess) -> Iterator[str]:
    """Create an empty database beside Letta's, and drop it at the end, unless it has taken its place.

    What killed processes have left is dropped first: the caller holds the lock of these databases.
    """
    import psycopg
    from psycopg import sql

    name = f"{_SCRATCH}{token_hex(4)}"
    try:
        drop_leftovers(access)
        with postgres.connect(access.admin) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(
                    sql.Identifier(name), sql.Identifier(access.role)
                )
            )
        with postgres.connect(access.admin_url(name)) as connection:
            connection.execute(sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(postgres.EXTENSION)))
    except psycopg.Error as error:
        with suppress(psycopg.Error):
            _drop(access, name)
        raise EmbeddedError(
            f"No database could be created beside Letta's: {redact(str(error)).strip()}",
            remedy="Use a home without ISABELLA_POSTGRES_URL, whose Postgres Isabella makes, or let the role "
            f'"{access.role}" create databases, and the extension vector in them.'
            if access.own
            else "Read the log of Postgres (isabella letta logs --postgres), then repeat the command.",
        ) from error
    try:
        yield name
    finally:
        with suppress(psycopg.Error):
            _drop(access, name)


@contextmanager
def alone(access: DatabaseAccess, seconds: float) -> Iterator[None]:
    """Hold the lock of the databases beside Letta's, which holds for every home; `LockTimeout` after some seconds."""
    import psycopg

    try:
        with postgres.connect(access.letta) as connection:
            milliseconds = max(1, round(seconds * 1000))
            connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{milliseconds}ms",))
            connection.execute("SELECT pg_advisory_lock(%s)", (lock_key("scratch"),))
            yield
    except psycopg.errors.LockNotAvailable:
        raise LockTimeout(
            "Another backup of this database is being verified.",
            remedy="Wait until it is done, then repeat the command.",
        ) from None
    except psycopg.Error as error:
        raise EmbeddedError(
            f"Letta's database cannot be used: {redact(str(error)).strip()}", remedy=postgres.UNUSABLE
        ) from error


def drop_leftovers(access: DatabaseAccess) -> None:
    """Drop the databases that were made here; the caller holds their lock. After a failure the next call does it."""
    import psycopg

    with suppress(psycopg.Error):
        with postgres.connect(access.admin) as connection:
            names = [str(name) for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall()]
        for name in names:
            if name.startswith((_SCRATCH, _FORMER)):
                _drop(access, name)


def _drop(access: DatabaseAccess, name: str) -> None:
    from psycopg import sql

    with postgres.connect(access.admin) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def restore(url: SecretStr, dump: Iterable[bytes]) -> None:
    """Fill an empty database from a dump. An error of `dump` is raised as it is.

    Raises:
        EmbeddedError: it is not a dump that this Postgres can restore.
    """
    with _program(
        "pg_restore", url, "--no-owner", "--no-privileges", "--exit-on-error", "--dbname=", stdin=subprocess.PIPE
    ) as input:
        pieces = iter(dump)
        for data in pieces:
            try:
                input.write(data)
            except BrokenPipeError:
                # It has ended, and says why. The rest is read anyway: a damage there is named first.
                for _ in pieces:
                    pass
                break
        with suppress(BrokenPipeError):
            input.close()


def analyze(url: SecretStr) -> None:
    """Gather the statistics of a restored database: without them, its first queries are planned badly."""
    with postgres.connect(url) as connection:
        connection.execute("ANALYZE")


def take_place(access: DatabaseAccess, name: str) -> None:
    """Rename a database to the name of Letta's, in one transaction, which is done or not done at all.

    The former one is dropped by `drop_leftovers`. Connections to either are ended; Letta must not be running.
    """
    import psycopg
    from psycopg import sql

    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    letta, new = sql.Identifier(access.name), sql.Identifier(name)
    former = sql.Identifier(f"{_FORMER}{token_hex(4)}")
    with postgres.connect(access.admin) as connection:
        for attempt in range(1, _ATTEMPTS + 1):
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN (%s, %s)",
                (access.name, name),
            )
            try:
                with connection.transaction():
                    connection.execute(rename.format(letta, former))
                    connection.execute(rename.format(new, letta))
            except psycopg.errors.ObjectInUse as error:
                # A program has connected again in between.
                if attempt == _ATTEMPTS:
                    raise EmbeddedError(
                        f"Letta's database is still in use: {str(error).strip()}. Nothing was changed.",
                        remedy="Stop the programs that use it, then repeat the command.",
                    ) from error
            else:
                return


@contextmanager
def _program(
    name: str, url: SecretStr, *options: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
) -> Iterator[IO[bytes]]:
    """Run one of Postgres' programs on a database while the block runs, and yield its input or output.

    Raises:
        EmbeddedError: it has failed; its first error is quoted.
    """
    environ = child_processes.offline_environment() | _connection_variables(url)
    # What `--dbname=` stands for: `pg_restore` writes SQL to standard output without that option.
    options = tuple(f"{option}{environ['PGDATABASE']}" if option == "--dbname=" else option for option in options)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [str(_path(name, url)), *options, "--no-password"],
            cwd="/",
            env=environ,
            stdin=stdin,
            stdout=stdout,
            stderr=errors,
        )
        try:
            yield cast("IO[bytes]", process.stdin or process.stdout)
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
        if code != 0:
            raise EmbeddedError(
                f"{name} failed: {_first_error(errors) or f'exit code {code}'}",
                remedy="Read the log of Postgres (isabella letta logs --postgres).",
            )


def _path(name: str, url: SecretStr) -> Path:
    """Return the path of one of Postgres' programs; those that come with Isabella know no TLS."""
    if parse_qs(urlsplit(url.get_secret_value()).query).get("sslmode", ["disable"]) == ["disable"]:
        return postgres.client_program(name)
    found = shutil.which(name)
    if found is None:
        raise EmbeddedError(
            f"{name} is not installed, and the one that comes with Isabella cannot use TLS.",
            remedy="Install the client programs of Postgres, of the server's version or a later one.",
        )
    return Path(found)


def _connection_variables(url: SecretStr) -> dict[str, str]:
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(url.get_secret_value()) | postgres.protection(url)
    variables = {variable: str(parts[name]) for variable, name in _VARIABLES.items() if parts.get(name) is not None}
    return {**variables, "LC_ALL": "C"}


def _first_error(errors: IO[bytes]) -> str:
    """Return the first line that is an error. Later ones may quote rows."""
    errors.seek(0, os.SEEK_SET)
    lines = errors.read(64 * 1024).decode(errors="replace").splitlines()
    return redact(next((line for line in lines if "error:" in line), "\n".join(lines[:1])))
