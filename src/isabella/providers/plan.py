"""What has to change, as pure data: no I/O, so that every combination of desired and stored can be tested."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from isabella.config.strategy import Strategy
from isabella.letta.encryption import KeyMatch, KeyReading, mistaken_for_encrypted
from isabella.letta.releases import Capabilities
from isabella.letta.store import StoredProvider
from isabella.providers.desired import Desired
from isabella.system.urls import is_placeholder_url
from isabella.vendors.status import VendorObservation


class ProviderState(StrEnum):
    """What Letta holds, compared with what is desired."""

    IN_SYNC = "in_sync"
    #: Another key than the configured one, or none at all.
    STALE = "stale"
    ABSENT = "absent"
    #: Sealed under another master key than ours.
    UNREADABLE = "unreadable"
    #: The right key, in plaintext although a master key is configured.
    PLAINTEXT = "plaintext"
    #: Another provider type.
    MISTYPED = "mistyped"
    #: The right key, another base URL.
    MOVED = "moved"
    #: Nobody declared it.
    FOREIGN = "foreign"
    #: The server does not let the key be read back, or we have no master key to open it with.
    HIDDEN = "hidden"


class Action(StrEnum):
    """What is done about it."""

    KEEP = "keep"
    UPDATE = "update"
    RECREATE = "recreate"
    CREATE = "create"
    REFUSE = "refuse"
    #: It is not ours to do anything about.
    NONE = "none"


#: Those that write to Letta.
WRITES = frozenset((Action.CREATE, Action.UPDATE, Action.RECREATE))


@dataclass(frozen=True)
class PlannedChange:
    """What is to be done about one provider, and why.

    Attributes:
        desired: what the configuration asks for.
        stored: the record in Letta; None where there is none.
        reading: what its key was read as.
        state: how the two compare.
        action: what is to be done.
        reason: why, in words for people.
        remedy: what the operator has to do, where nothing can be done here.
        ask_vendor: whether the vendor is to be asked about the key first, because Letta does not hold it yet.
        refused_by_vendor: whether it was asked, and refuses the key.
        vendor_status: what it answered, where it was asked.
    """

    desired: Desired
    stored: StoredProvider | None
    reading: KeyReading | None
    state: ProviderState
    action: Action
    reason: str
    remedy: str | None = None
    ask_vendor: bool = False
    refused_by_vendor: bool = False
    vendor_status: VendorObservation | None = None

    @property
    def moves(self) -> bool:
        """Whether the provider is there, and its address becomes another one."""
        return self.stored is not None and self.stored.base_url != self.desired.base_url

    @property
    def between(self) -> bool:
        """Whether it is between two addresses: a move was cut off, or is not done."""
        return self.stored is not None and is_placeholder_url(self.stored.base_url)

    @property
    def keeps_key(self) -> bool:
        """Whether the key that is stored is the configured one already."""
        return self.reading is not None and self.reading.match is KeyMatch.EQUAL

    @property
    def pending(self) -> bool:
        """Whether there is anything to write, or something that stands in the way of it."""
        return self.action not in (Action.KEEP, Action.NONE)


def state_of(
    desired: Desired, stored: StoredProvider | None, reading: KeyReading | None, *, sealing: bool
) -> ProviderState:
    """Compare a provider with what is desired. Of several differences the one that is hardest to mend counts.

    Args:
        desired: what the configuration asks for.
        stored: the record in Letta; None where there is none.
        reading: what its key was read as; None where there is no record, or no key to compare it with.
        sealing: whether a master key is configured, so that keys have to be sealed.
    """
    if stored is None:
        return ProviderState.ABSENT
    if reading is None:
        return ProviderState.FOREIGN if not desired.wanted else ProviderState.STALE
    if stored.type != desired.type:
        return ProviderState.MISTYPED
    match reading.match:
        case KeyMatch.UNREADABLE:
            return ProviderState.UNREADABLE
        case KeyMatch.HIDDEN:
            return ProviderState.HIDDEN
        case KeyMatch.DIFFERENT | KeyMatch.NOTHING:
            return ProviderState.STALE
    if sealing and not reading.sealed:
        return ProviderState.PLAINTEXT
    return ProviderState.IN_SYNC if stored.base_url == desired.base_url else ProviderState.MOVED


def plan(
    desired: Desired,
    stored: StoredProvider | None,
    reading: KeyReading | None,
    *,
    strategy: Strategy,
    abilities: Capabilities,
    sealing: bool,
) -> PlannedChange:
    """Decide what to do about one provider.

    Args:
        desired: what the configuration asks for.
        stored: the record in Letta; None where there is none.
        reading: what its key was read as.
        strategy: the operator's choice.
        abilities: what this release can do.
        sealing: whether a master key is configured.
    """
    state = state_of(desired, stored, reading, sealing=sealing)

    def change(action: Action, reason: str, remedy: str | None = None) -> PlannedChange:
        new_key = (reading is None or reading.match is not KeyMatch.EQUAL) and action in WRITES
        return PlannedChange(desired, stored, reading, state, action, reason, remedy, ask_vendor=new_key)

    if not desired.wanted:
        left = "" if stored is None else "; the provider of this name in Letta is left alone"
        return change(Action.NONE, f"no key: {desired.key_source}{left}")
    if desired.problem is not None:
        return change(Action.REFUSE, desired.problem, desired.remedy)
    if abilities.mistakes_long_keys and not sealing and _is_taken_for_sealed(desired):
        return change(
            Action.REFUSE,
            f"without a master key, Letta {abilities.release} takes this key for a sealed one and never uses it",
            "Set LETTA_ENCRYPTION_KEY for Letta and for Isabella, or upgrade Letta to 0.16.7 or later.",
        )
    if state is ProviderState.ABSENT:
        return change(Action.CREATE, "not in Letta yet")

    difference = _difference(desired, stored, reading, state)
    if strategy is Strategy.RECREATE:
        if abilities.recreates:
            return change(Action.RECREATE, f"strategy recreate; {difference}")
        if state is ProviderState.IN_SYNC:
            return change(Action.KEEP, f"{difference}; {no_delete(abilities)}")
    match state:
        case ProviderState.IN_SYNC:
            return change(Action.KEEP, difference)
        case ProviderState.STALE | ProviderState.MOVED | ProviderState.PLAINTEXT | ProviderState.HIDDEN:
            return change(Action.UPDATE, difference)
        case ProviderState.UNREADABLE if strategy is Strategy.IN_PLACE or not abilities.recreates:
            # Unreadable for us need not be unreadable for Letta; if it is, Letta refuses and nothing is lost (P4).
            return change(Action.UPDATE, difference)
        case _ if strategy is Strategy.IN_PLACE:
            return change(
                Action.REFUSE,
                f"{difference}; a type cannot be changed in place",
                f"Allow it to be recreated: isabella providers sync --only {desired.name} --strategy auto",
            )
        case _ if abilities.recreates:
            return change(Action.RECREATE, difference)
        case _:
            return change(
                Action.REFUSE,
                f"{difference}; {no_delete(abilities)}",
                "Upgrade Letta to 0.16.2 or later, then sync again.",
            )


def _is_taken_for_sealed(desired: Desired) -> bool:
    return desired.key is not None and mistaken_for_encrypted(desired.key.get_secret_value())


def no_delete(abilities: Capabilities) -> str:
    """Why nothing is deleted on this release."""
    if not abilities.known:
        return f"Letta {abilities.release} is not a release that was measured, so nothing is deleted there"
    return f"Letta {abilities.release} cannot bring back a provider that was deleted, so nothing is deleted there"


def _difference(
    desired: Desired, stored: StoredProvider | None, reading: KeyReading | None, state: ProviderState
) -> str:
    if state is ProviderState.IN_SYNC:
        return "read back and equal"
    if stored is None:
        return state.value
    difference = _first_difference(desired, stored, reading, state)
    if state is ProviderState.MOVED or stored.base_url == desired.base_url or is_placeholder_url(stored.base_url):
        return difference
    return f"{difference}, and base URL {stored.base_url} instead of {desired.base_url}"


def _first_difference(
    desired: Desired, stored: StoredProvider, reading: KeyReading | None, state: ProviderState
) -> str:
    match state:
        case ProviderState.STALE if is_placeholder_url(stored.base_url):
            return "a move was cut off: what stands in Letta is no key"
        case ProviderState.MOVED if is_placeholder_url(stored.base_url):
            return "a move is not done: some agents may still call the former address"
        case ProviderState.STALE if reading is not None and reading.match is KeyMatch.NOTHING:
            return "Letta holds no key (an upgrade without a master key loses it: fact O4)"
        case ProviderState.STALE:
            return "Letta holds another key"
        case ProviderState.UNREADABLE:
            return "Letta's key is sealed under a master key that is not ours"
        case ProviderState.PLAINTEXT:
            return "the key is right, but in plaintext although a master key is set"
        case ProviderState.MISTYPED:
            return f"type {stored.type} instead of {desired.type}"
        case ProviderState.MOVED:
            return f"base URL {stored.base_url} instead of {desired.base_url}"
        case ProviderState.HIDDEN if reading is not None and reading.sealed:
            return "Letta's key cannot be read back: it is sealed, and no master key is configured"
        case ProviderState.HIDDEN:
            return "Letta's key cannot be read back"
        case _:
            return state.value
