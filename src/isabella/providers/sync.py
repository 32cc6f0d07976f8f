"""One run over the providers: read, plan, apply, read back, report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import anyio.to_thread

from isabella.config.choices import Strategy
from isabella.errors import LettaError
from isabella.letta.encryption import KeyMatch, KeyReading, ProofMemo, read_back
from isabella.letta.releases import Capabilities
from isabella.letta.store import Store, StoredProvider, read_store
from isabella.providers.apply import Applier, Ask, Options
from isabella.providers.desired import Desired
from isabella.providers.plan import (
    WRITE_ACTIONS,
    Action,
    PlannedChange,
    ProviderState,
    plan,
    predict_change,
    state_of,
)
from isabella.providers.report import ApplyOutcome, Proof, ProviderReport, Report
from isabella.system.english import english
from isabella.system.tasks import gather
from isabella.vendors.client import VendorObservation

_CONCURRENCY = 8

_SAME_MASTER_KEY = english("Put the LETTA_ENCRYPTION_KEY that Letta itself runs with into .env, then sync again.")
_SET_MASTER_KEY = english("Start Letta with the same LETTA_ENCRYPTION_KEY as Isabella, then sync again.")
_NOT_HELD = english(
    "turns of other processes were not held while it was changed: Letta's database is not "
    "known (ISABELLA_DATABASE_URL)"
)


async def compare(store: Store, desired: Sequence[Desired], options: Options) -> Report:
    """Compare the stored providers with the desired ones, and predict a sync. Writes nothing.

    With `options.ask` the vendors are asked about keys that Letta does not hold yet, as a sync would. Raises
    `LettaError` if Letta cannot be read; this never means that it has no providers.
    """
    run = _Run(store, options)
    await run.read(desired)
    return await run.report(await predict_sync(run.changes(desired), options.ask))


async def sync_providers(store: Store, desired: Sequence[Desired], options: Options) -> Report:
    """Make the stored providers equal to the desired ones, and prove it by reading them back.

    Providers that need a write are read once more under the lock, because another process may have written them while
    this one waited.
    """
    run = _Run(store, options)
    await run.read(desired)
    changes = run.changes(desired)
    todo = [change.desired for change in changes if change.action in WRITE_ACTIONS]
    if not todo:
        return await run.report(changes, {})
    async with options.lock():
        await run.read_again(todo)
        under_lock = run.changes(todo)
        outcomes = await run.apply(under_lock)
    again = {change.desired.name: change for change in under_lock}
    return await run.report([again.get(change.desired.name, change) for change in changes], outcomes)


async def predict_sync(changes: Sequence[PlannedChange], ask: Ask | None) -> list[PlannedChange]:
    """Ask the vendors what a sync would ask them, and return the changes that would come of it. Writes nothing."""
    if ask is None:
        return list(changes)
    return await gather([partial(_predict, change, ask) for change in changes], at_once=_CONCURRENCY)


async def _predict(change: PlannedChange, ask: Ask) -> PlannedChange:
    key = change.desired.key
    if not change.ask_vendor or key is None:
        return change
    new, old = await ask(change.desired.reached_at, key), None
    stored, prefix = None if change.reading is None else change.reading.key, change.desired.vendor.key_prefix
    # The vendor may see a stored key that Letta sends there anyway, and that has the vendor's prefix.
    if stored is not None and prefix and not change.moves and stored.get_secret_value().startswith(prefix):
        old = await ask(change.desired.reached_at, stored)
    return predict_change(change, new, old)


class _Run:
    """The state of one run."""

    def __init__(self, store: Store, options: Options) -> None:
        self._store = store
        self._options = options
        self._abilities = Capabilities("unknown", known=False, recreates=False)
        self._stored: dict[str, StoredProvider] = {}
        self._readings: dict[str, KeyReading] = {}
        self._read_error: str | None = None
        self._vendor_status: dict[str, VendorObservation] = {}
        self._memo = options.memo
        if self._memo is None and options.master_key is not None:
            self._memo = ProofMemo(None, options.master_key)

    async def read(self, desired: Sequence[Desired]) -> None:
        """Read the store; a single provider by its name, if no others are reported."""
        name = desired[0].name if len(desired) == 1 and not self._options.foreign else None
        self._abilities, stored = await read_store(self._store, name)
        self._stored = {provider.name: provider for provider in stored}
        await self._read_keys(desired)

    async def read_again(self, desired: Sequence[Desired]) -> None:
        """Read these providers once more; a single one by its name."""
        if len(desired) == 1:
            self._stored.pop(desired[0].name, None)
            found = await self._store.find(desired[0].name)
            self._stored |= {} if found is None else {found.name: found}
        else:
            self._stored = {stored.name: stored for stored in await self._store.all()}
        await self._read_keys(desired)

    async def _read_keys(self, desired: Sequence[Desired]) -> None:
        """Compare the stored keys with the configured ones; in a thread, because decrypting one takes 15 ms."""
        await anyio.to_thread.run_sync(self._compare_keys, desired)
        if self._memo is not None:
            self._memo.save()

    def _compare_keys(self, desired: Sequence[Desired]) -> None:
        for provider in desired:
            stored, key = self._stored.get(provider.name), provider.key
            self._readings.pop(provider.name, None)
            if stored is not None and key is not None:
                self._readings[provider.name] = read_back(
                    stored.key_text,
                    key.get_secret_value(),
                    self._options.master_key,
                    self._memo,
                    shown=stored.key_shown,
                )

    def changes(self, desired: Sequence[Desired]) -> list[PlannedChange]:
        return [
            plan(
                provider,
                self._stored.get(provider.name),
                self._readings.get(provider.name),
                strategy=self._options.strategy,
                abilities=self._abilities,
                sealing=self._options.master_key is not None,
            )
            for provider in desired
        ]

    async def apply(self, changes: Sequence[PlannedChange]) -> dict[str, ApplyOutcome]:
        """Carry out the plan and read back. Recreate what an update left with another key."""
        applier = Applier(self._store, self._abilities, self._options)
        self._vendor_status = applier.vendor_status
        outcomes = await applier.apply([change for change in changes if change.action in WRITE_ACTIONS])
        await self._try_read_again([change.desired for change in changes])
        missed = [change for change in changes if self._update_was_not_proven(change, outcomes)]
        if missed:
            again = [
                replace(
                    change,
                    stored=self._stored[change.desired.name],
                    reading=self._readings.get(change.desired.name),
                    action=Action.RECREATE,
                    reason=english("%(reason)s; an update was not proven", reason=change.reason),
                    ask_vendor=False,
                )
                for change in missed
            ]
            outcomes |= await applier.apply(again)
            await self._try_read_again([change.desired for change in missed])
        return outcomes

    def _update_was_not_proven(self, change: PlannedChange, outcomes: Mapping[str, ApplyOutcome]) -> bool:
        """Whether Letta accepted an update, and its key is readable, but still another one."""
        outcome = outcomes.get(change.desired.name)
        reading = self._readings.get(change.desired.name)
        return (
            self._options.strategy is Strategy.AUTO
            and self._abilities.recreates
            # A failed read is not a reason to delete anything.
            and self._read_error is None
            and outcome is not None
            and outcome.action is Action.UPDATE
            and not outcome.failed
            and reading is not None
            and reading.match in (KeyMatch.DIFFERENT, KeyMatch.NOTHING)
        )

    async def _try_read_again(self, desired: Sequence[Desired]) -> None:
        try:
            await self.read_again(desired)
            self._read_error = None
        except LettaError as error:
            self._read_error = error.what

    async def report(
        self, changes: Sequence[PlannedChange], outcomes: Mapping[str, ApplyOutcome] | None = None
    ) -> Report:
        """Return the report: of a comparison without outcomes, of a sync with outcomes, be they empty."""
        synced = outcomes is not None
        entries = [self._entry(change, (outcomes or {}).get(change.desired.name), synced) for change in changes]
        if self._options.foreign:
            declared = {change.desired.name for change in changes}
            entries += [_foreign(stored) for name, stored in self._stored.items() if name not in declared]
        if self._options.count_models:
            entries = await self._count_models(entries)
        return Report(self._store.address, self._abilities.release, entries, notices=self._abilities.remarks)

    def _entry(self, change: PlannedChange, outcome: ApplyOutcome | None, synced: bool) -> ProviderReport:
        desired, stored = change.desired, self._stored.get(change.desired.name)
        proof, why, remedy = self._proof(change, outcome, synced)
        # The fields that a change and an outcome share.
        done = outcome or change
        # During a gap, turns on the provider must be held.
        in_steps = done.action is Action.UPDATE and (change.state is ProviderState.PLAINTEXT or change.moves)
        gap = outcome is not None and not outcome.failed and (done.action is Action.RECREATE or in_steps)
        return ProviderReport(
            name=desired.name,
            vendor=desired.vendor.name,
            type=desired.type,
            base_url=desired.base_url,
            upstream=desired.behind_gateway,
            key=desired.masked_key,
            key_source=desired.key_source,
            stored=change.state,
            action=done.action,
            proof=proof,
            reason=english("%(reason)s; %(why)s", reason=done.reason, why=why) if why else done.reason,
            remedy=remedy or done.remedy,
            notes=desired.notes + ((_NOT_HELD,) if gap and not self._options.held_everywhere else ()),
            in_letta=stored is not None,
            stored_base_url=None if stored is None else stored.base_url,
            configured=desired.configured,
            refused_by_vendor=done.refused_by_vendor,
            basis=None if proof is Proof.PROVEN or not desired.configured else self._basis(desired),
            vendor_status=self._vendor_status.get(desired.name) or change.vendor_status,
        )

    def _basis(self, desired: Desired) -> str:
        """Return a hash of the configured and the stored values, keyed with the master key against guessing."""
        stored, master_key = self._stored.get(desired.name), self._options.master_key
        record = None if stored is None else (stored.id, stored.type, stored.base_url, stored.key_text)
        key = None if desired.key is None else desired.key.get_secret_value()
        facts = repr((desired.type, desired.base_url, key, desired.problem, record, self._state(desired).value))
        secret = b"" if master_key is None else hashlib.sha256(master_key.get_secret_value().encode()).digest()
        return hashlib.blake2b(facts.encode(), key=secret, digest_size=16, person=b"isabella basis").hexdigest()

    def _state(self, desired: Desired) -> ProviderState:
        return state_of(
            desired,
            self._stored.get(desired.name),
            self._readings.get(desired.name),
            sealing=self._options.master_key is not None,
        )

    def _proof(self, change: PlannedChange, outcome: ApplyOutcome | None, synced: bool) -> tuple[Proof, str, str]:
        """Return the proof, and why it is missing and the remedy. Only what was read last counts as proof."""
        if not change.desired.configured:
            return Proof.NOT_ASKED, "", ""
        if outcome is None:
            if change.state is ProviderState.IN_SYNC and change.action is not Action.REFUSE:
                return Proof.PROVEN, "", ""
            return (Proof.FAILED if synced else Proof.NOT_ASKED), "", ""
        if self._read_error is not None:
            why = english("it could not be read back: %(read_error)s", read_error=self._read_error)
            return Proof.UNPROVEN, why, english("Sync again when Letta answers.")
        match now := self._state(change.desired):
            case ProviderState.IN_SYNC:
                # The stored values are right, even if a part of the change failed.
                return Proof.PROVEN, "", ""
            case _ if outcome.failed:
                return Proof.FAILED, "", ""
            case ProviderState.HIDDEN:
                return Proof.UNPROVEN, english("written, but it cannot be read back"), _SAME_MASTER_KEY
            case ProviderState.UNREADABLE:
                return (
                    Proof.UNPROVEN,
                    english("written, but Letta encrypts it under another master key"),
                    _SAME_MASTER_KEY,
                )
            case ProviderState.PLAINTEXT:
                return (
                    Proof.FAILED,
                    english("Letta stores it in plaintext: it runs without a master key"),
                    _SET_MASTER_KEY,
                )
            case _:
                state = now.value.replace("_", " ")
                return Proof.FAILED, english("afterwards it is %(state)s", state=state), ""

    async def _count_models(self, entries: list[ProviderReport]) -> list[ProviderReport]:
        # For a provider that was never synced, Letta would ask the vendor.
        names = [e.name for e in entries if (stored := self._stored.get(e.name)) is not None and stored.synced]
        try:
            numbers = await gather([partial(self._store.models, name) for name in names], at_once=_CONCURRENCY)
        except LettaError:
            # The report is worth more than these numbers.
            return entries
        counts = dict(zip(names, numbers, strict=True))
        return [replace(entry, models=counts.get(entry.name, 0)) for entry in entries]


def _foreign(stored: StoredProvider) -> ProviderReport:
    return ProviderReport(
        name=stored.name,
        vendor=stored.type,
        type=stored.type,
        base_url=stored.base_url,
        stored_base_url=stored.base_url,
        key=None,
        key_source=None,
        stored=ProviderState.FOREIGN,
        action=Action.NONE,
        proof=Proof.NOT_ASKED,
        reason=english("not declared; left unchanged"),
        configured=False,
    )
