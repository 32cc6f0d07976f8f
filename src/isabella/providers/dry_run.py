"""What becomes of a new key: what a sync would do with it, told before anything is done.

A key that its vendor accepts is written at once, in place, whether or not the old one is still valid. One that the
vendor refuses is not written: it may not have reached all of the vendor's machines yet, and as long as the old one
works, agents go on talking. Whoever keeps watch tries again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import anyio.to_thread
from pydantic import SecretStr

from isabella.letta.encryption import stored_key
from isabella.providers.plan import Action, PlannedChange
from isabella.system.tasks import gather
from isabella.vendors.client import VendorAnswer

#: Asks a vendor about a key: base URL and key.
Ask = Callable[[str, SecretStr], Awaitable[VendorAnswer]]

_AT_ONCE = 8


def refusal(change: PlannedChange, answer: VendorAnswer) -> tuple[str, str]:
    """Why a key is not written that the vendor refuses, and what the operator can do."""
    kept = "nothing is registered" if change.stored is None else "the stored key stays"
    if change.between and not change.keeps_key:
        kept = "what stands in Letta is no key, because a move was cut off"
    return (
        f"{change.desired.vendor.title} refuses the configured key ({answer.status}: {answer.said}); {kept}",
        f"{change.desired.key_source} holds a refused key: put a valid one there. If it was made just now, the "
        "vendor may not know it everywhere yet: `isabella up` and `isabella providers sync --watch` try again.",
    )


def predicted(change: PlannedChange, new: VendorAnswer, old: VendorAnswer | None) -> PlannedChange:
    """What a sync would do, by the vendor's word.

    Args:
        change: what is planned.
        new: what the vendor says of the configured key.
        old: what it says of the stored one; None where it was not asked.
    """
    change = replace(change, vendor_status=new.vendor_status)
    if new.takes_key is False:
        reason, remedy = refusal(change, new)
        if old is not None and old.takes_key is not None:
            reason += ", and the vendor takes it" if old.takes_key else ", though the vendor refuses it, too"
        return replace(change, action=Action.REFUSE, reason=reason, remedy=remedy, refused_by_vendor=True)
    if new.takes_key is None:
        return replace(change, reason=f"{change.reason}; the vendor does not confirm the configured key ({new.said})")
    if old is None or old.takes_key is None:
        return replace(change, reason=f"{change.reason}; the vendor takes the configured key")
    if old.takes_key:
        without = "" if change.action is Action.RECREATE else ": no gap"
        return replace(change, reason=f"{change.reason}; the vendor takes both keys{without}")
    return replace(change, reason=f"{change.reason}, which the vendor refuses already; it takes the configured one")


async def predict_sync(
    changes: Sequence[PlannedChange], ask: Ask | None, master_key: SecretStr | None = None
) -> list[PlannedChange]:
    """Ask the vendors what a sync would ask them, and tell what would come of it. Writes nothing.

    Args:
        changes: what is planned.
        ask: asks a vendor about a key; None asks nobody.
        master_key: the one that opens stored keys, about which the vendors are asked, too.
    """
    if ask is None:
        return list(changes)
    return await gather([partial(_rehearse, change, ask, master_key) for change in changes], at_once=_AT_ONCE)


async def _rehearse(change: PlannedChange, ask: Ask, master_key: SecretStr | None) -> PlannedChange:
    key = change.desired.key
    if not change.ask_vendor or key is None:
        return change
    new = await ask(change.desired.base_url, key)
    stored = await _own_key(change, master_key)
    return predicted(change, new, None if stored is None else await ask(change.desired.base_url, stored))


async def _own_key(change: PlannedChange, master_key: SecretStr | None) -> SecretStr | None:
    """The stored key, where it may be shown to the vendor: Letta sends it there anyway, and it has the right form."""
    stored, prefix = change.stored, change.desired.vendor.key_prefix
    if stored is None or prefix is None or change.moves:
        return None
    key = await anyio.to_thread.run_sync(stored_key, change.reading, stored.key_text, master_key)
    return key if key is not None and key.get_secret_value().startswith(prefix) else None
