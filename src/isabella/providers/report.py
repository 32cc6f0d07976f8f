"""What a run found and did: frozen data, and its JSON form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from isabella.errors import LettaError, LettaRefused
from isabella.providers.bound_agents import MovedAgent
from isabella.providers.dry_run import refusal
from isabella.providers.plan import Action, PlannedChange, ProviderState
from isabella.vendors.client import KeyVerdict, VendorAnswer
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


_AGENTS_NAMED = 5
#: Of a key that is there in plaintext; of one whose vendor has another address now.
_WHY_EMPTIED = {True: "it was in plaintext", False: "it moves to another address"}


@dataclass(frozen=True)
class ApplyOutcome:
    """What was done about one provider.

    Attributes:
        action: what was really done, which may be more than was planned.
        reason: why, and how it went, for people.
        remedy: what the operator can do now.
        failed: whether it did not go as it should.
        refused_by_vendor: whether that is because the vendor refuses the configured key.
    """

    action: Action
    reason: str
    remedy: str | None = None
    failed: bool = False
    refused_by_vendor: bool = False


@dataclass(frozen=True)
class AgentMoves:
    """What became of the agents of a provider that has moved.

    Attributes:
        moved: those that call the new address now; with trouble, those that may.
        trouble: why some may call the former one still.
    """

    moved: tuple[MovedAgent, ...] = ()
    trouble: LettaError | None = None


def with_agent_moves(outcome: ApplyOutcome, followed: AgentMoves) -> ApplyOutcome:
    """The outcome of a move, with what became of the agents."""
    if followed.trouble is not None:
        return replace(
            outcome,
            reason=f"{outcome.reason}; an agent that was bound meanwhile may not call the new address: "
            f"{followed.trouble.what}",
            remedy="Bind it anew: isabella agents repair",
        )
    if not followed.moved:
        return outcome
    names = [agent.name for agent in followed.moved]
    more = len(names) - _AGENTS_NAMED
    named = ", ".join(names[:_AGENTS_NAMED]) + (f" and {more} more" if more > 0 else "")
    return replace(outcome, reason=f"{outcome.reason}; agents that call the new address now: {named}")


def withheld(change: PlannedChange, trouble: LettaError, *, what: str) -> ApplyOutcome:
    """The configured key was not written, because an agent might carry it to another address."""
    remedy = (trouble.remedy or "Look at Letta's log").rstrip(".")
    if isinstance(trouble, LettaRefused):
        remedy = "Mend that agent, or delete it (`isabella agents list` shows them)"
    return ApplyOutcome(
        change.action,
        f"{change.reason}; {what}: an agent may still call another address than the key is for. {trouble.what}",
        f"{remedy}, then: isabella providers sync --only {change.desired.name}",
        failed=True,
    )


def key_removed(change: PlannedChange, error: LettaError) -> ApplyOutcome:
    """A key that was to be written anew, and only its place was emptied: what stands there now is no key."""
    return ApplyOutcome(
        Action.UPDATE,
        f"{_WHY_EMPTIED[change.state is ProviderState.PLAINTEXT]}, and what stands there now is no key: "
        f"writing the key failed: {error.what}",
        f"Until this is done agents on it are refused: isabella providers sync --only {change.desired.name}",
        failed=True,
    )


def refused_by_vendor(change: PlannedChange, answer: VendorAnswer) -> ApplyOutcome:
    """The vendor does not take the configured key, so nothing was written."""
    reason, remedy = refusal(change, answer)
    return ApplyOutcome(Action.REFUSE, reason, remedy, failed=True, refused_by_vendor=True)


def confirmed(reason: str, answer: VendorAnswer | None) -> str:
    """The reason, with what the vendor said of the key where that was not simply yes."""
    match answer:
        case None | VendorAnswer(verdict=KeyVerdict.ACCEPTED):
            return reason
        case VendorAnswer(verdict=KeyVerdict.OUT_OF_FUNDS):
            return f"{reason}; the vendor knows the key, but its account is out of funds"
        case VendorAnswer(verdict=KeyVerdict.RATE_LIMITED):
            return f"{reason}; the vendor knows the key, but is asked too often"
        case _:
            return f"{reason}; not confirmed by the vendor ({answer.said})"
