"""The plan: what to change for each provider, as pure data, so that every combination can be tested without I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from isabella.config.choices import Strategy
from isabella.letta.encryption import KeyMatch, KeyReading, mistaken_for_encrypted
from isabella.letta.releases import Capabilities
from isabella.letta.store import StoredProvider
from isabella.providers.desired import Desired
from isabella.system.english import english, joined
from isabella.system.urls import is_placeholder_url
from isabella.vendors.client import VendorAnswer, VendorObservation


class ProviderState(StrEnum):
    """The stored provider, compared with the desired one."""

    IN_SYNC = "in_sync"
    #: A key other than the configured one, or none.
    STALE = "stale"
    ABSENT = "absent"
    #: The key is encrypted under another master key.
    UNREADABLE = "unreadable"
    #: The right key, in plaintext although a master key is configured.
    PLAINTEXT = "plaintext"
    #: Another provider type.
    MISTYPED = "mistyped"
    #: The right key, another base URL.
    MOVED = "moved"
    #: Not declared in the configuration.
    FOREIGN = "foreign"
    #: The key cannot be read: the server does not show it, or no master key is configured.
    HIDDEN = "hidden"


class Action(StrEnum):
    """The action on a difference."""

    KEEP = "keep"
    UPDATE = "update"
    RECREATE = "recreate"
    CREATE = "create"
    REFUSE = "refuse"
    #: The provider is not configured, so it is left unchanged.
    NONE = "none"


#: The actions that write to Letta, and what they have done in words.
DONE = {Action.CREATE: "created", Action.UPDATE: "updated in place", Action.RECREATE: "recreated"}
WRITE_ACTIONS = frozenset(DONE)


@dataclass(frozen=True)
class PlannedChange:
    """The planned change of one provider, with its reason."""

    desired: Desired
    stored: StoredProvider | None  #: the record in Letta; None if there is none
    reading: KeyReading | None  #: the result of reading its key back
    state: ProviderState
    action: Action
    reason: str
    remedy: str | None = None  #: what the operator must do, if Isabella can do nothing
    ask_vendor: bool = False  #: whether to ask the vendor about the key first, because Letta does not hold it yet
    refused_by_vendor: bool = False  #: whether the vendor was asked and refuses the key
    vendor_status: VendorObservation | None = None

    @property
    def moves(self) -> bool:
        """Whether the provider exists, and its base URL changes."""
        return self.stored is not None and self.stored.base_url != self.desired.base_url

    @property
    def keeps_key(self) -> bool:
        """Whether the stored key is the configured one."""
        return self.reading is not None and self.reading.match is KeyMatch.EQUAL


def state_of(
    desired: Desired, stored: StoredProvider | None, reading: KeyReading | None, *, sealing: bool
) -> ProviderState:
    """Compare a stored provider with the desired one. Of several differences the hardest to fix counts.

    `sealing` is whether a master key is configured, so that keys must be encrypted.
    """
    if stored is None:
        return ProviderState.ABSENT
    if reading is None:
        return ProviderState.FOREIGN if not desired.configured else ProviderState.STALE
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
    """Decide what to do about one provider. The arguments are those of `state_of`, and the operator's choice."""
    state = state_of(desired, stored, reading, sealing=sealing)

    def change(action: Action, reason: str, remedy: str | None = None) -> PlannedChange:
        new_key = (reading is None or reading.match is not KeyMatch.EQUAL) and action in WRITE_ACTIONS
        return PlannedChange(desired, stored, reading, state, action, reason, remedy, ask_vendor=new_key)

    if not desired.configured:
        text = english("no key: %(source)s", source=desired.key_source)
        if stored is not None:
            text = english("%(reason)s; the provider of this name in Letta is left unchanged", reason=text)
        return change(Action.NONE, text)
    if desired.problem is not None:
        return change(Action.REFUSE, desired.problem, desired.remedy)
    key = "" if desired.key is None else desired.key.get_secret_value()
    if abilities.mistakes_long_keys and not sealing and mistaken_for_encrypted(key):
        return change(
            Action.REFUSE,
            english(
                "without a master key, Letta %(release)s mistakes this key for an encrypted one and ignores it",
                release=abilities.release,
            ),
            english("Set LETTA_ENCRYPTION_KEY for Letta and for Isabella, or upgrade Letta to 0.16.7 or later."),
        )
    if state is ProviderState.ABSENT:
        return change(Action.CREATE, english("not in Letta yet"))

    difference = _difference(desired, stored, reading, state)
    if strategy is Strategy.RECREATE:
        if abilities.recreates:
            return change(Action.RECREATE, english("strategy recreate; %(difference)s", difference=difference))
        if state is ProviderState.IN_SYNC:
            return change(Action.KEEP, joined([difference, explain_no_delete(abilities)], "; "))
    match state:
        case ProviderState.IN_SYNC:
            return change(Action.KEEP, difference)
        case ProviderState.STALE | ProviderState.MOVED | ProviderState.PLAINTEXT | ProviderState.HIDDEN:
            return change(Action.UPDATE, difference)
        case ProviderState.UNREADABLE if strategy is Strategy.IN_PLACE or not abilities.recreates:
            # Letta may be able to read what Isabella cannot. If not, it refuses, and nothing is lost (fact P4).
            return change(Action.UPDATE, difference)
        case _ if strategy is Strategy.IN_PLACE:
            return change(
                Action.REFUSE,
                english("%(difference)s; a type cannot be changed in place", difference=difference),
                english(
                    "Allow it to be recreated: isabella providers sync --only %(name)s --strategy auto",
                    name=desired.name,
                ),
            )
        case _ if abilities.recreates:
            return change(Action.RECREATE, difference)
        case _:
            return change(
                Action.REFUSE,
                joined([difference, explain_no_delete(abilities)], "; "),
                english("Upgrade Letta to 0.16.2 or later, then sync again."),
            )


