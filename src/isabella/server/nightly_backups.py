"""Nightly backups of the embedded Letta while the backend runs, and what readiness and metrics say about them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
import anyio.to_thread
import structlog

from isabella.config.settings import Settings
from isabella.embedded import Server, postgres, restoring
from isabella.embedded.backups import Backup, BackupPolicy, BackupReason, list_backups
from isabella.errors import IsabellaError
from isabella.locks.postgres import leads
from isabella.server.readiness import BackupStatus
from isabella.server.runtime import Runtime
from isabella.system import audit
from isabella.system.english import english, joined
from isabella.system.redaction import unforeseen
from isabella.watch.watcher import Clock, DailyTime

log = structlog.get_logger()

_RETRY_SECONDS = 3600.0
#: The wall clock is compared at least this often, because it may be set, and a machine may sleep.
_MAX_WAIT = 30.0
_OVERDUE = timedelta(hours=26)


@asynccontextmanager
async def run_nightly_backups(runtime: Runtime, settings: Settings, server: Server | None) -> AsyncIterator[None]:
    """Make backups of the embedded Letta in the background, at the time of the settings."""
    if server is None:
        yield
        return
    nightly = NightlyBackups(runtime, server, BackupPolicy.of(settings))
    async with anyio.create_task_group() as tasks:
        with audit.acting(audit.Actor(audit.ActorKind.JOB, "nightly backup")):
            tasks.start_soon(nightly.run)
        yield
        tasks.cancel_scope.cancel()


class NightlyBackups:
    """Makes one backup a night; one that was missed is made at the start, and one that failed is tried again."""

    def __init__(
        self,
        runtime: Runtime,
        server: Server,
        policy: BackupPolicy,
        clock: Clock | None = None,
        back_up: Callable[[Server, BackupPolicy, BackupReason], Backup] = restoring.back_up,
    ) -> None:
        self._runtime = runtime
        self._server = server
        self._policy = policy
        self._clock = clock or Clock()
        self._daily = DailyTime(policy.settings.backup_at, self._clock)
        self._back_up = back_up
        former = runtime.readiness.backups
        failed = former is not None and former.failure is not None
        self._retry_at = self._clock.monotonic() + _RETRY_SECONDS if failed else None
        self._show(former)

    async def run(self) -> None:
        """Make backups until cancelled."""
        if self._policy.settings.backup_at is None:
            return
        if self.overdue():
            await self.make()
        while True:
            await anyio.sleep(max(0.0, min(self._daily.seconds() or 0.0, _MAX_WAIT)))
            if self.due():
                await self.make()

    def due(self) -> bool:
        """Return whether one is to be made now: at its time, or an hour after one that failed."""
        retry = self._retry_at is not None and self._clock.monotonic() >= self._retry_at
        return self._daily.due() or retry

    def overdue(self) -> bool:
        """Return whether the last night had none. A database that is newer than that is not overdue."""
        cluster = postgres.find_cluster(self._server.paths) if self._server.own is None else None
        nightly = [one.at for one in self._list() if one.reason is BackupReason.NIGHTLY]
        try:
            created = datetime.fromtimestamp((cluster.data / "PG_VERSION").stat().st_mtime, UTC) if cluster else None
        except OSError:
            created = None
        known = [*nightly, *([created] if created else [])]
        return bool(known) and self._clock.now() - max(known) > _OVERDUE

    async def make(self) -> None:
        """Make one now, and record the result; several backends on one database have one of them do it."""
        turns = self._runtime.turn_service
        try:
            if turns is not None and not await leads(turns.deps.gate.advisory, "backup"):
                return
            made = await anyio.to_thread.run_sync(
                partial(self._back_up, self._server, self._policy, BackupReason.NIGHTLY), abandon_on_cancel=True
            )
        except IsabellaError as error:
            self._fail(joined([part for part in (error.what, error.remedy) if part]))
        except Exception as error:  # noqa: BLE001 - no error ends the nightly backups
            self._fail(unforeseen(error))
        else:
            self._retry_at = None
            self._show(None)
            log.info("backup", path=str(made.path), bytes=made.size, sentence=f"The nightly backup: {made.path}")

    def _fail(self, what: str) -> None:
        former = self._runtime.readiness.backups
        self._retry_at = self._clock.monotonic() + _RETRY_SECONDS
        self._show(BackupStatus(failure=what))
        if former is None or former.failure != what:
            sentence = english("The nightly backup failed: %(what)s", what=what)
            log.warning("backup failed", error=what, sentence=sentence)
            self._runtime.event_log.add_notice(sentence, warning=True)

    def _show(self, status: BackupStatus | None) -> None:
        newest = next(iter(self._list()), None)
        failure = None if status is None else status.failure
        self._runtime.readiness.backups = (
            BackupStatus(failure=failure) if newest is None else BackupStatus(newest.at, newest.size, failure)
        )

    def _list(self) -> list[Backup]:
        return list_backups(self._policy.folder, self._server.paths.folder.name)
