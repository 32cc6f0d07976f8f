"""The provider lock, or gate: while a provider is recreated, turns on it wait (fact P7).

Between DELETE and POST Letta does not fail closed: an agent's call would go to the vendor with another key. So turns
pass the gate of their provider, any number at a time. A change closes it and lets the running turns finish, up to a
limit; then it asks them to end. It begins when no turn is left. Other providers are not affected.

The lock always holds in this process, and in every process if Letta's Postgres is known.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import anyio.abc
from pydantic import SecretStr

from isabella.errors import GateTimeout, LockTimeout
from isabella.locks.postgres import AdvisoryLocks, lock_key
from isabella.system.english import english

_TO_END = 10.0  # seconds that turns have to end when they are asked to
_LOOK_EVERY = 1.0

CloseProvider = Callable[[str], AbstractAsyncContextManager[None]]  # keeps turns off a provider while it is changed


@asynccontextmanager
async def unguarded(_provider: str) -> AsyncIterator[None]:
    """Lock nothing: for providers without turns."""
    yield


@dataclass
class _Gate:
    """The gate of one provider in this process."""

    passing: int = 0
    changes: int = 0
    leave: list[Callable[[], None]] = field(default_factory=list)
    moved: anyio.Event = field(default_factory=anyio.Event)

    def move(self) -> None:
        """Wake everything that waits for a change of this gate."""
        self.moved.set()
        self.moved = anyio.Event()

    async def wait_until_empty(self) -> None:
        """Wait until no turn passes."""
        while self.passing:
            await self.moved.wait()

    def ask_to_leave(self) -> None:
        """Ask every turn that passes to end."""
        for leave in [*self.leave]:
            leave()


class ProviderLock:
    """The gates of all providers.

    `advisory` holds across processes, if a database is known. `patience` is how many seconds a turn waits at a closed
    gate, and a change for running turns.
    """

    def __init__(self, advisory: AdvisoryLocks | None = None, *, patience: float = 30.0) -> None:
        self.advisory = advisory
        self._patience = patience
        self._gates: dict[str, _Gate] = {}

    def is_closed(self, provider: str) -> bool:
        """Return whether a turn would have to wait in this process."""
        gate = self._gates.get(provider)
        return gate is not None and gate.changes > 0

    @asynccontextmanager
    async def passing(self, provider: str, *, leave: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Run a turn on this provider; `GateTimeout` if a change has kept the gate closed for too long.

        The turn must end when `leave` is called: a change has waited for long enough.
        """
        gate = self._gates.setdefault(provider, _Gate())
        with anyio.move_on_after(self._patience) as waiting:
            while gate.changes:
                await gate.moved.wait()
        if waiting.cancelled_caught:
            raise self._closed_too_long(provider)
        gate.passing += 1
        gate.leave.append(leave)
        try:
            async with self._held_everywhere(
                provider, partial(self._closed_too_long, provider), shared=True, timeout=self._patience
            ):
                yield
        finally:
            gate.passing -= 1
            gate.leave.remove(leave)
            gate.move()

    @asynccontextmanager
    async def closed(self, provider: str) -> AsyncIterator[None]:
        """Change this provider; no turn runs on it meanwhile. `GateTimeout` if turns do not end in time."""
        gate = self._gates.setdefault(provider, _Gate())
        gate.changes += 1
        try:
            await self._drain(provider, gate)
            too_long = partial(_not_drained, f"Turns of another process on {provider}")
            async with self._held_everywhere(provider, too_long, alone=True, timeout=self._patience + _TO_END):
                yield
        finally:
            gate.changes -= 1
            gate.move()

    async def watch(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Ask turns of this process to end if another one has waited long enough to change their provider."""
        task_status.started()
        if self.advisory is None:
            return
        waited: dict[str, float] = {}
        while True:
            await anyio.sleep(_LOOK_EVERY)
            in_use = {name: gate for name, gate in self._gates.items() if gate.passing and not gate.changes}
            waited = {name: seconds for name, seconds in waited.items() if name in in_use}
            for name, gate in in_use.items():
                if not await self.advisory.is_waited_for(_key(name)):
                    waited.pop(name, None)
                    continue
                waited[name] = waited.get(name, 0.0) + _LOOK_EVERY
                if waited[name] >= self._patience:
                    gate.ask_to_leave()

    @asynccontextmanager
    async def _held_everywhere(
        self, provider: str, too_long: Callable[[], GateTimeout], **how: Any
    ) -> AsyncIterator[None]:
        """Hold the advisory lock of a provider if a database is known; `too_long` returns the error of a timeout."""
        async with AsyncExitStack() as held:
            if self.advisory is not None:
                try:
                    await held.enter_async_context(self.advisory.held(_key(provider), **how))
                except LockTimeout:
                    raise too_long() from None
            yield

    async def _drain(self, provider: str, gate: _Gate) -> None:
        with anyio.move_on_after(self._patience):
            await gate.wait_until_empty()
        if gate.passing:
            gate.ask_to_leave()
            with anyio.move_on_after(_TO_END):
                await gate.wait_until_empty()
        if gate.passing:
            raise _not_drained(english("Turns on %(provider)s", provider=provider))

    def _closed_too_long(self, provider: str) -> GateTimeout:
        return GateTimeout(
            english(
                "%(provider)s has been changing for %(seconds)s s.",
                provider=provider,
                seconds=format(self._patience, "g"),
            ),
            remedy=english("Try again when that is done; `isabella providers status` shows its state."),
        )


@asynccontextmanager
async def open_locks(
    database_url: SecretStr | None, *, patience: float, several: bool = False
) -> AsyncIterator[ProviderLock]:
    """Open the locks of one Letta; they hold across processes if its Postgres is known.

    `several` is whether other backends may use the same Letta.
    """
    advisory = None if database_url is None else AdvisoryLocks(database_url, several=several)
    try:
        yield ProviderLock(advisory, patience=patience)
    finally:
        if advisory is not None:
            with anyio.CancelScope(shield=True):
                await advisory.close()


def _not_drained(turns: str) -> GateTimeout:
    return GateTimeout(
        english("%(turns)s did not end in time, so the provider was not changed.", turns=turns),
        remedy=english("Sync again when they are done."),
    )


def _key(provider: str) -> int:
    return lock_key("gate", provider)
