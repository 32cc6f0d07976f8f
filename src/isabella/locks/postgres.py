"""Sessions in Letta's Postgres, and advisory locks: they hold for every backend, and end with their holder.

One session holds many locks. If a lock is not free, a separate session waits for it, in Postgres' order: first
come, first served.

If Postgres ends, so do all locks in it, while the turns that hold them continue. The process of each takes them again
in a new session, as soon as Postgres accepts one. If there are several backends, each asks for new locks some seconds
later, so that the former holders come first.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import anyio
from pydantic import SecretStr

from isabella.errors import ConfigurationError, DatabaseUnusable, LockTimeout
from isabella.system.english import english
from isabella.system.redaction import redact

if TYPE_CHECKING:
    from psycopg import AsyncConnection

_CONNECT_SECONDS = 5
_STATEMENT_SECONDS = 5.0
#: Seconds after the first session of a process in a Postgres that was just started, in which only former holders take
#: locks.
_FIRST_SECONDS = 3.0
_STARTED = """
SELECT pg_postmaster_start_time(), clock_timestamp() - pg_postmaster_start_time() < make_interval(secs => 60)
"""
_SHARED = "_shared"
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

    Belongs to one event loop. `url` may change: later sessions are opened there. `on_open` is awaited with each new
    connection before it is used; what it raises of psycopg is a `DatabaseUnusable`.
    """

    def __init__(self, url: SecretStr, on_open: Callable[[AsyncConnection], Awaitable[None]] | None = None) -> None:
        self.url = url
        self._on_open = on_open
        self._connection: AsyncConnection | None = None
        self._opening = anyio.Lock()

    @property
    def connection(self) -> AsyncConnection | None:
        """The connection that was used last; None if none was, or the session was closed."""
        return self._connection

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
                self._connection = await self._opened()
            return self._connection

    async def _opened(self) -> AsyncConnection:
        import psycopg

        connection = await open_connection(self.url)
        if self._on_open is not None:
            try:
                await self._on_open(connection)
            except psycopg.Error as error:
                await connection.close()
                raise _unusable(error) from None
        return connection


