"""Looking at a store: what it is, and what it holds of all that matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from isabella.concurrency import gather
from isabella.stores import Capabilities, Store, StoredProvider

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
