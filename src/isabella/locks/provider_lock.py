"""The gate: while a provider is recreated, turns on it wait (fact P7).

Between DELETE and POST Letta does not fail closed: an agent's call would go to the vendor with another key. So turns
pass the gate of their provider, any number side by side; a change closes it, lets those in flight finish, up to a
limit, and after that asks them to end. Only when none is left is anything changed. Other providers are not touched.

It holds in this process always, and in every process where Letta's Postgres is known.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.abc

from isabella.config.settings import Settings
from isabella.errors import GateTimeout, LockTimeout
from isabella.letta.connection import Connection
from isabella.locks.postgres import AdvisoryLocks, lock_key

#: Seconds that turns have to end in, once they are asked to.
_TO_END = 10.0
_LOOK_EVERY = 1.0


#: Keeps turns off a provider while it is changed.
Closed = Callable[[str], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def unguarded(_provider: str) -> AsyncIterator[None]:
    """No gate: where nothing speaks through these providers."""
    yield


@dataclass
class _Provider:
    """One provider's gate in this process."""

    passing: int = 0
    changes: int = 0
    leave: list[Callable[[], None]] = field(default_factory=list)
    moved: anyio.Event = field(default_factory=anyio.Event)

    def move(self) -> None:
        """Wake everybody who waits for a change of this gate."""
        self.moved.set()
        self.moved = anyio.Event()


class ProviderLock:
    """The gates of all providers.

    Args:
        advisory: locks that hold across processes; None where no database is known.
        patience: seconds that a turn waits at a closed gate, and a change for the turns in flight.
    """

    def __init__(self, advisory: AdvisoryLocks | None = None, *, patience: float = 30.0) -> None:
        self._advisory = advisory
        self._patience = patience
        self._providers: dict[str, _Provider] = {}

    @property
    def holds_everywhere(self) -> bool:
        """Whether turns of other processes are held, too."""
        return self._advisory is not None

    def is_closed(self, provider: str) -> bool:
        """Whether a turn would have to wait in this process."""
        found = self._providers.get(provider)
        return found is not None and found.changes > 0

    @asynccontextmanager
    async def passing(self, provider: str, *, leave: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Be in flight on this provider.

        Args:
            provider: its name in Letta.
            leave: called when a change has waited for long enough: the turn has to end now.

        Raises:
            GateTimeout: a change has kept the gate closed for too long.
        """
        gate = self._providers.setdefault(provider, _Provider())
        with anyio.move_on_after(self._patience) as waiting:
            while gate.changes:
                await gate.moved.wait()
        if waiting.cancelled_caught:
            raise self._closed(provider)
        gate.passing += 1
        gate.leave.append(leave)
        try:
            async with AsyncExitStack() as held:
                if self._advisory is not None:
                    try:
                        await held.enter_async_context(
                            self._advisory.held(_key(provider), shared=True, timeout=self._patience)
                        )
                    except LockTimeout:
                        raise self._closed(provider) from None
                yield
        finally:
            gate.passing -= 1
            gate.leave.remove(leave)
            gate.move()

    @asynccontextmanager
    async def closed(self, provider: str) -> AsyncIterator[None]:
        """Change this provider: nothing is in flight on it meanwhile.

        Raises:
            GateTimeout: turns did not end in time, so nothing may be changed.
        """
        gate = self._providers.setdefault(provider, _Provider())
        gate.changes += 1
        try:
            await self._drain(provider, gate)
            async with AsyncExitStack() as held:
                if self._advisory is not None:
                    try:
                        await held.enter_async_context(
                            self._advisory.held(_key(provider), alone=True, timeout=self._patience + _TO_END)
                        )
                    except LockTimeout:
                        raise GateTimeout(
                            f"Turns of another process on {provider} did not end in time, so it was not touched.",
                            remedy="Sync again when they are done.",
                        ) from None
                yield
        finally:
            gate.changes -= 1
            gate.move()

    async def watch(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Ask turns of this process to end when another has waited long enough for their provider. Runs for ever."""
        task_status.started()
        if self._advisory is None:
            return
        waited: dict[str, float] = {}
        while True:
            await anyio.sleep(_LOOK_EVERY)
            flying = {name: gate for name, gate in self._providers.items() if gate.passing and not gate.changes}
            waited = {name: seconds for name, seconds in waited.items() if name in flying}
            for name, gate in flying.items():
                if not await self._advisory.is_waited_for(_key(name)):
                    waited.pop(name, None)
                    continue
                waited[name] = waited.get(name, 0.0) + _LOOK_EVERY
                if waited[name] >= self._patience:
                    _ask_to_leave(gate)

    async def _drain(self, provider: str, gate: _Provider) -> None:
        with anyio.move_on_after(self._patience):
            await _empty(gate)
        if not gate.passing:
            return
        _ask_to_leave(gate)
        with anyio.move_on_after(_TO_END):
            await _empty(gate)
        if gate.passing:
            raise GateTimeout(
                f"Turns on {provider} did not end in time, so it was not touched.",
                remedy="Sync again when they are done.",
            )

    def _closed(self, provider: str) -> GateTimeout:
        return GateTimeout(
            f"{provider} has been changed for {self._patience:g} s.",
            remedy="Try again when that is done; `isabella providers status` shows how it stands.",
        )


@dataclass(frozen=True)
class TurnLocks:
    """What holds turns, and changes of providers, apart.

    Attributes:
        gate: of the providers.
        advisory: locks that hold across processes; None where no database is known.
    """

    gate: ProviderLock
    advisory: AdvisoryLocks | None = None


@asynccontextmanager
async def open_locks(settings: Settings, connection: Connection) -> AsyncIterator[TurnLocks]:
    """The locks for one Letta: across processes where its Postgres is known."""
    advisory = None if connection.database_url is None else AdvisoryLocks(connection.database_url)
    try:
        yield TurnLocks(ProviderLock(advisory, patience=settings.gate_timeout), advisory)
    finally:
        if advisory is not None:
            with anyio.CancelScope(shield=True):
                await advisory.close()


async def _empty(gate: _Provider) -> None:
    while gate.passing:
        await gate.moved.wait()


def _ask_to_leave(gate: _Provider) -> None:
    for leave in [*gate.leave]:
        leave()


def _key(provider: str) -> int:
    return lock_key("gate", provider)