class AdvisoryLocks:
    """The locks of this process in one Postgres. Belongs to one event loop.

    `several` is whether other processes hold locks in it for long.
    """

    def __init__(self, database_url: SecretStr, *, several: bool = False) -> None:
        self._session = SharedSession(database_url, self._on_open)
        self._several = several
        self._started: datetime | None = None  # when the Postgres of the session was started
        self._not_before = 0.0  # when new locks may be taken, in monotonic seconds
        #: The locks that are held, each with the session that holds it.
        self._held: list[_Held] = []
        #: The locks of jobs that the present session leads.
        self._led: set[int] = set()

    @asynccontextmanager
    async def held(
        self, key: int, *, shared: bool = False, alone: bool = False, timeout: float
    ) -> AsyncIterator[None]:
        """Hold a lock, alone or `shared` with others; `LockTimeout` if it cannot be had within `timeout` seconds.

        Within this process any number of holders is allowed, unless `alone` uses a separate session.
        """
        await self._former_holders_first()
        held = None
        if not alone:
            # Shielded: a lock granted to a cancelled request would never be released.
            with anyio.CancelScope(shield=True):
                held = await self._try(key, shared)
        if held is not None:
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await self._release(held)
            return
        connection = await open_connection(self._session.url)
        # Closing the connection releases the lock, and so does the end of this process.
        async with connection:
            await self._wait(connection, key, shared, timeout)
            held = _Held(key, shared, connection)
            self._held.append(held)
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await self._release(held)

    async def leads(self, key: int) -> bool:
        """Return whether this process leads a job: the first that asks does, until its session ends.

        Raises `DatabaseUnusable`.
        """
        await self._session.fetch("SELECT 1", ())
        if key in self._led:
            return True
        row = await self._session.fetch("SELECT pg_try_advisory_lock(%s)", (key,))
        if row is not None and row[0]:
            self._led.add(key)
        return key in self._led

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

    async def _try(self, key: int, shared: bool) -> _Held | None:
        """Take a lock in the session of this process; None if it is not free."""
        row = await self._session.fetch(f"SELECT pg_try_advisory_lock{_SHARED if shared else ''}(%s)", (key,))
        connection = self._session.connection
        if row is None or not row[0] or connection is None:
            return None
        held = _Held(key, shared, connection)
        self._held.append(held)
        return held

    async def _release(self, held: _Held) -> None:
        self._held.remove(held)
        # The locks of another session have ended with it, or end with it now.
        if held.session is self._session.connection:
            await self._session.finish(f"SELECT pg_advisory_unlock{_SHARED if held.shared else ''}(%s)", (held.key,))

    async def _wait(self, connection: AsyncConnection, key: int, shared: bool, timeout: float) -> None:
        import psycopg

        try:
            await connection.execute(
                "SELECT set_config('lock_timeout', %s, false)", (f"{max(1, round(timeout * 1000))}",)
            )
            await connection.execute(f"SELECT pg_advisory_lock{_SHARED if shared else ''}(%s)", (key,))
        except psycopg.errors.LockNotAvailable:
            raise LockTimeout(
                english("Other processes have held the lock for %(seconds)s s.", seconds=format(timeout, "g")),
                remedy=english("Wait for them, or look for a process that hangs."),
            ) from None
        except psycopg.Error as error:
            raise _unusable(error) from None

    async def _on_open(self, connection: AsyncConnection) -> None:
        """Take the locks of sessions that have ended again, and note when new ones may be taken."""
        self._led.clear()
        for held in [*self._held]:
            statement = f"SELECT pg_try_advisory_lock{_SHARED if held.shared else ''}(%s)"
            row = await (await connection.execute(statement, (held.key,))).fetchone()
            if row is not None and row[0]:
                held.session = connection
        if not self._several:
            return
        row = await (await connection.execute(_STARTED)).fetchone()
        if row is not None:
            started, recent = row
            if recent if self._started is None else started != self._started:
                self._not_before = time.monotonic() + _FIRST_SECONDS
            self._started = started

    async def _former_holders_first(self) -> None:
        """Wait until the locks of this process's Postgres may be taken by others than their former holders."""
        if not self._several:
            return
        # Notices that Postgres has ended the session.
        await self._session.fetch("SELECT 1", ())
        if (seconds := self._not_before - time.monotonic()) > 0:
            await anyio.sleep(seconds)


@dataclass(eq=False)
class _Held:
    """A lock that is held by a session, which may have ended since."""

    key: int
    shared: bool
    session: AsyncConnection


def is_address(text: str) -> bool:
    """Return whether libpq takes this for the address of a database, and for exactly the one that it looks like.

    libpq quotes what it does not understand in its error, and that may be a part of the password: after an unencoded
    @ the rest of the password is taken for the host, before an unencoded / its start for the port.
    """
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = conninfo_to_dict(text)
    except (psycopg.ProgrammingError, UnicodeError):
        return False
    names = f"{parts.get('host', '')}{parts.get('dbname', '')}"
    return "@" not in names and _PORTS.fullmatch(str(parts.get("port", ""))) is not None


async def leads(advisory: AdvisoryLocks | None, job: str) -> bool:
    """Return whether this process does a job that one backend does for all. Raises `DatabaseUnusable`."""
    return advisory is None or await advisory.leads(lock_key("leader", job))


async def open_connection(database_url: SecretStr) -> AsyncConnection:
    """Open a session with autocommit. A database that cannot be used is a `ConfigurationError`."""
    import psycopg

    address = database_url.get_secret_value()
    if not is_address(address):
        raise ConfigurationError(
            "ISABELLA_DATABASE_URL is not the URL of a Postgres database.",
            remedy="Write postgresql://user:password@host:port/database, with special characters in the password "
            "percent-encoded: %40 for @, %2F for /.",
        )
    try:
        return await psycopg.AsyncConnection.connect(address, autocommit=True, connect_timeout=_CONNECT_SECONDS)
    except psycopg.Error as error:
        raise _unusable(error) from None


def _unusable(error: Exception) -> DatabaseUnusable:
    lines = redact(str(error)).strip().splitlines()
    return DatabaseUnusable(
        english("Letta's database cannot be used: %(why)s", why=lines[0] if lines else type(error).__name__),
        remedy=english("Correct ISABELLA_DATABASE_URL, or unset it if there is only one backend."),
    )
