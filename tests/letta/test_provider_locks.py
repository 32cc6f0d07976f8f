"""Advisory locks on the real Postgres: two of them stand for two backends."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import psycopg
import pytest

from isabella.embedded import Letta
from isabella.errors import ConfigurationError, LockTimeout
from isabella.locks.postgres import AdvisoryLocks, lock_key

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the backend runs on."""
    return "asyncio"


@pytest.fixture
async def backends(letta_server: Letta) -> AsyncIterator[tuple[AdvisoryLocks, AdvisoryLocks]]:
    """The locks of two backends."""
    one, other = AdvisoryLocks(letta_server.database_url), AdvisoryLocks(letta_server.database_url)
    yield one, other
    await one.close()
    await other.close()


async def test_one_at_a_time(backends: tuple[AdvisoryLocks, AdvisoryLocks]) -> None:
    """A lock that one backend has is not to be had in another one, and is afterwards."""
    one, other = backends
    key = lock_key("test", "one")
    async with one.held(key, timeout=5):
        with pytest.raises(LockTimeout):
            async with other.held(key, timeout=0.05):
                pass
        async with other.held(lock_key("test", "another"), timeout=5):
            pass
    async with other.held(key, timeout=5):
        pass


async def test_shared_locks_exclude_only_the_one_that_is_alone(backends: tuple[AdvisoryLocks, AdvisoryLocks]) -> None:
    """Many share a lock; whoever wants it alone waits for all of them, and is seen to wait."""
    one, other = backends
    key = lock_key("test", "shared")
    alone = anyio.Event()

    async def change() -> None:
        async with one.held(key, alone=True, timeout=30):
            alone.set()

    async with anyio.create_task_group() as tasks:
        async with one.held(key, shared=True, timeout=5), other.held(key, shared=True, timeout=5):
            assert not await other.is_waited_for(key)
            tasks.start_soon(change)
            with anyio.fail_after(30):
                while not await other.is_waited_for(key):
                    await anyio.lowlevel.checkpoint()
            assert not alone.is_set()
        with anyio.fail_after(30):
            await alone.wait()


async def test_whoever_gives_up_leaves_nothing(backends: tuple[AdvisoryLocks, AdvisoryLocks]) -> None:
    """A task that is cancelled, having the lock or waiting for it, gives it back."""
    one, other = backends
    key = lock_key("test", "cancelled")
    with anyio.CancelScope() as scope:
        async with one.held(key, timeout=5):
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    async with other.held(key, timeout=5):
        with anyio.move_on_after(0.05):
            async with one.held(key, timeout=30):
                raise AssertionError("two have it")
    async with other.held(key, alone=True, timeout=5):
        pass


async def test_a_session_that_was_cut_off_is_replaced(letta_server: Letta) -> None:
    """When Postgres ends the session, as at a restart, the next lock opens another one."""
    locks = AdvisoryLocks(letta_server.database_url)
    key = lock_key("test", "cut off")
    async with locks.held(key, timeout=5):
        pass
    with psycopg.connect(letta_server.database_url.get_secret_value(), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND query LIKE 'SELECT pg_advisory_unlock%%'"
        )
    async with locks.held(key, timeout=5):
        pass
    await locks.close()


async def test_a_database_that_is_not_there(letta_server: Letta) -> None:
    """A wrong address is the operator's to correct, and the password stays out of the message."""
    wrong = letta_server.database_url.get_secret_value().replace("/letta", "/nothing")
    with pytest.raises(ConfigurationError) as error:
        async with AdvisoryLocks(type(letta_server.database_url)(wrong)).held(1, timeout=1):
            pass
    assert "ISABELLA_DATABASE_URL" in str(error.value)
    assert wrong.split("@")[0].rsplit(":", 1)[1] not in str(error.value)
