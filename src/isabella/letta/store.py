"""The Protocol of a store of providers. The plan and the sync know a store only by it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import SecretStr

from isabella.letta.releases import Capabilities
from isabella.system.tasks import gather


@dataclass(frozen=True)
class StoredProvider:
    """A provider as a store holds it."""

    id: str  # the store's id of the record
    name: str  # the provider's name, the first part of model handles
    type: str
    base_url: str | None  # the vendor's base URL; None if the store derives it from the type
    #: the value of the key field: encrypted, plaintext, or nothing
    key_text: str | None = field(default=None, repr=False)
    key_shown: bool = True  # whether the store shows the key field at all
    synced: bool = False  # whether the model list was read from the vendor with this key (fact P9)


class Store(Protocol):
    """A store of providers. Every method raises `LettaError` if the store fails; no write is retried."""

    @property
    def address(self) -> str:
        """Its base URL, for messages."""

    async def abilities(self) -> Capabilities:
        """Read its release, and return its abilities."""

    async def all(self) -> list[StoredProvider]:
        """Return every live provider. An incomplete list is an error."""

    async def find(self, name: str) -> StoredProvider | None:
        """Return the live provider of this name."""

    async def create(self, *, name: str, type: str, base_url: str | None, key: SecretStr) -> None:
        """Create a provider. Without a base URL, the type decides."""

    async def update(self, id: str, *, key: SecretStr, base_url: str) -> None:
        """Change key and base URL in place."""

    async def delete(self, id: str) -> None:
        """Delete a provider."""

    async def models(self, name: str) -> int:
        """Return the number of models that it lists for a provider."""

    async def model_names(self, name: str) -> frozenset[str]:
        """Return the vendor's ids of the models that it lists for a provider."""

    async def refresh(self, id: str) -> None:
        """Make it read the vendor's model list."""


async def read_store(store: Store, name: str | None = None) -> tuple[Capabilities, list[StoredProvider]]:
    """Read a store's release and, at the same time, its live providers, or the one of this name only."""

    async def read_stored() -> list[StoredProvider]:
        if name is None:
            return await store.all()
        provider = await store.find(name)
        return [] if provider is None else [provider]

    # The longer request first: Letta handles one at a time.
    reads: list[Callable[[], Awaitable[Any]]] = [read_stored, store.abilities]
    stored, abilities = await gather(reads)
    return abilities, stored
