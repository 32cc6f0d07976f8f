"""The lock that lets one process at a time sync a Letta: in its Postgres if that is known, otherwise a file."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from pydantic import SecretStr

from isabella.errors import ConfigurationError, LockTimeout
from isabella.locks.postgres import open_connection
from isabella.system import state
from isabella.system.english import english

if TYPE_CHECKING:
    from psycopg import AsyncConnection

#: "isabella" in ASCII, as the number of the advisory lock.
ADVISORY_KEY = int.from_bytes(b"isabella", "big") % (1 << 63)
_LOOK_EVERY = 0.1


@asynccontextmanager
async def sync_lock(
    base_url: str, *, home: Path, database_url: SecretStr | None, timeout: float = 120.0
) -> AsyncIterator[None]:
    """Hold the lock of one Letta; `LockTimeout` if it cannot be had within `timeout` seconds.

    A lock in Letta's Postgres holds for every machine. Without one, a file in `home` holds on this machine only. The
    lock is released when its holder ends.
    """
    holder = _file_lock(base_url, home, timeout) if database_url is None else _database_lock(database_url, timeout)
    async with holder:
        yield


@asynccontextmanager
async def _database_lock(database_url: SecretStr, timeout: float) -> AsyncIterator[None]:
    connection = await open_connection(database_url)
    held = False
    try:
        with anyio.move_on_after(timeout):
            while not (held := await _try_lock(connection)):
                await anyio.sleep(_LOOK_EVERY)
                if connection.closed:
                    # Postgres was restarted, or ended the session. The holder of the lock has lost it too.
                    connection = await open_connection(database_url)
        if not held:
            raise _timed_out(timeout)
        yield
    finally:
        # Closing the connection releases the lock, and so does the end of this process.
        with anyio.CancelScope(shield=True):
            await connection.close()


async def _try_lock(connection: AsyncConnection) -> bool:
    import psycopg

    try:
        row = await (await connection.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_KEY,))).fetchone()
    except psycopg.OperationalError:
        await connection.close()
        return False
    return row is not None and bool(row[0])


@asynccontextmanager
async def _file_lock(base_url: str, home: Path, timeout: float) -> AsyncIterator[None]:
    from filelock import AsyncFileLock, Timeout

    folder = home / "locks"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{hashlib.sha256(base_url.encode()).hexdigest()[:16]}.lock"
        state.make_way(path)
        lock = AsyncFileLock(path, mode=0o600)
        try:
            await lock.acquire(timeout=timeout, poll_interval=_LOOK_EVERY)
        except Timeout:
            raise _timed_out(timeout) from None
    except OSError as error:
        raise ConfigurationError(
            english("%(folder)s: cannot be used for the lock: %(why)s.", folder=folder, why=state.why(error)),
            remedy=english("Correct ISABELLA_HOME."),
        ) from None
    try:
        yield
    finally:
        await lock.release()


def _timed_out(timeout: float) -> LockTimeout:
    return LockTimeout(
        english("Another process has been syncing this Letta for %(seconds)s s.", seconds=format(timeout, "g")),
        remedy=english("Wait for it, or look for a process that hangs."),
    )
