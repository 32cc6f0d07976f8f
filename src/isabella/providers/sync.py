"""One run over the providers: look, plan, apply, read back, report."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import anyio.to_thread
from pydantic import SecretStr

from isabella.config.strategy import Strategy
from isabella.errors import LettaError
from isabella.letta.encryption import KeyMatch, KeyReading, ProofMemo, read_back, recall_reading
from isabella.letta.releases import Capabilities
from isabella.letta.store import Store, StoredProvider, StoreSnapshot, find_all, read_store
from isabella.locks.provider_lock import Closed, unguarded
from isabella.providers.apply import Applier
from isabella.providers.bound_agents import BoundAgents
from isabella.providers.desired import Desired
from isabella.providers.dry_run import Ask, predict_sync
from isabella.providers.plan import WRITES, Action, PlannedChange, ProviderState, plan, state_of
from isabella.providers.report import ApplyOutcome, Proof, ProviderReport, Report
from isabella.system.tasks import gather
from isabella.vendors.status import VendorObservation

#: Finding one provider costs Letta about as much time as listing so many.
_ROWS_PER_FIND = 100
#: How many providers' models are counted at the same time.
_COUNTED_AT_ONCE = 8
_THREADS = os.cpu_count() or 1

_SAME_MASTER_KEY = "Put the LETTA_ENCRYPTION_KEY that Letta itself runs with into .env, then sync again."
_GIVE_MASTER_KEY = "Start Letta with the same LETTA_ENCRYPTION_KEY as Isabella, then sync again."

_NOT_HELD = (
    "turns of other processes were not held while it was changed: Letta's database is not known "
    "(ISABELLA_DATABASE_URL)"
)

Lock = Callable[[], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def unlocked() -> AsyncIterator[None]:
    """No lock: for a store that nobody else writes to."""
    yield


@dataclass(frozen=True)
class Options:
    """How a run is to go.

    Attributes:
        strategy: how providers are brought in line.
        master_key: the one under which keys are to be sealed, if any.
        ask: asks a vendor about a new key; None asks nobody.
        memo: what has been proven before.
        lock: held while anything is written.
        patience: seconds to go on trying to make a provider again that was deleted.
        foreign: whether providers that nobody declared are listed too.
        count_models: whether Letta is asked how many models each provider has.
        seen: a reading made just before, in place of the run's own first one.
        closed: keeps turns off a provider while it is changed with a gap.
        held_everywhere: whether that holds for turns of other processes, too.
        bound_agents: the agents, which have to call a provider's address before its key is stored; None without any.
    """

    strategy: Strategy = Strategy.AUTO
    master_key: SecretStr | None = field(default=None, repr=False)
    ask: Ask | None = None
    memo: ProofMemo | None = None
    lock: Lock = unlocked
    patience: float = 30.0
    foreign: bool = True
    count_models: bool = False
    seen: StoreSnapshot | None = None
    closed: Closed = unguarded
    held_everywhere: bool = True
    bound_agents: BoundAgents | None = None


async def compare(store: Store, desired: Sequence[Desired], options: Options) -> Report:
    """Compare what Letta holds with what is desired, and tell what would be done. Writes nothing.

    With `options.ask` the vendors are asked about the keys that Letta does not hold yet, as a sync would.

    Raises:
        LettaError: Letta cannot be read; this never means that it has no providers.
    """
    run = _Run(store, options)
    await run.look(desired)
    changes = await predict_sync(run.changes(desired), options.ask, options.master_key)
    return await run.report(changes)


async def sync_providers(store: Store, desired: Sequence[Desired], options: Options) -> Report:
    """Make Letta hold exactly what is desired, and prove it by reading back.

    A provider that is proven already costs nothing but its place in one listing. What has to be written is
    looked at once more under the lock, because another process may have done it while we waited.

    Raises:
        LettaError: Letta cannot be read.
        LockTimeout: another process held the lock for too long.
    """
    run = _Run(store, options)
    await run.look(desired)
    changes = run.changes(desired)
    todo = [change.desired for change in changes if _writes(change)]
    if not todo:
        return await run.report(changes, {})
    async with options.lock():
        await run.read_again(todo)
        under_lock = run.changes(todo)
        outcomes = await run.apply(under_lock)
    again = {change.desired.name: change for change in under_lock}
    return await run.report([again.get(change.desired.name, change) for change in changes], outcomes)


@dataclass(frozen=True)
class _Opened:
    """What was found behind the text that Letta stores as a key."""

    text: str | None
    reading: KeyReading


class _Run:
    """What one run has learnt so far."""

    def __init__(self, store: Store, options: Options) -> None:
        self._store = store
        self._options = options
        self._abilities = Capabilities("unknown", known=False, recreates=False)
        self._stored: dict[str, StoredProvider] = {}
        self._whole = False
        self._opened: dict[str, _Opened] = {}
        self._unread: str | None = None
        self._heard: dict[str, VendorObservation] = {}

    async def look(self, desired: Sequence[Desired]) -> None:
        seen = self._options.seen or await read_store(self._store)
        self._abilities = seen.abilities
        self._stored = {stored.name: stored for stored in seen.stored}
        self._whole = seen.whole
        await self._read_keys(desired)

    async def read_again(self, desired: Sequence[Desired]) -> None:
        """Read these providers anew, whatever was known of them."""
        names = [provider.name for provider in desired]
        if self._whole and len(names) > 1 + len(self._stored) // _ROWS_PER_FIND:
            self._stored = {stored.name: stored for stored in await self._store.all()}
        else:
            for name in names:
                self._stored.pop(name, None)
            self._stored |= await find_all(self._store, names)
        await self._read_keys(desired)

    async def _read_keys(self, desired: Sequence[Desired]) -> None:
        """Open what is stored. Derivations take 35 ms each, so they run in threads, and only where needed."""
        slow: list[tuple[str, StoredProvider, SecretStr]] = []
        for provider in desired:
            stored = self._stored.get(provider.name)
            former = self._opened.pop(provider.name, None)
            if stored is None or provider.key is None:
                continue
            if former is not None and former.text == stored.key_text:
                # The same text as before, looked at once more under the lock.
                self._opened[provider.name] = former
            elif self._options.master_key is None:
                self._opened[provider.name] = self._open(stored, provider.key)
            elif (recalled := recall_reading(stored.key_text, provider.key, self._options.memo)) is not None:
                self._opened[provider.name] = _Opened(stored.key_text, recalled)
            else:
                slow.append((provider.name, stored, provider.key))
        if not slow:
            return
        to_open = [partial(anyio.to_thread.run_sync, self._open, stored, key) for _, stored, key in slow]
        opened = await gather(to_open, at_once=_THREADS)
        self._opened |= {name: one for (name, _, _), one in zip(slow, opened, strict=True)}
        if self._options.memo is not None:
            self._options.memo.save()

    def _open(self, stored: StoredProvider, key: SecretStr) -> _Opened:
        options = self._options
        reading = read_back(
            stored.key_text, key.get_secret_value(), options.master_key, options.memo, shown=stored.key_shown
        )
        return _Opened(stored.key_text, reading)

    def _reading(self, name: str) -> KeyReading | None:
        opened = self._opened.get(name)
        return None if opened is None else opened.reading

    def changes(self, desired: Sequence[Desired]) -> list[PlannedChange]:
        return [
            plan(
                provider,
                self._stored.get(provider.name),
                self._reading(provider.name),
                strategy=self._options.strategy,
                abilities=self._abilities,
                sealing=self._options.master_key is not None,
            )
            for provider in desired
        ]

    async def apply(self, changes: Sequence[PlannedChange]) -> dict[str, ApplyOutcome]:
        options = self._options
        applier = Applier(
            self._store,
            self._abilities,
            strategy=options.strategy,
            master_key=options.master_key,
            ask=options.ask,
            patience=options.patience,
            closed=options.closed,
            bound_agents=options.bound_agents,
        )
        self._heard = applier.heard
        outcomes = await applier.apply([change for change in changes if _writes(change)])
        await self._try_read_again([change.desired for change in changes])
        missed = [change for change in changes if self._update_was_not_proven(change, outcomes)]
        if missed:
            outcomes |= await applier.apply(
                [
                    replace(
                        change,
                        stored=self._stored[change.desired.name],
                        reading=self._reading(change.desired.name),
                        action=Action.RECREATE,
                        reason=f"{change.reason}; an update was not proven",
                        ask_vendor=False,
                    )
                    for change in missed
                ]
            )
            await self._try_read_again([change.desired for change in missed])
        return outcomes

    def _update_was_not_proven(self, change: PlannedChange, outcomes: Mapping[str, ApplyOutcome]) -> bool:
        """An update that Letta accepted, after which its key, though readable, is still another one."""
        outcome = outcomes.get(change.desired.name)
        reading = self._reading(change.desired.name)
        return (
            self._options.strategy is Strategy.AUTO
            and self._abilities.recreates
            # What could not be read is no reason to delete anything.
            and self._unread is None
            and outcome is not None
            and outcome.action is Action.UPDATE
            and not outcome.failed
            and reading is not None
            and reading.match in (KeyMatch.DIFFERENT, KeyMatch.NOTHING)
        )

    async def _try_read_again(self, desired: Sequence[Desired]) -> None:
        try:
            await self.read_again(desired)
            self._unread = None
        except LettaError as error:
            self._unread = error.what

    async def report(
        self, changes: Sequence[PlannedChange], outcomes: Mapping[str, ApplyOutcome] | None = None
    ) -> Report:
        """What was found; with outcomes, even without any, what was done about it, too."""
        done = outcomes is not None
        entries = [self._entry(change, (outcomes or {}).get(change.desired.name), done) for change in changes]
        if self._options.foreign:
            declared = {change.desired.name for change in changes}
            entries += [_foreign(stored) for name, stored in self._stored.items() if name not in declared]
        if self._options.count_models:
            entries = await self._count_models(entries)
        return Report(self._store.address, self._abilities.release, entries, notices=self._abilities.remarks)

    def _entry(self, change: PlannedChange, outcome: ApplyOutcome | None, done: bool) -> ProviderReport:
        desired, stored = change.desired, self._stored.get(change.desired.name)
        proof, why, remedy = self._proof(change, outcome, done)
        reason = change.reason if outcome is None else outcome.reason
        return ProviderReport(
            name=desired.name,
            vendor=desired.vendor.name,
            type=desired.type,
            base_url=desired.base_url,
            key=desired.masked_key,
            key_source=desired.key_source,
            stored=change.state,
            action=change.action if outcome is None else outcome.action,
            proof=proof,
            reason=f"{reason}; {why}" if why else reason,
            remedy=remedy or (change.remedy if outcome is None else outcome.remedy),
            notes=(*desired.notes, *self._gate_notes(change, outcome)),
            in_letta=stored is not None,
            stored_base_url=None if stored is None else stored.base_url,
            ours=desired.wanted,
            refused_by_vendor=change.refused_by_vendor if outcome is None else outcome.refused_by_vendor,
            basis=None if proof is Proof.PROVEN or not desired.wanted else self._basis(desired),
            vendor_status=self._heard.get(desired.name) or change.vendor_status,
        )

    def _basis(self, desired: Desired) -> str:
        """Stands for what is asked for and what Letta holds now: the same as long as neither has changed.

        It is a MAC where there is a master key, and never holds a key.
        """
        stored, master_key = self._stored.get(desired.name), self._options.master_key
        now = self._state(desired)
        found = None if stored is None else (stored.id, stored.type, stored.base_url, stored.key_text)
        key = None if desired.key is None else desired.key.get_secret_value()
        facts = repr((desired.type, desired.base_url, key, desired.problem, found, now.value))
        secret = b"" if master_key is None else hashlib.sha256(master_key.get_secret_value().encode()).digest()
        return hashlib.blake2b(facts.encode(), key=secret, digest_size=16, person=b"isabella basis").hexdigest()

    def _state(self, desired: Desired) -> ProviderState:
        """What Letta holds now, by what was read last."""
        return state_of(
            desired,
            self._stored.get(desired.name),
            self._reading(desired.name),
            sealing=self._options.master_key is not None,
        )

    def _gate_notes(self, change: PlannedChange, outcome: ApplyOutcome | None) -> tuple[str, ...]:
        """What is to be said of a change that left a gap, where turns of other processes went on in it."""
        if outcome is None or outcome.failed or self._options.held_everywhere:
            return ()
        gap = outcome.action is Action.RECREATE or (
            outcome.action is Action.UPDATE and (change.state is ProviderState.PLAINTEXT or change.moves)
        )
        return (_NOT_HELD,) if gap else ()

    def _proof(self, change: PlannedChange, outcome: ApplyOutcome | None, done: bool) -> tuple[Proof, str, str]:
        """The proof is what was read last, never what a write answered. With it: why it is none, and the remedy."""
        if not change.desired.wanted:
            return Proof.NOT_ASKED, "", ""
        if outcome is None:
            if change.state is ProviderState.IN_SYNC and change.action is not Action.REFUSE:
                return Proof.PROVEN, "", ""
            return (Proof.FAILED if done else Proof.NOT_ASKED), "", ""
        if self._unread is not None:
            return Proof.UNPROVEN, f"it could not be read back: {self._unread}", "Run it again when Letta answers."
        now = self._state(change.desired)
        match now:
            case ProviderState.IN_SYNC:
                # What stands in Letta is right, even where our own part in it failed.
                return Proof.PROVEN, "", ""
            case _ if outcome.failed:
                return Proof.FAILED, "", ""
            case ProviderState.HIDDEN:
                return Proof.UNPROVEN, "written, but it cannot be read back", _SAME_MASTER_KEY
            case ProviderState.UNREADABLE:
                return (
                    Proof.UNPROVEN,
                    "written, but Letta seals it under a master key that is not ours",
                    _SAME_MASTER_KEY,
                )
            case ProviderState.PLAINTEXT:
                return Proof.FAILED, "Letta stores it in plaintext: it runs without a master key", _GIVE_MASTER_KEY
            case _:
                return Proof.FAILED, f"afterwards it is {now.value.replace('_', ' ')}", ""

    async def _count_models(self, entries: list[ProviderReport]) -> list[ProviderReport]:
        # Of a provider that was never synced, Letta would ask the vendor.
        names = [e.name for e in entries if (stored := self._stored.get(e.name)) is not None and stored.synced]
        try:
            numbers = await gather([partial(self._store.models, name) for name in names], at_once=_COUNTED_AT_ONCE)
        except LettaError:
            # The report counts for more than these numbers.
            return entries
        counts = dict(zip(names, numbers, strict=True))
        return [replace(entry, models=counts.get(entry.name, 0)) for entry in entries]


def _writes(change: PlannedChange) -> bool:
    return change.action in WRITES


def _foreign(stored: StoredProvider) -> ProviderReport:
    return ProviderReport(
        name=stored.name,
        vendor=stored.type,
        type=stored.type,
        base_url=stored.base_url,
        key=None,
        key_source=None,
        stored=ProviderState.FOREIGN,
        action=Action.NONE,
        proof=Proof.NOT_ASKED,
        reason="nobody declared it; it is left alone",
        ours=False,
    )