def explain_no_delete(abilities: Capabilities) -> str:
    """Explain why nothing is deleted on this release."""
    if not abilities.known:
        return english(
            "Letta %(release)s is not a supported release, so nothing is deleted there", release=abilities.release
        )
    return english(
        "Letta %(release)s cannot recreate a deleted provider, so nothing is deleted there", release=abilities.release
    )


_DIFFERENCES = {
    ProviderState.IN_SYNC: english("read back and equal"),
    ProviderState.STALE: english("Letta holds another key"),
    ProviderState.UNREADABLE: english("Letta's key is encrypted under another master key"),
    ProviderState.PLAINTEXT: english("the key is right, but in plaintext although a master key is set"),
    ProviderState.HIDDEN: english("Letta's key cannot be read back"),
}


def _difference(
    desired: Desired, stored: StoredProvider | None, reading: KeyReading | None, state: ProviderState
) -> str:
    text = _DIFFERENCES.get(state, state.value)
    if stored is None or state is ProviderState.IN_SYNC:
        return text
    unfinished, base_url = (
        is_placeholder_url(stored.base_url),
        english(
            "base URL %(base_url)s instead of %(base_url2)s", base_url=stored.base_url, base_url2=desired.base_url
        ),
    )
    match state:
        case ProviderState.STALE if unfinished:
            text = english("a move was interrupted: Letta holds a placeholder, not a key")
        case ProviderState.STALE if reading is not None and reading.match is KeyMatch.NOTHING:
            text = english("Letta holds no key (an upgrade without a master key loses it, fact O4)")
        case ProviderState.HIDDEN if reading is not None and reading.sealed:
            text = english("Letta's key cannot be read back: it is encrypted, and no master key is configured")
        case ProviderState.MISTYPED:
            text = english("type %(type)s instead of %(type2)s", type=stored.type, type2=desired.type)
        case ProviderState.MOVED if unfinished:
            text = english("a move is unfinished: some agents may still use the former base URL")
        case ProviderState.MOVED:
            return base_url
    return (
        text
        if unfinished or stored.base_url == desired.base_url
        else english("%(text)s, and %(base_url)s", text=text, base_url=base_url)
    )


def describe_refusal(change: PlannedChange, answer: VendorAnswer) -> tuple[str, str]:
    """Return why a key that the vendor refuses is not written, and what the operator can do."""
    kept = english("nothing is registered") if change.stored is None else english("the stored key stays")
    if change.stored is not None and is_placeholder_url(change.stored.base_url) and not change.keeps_key:
        kept = english("Letta holds a placeholder, not a key, because a move was interrupted")
    return (
        english(
            "%(title)s refuses the configured key (%(status)s: %(said)s); %(kept)s",
            title=change.desired.vendor.title,
            status=answer.status,
            said=answer.said,
            kept=kept,
        ),
        english(
            "%(key_source)s holds a refused key: replace it by a valid one. A new key may take a "
            "while to work everywhere: `isabella up` and `isabella providers sync --watch` try it "
            "again.",
            key_source=change.desired.key_source,
        ),
    )


def predict_change(change: PlannedChange, new: VendorAnswer, old: VendorAnswer | None) -> PlannedChange:
    """Return the change as a sync would carry it out after asking the vendor about the `new` and the `old` key.

    A sync writes a key that the vendor accepts at once, in place, whether or not the old one still works. It does not
    write a key that the vendor refuses: the key may be so new that not every machine of the vendor knows it, and as
    long as the old one works, agents keep working.
    """
    change = replace(change, vendor_status=new.vendor_status)
    if new.takes_key is False:
        reason, remedy = describe_refusal(change, new)
        if old is not None and old.takes_key is not None:
            reason = (
                english("%(reason)s, and the vendor accepts it", reason=reason)
                if old.takes_key
                else english("%(reason)s, but the vendor refuses it too", reason=reason)
            )
        return replace(change, action=Action.REFUSE, reason=reason, remedy=remedy, refused_by_vendor=True)
    if new.takes_key is None:
        text = english(
            "%(reason)s; the vendor does not confirm the configured key (%(said)s)",
            reason=change.reason,
            said=new.said,
        )
    elif old is None or old.takes_key is None:
        text = english("%(reason)s; the vendor accepts the configured key", reason=change.reason)
    elif old.takes_key:
        text = english("%(reason)s; the vendor accepts both keys", reason=change.reason)
        if change.action is not Action.RECREATE:
            text = english("%(reason)s: no gap", reason=text)
    else:
        text = english(
            "%(reason)s, which the vendor already refuses; it accepts the configured one", reason=change.reason
        )
    return replace(change, reason=text)
