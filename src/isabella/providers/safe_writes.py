"""Single writes to a store, each safe against a lost answer, and the probe that tests how Letta encrypts."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import TypeVar

import anyio
from pydantic import SecretStr

from isabella.errors import LettaBroken, LettaError, LettaRefused, LettaUnreachable
from isabella.letta.encryption import KeyMatch, KeyReading, read_back
from isabella.letta.releases import Capabilities
from isabella.letta.store import Store, StoredProvider
from isabella.system.english import english
from isabella.system.urls import PLACEHOLDER_URL

Result = TypeVar("Result")

_PAUSES = (0.3, 1.0)
_FIRST_PAUSE, _MAX_PAUSE = 0.5, 5.0
#: Temporary refusals: a lock is held, or Letta is overloaded.
_BUSY = (409, 429)


class SafeWriter:
    """Writes to one store. The writing methods raise `LettaError` if the write failed, or its result is not known."""

    def __init__(
        self, store: Store, abilities: Capabilities, *, master_key: SecretStr | None, patience: float
    ) -> None:
        self._store = store
        self._abilities = abilities
        self._master_key = master_key
        self._patience = patience

    async def create(self, *, name: str, type: str, base_url: str | None, key: SecretStr) -> None:
        """Create a provider."""
        write = partial(self._store.create, name=name, type=type, base_url=base_url, key=key)

        async def happened() -> bool:
            stored = await self._store.find(name)
            return stored is not None and self.read(stored, key).match is not KeyMatch.DIFFERENT

        # On a release where a deleted name cannot be created again, a 409 is final (fact O1); elsewhere it passes.
        await _safely(write, happened, busy=_BUSY if self._abilities.recreates else (429,))

    async def update(self, stored: StoredProvider, *, key: SecretStr, base_url: str) -> None:
        """Change key and base URL in place."""
        write = partial(self._store.update, stored.id, key=key, base_url=base_url)

        async def happened() -> bool:
            now = await self._store.find(stored.name)
            return now is not None and self.read(now, key).match is KeyMatch.EQUAL and now.base_url == base_url

        await _safely(write, happened)

    async def delete(self, id: str, name: str) -> None:
        """Delete a provider. It is not an error if it is gone already."""

        async def write() -> None:
            try:
                await self._store.delete(id)
            except LettaRefused as error:
                if error.status != 404:
                    raise

        async def happened() -> bool:
            return await self._store.find(name) is None

        await _safely(write, happened)

    async def delete_surely(self, id: str, name: str) -> None:
        """Delete a provider. After a failure, return only if the provider is seen to be gone."""
        try:
            await self.delete(id, name)
        except LettaError:
            if await self.patiently(lambda: self._store.find(name)) is not None:
                raise

    async def patiently(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Repeat a call while Letta is unreachable, failing or busy. Used while something is missing in the store."""
        with anyio.move_on_after(self._patience):
            pause = _FIRST_PAUSE
            while True:
                try:
                    return await call()
                except (LettaUnreachable, LettaBroken):
                    pass
                except LettaRefused as error:
                    if error.status not in _BUSY:
                        raise
                await anyio.sleep(pause)
                pause = min(pause * 2, _MAX_PAUSE)
        # The last try; its error is raised.
        return await call()

    def read(self, stored: StoredProvider, key: SecretStr) -> KeyReading:
        """Compare a stored key with a key."""
        return read_back(stored.key_text, key.get_secret_value(), self._master_key, None, shown=stored.key_shown)


async def _safely(
    write: Callable[[], Awaitable[None]], happened: Callable[[], Awaitable[bool]], *, busy: Sequence[int] = _BUSY
) -> None:
    """Write; after a lost answer or a server error, check whether it happened, and only then repeat it."""
    was_lost = False
    for pause in (*_PAUSES, None):
        try:
            return await write()
        except LettaRefused as error:
            # A write whose answer was lost may itself be the reason for this refusal, and a conflict may come from
            # another process that has written the same.
            if (was_lost or error.status == 409) and await _check(happened):
                return None
            if error.status not in busy or pause is None:
                raise
        except (LettaUnreachable, LettaBroken) as error:
            lost = not isinstance(error, LettaUnreachable) or error.sent
            if lost and await _check(happened):
                return None
            if pause is None or not lost:
                raise
            was_lost = True
        await anyio.sleep(pause)
    return None


async def _check(happened: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await happened()
    except LettaError:
        return False


_PROBE_NAME = "isabella-encryption-probe"
#: The names of providers that a killed probe may have left in Letta; the second is that of Isabella 0.1.
_LEFT_OVER = (_PROBE_NAME, "isabella-touchstone")


class EncryptionState(StrEnum):
    """The way Letta encrypts the keys that it stores."""

    OURS = "ours"
    OTHERS = "others"
    NOT_AT_ALL = "not at all"


class EncryptionProbe:
    """Tests once how Letta encrypts, on a provider that is created for the test and deleted again.

    So no real key needs to be rewritten to find out that Letta runs without Isabella's master key.
    """

    def __init__(self, store: Store, writer: SafeWriter) -> None:
        self._store = store
        self._writer = writer
        self._lock = anyio.Lock()
        self._state: EncryptionState | None = None

    async def state(self) -> EncryptionState:
        """Return how Letta encrypts."""
        async with self._lock:
            self._state = self._state or await self._test()
            return self._state

    async def _test(self) -> EncryptionState:
        key = SecretStr(f"encryption-probe-{secrets.token_hex(16)}")
        for stored in await self._store.all():
            if stored.name in _LEFT_OVER:
                await self._writer.delete(stored.id, stored.name)
        with anyio.CancelScope(shield=True):
            await self._writer.create(name=_PROBE_NAME, type="openai", base_url=PLACEHOLDER_URL, key=key)
            created = await self._store.find(_PROBE_NAME)
            if created is None:
                raise LettaBroken(
                    english("Letta does not list a provider that it has just created."),
                    remedy=english("Sync again; if this happens again, restart Letta."),
                )
            reading = self._writer.read(created, key)
            await self._writer.delete(created.id, _PROBE_NAME)
        if not reading.sealed:
            return EncryptionState.NOT_AT_ALL
        return EncryptionState.OURS if reading.match is KeyMatch.EQUAL else EncryptionState.OTHERS
