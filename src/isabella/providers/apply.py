"""Carry out the plan: the only place that writes providers.

A write is never repeated blindly: if its answer is lost, the store is read first, because the write may have
happened. Between DELETE and POST nothing may interrupt (fact P7): neither a cancelled task nor a restart of Letta.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import anyio
from pydantic import SecretStr

from isabella.config.choices import Strategy
from isabella.errors import IsabellaError, LettaError, LettaRefused
from isabella.letta.encryption import ProofMemo
from isabella.letta.releases import Capabilities
from isabella.letta.store import Store
from isabella.locks.provider_lock import CloseProvider, unguarded
from isabella.providers.bound_agents import AgentMover, AgentMoves, BoundAgents, MovedAgent
from isabella.providers.plan import Action, PlannedChange, ProviderState, explain_no_delete
from isabella.providers.report import (
    ApplyOutcome,
    key_removed,
    key_withheld,
    refused_by_vendor,
    with_agent_moves,
    with_vendor_answer,
)
from isabella.providers.safe_writes import EncryptionProbe, EncryptionState, SafeWriter
from isabella.system import audit
from isabella.system.english import english
from isabella.system.tasks import gather
from isabella.system.urls import PLACEHOLDER_URL
from isabella.vendors.client import VendorAnswer, VendorObservation

#: Asks the vendor at a base URL about a key.
Ask = Callable[[str, SecretStr], Awaitable[VendorAnswer]]

_CONCURRENCY = 8
#: Prefix of a placeholder key.
_NO_KEY = "no-key-yet"
#: Letta's status for an update of a key that it cannot decrypt, and so cannot compare (fact P4). Only this status
#: justifies a DELETE; a lock or an overload does not.
_CANNOT_DECRYPT = 400
_OTHER_SECRETS = english(
    "Letta's master key was changed. Letta cannot decrypt anything else that it encrypted "
    "under the former one (agents' environment variables, tokens of MCP servers): enter "
    "those again, or run Letta with the former key."
)

_RECORDED = {Action.CREATE: "created", Action.UPDATE: "updated", Action.RECREATE: "recreated"}

Lock = Callable[[], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Options:
    """The options of a run."""

    strategy: Strategy = Strategy.AUTO
    master_key: SecretStr | None = field(default=None, repr=False)  #: encrypts stored keys, if there is one
    ask: Ask | None = None  #: asks a vendor about a new key; None asks no vendor
    memo: ProofMemo | None = None  #: what earlier runs have proven
    lock: Lock = nullcontext  #: held while anything is written
    patience: float = 30.0  #: seconds to keep trying to recreate a deleted provider
    foreign: bool = True  #: whether providers that are not declared are listed too
    count_models: bool = False  #: whether Letta is asked how many models each provider has
    closed: CloseProvider = unguarded  #: keeps turns off a provider while it is changed with a gap
    held_everywhere: bool = True  #: whether that includes turns of other processes
    bound_agents: BoundAgents | None = None  #: the agents to move when a provider moves; None without any


class Applier:
    """Carries out changes on one store."""

    def __init__(self, store: Store, abilities: Capabilities, options: Options) -> None:
        self._store = store
        self._abilities = abilities
        self._strategy = options.strategy
        self._ask = options.ask
        self._closed = options.closed
        self._writer = SafeWriter(store, abilities, master_key=options.master_key, patience=options.patience)
        self._mover = AgentMover(options.bound_agents, self._writer)
        self._encryption = EncryptionProbe(store, self._writer)
        #: The vendors' answers in this run, by provider.
        self.vendor_status: dict[str, VendorObservation] = {}

    async def apply(self, changes: Sequence[PlannedChange]) -> dict[str, ApplyOutcome]:
        """Carry out the changes concurrently and return the outcomes by name. A failure does not stop the others."""
        outcomes = await gather([partial(self._apply, change) for change in changes], at_once=_CONCURRENCY)
        return {change.desired.name: outcome for change, outcome in zip(changes, outcomes, strict=True)}

    async def _apply(self, change: PlannedChange) -> ApplyOutcome:
        desired = change.desired
        about: dict[str, Any] = {"key": desired.masked_key, "key_source": desired.key_source, "reason": change.reason}
        with audit.change(f"provider.{_RECORDED.get(change.action, 'changed')}", desired.name, **about) as recorded:
            outcome = await self._carry_out(change)
            recorded.error = outcome.reason if outcome.failed else ""
        return outcome

    async def _carry_out(self, change: PlannedChange) -> ApplyOutcome:
        try:
            match change.action:
                case Action.CREATE:
                    return await self._create(change)
                case Action.UPDATE if change.state is ProviderState.PLAINTEXT:
                    return await self._encrypt(change)
                case Action.UPDATE:
                    return await self._update(change)
                case Action.RECREATE if change.state is ProviderState.UNREADABLE and self._strategy is Strategy.AUTO:
                    # Letta may be able to decrypt what Isabella cannot; then an update works, without a gap.
                    return await self._update(change)
                case Action.RECREATE:
                    return await self._recreate(change, change.reason)
                case _:
                    return ApplyOutcome(change.action, change.reason, change.remedy)
        except IsabellaError as error:
            # An error of Letta, of the gate, or of the database for locks concerns this provider only.
            return ApplyOutcome(
                change.action,
                english("%(reason)s; %(what)s", reason=change.reason, what=error.what),
                error.remedy,
                failed=True,
            )

    async def _create(self, change: PlannedChange) -> ApplyOutcome:
        """POST. Before, agents that are already bound to the name get the right base URL (fact M6)."""
        name, base_url = change.desired.name, change.desired.base_url
        try:
            elsewhere = await self._mover.any_elsewhere(name, base_url)
        except LettaError as error:
            return key_withheld(change, error, consequence=english("not created"))
        answer = await self._inquire(change)
        if answer is not None and answer.takes_key is False:
            return refused_by_vendor(change, answer)
        change = replace(change, reason=with_vendor_answer(change.reason, answer))
        if not elsewhere:
            return await self._make(change)
        async with self._closed(name):
            with anyio.CancelScope(shield=True):
                moves = await self._mover.move(name, base_url)
                if moves.error is not None:
                    return key_withheld(change, moves.error, consequence=english("not created"))
                outcome = await self._make(change)
                if not outcome.failed:
                    moves = await self._mover.move(name, base_url)
        return with_agent_moves(outcome, moves)

    async def _make(self, change: PlannedChange) -> ApplyOutcome:
        try:
            await self._post(change)
        except LettaRefused as error:
            return self._explain_refusal(change, error)
        except LettaError as error:
            return ApplyOutcome(
                Action.CREATE,
                english("%(reason)s; %(what)s", reason=change.reason, what=error.what),
                error.remedy,
                failed=True,
            )
        return ApplyOutcome(Action.CREATE, change.reason)

    async def _update(self, change: PlannedChange) -> ApplyOutcome:
        answer = await self._inquire(change)
        if answer is not None and answer.takes_key is False:
            return refused_by_vendor(change, answer)
        reason = with_vendor_answer(change.reason, answer)
        try:
            if change.moves or change.state is ProviderState.PLAINTEXT:
                return await self._update_in_steps(change, reason)
            await self._patch(change, _key(change), base_url=change.desired.base_url)
        except LettaRefused as error:
            if error.status == 404:
                return await self._create(replace(change, reason=english("it was deleted meanwhile")))
            # Letta may mistake a long key in plaintext for an encrypted one that it cannot decrypt (facts P4, O7).
            if error.status != _CANNOT_DECRYPT:
                raise
            return await self._recreate_instead(change, error, answer)
        return ApplyOutcome(Action.UPDATE, reason)

    async def _update_in_steps(self, change: PlannedChange, reason: str) -> ApplyOutcome:
        """Update with a harmless value first, and then with key and base URL.

        A key that has to be encrypted takes two steps because Letta does not write a key that it already has (fact
        P5). A move takes two because Letta sends the key to the base URLs of the agents (fact M6), which change one
        by one. A call in between is refused by the vendor; after a DELETE it would carry a key of Letta's own
        environment (fact P7). If this is interrupted, the next sync finds the placeholder.
        """
        async with self._closed(change.desired.name):
            with anyio.CancelScope(shield=True):
                await self._put_placeholder(change)
                moves = await self._move_agents(change)
                if moves.error is not None and not change.keeps_key:
                    return key_withheld(
                        change, moves.error, consequence=english("Letta now holds a placeholder, not a key")
                    )
                base_url = change.desired.base_url if moves.error is None else PLACEHOLDER_URL
                try:
                    await self._writer.patiently(lambda: self._patch(change, _key(change), base_url=base_url))
                except LettaError as error:
                    if isinstance(error, LettaRefused) and error.status in (404, _CANNOT_DECRYPT):
                        raise
                    return key_removed(change, error)
                if moves.error is not None:
                    return key_withheld(change, moves.error, consequence=english("it has not moved yet"))
                moves = await self._move_agents(change)
        return with_agent_moves(ApplyOutcome(Action.UPDATE, reason), moves)

    async def _put_placeholder(self, change: PlannedChange) -> None:
        """Store a key in Letta that may also be sent to the former base URL: the key itself if it stays the same."""
        if change.stored is None:
            raise AssertionError("a placeholder needs a record")
        harmless = change.keeps_key and change.state is not ProviderState.PLAINTEXT
        key = _key(change) if harmless else SecretStr(f"{_NO_KEY}-{secrets.token_hex(8)}")
        await self._patch(change, key, base_url=PLACEHOLDER_URL if change.moves else change.stored.base_url)

    async def _recreate_instead(
        self, change: PlannedChange, error: LettaRefused, answer: VendorAnswer | None
    ) -> ApplyOutcome:
        """Recreate a provider that Letta does not update because it cannot decrypt the stored key."""
        refused = english(
            "%(reason)s; Letta refuses to update it: %(detail)s", reason=change.reason, detail=error.detail
        )
        if self._strategy is Strategy.IN_PLACE:
            remedy = english(
                "Allow it to be recreated: isabella providers sync --only %(name)s --strategy auto",
                name=change.desired.name,
            )
            return ApplyOutcome(Action.REFUSE, refused, remedy, failed=True)
        if not self._abilities.recreates:
            return ApplyOutcome(
                Action.REFUSE,
                english(
                    "%(refused)s; %(explain_no_delete)s",
                    refused=refused,
                    explain_no_delete=explain_no_delete(self._abilities),
                ),
                english(
                    "Run Letta under the master key that encrypted this key, or upgrade it to a supported "
                    "release from 0.16.2 on, then sync again."
                ),
                failed=True,
            )
        outcome = await self._recreate(replace(change, ask_vendor=False), with_vendor_answer(change.reason, answer))
        if change.state is not ProviderState.UNREADABLE or outcome.failed:
            return outcome
        # Only Letta could decrypt its other secrets, and its REST API does not say whether it can.
        return replace(
            outcome,
            reason=english("%(reason)s, and Letta cannot decrypt it either", reason=outcome.reason),
            remedy=_OTHER_SECRETS,
        )

    async def _encrypt(self, change: PlannedChange) -> ApplyOutcome:
        """Encrypt a plaintext key, if Letta encrypts under this master key at all."""
        deletes = self._abilities.recreates and self._strategy is not Strategy.IN_PLACE
        # The probe is a provider that has to be deleted again.
        if deletes and (state := await self._encryption.state()) is not EncryptionState.OURS:
            how = (
                english("without a master key")
                if state is EncryptionState.NOT_AT_ALL
                else english("under another master key")
            )
            return ApplyOutcome(
                Action.KEEP,
                english("the key is right, but in plaintext: Letta runs %(how)s", how=how),
                english("Start Letta with the same LETTA_ENCRYPTION_KEY as Isabella, then sync again."),
                failed=True,
            )
        return await self._update(change)

    async def _recreate(self, change: PlannedChange, reason: str) -> ApplyOutcome:
        answer = await self._inquire(change)
        if answer is not None and answer.takes_key is False:
            return refused_by_vendor(change, answer)
        if change.stored is None:
            return await self._create(replace(change, reason=reason, ask_vendor=False))
        async with self._closed(change.desired.name):
            with anyio.CancelScope(shield=True):
                moves = await self._move_agents_first(change)
                if moves.error is not None:
                    kept = (
                        english("it has not moved yet")
                        if change.keeps_key
                        else english("Letta now holds a placeholder, not a key")
                    )
                    return key_withheld(change, moves.error, consequence=kept)
                await self._writer.delete_surely(change.stored.id, change.desired.name)
                try:
                    await self._writer.patiently(lambda: self._post(change))
                except LettaError as error:
                    return await self._put_back(change, reason, error, moves.moved)
                moves = await self._move_agents(change)
        return with_agent_moves(ApplyOutcome(Action.RECREATE, with_vendor_answer(reason, answer)), moves)

    async def _move_agents_first(self, change: PlannedChange) -> AgentMoves:
        """Move the agents before the DELETE, so that a move makes the gap no longer."""
        if not change.moves:
            return AgentMoves()
        try:
            await self._put_placeholder(change)
        except LettaRefused as error:
            # A key that Letta cannot decrypt is sent nowhere (fact P4), nor is one that is gone.
            if error.status not in (404, _CANNOT_DECRYPT):
                raise
        return await self._move_agents(change)

    async def _put_back(
        self, change: PlannedChange, reason: str, error: LettaError, moved: Sequence[MovedAgent]
    ) -> ApplyOutcome:
        """Create the former record again after a DELETE whose POST failed, if its key was readable."""
        name, former = change.desired.name, change.stored

        def failed(consequence: str) -> ApplyOutcome:
            return ApplyOutcome(
                Action.RECREATE,
                english(
                    "%(reason)s; it was deleted, and creating it again failed: %(what)s %(consequence)s",
                    reason=reason,
                    what=error.what,
                    consequence=consequence,
                ),
                english("Fix the cause, then run: isabella providers sync --only %(name)s", name=name),
                failed=True,
            )

        try:
            # It may have been created anyway, or by another process; the read-back shows which.
            exists = await self._writer.patiently(lambda: self._store.find(name)) is not None
        except LettaError as second:
            return failed(english("It may not be in Letta now: %(what)s", what=second.what))
        if exists:
            return failed(english("It exists in Letta nevertheless."))
        key = None if change.reading is None else change.reading.key
        if former is None or key is None or not key.get_secret_value():
            return failed(english("Its former key was not readable: it is not in Letta now."))
        try:
            # The former key must not be sent to another base URL than before.
            await self._mover.move_back(name, moved)
        except LettaError as second:
            return failed(
                english(
                    "Its agents have the new base URL, and could not be moved back: %(what)s So the "
                    "former key was not restored either: it is not in Letta now.",
                    what=second.what,
                )
            )
        # Without a base URL, the type decides again.
        type, base_url = former.type, former.base_url
        try:
            await self._writer.patiently(
                lambda: self._writer.create(name=name, type=type, base_url=base_url, key=key)
            )
        except LettaError as second:
            return failed(
                english("Restoring the former record failed too: %(what)s It is not in Letta now.", what=second.what)
            )
        return failed(english("The former record is back in Letta."))

    async def _move_agents(self, change: PlannedChange) -> AgentMoves:
        if not change.moves:
            return AgentMoves()
        return await self._mover.move(change.desired.name, change.desired.base_url)

    async def _post(self, change: PlannedChange) -> None:
        desired = change.desired
        await self._writer.create(name=desired.name, type=desired.type, base_url=desired.base_url, key=_key(change))

    async def _patch(self, change: PlannedChange, key: SecretStr, *, base_url: str | None) -> None:
        if change.stored is None:
            raise AssertionError("an update needs a record")
        await self._writer.update(change.stored, key=key, base_url=base_url or change.desired.base_url)

    async def _inquire(self, change: PlannedChange) -> VendorAnswer | None:
        if self._ask is None or not change.ask_vendor:
            return None
        answer = await self._ask(change.desired.reached_at, _key(change))
        self.vendor_status[change.desired.name] = answer.vendor_status
        return answer

    def _explain_refusal(self, change: PlannedChange, error: LettaRefused) -> ApplyOutcome:
        name = change.desired.name
        if error.status == 400 and "base provider" in error.detail:
            return ApplyOutcome(
                Action.REFUSE,
                english(
                    "Letta has a base provider named %(name)s, made from a key in its own environment (fact P10)",
                    name=name,
                ),
                # Letta does not delete its own provider when the key is removed from its environment (fact P15).
                english(
                    "Give the provider another name. Removing the key from Letta's environment does not "
                    "free this one."
                ),
                failed=True,
            )
        if error.status == 409 and not self._abilities.recreates:
            return ApplyOutcome(
                Action.REFUSE,
                english(
                    "Letta %(release)s keeps the name of a deleted provider reserved (fact O1)",
                    release=self._abilities.release,
                ),
                english("Upgrade Letta to 0.16.2 or later, then sync again."),
                failed=True,
            )
        return ApplyOutcome(
            Action.CREATE,
            english("%(reason)s; %(what)s", reason=change.reason, what=error.what),
            error.remedy,
            failed=True,
        )


def _key(change: PlannedChange) -> SecretStr:
    if change.desired.key is None:
        raise AssertionError("nothing is written without a key")
    return change.desired.key
