"""The watcher: keeps the providers in sync while a process runs.

A changed file, a time of the schedule or a provider to try again each lead to a sync of the providers concerned. One
thing is done at a time. No error ends the watcher; each problem is reported once, and again when it changes.
"""

from __future__ import annotations

import random
import time as clocks
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from typing import Protocol

import anyio

from isabella.api import ensure_providers
from isabella.config import key_commands
from isabella.config.choices import Strategy
from isabella.config.editing import shown_variables
from isabella.config.settings import Settings, WatchMode
from isabella.connect import connect
from isabella.errors import ConfigurationError, IsabellaError
from isabella.letta.client import Connection
from isabella.locks.provider_lock import ProviderLock
from isabella.practice.overlay import ConfigSnapshot
from isabella.providers.desired import Desired
from isabella.providers.health import HealthState, health_state
from isabella.providers.report import Report
from isabella.system import audit
from isabella.system.redaction import unforeseen
from isabella.watch import config_changes, events
from isabella.watch.config_changes import apply_live_settings, diff_config
from isabella.watch.events import SyncCause, WatchListener
from isabella.watch.model_refresh import ModelRefresh, refresh_models

#: Spreads the resyncs of several backends.
_JITTER = 0.1
_FIRST_PAUSE = 5.0
_MAX_PAUSE = 1800.0
#: The schedule is checked at least this often, because the wall clock may be set and a machine may sleep.
_MAX_WAIT = 30.0
#: Commands that print keys are not run again more often than this.
_RENEW_SECONDS = 4.0
_MORE_THAN_A_DAY = timedelta(hours=26)
#: These conditions may pass by themselves; the others need the operator.
_TRIED_AGAIN = (HealthState.REFUSED, HealthState.FAILED)


@dataclass(frozen=True)
class Clock:
    """The time: monotonic seconds, the local time, and a random number from 0 to 1."""

    monotonic: Callable[[], float] = clocks.monotonic
    now: Callable[[], datetime] = field(default=lambda: datetime.now().astimezone())
    chance: Callable[[], float] = random.random


@dataclass(frozen=True)
class Due:
    """The actions that are due: check for drift, refresh the model lists, try these providers again."""

    resync: bool = False
    refresh: bool = False
    retry: tuple[str, ...] = ()


class DailyTime:
    """A local time of day at which something is due once; None: never."""

    def __init__(self, at: time | None, clock: Clock) -> None:
        self._at = at
        self._clock = clock
        self._next = self._following()

    def due(self) -> bool:
        """Return whether it is due now, and count it as done."""
        if self._next is not None and self._next - self._clock.now() > _MORE_THAN_A_DAY:
            # The wall clock was set back.
            self._next = self._following()
        due = self._next is not None and self._clock.now() >= self._next
        if due:
            self._next = self._following()
        return due

    def seconds(self) -> float | None:
        """Return how long it takes until it is due; None if it never is."""
        return None if self._next is None else (self._next - self._clock.now()).total_seconds()

    def _following(self) -> datetime | None:
        if self._at is None:
            return None
        now = self._clock.now()
        today = now.replace(hour=self._at.hour, minute=self._at.minute, second=0, microsecond=0, fold=0)
        return today if today > now else today + timedelta(days=1)


