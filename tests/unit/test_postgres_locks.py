"""Locks in a database that cannot be reached, or whose address is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from pydantic import SecretStr

from isabella.errors import ConfigurationError
from isabella.locks import provider_lock as gates
from isabella.locks.postgres import AdvisoryLocks
from isabella.locks.provider_lock import ProviderLock
from isabella.locks.sync_lock import sync_lock

#: Nothing listens there.
GONE = SecretStr("postgresql://letta@127.0.0.1:1/letta")


class Lost(AdvisoryLocks):
    """Locks that were given while their database could be reached. It cannot any more."""

    def __init__(self) -> None:
        super().__init__(GONE)
        self.asked = 0
        self.asked_again = anyio.Event()

    @asynccontextmanager
    async def held(
        self, key: int, *, shared: bool = False, alone: bool = False, timeout: float
    ) -> AsyncIterator[None]:
        yield

    async def is_waited_for(self, key: int) -> bool:
        found = await super().is_waited_for(key)
        self.asked += 1
        if self.asked == 2:
            self.asked_again.set()
        return found


def test_nobody_waits_in_a_database_that_cannot_be_reached() -> None:
    """Whoever waited there has lost its session, too; that is an answer, and no error."""

    async def ask() -> bool:
        return await AdvisoryLocks(GONE).is_waited_for(1)

    assert anyio.run(ask) is False


def test_the_gate_is_watched_on_while_its_database_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn in flight goes on undisturbed, and it is looked again whether somebody waits for its provider."""
    monkeypatch.setattr(gates, "_LOOK_EVERY", 0.01)
    asked_to_leave: list[str] = []

    async def play() -> None:
        advisory = Lost()
        gate = ProviderLock(advisory, patience=0.0)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                await tasks.start(gate.watch)
                async with gate.passing("byok-groq", leave=lambda: asked_to_leave.append("byok-groq")):
                    await advisory.asked_again.wait()
                tasks.cancel_scope.cancel()

    anyio.run(play)
    assert asked_to_leave == []


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+asyncpg://letta:s3cret-fake-pw@127.0.0.1:1/db",
        "postgresql://letta:pa@s3cret-fake-pw@127.0.0.1:1/db",
        "postgresql://letta:s3cret-fake%zz@127.0.0.1:1/db",
        "postgresql://letta:s3cret fake-pw@127.0.0.1:1/db",
        "postgresql://letta:s3cret/fake-pw@127.0.0.1:1/db",
        "postgresql://:s3cret/fake@127.0.0.1:1/db",
        "letta:s3cret-fake-pw@127.0.0.1/db",
        "host=127.0.0.1 port=1 password=s3cret fake-pw",
    ],
)
@pytest.mark.parametrize("of_a_gate", [False, True])
def test_an_address_that_is_none_is_told_without_its_password(address: str, of_a_gate: bool, tmp_path: Path) -> None:
    """What the database's library does not understand is not quoted: it may be the password, or a part of it."""

    def lock() -> AbstractAsyncContextManager[None]:
        if of_a_gate:
            return AdvisoryLocks(SecretStr(address)).held(1, timeout=1.0)
        return sync_lock("http://127.0.0.1:8283", home=tmp_path, database_url=SecretStr(address), timeout=1.0)

    async def take() -> None:
        async with lock():
            pytest.fail("there is no such database")

    with pytest.raises(ConfigurationError) as error:
        anyio.run(take)
    assert "ISABELLA_DATABASE_URL" in str(error.value)
    for part in ("s3cret", "fake", "pw"):
        assert part not in str(error.value)
