"""The touchstone: how Letta seals now, tried on a provider that is made for that and deleted again.

Where Letta runs without our master key, nothing has to be opened to find out.
"""

from __future__ import annotations

import secrets
from enum import StrEnum

import anyio
from pydantic import SecretStr

from isabella.errors import LettaBroken
from isabella.letta.encryption import KeyMatch
from isabella.letta.store import Store
from isabella.providers.safe_writes import SafeWriter
from isabella.system.urls import PLACEHOLDER_URL

_NAME = "isabella-touchstone"


class EncryptionState(StrEnum):
    """How the server seals what it is given now."""

    OURS = "ours"
    OTHERS = "others"
    NOT_AT_ALL = "not at all"


class EncryptionProbe:
    """Tries it, once for all who ask.

    Args:
        store: where the providers live.
        writer: writes there.
    """

    def __init__(self, store: Store, writer: SafeWriter) -> None:
        self._store = store
        self._writer = writer
        self._lock = anyio.Lock()
        self._sealing: EncryptionState | None = None

    async def sealing(self) -> EncryptionState:
        """How Letta seals.

        Raises:
            LettaError: it cannot be tried.
        """
        async with self._lock:
            if self._sealing is None:
                self._sealing = await self._try()
            return self._sealing

    async def _try(self) -> EncryptionState:
        key = SecretStr(f"touchstone-{secrets.token_hex(16)}")
        left_over = await self._store.find(_NAME)
        if left_over is not None:
            await self._writer.delete(left_over.id, _NAME)
        with anyio.CancelScope(shield=True):
            await self._writer.create(name=_NAME, type="openai", base_url=PLACEHOLDER_URL, key=key)
            made = await self._store.find(_NAME)
            if made is None:
                raise LettaBroken("Letta does not list a provider that it has just made.")
            reading = self._writer.read(made, key)
            await self._writer.delete(made.id, _NAME)
        if not reading.sealed:
            return EncryptionState.NOT_AT_ALL
        return EncryptionState.OURS if reading.match is KeyMatch.EQUAL else EncryptionState.OTHERS