class Schedule:
    """The times of the next actions: `resync` in seconds (0: never), `refresh_at` in local time (None: never)."""

    def __init__(self, resync: float, refresh_at: time | None, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._pauses: dict[str, tuple[float, float]] = {}  #: until when, and for how many seconds
        self.change(resync, refresh_at)

    def change(self, resync: float, refresh_at: time | None) -> None:
        """Use other times from now on. Providers that wait for another try keep waiting."""
        self._resync, self._refresh = resync, DailyTime(refresh_at, self._clock)
        self._next_resync = self._after_resync()

    @property
    def waiting(self) -> frozenset[str]:
        """The providers that wait for another try."""
        return frozenset(self._pauses)

    def failed(self, names: Iterable[str]) -> None:
        """Try these again: first after 5 seconds, then after twice as long each time, at most half an hour."""
        for name in names:
            before = self._pauses.get(name)
            seconds = _FIRST_PAUSE if before is None else min(before[1] * 2, _MAX_PAUSE)
            self._pauses[name] = (self._clock.monotonic() + self._spread(seconds), seconds)

    def succeeded(self, names: Iterable[str]) -> None:
        """Do not try these again."""
        for name in names:
            self._pauses.pop(name, None)

    def due(self) -> Due:
        """Return the tasks due now, and count them as done."""
        now = self._clock.monotonic()
        resync = self._next_resync is not None and now >= self._next_resync
        if resync:
            self._next_resync = self._after_resync()
        return Due(
            resync, self._refresh.due(), tuple(name for name, (until, _) in self._pauses.items() if now >= until)
        )

    def seconds(self) -> float:
        """Return how long to wait until something is due, at most half a minute."""
        now = self._clock.monotonic()
        times = [until - now for until, _ in self._pauses.values()]
        if self._next_resync is not None:
            times.append(self._next_resync - now)
        if (seconds := self._refresh.seconds()) is not None:
            times.append(seconds)
        return max(0.0, min([*times, _MAX_WAIT]))

    def _spread(self, seconds: float) -> float:
        return seconds * (1 + _JITTER * (2 * self._clock.chance() - 1))

    def _after_resync(self) -> float | None:
        return self._clock.monotonic() + self._spread(self._resync) if self._resync > 0 else None


class WatchActions(Protocol):
    """The actions of the watcher."""

    async def ensure(self, settings: Settings, only: Sequence[str]) -> Report:
        """Sync these providers; all of them if `only` is empty."""

    async def refresh_models(self, settings: Settings) -> ModelRefresh:
        """Read the model lists again."""


class LettaActions:
    """The actions on a real Letta. `find` is called each time: an embedded one may have a new master key."""

    def __init__(
        self, gate: ProviderLock | None = None, *, find: Callable[[Settings], Awaitable[Connection]] = connect
    ) -> None:
        self._gate = gate
        self._find = find

    async def ensure(self, settings: Settings, only: Sequence[str]) -> Report:
        """Sync these providers; all of them if `only` is empty. Raises as `ensure_providers` does."""
        # To recreate everything is meant for the start. Repeated at every check, it would open a gap every time.
        strategy = Strategy.AUTO if settings.strategy is Strategy.RECREATE else settings.strategy
        return await ensure_providers(
            settings,
            connection=await self._find(settings),
            only=only,
            strategy=strategy,
            count_models=True,
            gate=self._gate,
        )

    async def refresh_models(self, settings: Settings) -> ModelRefresh:
        """Read the model lists again. Raises as `model_refresh.refresh_models` does."""
        return await refresh_models(settings, await self._find(settings))


class Watcher:
    """Keeps the providers of one Letta in sync, and calls the listener, which must not raise, with every event.

    `report` is the result of the sync before, if there was one.
    """

    def __init__(
        self,
        settings: Settings,
        actions: WatchActions,
        listener: WatchListener,
        *,
        report: Report | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self._started_with = settings
        self.settings = settings  #: the settings in force now
        self._snapshot = ConfigSnapshot.of(settings)
        self._actions = actions
        self._notify = listener
        self.report = report  #: the last known state of all providers
        self._schedule = schedule or Schedule(settings.resync, settings.refresh_at)
        self.syncing = False  #: whether providers are being written
        self._busy = anyio.Lock()
        self._woken = anyio.Event()
        self._refused: str | None = None
        self._errors: dict[SyncCause, str] = {}
        if report is not None:
            self._schedule.failed(_to_try_again(report))

    @property
    def desired(self) -> tuple[Desired, ...]:
        """The desired providers, as the configuration was last read."""
        return self._snapshot.desired

    async def run(self) -> None:
        """Watch until cancelled."""
        async with anyio.create_task_group() as tasks:
            if self._started_with.watch is not WatchMode.OFF:
                tasks.start_soon(self._watch_files)
            tasks.start_soon(self._keep_schedule)

    def wake(self) -> None:
        """Check the schedule now."""
        self._woken.set()

    async def reread(self) -> None:
        """Read the configuration again, and sync what has changed in it."""
        async with self._busy:
            try:
                # In a thread, because key files may be on a slow disk.
                fresh = await anyio.to_thread.run_sync(self._snapshot.again)
            except ConfigurationError as error:
                self._refuse(error.what, error.remedy)
                return
            except Exception as error:  # noqa: BLE001 - no error ends the watcher
                self._refuse(unforeseen(error), None)
                return
            if self._refused is not None:
                self._refused = None
                self._notify(events.ConfigAccepted())
            self._record_change(fresh)
            diff = diff_config(self._snapshot, fresh, self._started_with)
            self._snapshot = fresh
            self.settings = apply_live_settings(fresh.settings, self._started_with)
            if diff.restart:
                self._notify(events.RestartNeeded(diff.restart))
            if diff.timing:
                self._schedule.change(self.settings.resync, self.settings.refresh_at)
                self.wake()
            if diff.gone:
                self._notify(events.ProvidersDropped(diff.gone))
                self._schedule.succeeded(diff.gone)
            if diff.providers or diff.undeclared:
                # A changed key is tried at once, however long the former one has been refused.
                self._schedule.succeeded(diff.providers)
                await self._sync(() if diff.undeclared else diff.providers, SyncCause.CHANGE)

    def _record_change(self, fresh: ConfigSnapshot) -> None:
        """Record the variables of `.env` that were changed in the file."""
        before, now = self._snapshot.settings.sources.dotenv, fresh.settings.sources.dotenv
        changed = {name: now.get(name) for name in {**before, **now} if before.get(name) != now.get(name)}
        if changed:
            file, shown = str(fresh.settings.sources.file), shown_variables(changed)
            with audit.change("setting.noticed", file, home=self._started_with.home, variables=shown):
                pass

    async def resync(self) -> None:
        """Check for drift, and repair it. Providers that wait for another try are skipped."""
        async with self._busy:
            waiting = self._schedule.waiting
            names = [one.name for one in self._snapshot.desired if one.configured and one.name not in waiting]
            if names or not waiting:
                await self._sync(names if waiting else (), SyncCause.RESYNC)

    async def retry(self, names: Sequence[str]) -> None:
        """Try these providers again."""
        async with self._busy:
            declared = {one.name for one in self._snapshot.desired}
            self._schedule.succeeded(name for name in names if name not in declared)
            if left := [name for name in names if name in declared]:
                await self._sync(left, SyncCause.RETRY)

    async def refresh(self) -> None:
        """Read the model lists again, and report what has changed."""
        async with self._busy:

            async def refresh() -> None:
                self._notify(events.ModelsRefreshed(await self._actions.refresh_models(self.settings)))

            await self._try(refresh, SyncCause.REFRESH)

    async def _renew_keys(self) -> None:
        """Run the commands that print keys again, and sync what has changed."""
        if await anyio.to_thread.run_sync(key_commands.renew, _RENEW_SECONDS):
            await self.reread()

    async def _watch_files(self) -> None:
        # The stamps are taken before the files are read: a write in between then counts as a change. The first
        # reading finds what was changed while the process started.
        stamps = config_changes.file_stamps(self._snapshot.files)
        await self.reread()
        mode = self._started_with.watch
        await config_changes.watch_files(lambda: self._snapshot.files, self.reread, mode, since=stamps)

    async def _keep_schedule(self) -> None:
        while True:
            with anyio.move_on_after(self._schedule.seconds()):
                await self._woken.wait()
            self._woken = anyio.Event()
            due = self._schedule.due()
            if due.retry or due.resync:
                await self._renew_keys()
            if due.retry:
                await self.retry(due.retry)
            if due.resync:
                await self.resync()
            if due.refresh:
                await self.refresh()

    def _refuse(self, what: str, remedy: str | None) -> None:
        """Keep the former settings, and report this once."""
        if self._refused != what:
            self._refused = what
            self._notify(events.ConfigRefused(what, remedy))

    async def _sync(self, names: Sequence[str], cause: SyncCause) -> None:
        parts: list[Report] = []

        async def ensure() -> None:
            self.syncing = True
            try:
                parts.append(await self._actions.ensure(self.settings, names))
            finally:
                self.syncing = False

        began = clocks.monotonic()
        if not await self._try(ensure, cause):
            self._schedule.failed(names or [one.name for one in self._snapshot.desired if one.configured])
            self.wake()
            return
        part = parts[0]
        self.report = self.report.merged_with(part) if names and self.report is not None else part
        again = _to_try_again(part)
        self._schedule.succeeded({entry.name for entry in part.providers} - {*again})
        self._schedule.failed(again)
        # A pause that has just begun may end before anything else is due.
        self.wake()
        self._notify(events.Synced(self.report, part, cause, clocks.monotonic() - began))

    async def _try(self, action: Callable[[], Awaitable[None]], cause: SyncCause) -> bool:
        """Return whether the action succeeded. An error is reported once for each cause, until it changes."""
        try:
            await action()
        except IsabellaError as error:
            what, remedy = error.what, error.remedy
        except Exception as error:  # noqa: BLE001 - no error ends the watcher
            what, remedy = unforeseen(error), None
        else:
            self._errors.pop(cause, None)
            return True
        if self._errors.get(cause) != what:
            self._errors[cause] = what
            self._notify(events.WatchFailed(what, cause, remedy))
        return False


def _to_try_again(report: Report) -> list[str]:
    return [entry.name for entry in report.configured if health_state(entry) in _TRIED_AGAIN]
