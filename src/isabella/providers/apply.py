"""Carrying out the plan: the only place that writes to a store.

Writes are never repeated blindly. When an answer is lost, the store is looked at first: the write may have
happened. Between DELETE and POST nothing may stop us (fact P7), neither a cancelled task nor a restart of Letta.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

import anyio.to_thread
from pydantic import SecretStr

from isabella.config.strategy import Strategy
from isabella.errors import IsabellaError, LettaError, LettaRefused
from isabella.letta.encryption import stored_key
from isabella.letta.releases import Capabilities
from isabella.letta.store import Store
from isabella.locks.provider_lock import Closed, unguarded
from isabella.providers.bound_agents import BoundAgents, MovedAgent
from isabella.providers.dry_run import Ask
from isabella.providers.encryption_probe import EncryptionProbe, EncryptionState
from isabella.providers.plan import Action, PlannedChange, ProviderState, no_delete
from isabella.providers.report import (
    AgentMoves,
    ApplyOutcome,
    confirmed,
    key_removed,
    refused_by_vendor,
    with_agent_moves,
    withheld,
)
from isabella.providers.safe_writes import SafeWriter
from isabella.system.urls import PLACEHOLDER_URL
from isabella.vendors.client import VendorAnswer
from isabella.vendors.status import VendorObservation

_AT_ONCE = 8
#: Begins what stands in a key's place while the key must not be there.
_NO_KEY = "no-key-yet"
#: With this Letta says that an update is no way: it cannot open what it holds, and so cannot compare (fact P4).
#: Whatever else it refuses for, a lock or too much to do, is no reason to delete anything.
_CANNOT_OPEN = 400
_OTHER_SECRETS = (
    "Letta's master key was changed. Whatever else Letta had sealed under the former one (agents' environment "
    "variables, tokens of MCP servers) it cannot open now: enter that again, or run Letta under the former key."
)


class Applier:
    """Carries changes out on one store.

    Args:
        store: where the providers live.
        abilities: what its release can do.
        strategy: the operator's choice.
        master_key: the one under which keys are to be sealed, if any.
        ask: asks a vendor about a key; None asks nobody.
        patience: seconds to go on trying when a provider has been deleted and cannot be made again yet.
        closed: keeps turns off a provider while it is changed with a gap.
        bound_agents: the agents, which have to call a provider's address before its key is stored; None without any.
    """

    def __init__(
        self,
        store: Store,
        abilities: Capabilities,
        *,
        strategy: Strategy,
        master_key: SecretStr | None,
        ask: Ask | None,
        patience: float = 30.0,
        closed: Closed = unguarded,
        bound_agents: BoundAgents | None = None,
    ) -> None:
        self._store = store
        self._followers = bound_agents
        self._closed = closed
        self._abilities = abilities
        self._strategy = strategy
        self._master_key = master_key
        self._ask = ask
        self._writer = SafeWriter(store, abilities, master_key=master_key, patience=patience)
        #: By provider and id: an update that came to nothing may have moved those whom a put-back sends back.
        self._moved: dict[str, dict[str, MovedAgent]] = {}
        self._touchstone = EncryptionProbe(store, self._writer)
        #: What vendors answered in this run, by provider.
        self.heard: dict[str, VendorObservation] = {}

    async def apply(self, changes: Sequence[PlannedChange]) -> dict[str, ApplyOutcome]:
        """Carry out the changes side by side, a bounded number at a time. One that fails does not stop the others.

        Returns:
            What was done, by the provider's name.
        """
        outcomes: dict[str, ApplyOutcome] = {}
        limiter = anyio.CapacityLimiter(_AT_ONCE)

        async def one(change: PlannedChange) -> None:
            async with limiter:
                outcomes[change.desired.name] = await self._one(change)

        async with anyio.create_task_group() as tasks:
            for change in changes:
                tasks.start_soon(one, change)
        return outcomes

    async def _one(self, change: PlannedChange) -> ApplyOutcome:
        try:
            match change.action:
                case Action.CREATE:
                    return await self._create(change)
                case Action.UPDATE if change.state is ProviderState.PLAINTEXT:
                    return await self._reseal(change)
                case Action.UPDATE:
                    return await self._update(change)
                case Action.RECREATE if change.state is ProviderState.UNREADABLE and self._strategy is Strategy.AUTO:
                    # Unreadable for us need not be unreadable for Letta: if it can open the key, there is no gap.
                    return await self._update(change)
                case Action.RECREATE:
                    return await self._recreate(change, change.reason)
                case _:
                    return ApplyOutcome(change.action, change.reason, change.remedy)
        except IsabellaError as error:
            # Of Letta, of the gate, or of the database that holds the gate's locks: the others go on.
            return ApplyOutcome(change.action, f"{change.reason}; {error.what}", error.remedy, failed=True)

    @property
    def _may_delete(self) -> bool:
        """Whether a DELETE can be sent at all, of what we have just made ourselves, too."""
        return self._abilities.recreates and self._strategy is not Strategy.IN_PLACE

    # --- the four ways of writing -------------------------------------------------------------------------------

    async def _create(self, change: PlannedChange) -> ApplyOutcome:
        """POST. Agents that are bound to the name already call its address first (fact M6)."""
        try:
            astray = await self._astray(change)
        except LettaError as error:
            return withheld(change, error, what="not created")
        if not astray:
            return await self._make(change)
        answer = await self._inquire(change)
        if answer is not None and answer.takes_key is False:
            return refused_by_vendor(change, answer)
        change = replace(change, reason=confirmed(change.reason, answer), ask_vendor=False)
        async with self._closed(change.desired.name):
            with anyio.CancelScope(shield=True):
                followed = await self._take_agents_along(change)
                if followed.trouble is not None:
                    return withheld(change, followed.trouble, what="not created")
                outcome = await self._make(change)
                if not outcome.failed:
                    followed = await self._take_agents_along(change)
        return with_agent_moves(outcome, followed)

    async def _make(self, change: PlannedChange) -> ApplyOutcome:
        if self._ask is None or not self._may_delete:
            # What is created here cannot be taken back, so the vendor is asked before.
            answer = await self._inquire(change)
            if answer is not None and answer.takes_key is False:
                return refused_by_vendor(change, answer)
            return await self._try_post(change) or ApplyOutcome(Action.CREATE, confirmed(change.reason, answer))
        # There is nothing yet that could be lost, so vendor and Letta are asked at the same time.
        answers: list[VendorAnswer | None] = []
        async with anyio.create_task_group() as tasks:

            async def inquire() -> None:
                answers.append(await self._inquire(change))

            tasks.start_soon(inquire)
            refusal = await self._try_post(change)
        answer = answers[0]
        if refusal is not None:
            return refusal
        if answer is not None and answer.takes_key is False:
            made = await self._store.find(change.desired.name)
            if made is not None:
                await self._writer.delete(made.id, change.desired.name)
            return refused_by_vendor(change, answer)
        return ApplyOutcome(Action.CREATE, confirmed(change.reason, answer))

    async def _try_post(self, change: PlannedChange) -> ApplyOutcome | None:
        """POST; an outcome where that failed, so that the vendor's answer can be waited for all the same."""
        try:
            await self._post(change)
        except LettaRefused as error:
            return self._explain_refusal(change, error)
        except LettaError as error:
            return ApplyOutcome(Action.CREATE, f"{change.reason}; {error.what}", error.remedy, failed=True)
        return None

    async def _update(self, change: PlannedChange) -> ApplyOutcome:
        answer = await self._inquire(change)
        if answer is not None and answer.takes_key is False:
            return refused_by_vendor(change, answer)
        reason = confirmed(change.reason, answer)
        try:
            if change.moves or change.state is ProviderState.PLAINTEXT:
                return await self._update_in_steps(change, reason)
            await self._patch(change, _key(change), base_url=change.desired.base_url)
        except LettaRefused as error:
            if error.status == 404:
                return await self._create(replace(change, reason="it was deleted meanwhile"))
            # A long key in plaintext is taken for a sealed one, which Letta cannot open either (facts P4, O7).
            if error.status != _CANNOT_OPEN:
                raise
            return await self._beyond_update(change, error, answer)
        return ApplyOutcome(Action.UPDATE, reason)

    async def _update_in_steps(self, change: PlannedChange, reason: str) -> ApplyOutcome:
        """Update with what may be carried to anybody, and then with key and address.

        For a key that is to be sealed, because Letta does not write one that it has already (fact P5). And for a
        provider that moves: Letta sends its key to where the agents are bound (fact M6), and in between some are
        bound here, others there. A call in between is refused by the vendor, whereas after a DELETE it would carry a
        key of Letta's own environment there (fact P7). Where this is cut off, the next sync finds a provider that is
        nowhere, whatever is configured by then.
        """
        if change.stored is None:
            raise AssertionError("an update needs a record")
        async with self._closed(change.desired.name):
            with anyio.CancelScope(shield=True):
                await self._put_between(change)
                followed = await self._take_agents_along(change) if change.moves else AgentMoves()
                if followed.trouble is not None and not change.keeps_key:
                    return withheld(change, followed.trouble, what="what stands there now is no key")
                base_url = change.desired.base_url if followed.trouble is None else PLACEHOLDER_URL
                try:
                    await self._writer.patiently(lambda: self._patch(change, _key(change), base_url=base_url))
                except LettaError as error:
                    if isinstance(error, LettaRefused) and error.status in (404, _CANNOT_OPEN):
                        raise
                    return key_removed(change, error)
                if followed.trouble is not None:
                    return withheld(change, followed.trouble, what="it has not moved yet")
                latecomers = await self._take_agents_along(change) if change.moves else followed
        return with_agent_moves(ApplyOutcome(Action.UPDATE, reason), latecomers)

    async def _put_between(self, change: PlannedChange) -> None:
        """Have Letta hold what may be carried to the former address as well as to the new one.

        That is the key itself where it is the same for both. One that moves is nowhere meanwhile.
        """
        if change.stored is None:
            raise AssertionError("there is nothing to come from")
        good_for_both = change.keeps_key and change.state is not ProviderState.PLAINTEXT
        key = _key(change) if good_for_both else SecretStr(f"{_NO_KEY}-{secrets.token_hex(8)}")
        await self._patch(change, key, base_url=PLACEHOLDER_URL if change.moves else change.stored.base_url)

    async def _beyond_update(
        self, change: PlannedChange, error: LettaRefused, answer: VendorAnswer | None
    ) -> ApplyOutcome:
        if self._strategy is Strategy.IN_PLACE:
            return ApplyOutcome(
                Action.REFUSE,
                f"{change.reason}; Letta refuses to update it: {error.detail}",
                f"Allow it to be recreated: isabella providers sync --only {change.desired.name} --strategy auto",
                failed=True,
            )
        if not self._abilities.recreates:
            return ApplyOutcome(
                Action.REFUSE,
                f"{change.reason}; Letta refuses to update it: {error.detail}; {no_delete(self._abilities)}",
                "Run Letta under the master key that this was sealed with, or upgrade it to 0.16.2 or a later "
                "release that was measured, then sync again.",
                failed=True,
            )
        outcome = await self._recreate(replace(change, ask_vendor=False), confirmed(change.reason, answer))
        if change.state is not ProviderState.UNREADABLE or outcome.failed:
            return outcome
        # Nobody but Letta can open its other secrets, and over REST nobody can ask for them.
        return replace(outcome, reason=f"{outcome.reason}, nor Letta's any more", remedy=_OTHER_SECRETS)

    async def _reseal(self, change: PlannedChange) -> ApplyOutcome:
        """Have a key encrypted that stands there in plaintext, if Letta encrypts under our master key at all."""
        if self._may_delete and (sealing := await self._touchstone.sealing()) is not EncryptionState.OURS:
            how = "without a master key" if sealing is EncryptionState.NOT_AT_ALL else "under another master key"
            return ApplyOutcome(
                Action.KEEP,
                f"the key is right, but in plaintext: Letta runs {how}",
                "Start Letta with the same LETTA_ENCRYPTION_KEY as Isabella, then sync again.",
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
                followed = await self._move_agents_before(change) if change.moves else AgentMoves()
                if followed.trouble is not None:
                    kept = "it has not moved yet" if change.keeps_key else "what stands there now is no key"
                    return withheld(change, followed.trouble, what=kept)
                await self._writer.surely_delete(change.stored.id, change.desired.name)
                try:
                    await self._writer.patiently(lambda: self._post(change))
                except LettaError as error:
                    return await self._put_back(change, reason, error, followed.moved)
                latecomers = await self._take_agents_along(change) if change.moves else followed
        return with_agent_moves(ApplyOutcome(Action.RECREATE, confirmed(reason, answer)), latecomers)

    async def _move_agents_before(self, change: PlannedChange) -> AgentMoves:
        """Take the agents along before anything is deleted, so that the gap is no longer than without a move."""
        try:
            await self._put_between(change)
        except LettaRefused as error:
            # What Letta cannot open no agent carries anywhere (fact P4); what is gone neither.
            if error.status not in (404, _CANNOT_OPEN):
                raise
        return await self._take_agents_along(change)

    async def _put_back(
        self, change: PlannedChange, reason: str, error: LettaError, moved: Sequence[MovedAgent]
    ) -> ApplyOutcome:
        """After a DELETE whose POST failed: make the former record again, where its key was readable."""
        name, former = change.desired.name, change.stored
        what = f"{reason}; deleted, and creating it again failed: {error.what}"
        again = f"Mend the cause, then: isabella providers sync --only {name}"
        try:
            # It may have been made all the same, or by somebody else. What it is now is read back.
            there = await self._writer.patiently(lambda: self._store.find(name)) is not None
        except LettaError as second:
            return ApplyOutcome(
                Action.RECREATE, f"{what} It may not be in Letta now: {second.what}", again, failed=True
            )
        if there:
            return ApplyOutcome(Action.RECREATE, f"{what} Yet it is there.", again, failed=True)
        text = None if former is None else former.key_text
        key = await anyio.to_thread.run_sync(stored_key, change.reading, text, self._master_key)
        if former is None or key is None or not key.get_secret_value():
            return ApplyOutcome(
                Action.RECREATE,
                f"{what} Its former key was not readable: it is not in Letta now.",
                again,
                failed=True,
            )
        if moved and self._followers is not None:
            # A former key must not go to another address than it went to.
            bound_agents = self._followers
            try:
                await self._writer.patiently(lambda: bound_agents.send_back(name, moved))
            except LettaError as second:
                return ApplyOutcome(
                    Action.RECREATE,
                    f"{what} Its agents call the new address, and could not be sent back: {second.what} So the "
                    "former key was not put back either: it is not in Letta now.",
                    again,
                    failed=True,
                )
        # Without an address, the type decides again.
        type, base_url = former.type, former.base_url
        try:
            await self._writer.patiently(
                lambda: self._writer.create(name=name, type=type, base_url=base_url, key=key)
            )
        except LettaError as second:
            return ApplyOutcome(
                Action.RECREATE,
                f"{what} Putting the former record back failed too: {second.what} It is not in Letta now.",
                again,
                failed=True,
            )
        return ApplyOutcome(Action.RECREATE, f"{what} The former record is back in Letta.", again, failed=True)

    async def _astray(self, change: PlannedChange) -> bool:
        if self._followers is None:
            return False
        return await self._followers.astray(change.desired.name, change.desired.base_url)

    async def _take_agents_along(self, change: PlannedChange) -> AgentMoves:
        """Have its agents call the new address.

        That is done while Letta holds no key that they could carry elsewhere, and again when it holds the new one:
        what somebody binds meanwhile is bound to nowhere. Told are all that had to be changed in this run.
        """
        if self._followers is None:
            return AgentMoves()
        bound_agents, name, base_url = self._followers, change.desired.name, change.desired.base_url
        moved = self._moved.setdefault(name, {})

        def note(agent: MovedAgent) -> None:
            # Where it is changed more than once, what it called at first counts.
            moved.setdefault(agent.id, agent)

        trouble: LettaError | None = None
        try:
            await self._writer.patiently(lambda: bound_agents.follow(name, base_url, note))
        except LettaError as error:
            trouble = error
        return AgentMoves(tuple(moved.values()), trouble)

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
        answer = await self._ask(change.desired.base_url, _key(change))
        self.heard[change.desired.name] = answer.vendor_status
        return answer

    def _explain_refusal(self, change: PlannedChange, error: LettaRefused) -> ApplyOutcome:
        name = change.desired.name
        if error.status == 400 and "base provider" in error.detail:
            return ApplyOutcome(
                Action.REFUSE,
                f"Letta has a base provider named {name}, made from a key in its own environment (fact P10)",
                # Letta fails to remove its own provider when the key is gone from its environment (fact P15).
                "Give the provider another name: taking the key out of Letta's environment does not free this one.",
                failed=True,
            )
        if error.status == 409 and not self._abilities.recreates:
            return ApplyOutcome(
                Action.REFUSE,
                f"Letta {self._abilities.release} keeps the name of a provider that was deleted (fact O1)",
                "Upgrade Letta to 0.16.2 or later, then sync again.",
                failed=True,
            )
        return ApplyOutcome(Action.CREATE, f"{change.reason}; {error.what}", error.remedy, failed=True)


def _key(change: PlannedChange) -> SecretStr:
    if change.desired.key is None:
        raise AssertionError("nothing is written without a key")
    return change.desired.key
