"""The keeper: providers stay in line for as long as it runs.

A changed file, a time that has come, a provider to be tried again: each leads to a sync of what is concerned and of
nothing else. One thing is done at a time. No error ends it; what is wrong is said once, and again when it changes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import anyio

from isabella.api import ensure_providers
from isabella.config.settings import Settings, Watch
from isabella.config.strategy import Strategy
from isabella.connect import connect
from isabella.errors import ConfigurationError, IsabellaError
from isabella.letta.connection import Connection
from isabella.locks.provider_lock import ProviderLock
from isabella.providers.desired import Desired
from isabella.providers.health import HealthState, health_state
from isabella.providers.report import Report
from isabella.system.redaction import unforeseen
from isabella.watch import file_watcher
from isabella.watch.config_diff import ConfigSnapshot, diff_config, keep_in_force
from isabella.watch.events import (
    ConfigAccepted,
    ConfigRefused,
    ModelsRefreshed,
    ProvidersDropped,
    RestartNeeded,
    SyncCause,
    Synced,
    Tell,
    WatchFailed,
)
from isabella.watch.model_refresh import ModelRefresh, refresh_models
from isabella.watch.schedule import Schedule

#: Time may mend these; what is wrong with the others, somebody has to mend.
_TRIED_AGAIN = (HealthState.REFUSED, HealthState.FAILED)


class WatchActions(Protocol):
    """What the keeper has done when it is due."""

    async def ensure(self, settings: Settings, only: Sequence[str]) -> Report:
        """Bring providers in line; all of them where none is named."""

    async def count(self, settings: Settings) -> ModelRefresh:
        """Read the model lists anew."""


class Watcher:
    """Keeps the providers of one Letta in line.

    Args:
        settings: what is in force.
        work: what is done.
        tell: hears of all that happens. It must not raise.
        report: what the sync before this has found; None where there was none.
        schedule: when things are due; by default as the settings say.

    Raises:
        ConfigurationError: `isabella.toml` is malformed.
    """

    def __init__(
        self,
        settings: Settings,
        work: WatchActions,
        tell: Tell,
        *,
        report: Report | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self._began_with = settings
        self._settings = settings
        self._reading = ConfigSnapshot.of(settings)
        self._work = work
        self._tell = tell
        self._report = report
        self._schedule = schedule or Schedule(settings.resync, settings.refresh_at)
        self._busy = anyio.Lock()
        self._woken = anyio.Event()
        self._refused: str | None = None
        self._trouble: dict[SyncCause, str] = {}
        if report is not None:
            self._schedule.failed(_to_try_again(report))

    @property
    def settings(self) -> Settings:
        """What is in force now."""
        return self._settings

    @property
    def desired(self) -> tuple[Desired, ...]:
        """The providers that are asked for, as the configuration was read last."""
        return self._reading.desired

    @property
    def report(self) -> Report | None:
        """How the providers stood when they were looked at last."""
        return self._report

    async def run(self) -> None:
        """Keep watch until cancelled."""
        async with anyio.create_task_group() as tasks:
            if self._began_with.watch is not Watch.OFF:
                tasks.start_soon(self._watch_files)
            tasks.start_soon(self._keep_time)

    def wake(self) -> None:
        """Look at the schedule now, as when the clock was set."""
        self._woken.set()

    async def reread(self) -> None:
        """Read the configuration anew, and sync what is different in it."""
        async with self._busy:
            await self._reread()

    async def resync(self) -> None:
        """Look for drift, and mend it. What is waiting to be tried again is left alone until then."""
        async with self._busy:
            waiting = self._schedule.waiting
            names = [one.name for one in self._reading.desired if one.wanted and one.name not in waiting]
            if names or not waiting:
                await self._sync(names if waiting else (), SyncCause.RESYNC)

    async def retry(self, names: Sequence[str]) -> None:
        """Try these providers again."""
        async with self._busy:
            known = {one.name for one in self._reading.desired}
            self._schedule.succeeded(name for name in names if name not in known)
            if left := [name for name in names if name in known]:
                await self._sync(left, SyncCause.RETRY)

    async def refresh(self) -> None:
        """Read the model lists anew, and tell what came and went."""
        async with self._busy:
            census: list[ModelRefresh] = []

            async def count() -> None:
                census.append(await self._work.count(self._settings))

            if await self._tried(count, SyncCause.REFRESH):
                self._tell(ModelsRefreshed(census[0]))

    async def _watch_files(self) -> None:
        # What was changed while everything came up has not been noticed yet.
        # Looked at before they are read: what is written in between is then a change, too.
        looked = file_watcher.file_marks(self._reading.files)
        await self.reread()
        await file_watcher.watch_files(lambda: self._reading.files, self.reread, self._began_with.watch, since=looked)

    async def _keep_time(self) -> None:
        while True:
            with anyio.move_on_after(self._schedule.seconds()):
                await self._woken.wait()
            self._woken = anyio.Event()
            due = self._schedule.due()
            if due.retry:
                await self.retry(due.retry)
            if due.resync:
                await self.resync()
            if due.refresh:
                await self.refresh()

    async def _reread(self) -> None:
        try:
            # In a thread: there may be a thousand key files, on a slow disk.
            fresh = await anyio.to_thread.run_sync(self._reading.again)
        except ConfigurationError as error:
            self._refuse(error.what, error.remedy)
            return
        except Exception as error:  # noqa: BLE001 - no error ends the watch
            self._refuse(unforeseen(error), None)
            return
        if self._refused is not None:
            self._refused = None
            self._tell(ConfigAccepted())
        different = diff_config(self._reading, fresh, self._began_with)
        self._reading = fresh
        self._settings = keep_in_force(fresh.settings, self._began_with)
        if different.restart:
            self._tell(RestartNeeded(different.restart))
        if different.timing:
            self._schedule.change(self._settings.resync, self._settings.refresh_at)
            self.wake()
        if different.gone:
            self._tell(ProvidersDropped(different.gone))
            self._schedule.succeeded(different.gone)
        if different.providers or different.undeclared:
            # A changed key deserves a fresh try, however long the one before has been refused.
            self._schedule.succeeded(different.providers)
            await self._sync(() if different.undeclared else different.providers, SyncCause.CHANGE)

    def _refuse(self, what: str, remedy: str | None) -> None:
        """Go on with the former settings, and say so once."""
        if self._refused != what:
            self._refused = what
            self._tell(ConfigRefused(what, remedy))

    async def _sync(self, names: Sequence[str], cause: SyncCause) -> None:
        parts: list[Report] = []

        async def ensure() -> None:
            parts.append(await self._work.ensure(self._settings, names))

        began = time.monotonic()
        if not await self._tried(ensure, cause):
            self._schedule.failed(names or [one.name for one in self._reading.desired if one.wanted])
            self.wake()
            return
        part = parts[0]
        self._report = self._report.merged_with(part) if names and self._report is not None else part
        again = _to_try_again(part)
        self._schedule.succeeded({entry.name for entry in part.providers} - {*again})
        self._schedule.failed(again)
        # A pause that has just begun may end before anything else is due.
        self.wake()
        self._tell(Synced(self._report, part, cause, time.monotonic() - began))

    async def _tried(self, call: Callable[[], Awaitable[None]], cause: SyncCause) -> bool:
        """Whether it went well. What went wrong is told once for each cause, until something else happens."""
        try:
            await call()
        except IsabellaError as error:
            what, remedy = error.what, error.remedy
        except Exception as error:  # noqa: BLE001 - no error ends the watch
            what, remedy = unforeseen(error), None
        else:
            self._trouble.pop(cause, None)
            return True
        if self._trouble.get(cause) != what:
            self._trouble[cause] = what
            self._tell(WatchFailed(what, cause, remedy))
        return False


def _to_try_again(report: Report) -> list[str]:
    return [entry.name for entry in report.ours if health_state(entry) in _TRIED_AGAIN]


class LettaActions:
    """Work on a real Letta.

    Args:
        gate: the one that turns of this process pass.
        find: finds the Letta, anew each time: the embedded one may run under another master key by now.
    """

    def __init__(
        self, gate: ProviderLock | None = None, *, find: Callable[[Settings], Awaitable[Connection]] = connect
    ) -> None:
        self._gate = gate
        self._find = find

    async def ensure(self, settings: Settings, only: Sequence[str]) -> Report:
        """Bring providers in line; all of them where none is named.

        Raises as `ensure_providers` does.
        """
        # To recreate everything is meant for the start. Every five minutes it would be a gap every five minutes.
        strategy = Strategy.AUTO if settings.strategy is Strategy.RECREATE else settings.strategy
        return await ensure_providers(
            settings,
            connection=await self._find(settings),
            only=only,
            strategy=strategy,
            count_models=True,
            gate=self._gate,
        )

    async def count(self, settings: Settings) -> ModelRefresh:
        """Read the model lists anew.

        Raises as `take_census` does.
        """
        return await refresh_models(settings, await self._find(settings))
