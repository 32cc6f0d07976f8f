"""Single requests to a store, each careful about a lost answer.

Writes are never repeated blindly. When an answer is lost, or tells of a conflict, the store is looked at first: the
write may have happened.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
from pydantic import SecretStr

from isabella.errors import LettaBroken, LettaError, LettaRefused, LettaUnreachable
from isabella.letta.encryption import KeyMatch, KeyReading, read_back
from isabella.letta.releases import Capabilities
from isabella.letta.store import Store, StoredProvider

Result = TypeVar("Result")

_PAUSES = (0.3, 1.0)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0
#: What passes: somebody is at work on the same thing, or Letta has too much to do.
_BUSY = (409, 429)


class SafeWriter:
    """Writes to one store.

    Args:
        store: where the providers live.
        abilities: what its release can do.
        master_key: the one to read back with, if any.
        patience: seconds to go on trying where something is missing until it succeeds.
    """

    def __init__(
        self, store: Store, abilities: Capabilities, *, master_key: SecretStr | None, patience: float
    ) -> None:
        self._store = store
        self._abilities = abilities
        self._master_key = master_key
        self._patience = patience

    async def create(self, *, name: str, type: str, base_url: str | None, key: SecretStr) -> None:
        """Make a provider.

        Raises:
            LettaError: it was not made, or nobody knows.
        """

        async def write() -> None:
            await self._store.create(name=name, type=type, base_url=base_url, key=key)

        async def happened() -> bool:
            found = await self._store.find(name)
            return found is not None and self.read(found, key).match is not KeyMatch.DIFFERENT

        # Where a deleted name cannot come back, 409 is the last word (fact O1); elsewhere it passes.
        await _carefully(write, happened, busy=_BUSY if self._abilities.recreates else (429,))

    async def update(self, stored: StoredProvider, *, key: SecretStr, base_url: str) -> None:
        """Change key and base URL in place.

        Raises:
            LettaError: it was not changed, or nobody knows.
        """

        async def write() -> None:
            await self._store.update(stored.id, key=key, base_url=base_url)

        async def happened() -> bool:
            found = await self._store.find(stored.name)
            return found is not None and self.read(found, key).match is KeyMatch.EQUAL and found.base_url == base_url

        await _carefully(write, happened)

    async def delete(self, id: str, name: str) -> None:
        """Remove a provider; one that is gone already is as good.

        Raises:
            LettaError: it was not removed, or nobody knows.
        """

        async def write() -> None:
            try:
                await self._store.delete(id)
            except LettaRefused as error:
                if error.status != 404:
                    raise

        async def happened() -> bool:
            return await self._store.find(name) is None

        await _carefully(write, happened)

    async def surely_delete(self, id: str, name: str) -> None:
        """Remove a provider. Where that failed it may be gone all the same: nothing goes on before that is seen.

        Raises:
            LettaError: it is there still, or could not be looked for.
        """
        try:
            await self.delete(id, name)
        except LettaError:
            if await self.patiently(lambda: self._store.find(name)) is not None:
                raise

    async def patiently(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Go on while Letta cannot be reached, fails or is busy: something is missing there until this succeeds.

        Raises:
            LettaError: it did not succeed in time, or was refused.
        """
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
                pause = min(pause * 2, _LONGEST_PAUSE)
        # The last word on it, with its error.
        return await call()

    def read(self, found: StoredProvider, key: SecretStr) -> KeyReading:
        """Compare what is stored with a key."""
        return read_back(found.key_text, key.get_secret_value(), self._master_key, None, shown=found.key_shown)


async def _carefully(
    write: Callable[[], Awaitable[None]], happened: Callable[[], Awaitable[bool]], *, busy: Sequence[int] = _BUSY
) -> None:
    """Write; after a lost answer or a failure of the server look first, and only then try again."""
    was_lost = False
    for pause in (*_PAUSES, None):
        try:
            return await write()
        except LettaRefused as error:
            # What was lost and could not be looked after may be the very reason for this refusal, and a conflict
            # may come from somebody who has written the same.
            if (was_lost or error.status == 409) and await _looked(happened):
                return None
            if error.status not in busy or pause is None:
                raise
        except (LettaUnreachable, LettaBroken) as error:
            lost = not isinstance(error, LettaUnreachable) or error.sent
            if lost and await _looked(happened):
                return None
            if pause is None or not lost:
                raise
            was_lost = True
        await anyio.sleep(pause)
    return None


async def _looked(happened: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await happened()
    except LettaError:
        return False
