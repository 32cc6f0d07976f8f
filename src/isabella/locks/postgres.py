"""Advisory locks in Letta's Postgres: they hold for every backend, and end with their holder.

One session holds many locks. If a lock is not free, a session of its own waits for it, in Postgres' order: first
come, first served.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

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


class AdvisoryLocks:
    """The locks of this process in one Postgres. Belongs to one event loop."""

    def __init__(self, database_url: SecretStr) -> None:
        self._url = database_url
        self._session: AsyncConnection | None = None
        self._opening = anyio.Lock()

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
        connection = await open_connection(self._url)
        # Closing the connection releases the lock, and so does the end of this process.
        async with connection:
            await self._wait(connection, key, shared, timeout)
            yield

    async def is_waited_for(self, key: int) -> bool:
        """Return whether a session waits for this lock exclusively."""
        import psycopg

        try:
            session = await self._shared_session()
            with anyio.fail_after(_STATEMENT_SECONDS):
                return await (await session.execute(_WAITED_FOR, (key,))).fetchone() is not None
        except (psycopg.Error, ConfigurationError, TimeoutError):
            # If the database fails, the waiting session is gone too.
            return False

    def move(self, database_url: SecretStr) -> None:
        """Open later sessions at another address of the same database."""
        self._url = database_url

    async def close(self) -> None:
        """Release all locks."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _try(self, key: int, shared: bool) -> bool:
        import psycopg

        statement = "SELECT pg_try_advisory_lock_shared(%s)" if shared else "SELECT pg_try_advisory_lock(%s)"
        for attempt in (1, 2):
            session = await self._shared_session()
            try:
                with anyio.fail_after(_STATEMENT_SECONDS):
                    row = await (await session.execute(statement, (key,))).fetchone()
            except (psycopg.OperationalError, TimeoutError) as error:
                # The server was restarted, has closed an idle session, or does not answer.
                await session.close()
                if attempt == 2:
                    raise _unusable(error) from None
            else:
                return row is not None and bool(row[0])
        return False

    async def _unlock(self, key: int, shared: bool) -> None:
        import psycopg

        statement = "SELECT pg_advisory_unlock_shared(%s)" if shared else "SELECT pg_advisory_unlock(%s)"
        session = self._session
        if session is None or session.closed:
            return
        try:
            with anyio.fail_after(_STATEMENT_SECONDS):
                await session.execute(statement, (key,))
        except (psycopg.Error, TimeoutError):
            # The locks of a failed session end with it.
            await session.close()

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

    async def _shared_session(self) -> AsyncConnection:
        session = self._session
        if session is not None and not session.closed:
            return session
        async with self._opening:
            if self._session is None or self._session.closed:
                self._session = await open_connection(self._url)
            return self._session


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
        f"Letta's database cannot be used for locks: {lines[0] if lines else type(error).__name__}",
        remedy="Correct ISABELLA_DATABASE_URL, or unset it if there is only one backend.",
    )
