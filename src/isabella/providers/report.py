"""The result of a run: frozen data and its JSON form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from isabella.errors import LettaError, LettaRefused
from isabella.providers.bound_agents import AgentMoves
from isabella.providers.plan import Action, PlannedChange, ProviderState, describe_refusal
from isabella.system.english import clause, english, joined
from isabella.vendors.client import KeyVerdict, VendorAnswer, VendorObservation


class Proof(StrEnum):
    """Whether the stored key was read back and equals the configured one."""

    PROVEN = "proven"
    #: Written, but the server does not let it be read back.
    UNPROVEN = "unproven"
    #: Read back and different, or the sync failed.
    FAILED = "failed"
    NOT_ASKED = "not_asked"


class Receipt(StrEnum):
    """The result of a real completion through Letta."""

    ACCEPTED = "accepted"
    #: The vendor refused the key.
    REFUSED = "refused"
    #: It failed for another reason.
    FAILED = "failed"


#: The fields of a provider that `--json` and the HTTP API show, in order.
_SHOWN = (
    *(
        "name",
        "vendor",
        "type",
        "base_url",
        "stored_base_url",
        "upstream",
        "key",
        "key_source",
        "stored",
        "action",
        "proof",
        "condition",
        "since",
    ),
    *("vendor_status", "models", "reason", "remedy", "notes"),
)


class GatewayState(StrEnum):
    """Whether the gateway runs."""

    RUNS = "runs"
    #: Agents get no answer.
    DOWN = "down"
    #: It cannot be reached from this machine, which says nothing about Letta's.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class GatewayStatus:
    """The gateway between Letta and the vendors.

    Attributes:
        address: its URL as Letta reaches it.
        reason: why it does not run, or why that is not known.
    """

    address: str
    state: GatewayState
    reason: str | None = None
    remedy: str | None = None

    @property
    def sentence(self) -> str:
        """The status for people, with the remedy."""
        match self.state:
            case GatewayState.RUNS:
                return english("The gateway runs at %(address)s.", address=self.address)
            case GatewayState.DOWN:
                return english(
                    "The gateway at %(address)s is not running, so agents get no answer: %(why)s",
                    address=self.address,
                    why=self.details,
                )
            case GatewayState.UNKNOWN:
                return english(
                    "It is not known whether the gateway at %(address)s is running: %(why)s",
                    address=self.address,
                    why=self.details,
                )

    @property
    def details(self) -> str:
        """The reason and the remedy, as the end of a sentence and another one."""
        return joined([english("%(text)s.", text=clause(part)) for part in (self.reason, self.remedy) if part])

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--json` and the HTTP API show."""
        return {"address": self.address, "state": self.state.value, "reason": self.reason, "remedy": self.remedy}


