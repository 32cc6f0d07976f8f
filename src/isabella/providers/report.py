"""What a run found and did: frozen data, and its JSON form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from isabella.providers.plan import Action, ProviderState
from isabella.vendors.status import VendorObservation


class Proof(StrEnum):
    """Whether the stored key was read back and equals the desired one."""

    PROVEN = "proven"
    #: Written, but the server does not let it be read back.
    UNPROVEN = "unproven"
    #: Read back, and not as desired; or it could not be brought in line.
    FAILED = "failed"
    NOT_ASKED = "not_asked"


class Receipt(StrEnum):
    """What became of a real completion through Letta."""

    ACCEPTED = "accepted"
    #: The vendor refused the key.
    REFUSED = "refused"
    #: It failed for another reason.
    FAILED = "failed"


@dataclass(frozen=True)
class ProviderReport:
    """One provider in a report.

    Attributes:
        name: its name in Letta.
        vendor: whose it is; for one that nobody declared, its type.
        type: its provider type.
        base_url: where its vendor answers.
        key: the configured key, masked; None where there is none.
        key_source: variable and origin of that key.
        stored: what Letta holds, compared with what is desired: as found, before anything was done about it.
        action: what was done, or would be.
        proof: whether the stored key is the configured one now.
        models: how many models Letta lists for it.
        reason: why, for people.
        remedy: what the operator can do.
        notes: what else is worth saying.
        receipt: what a completion through Letta has shown; None where none was asked for.
        in_letta: whether Letta has a provider of this name now.
        stored_base_url: the address that Letta has for it now; None where it has none.
        ours: whether the configuration wants it; one that it does not want is left alone and proves nothing.
        refused_by_vendor: whether the vendor refuses the configured key, so that the stored one stays.
        basis: stands for what was asked for and what Letta holds now, where it is not proven; holds no key.
        vendor_status: what the vendor did when it was asked last; None where that is not known.
        condition: how it stands, in one word; None where nobody keeps count.
        since: since when it stands so.
    """

    name: str
    vendor: str
    type: str
    base_url: str | None
    key: str | None
    key_source: str | None
    stored: ProviderState
    action: Action
    proof: Proof
    reason: str
    models: int = 0
    remedy: str | None = None
    notes: tuple[str, ...] = ()
    receipt: Receipt | None = None
    in_letta: bool = True
    stored_base_url: str | None = None
    ours: bool = True
    refused_by_vendor: bool = False
    basis: str | None = field(default=None, repr=False)
    vendor_status: VendorObservation | None = None
    condition: str | None = None
    since: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        """The form that `--json` and the HTTP API show."""
        document: dict[str, Any] = {
            "name": self.name,
            "vendor": self.vendor,
            "type": self.type,
            "base_url": self.base_url,
            "key": self.key,
            "key_source": self.key_source,
            "stored": self.stored.value,
            "action": self.action.value,
            "proof": self.proof.value,
            "condition": self.condition,
            "since": None if self.since is None else self.since.isoformat(timespec="seconds"),
            "vendor_status": None if self.vendor_status is None else self.vendor_status.as_json(),
            "models": self.models,
            "reason": self.reason,
            "remedy": self.remedy,
            "notes": list(self.notes),
        }
        if self.receipt is not None:
            document["receipt"] = self.receipt.value
        return document


@dataclass(frozen=True)
class Report:
    """What a run found and did.

    Attributes:
        base_url: the Letta it spoke to.
        version: that Letta's release.
        providers: one entry for each provider, declared ones first.
        notices: what is worth saying about the configuration as a whole.
    """

    base_url: str
    version: str
    providers: Sequence[ProviderReport]
    notices: tuple[str, ...] = field(default=())

    @property
    def ours(self) -> list[ProviderReport]:
        """Those that the configuration wants."""
        return [provider for provider in self.providers if provider.ours]

    @property
    def all_proven(self) -> bool:
        """Whether every provider that the configuration wants is proven."""
        return all(provider.proof is Proof.PROVEN for provider in self.ours)

    @property
    def all_accepted(self) -> bool:
        """Whether every provider that the configuration wants has answered an agent."""
        return all(provider.receipt is Receipt.ACCEPTED for provider in self.ours)

    @property
    def in_sync(self) -> bool:
        """Whether Letta held exactly what is desired before anything was done."""
        return all(provider.stored is ProviderState.IN_SYNC for provider in self.ours)

    @property
    def pending(self) -> bool:
        """Whether anything is to be done, by us or by the operator."""
        return any(provider.action not in (Action.KEEP, Action.NONE) for provider in self.ours)

    def merged_with(self, part: Report) -> Report:
        """This report, with what a later one about some of the providers has found."""
        later = {provider.name: provider for provider in part.providers}
        entries = [later.pop(provider.name, provider) for provider in self.providers]
        # New ones go before those that nobody declared.
        own = [provider for provider in entries if provider.key_source is not None]
        foreign = [provider for provider in entries if provider.key_source is None]
        return replace(part, providers=[*own, *later.values(), *foreign])

    def as_json(self) -> dict[str, Any]:
        """The form that `--json` and the HTTP API show."""
        return {
            "letta": {"base_url": self.base_url, "version": self.version},
            "providers": [provider.as_json() for provider in self.providers],
            "notices": list(self.notices),
        }
