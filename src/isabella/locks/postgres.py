"""Sessions in Letta's Postgres, and advisory locks: they hold for every backend, and end with their holder.

One session holds many locks. If a lock is not free, a session of its own waits for it, in Postgres' order: first
come, first served.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from pydantic import SecretStr

from isabella.errors import ConfigurationError, DatabaseUnusable, LockTimeout
from isabella.system.redaction import redact

if TYPE_CHECKING:
    from psycopg import AsyncConnection

_CONNECT_SECONDS = 5
_STATEMENT_SECONDS = 5.0
_PORTS = re.compile(r"[\d,]*")
_WAITED_FOR = """
SELECT true FROM pg_locks
WHERE locktype = 'advisory' AND NOT granted AND mode = 'ExclusiveLock' AND objsubid = 1
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (classid::bigint << 32 | objid::bigint) = %s
LIMIT 1
"""


def lock_key(*words: str) -> int:
    """Return the number of a lock. Advisory locks are numbers, in one space for each database."""
    digest = hashlib.sha256("\0".join(("isabella", *words)).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class SharedSession:
    """One session in a Postgres for all short statements of a client, opened when it is first needed.

    Belongs to one event loop. `url` may change: later sessions are opened there.
    """

    def __init__(self, url: SecretStr) -> None:
        self.url = url
        self._connection: AsyncConnection | None = None
        self._opening = anyio.Lock()

    async def fetch(self, statement: str, values: Mapping[str, Any] | Sequence[Any]) -> tuple[Any, ...] | None:
        """Return the first row, or None. In a broken session a statement runs a second time, in a new one.

        Raises `DatabaseUnusable` if the database cannot be used.
        """
        import psycopg

        for attempt in (1, 2):
            connection = await self._open()
            try:
                with anyio.fail_after(_STATEMENT_SECONDS):
                    return await (await connection.execute(statement, values)).fetchone()
            except (psycopg.OperationalError, TimeoutError) as error:
                # The server was restarted, has closed an idle session, or does not answer.
                await connection.close()
                if attempt == 2:
                    raise _unusable(error) from None
            except psycopg.Error as error:
                raise _unusable(error) from None
        return None

    async def finish(self, statement: str, values: Sequence[Any]) -> None:
        """Run a statement that only undoes what this session has done: if it is closed, that ended with it."""
        import psycopg

        connection = self._connection
        if connection is None or connection.closed:
            return
        try:
            with anyio.fail_after(_STATEMENT_SECONDS):
                await connection.execute(statement, values)
        except (psycopg.Error, TimeoutError):
            await connection.close()

    async def close(self) -> None:
        """End the session."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open(self) -> AsyncConnection:
        connection = self._connection
        if connection is not None and not connection.closed:
            return connection
        async with self._opening:
            if self._connection is None or self._connection.closed:
                self._connection = await open_connection(self.url)
            return self._connection


class AdvisoryLocks:
    """The locks of this process in one Postgres. Belongs to one event loop."""

    def __init__(self, database_url: SecretStr) -> None:
        self._session = SharedSession(database_url)

    @asynccontextmanager
    async def held(
        self, key: int, *, shared: bool = False, alone: bool = False, timeout: float
    ) -> AsyncIterator[None]:
        """Hold a lock, alone or `shared` with others; `LockTimeout` if it cannot be had within `timeout` seconds.

        Within this process any number of holders is allowed, unless `alone` uses a session of its own.
        """
        taken = False
        try:
            if not alone:
                # Shielded: a lock granted to a cancelled request would never be released.
                with anyio.CancelScope(shield=True):
                    taken = await self._try(key, shared)
            if taken:
                yield
                return
        finally:
            if taken:
                with anyio.CancelScope(shield=True):
                    await self._unlock(key, shared)
        connection = await open_connection(self._session.url)
        # Closing the connection releases the lock, and so does the end of this process.
        async with connection:
            await self._wait(connection, key, shared, timeout)
            yield

    async def is_waited_for(self, key: int) -> bool:
        """Return whether a session waits for this lock exclusively."""
        try:
            return await self._session.fetch(_WAITED_FOR, (key,)) is not None
        except ConfigurationError:
            # If the database fails, the waiting session is gone too.
            return False

    def move(self, database_url: SecretStr) -> None:
        """Open later sessions at another address of the same database."""
        self._session.url = database_url

    async def close(self) -> None:
        """Release all locks."""
        await self._session.close()

    async def _try(self, key: int, shared: bool) -> bool:
        statement = "SELECT pg_try_advisory_lock_shared(%s)" if shared else "SELECT pg_try_advisory_lock(%s)"
        row = await self._session.fetch(statement, (key,))
        return row is not None and bool(row[0])

    async def _unlock(self, key: int, shared: bool) -> None:
        statement = "SELECT pg_advisory_unlock_shared(%s)" if shared else "SELECT pg_advisory_unlock(%s)"
        # The locks of a failed session end with it.
        await self._session.finish(statement, (key,))

    async def _wait(self, connection: AsyncConnection, key: int, shared: bool, timeout: float) -> None:
        import psycopg

        statement = "SELECT pg_advisory_lock_shared(%s)" if shared else "SELECT pg_advisory_lock(%s)"
        try:
            await connection.execute(
                "SELECT set_config('lock_timeout', %s, false)", (f"{max(1, round(timeout * 1000))}",)
            )
            await connection.execute(statement, (key,))
        except psycopg.errors.LockNotAvailable:
            raise LockTimeout(
                f"Other processes have held the lock for {timeout:g} s.",
                remedy="Wait for them, or look for a process that hangs.",
            ) from None
        except psycopg.Error as error:
            raise _unusable(error) from None


async def open_connection(database_url: SecretStr) -> AsyncConnection:
    """Open a session with autocommit. A database that cannot be used is a `ConfigurationError`."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    address = database_url.get_secret_value()
    try:
        parts = conninfo_to_dict(address)
    except (psycopg.ProgrammingError, UnicodeError):
        parts = None
    # libpq quotes what it does not understand in its error, and that may be a part of the password: after an
    # unencoded @ the rest of the password is taken for the host, before an unencoded / its start for the port.
    if parts is None or "@" in str(parts.get("host", "")) or not _PORTS.fullmatch(str(parts.get("port", ""))):
        raise ConfigurationError(
            "ISABELLA_DATABASE_URL is not the URL of a Postgres database.",
            remedy="Write postgresql://user:password@host:port/database, and special characters of the password "
            "percent-encoded: %40 for @, %2F for /.",
        )
    try:
        return await psycopg.AsyncConnection.connect(address, autocommit=True, connect_timeout=_CONNECT_SECONDS)
    except psycopg.Error as error:
        raise _unusable(error) from None


def _unusable(error: Exception) -> DatabaseUnusable:
    lines = redact(str(error)).strip().splitlines()
    return DatabaseUnusable(
        f"Letta's database cannot be used: {lines[0] if lines else type(error).__name__}",
        remedy="Correct ISABELLA_DATABASE_URL, or unset it if there is only one backend.",
    )
