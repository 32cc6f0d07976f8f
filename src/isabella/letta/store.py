"""Where providers are stored: everything that knows the shapes of a store stands behind this Protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from pydantic import SecretStr

from isabella.letta.releases import Capabilities
from isabella.system.tasks import gather


@dataclass(frozen=True)
class StoredProvider:
    """A provider as a store holds it now.

    Attributes:
        id: the store's id of the record.
        name: the provider's name, the first part of model handles.
        type: the provider type.
        base_url: where its vendor answers; None where the store leaves it to the type.
        key_text: what stands in the key's place: sealed, plaintext, or nothing.
        key_shown: whether the store shows the key's place at all.
        synced: whether the model list has been read from the vendor with this key (fact P9).
    """

    id: str
    name: str
    type: str
    base_url: str | None
    key_text: str | None = field(default=None, repr=False)
    key_shown: bool = True
    synced: bool = False


class Store(Protocol):
    """A place where providers live. Every method raises `LettaError` where the store fails."""

    @property
    def address(self) -> str:
        """Where it is, for people."""

    async def abilities(self) -> Capabilities:
        """Ask what it is and what it can do."""

    async def all(self) -> list[StoredProvider]:
        """Every live provider, to the last page."""

    async def find(self, name: str) -> StoredProvider | None:
        """The live provider of this name."""

    async def create(self, *, name: str, type: str, base_url: str | None, key: SecretStr) -> None:
        """Make a provider; without a base URL, the type decides. Not retried: after a lost answer, look first."""

    async def update(self, id: str, *, key: SecretStr, base_url: str) -> None:
        """Change key and base URL in place. Not retried."""

    async def delete(self, id: str) -> None:
        """Remove a provider. Not retried."""

    async def models(self, name: str) -> int:
        """How many models it offers of this provider, without asking the vendor."""

    async def model_names(self, name: str) -> frozenset[str]:
        """Which models it offers of this provider, by the vendor's ids."""

    async def refresh(self, id: str) -> None:
        """Have it read the vendor's model list anew."""


#: So few are found one by one, however many there are: a list may have a thousand rows.
_FEW = 3


@dataclass(frozen=True)
class StoreSnapshot:
    """What one reading of a store has shown.

    Attributes:
        abilities: what its release can do.
        stored: live providers.
        whole: whether these are all of them.
    """

    abilities: Capabilities
    stored: Sequence[StoredProvider]
    whole: bool = True


async def read_store(store: Store, only: Sequence[str] = ()) -> StoreSnapshot:
    """What the store is, and what it holds: two requests, and a few more for several names or pages.

    Args:
        store: where the providers live.
        only: the names that matter; by default all do. For a few of them nothing is listed.

    Raises:
        LettaError: it cannot be read; this never means that it has no providers.
    """
    abilities: list[Capabilities] = []
    stored: list[StoredProvider] = []
    named = 0 < len(only) <= _FEW

    async def ask_abilities() -> None:
        abilities.append(await store.abilities())

    async def ask_stored() -> None:
        stored.extend((await find_all(store, only)).values() if named else await store.all())

    # The longer one first: Letta does one thing at a time.
    await gather([ask_stored, ask_abilities])
    return StoreSnapshot(abilities[0], stored, whole=not named)


async def find_all(store: Store, names: Sequence[str]) -> dict[str, StoredProvider]:
    """Those of these names that the store holds, by name.

    Raises:
        LettaError: it cannot be read.
    """
    found = await gather([partial(store.find, name) for name in names])
    return {stored.name: stored for stored in found if stored is not None}