@dataclass(frozen=True)
class ProviderReport:
    """One provider in a report."""

    name: str
    vendor: str  #: the vendor's name; for a provider that is not declared, its type
    type: str
    base_url: str | None
    key: str | None  #: the configured key, masked; None if there is none
    key_source: str | None  #: variable and origin of that key
    stored: ProviderState  #: its state before the run changed anything
    action: Action
    proof: Proof  #: whether the stored key is the configured one now
    reason: str
    models: int = 0  #: how many models Letta lists for it
    remedy: str | None = None
    notes: tuple[str, ...] = ()
    receipt: Receipt | None = None  #: the result of a completion through Letta; None if none was requested
    in_letta: bool = True  #: whether Letta has a provider of this name now
    stored_base_url: str | None = None  #: the base URL in Letta now; None if there is none
    #: whether the configuration has a key for it; otherwise it is left unchanged and not proven
    configured: bool = True
    refused_by_vendor: bool = False  #: whether the vendor refuses the configured key, so that the stored one stays
    #: a hash of the configured and the stored values, if it is not proven; holds no key
    basis: str | None = field(default=None, repr=False)
    vendor_status: VendorObservation | None = None
    condition: str | None = None  #: its health in one word; None if no health is kept
    since: datetime | None = None
    upstream: str | None = None  #: the vendor's own base URL, if `base_url` is that of the gateway

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--json` and the HTTP API show."""
        document: dict[str, Any] = {name: getattr(self, name) for name in _SHOWN}
        document["since"] = None if self.since is None else self.since.isoformat(timespec="seconds")
        document["vendor_status"] = None if self.vendor_status is None else self.vendor_status.as_json()
        document["notes"] = list(self.notes)
        if self.receipt is not None:
            document["receipt"] = self.receipt
        return {name: value.value if isinstance(value, StrEnum) else value for name, value in document.items()}


@dataclass(frozen=True)
class Report:
    """The result of a run."""

    base_url: str
    version: str
    providers: Sequence[ProviderReport]  #: one entry for each provider, declared ones first
    notices: tuple[str, ...] = field(default=())  #: remarks about the configuration as a whole
    gateway: GatewayStatus | None = None  #: None if Letta calls the vendors directly

    @property
    def configured(self) -> list[ProviderReport]:
        """The providers that the configuration has a key for."""
        return [provider for provider in self.providers if provider.configured]

    @property
    def all_proven(self) -> bool:
        """Whether every configured provider is proven."""
        return all(provider.proof is Proof.PROVEN for provider in self.configured)

    @property
    def all_accepted(self) -> bool:
        """Whether every configured provider has answered an agent."""
        return all(provider.receipt is Receipt.ACCEPTED for provider in self.configured)

    @property
    def in_sync(self) -> bool:
        """Whether Letta matched the configuration before anything was done."""
        return all(provider.stored is ProviderState.IN_SYNC for provider in self.configured)

    @property
    def pending(self) -> bool:
        """Whether Isabella or the operator has something to do."""
        return any(provider.action not in (Action.KEEP, Action.NONE) for provider in self.configured)

    def merged_with(self, part: Report) -> Report:
        """Return this report with the entries of a later one, about some of the providers, in place of its own."""
        later = {provider.name: provider for provider in part.providers}
        entries = [later.pop(provider.name, provider) for provider in self.providers]
        # New entries go before those of providers that are not declared.
        declared = [provider for provider in entries if provider.key_source is not None]
        foreign = [provider for provider in entries if provider.key_source is None]
        return replace(part, providers=[*declared, *later.values(), *foreign])

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--json` and the HTTP API show."""
        return {
            "letta": {"base_url": self.base_url, "version": self.version},
            "gateway": None if self.gateway is None else self.gateway.as_json(),
            "providers": [provider.as_json() for provider in self.providers],
            "notices": list(self.notices),
        }


_MAX_NAMES = 5


@dataclass(frozen=True)
class ApplyOutcome:
    """The outcome for one provider."""

    action: Action  #: what was done in the end, which may be more than was planned
    reason: str
    remedy: str | None = None
    failed: bool = False
    refused_by_vendor: bool = False  #: whether it failed because the vendor refuses the configured key


def join_some(items: Sequence[str], most: int) -> str:
    """Join the first items, and say how many more there are."""
    more = len(items) - most
    first = ", ".join(items[:most])
    return english("%(names)s and %(count)s more", names=first, count=more) if more > 0 else first


def with_agent_moves(outcome: ApplyOutcome, moves: AgentMoves) -> ApplyOutcome:
    """Return the outcome of a move, with the agents that were moved."""
    if moves.error is not None:
        return replace(
            outcome,
            reason=english(
                "%(reason)s; an agent that was bound meanwhile may have the wrong base URL: %(what)s",
                reason=outcome.reason,
                what=moves.error.what,
            ),
            remedy=english("Bind it again: isabella agents repair"),
        )
    if not moves.moved:
        return outcome
    listed = join_some([agent.name for agent in moves.moved], _MAX_NAMES)
    return replace(
        outcome,
        reason=english(
            "%(reason)s; agents moved to the new base URL: %(listed)s", reason=outcome.reason, listed=listed
        ),
    )


def key_withheld(change: PlannedChange, error: LettaError, *, consequence: str) -> ApplyOutcome:
    """Return the outcome of a key that was not written, because an agent might send it to another base URL."""
    remedy = error.remedy or english("Look at Letta's log.")
    if isinstance(error, LettaRefused):
        remedy = english("Repair or delete that agent (`isabella agents list` shows it).")
    return ApplyOutcome(
        change.action,
        english(
            "%(reason)s; %(consequence)s: an agent may still have a base URL that the key is not for. %(what)s",
            reason=change.reason,
            consequence=consequence,
            what=error.what,
        ),
        joined([remedy, english("Then run: isabella providers sync --only %(name)s", name=change.desired.name)]),
        failed=True,
    )


def key_removed(change: PlannedChange, error: LettaError) -> ApplyOutcome:
    """Return the outcome of a key that was replaced by a placeholder, and could not be written after that."""
    why = (
        english("it was in plaintext") if change.state is ProviderState.PLAINTEXT else english("its base URL changes")
    )
    return ApplyOutcome(
        Action.UPDATE,
        english(
            "%(why)s, and Letta now holds a placeholder, not a key: writing the key failed: %(what)s",
            why=why,
            what=error.what,
        ),
        english(
            "The vendor refuses its agents' requests until this succeeds: isabella providers sync --only %(name)s",
            name=change.desired.name,
        ),
        failed=True,
    )


def refused_by_vendor(change: PlannedChange, answer: VendorAnswer) -> ApplyOutcome:
    """Return the outcome of a key that was not written because the vendor refuses it."""
    reason, remedy = describe_refusal(change, answer)
    return ApplyOutcome(Action.REFUSE, reason, remedy, failed=True, refused_by_vendor=True)


def with_vendor_answer(reason: str, answer: VendorAnswer | None) -> str:
    """Return the reason, with the vendor's answer about the key unless that is a plain yes."""
    match answer:
        case None | VendorAnswer(verdict=KeyVerdict.ACCEPTED):
            return reason
        case VendorAnswer(verdict=KeyVerdict.OUT_OF_FUNDS):
            return english("%(reason)s; the vendor knows the key, but its account is out of funds", reason=reason)
        case VendorAnswer(verdict=KeyVerdict.RATE_LIMITED):
            return english("%(reason)s; the vendor knows the key, but limits its rate of requests", reason=reason)
        case _:
            return english("%(reason)s; not confirmed by the vendor (%(said)s)", reason=reason, said=answer.said)
