"""The state of Letta's providers while pages of the console are open, and the status line of all pages."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import anyio
import structlog

from isabella.api import compare_providers
from isabella.config.settings import Settings
from isabella.errors import Interrupted, IsabellaError
from isabella.letta.client import Connection
from isabella.providers.health import Level, StatusHeadline
from isabella.providers.report import Report
from isabella.server.event_log import Notifier
from isabella.server.readiness import Readiness
from isabella.system.english import english, joined
from isabella.system.supervision import PartState, PartStatus
from isabella.watch.watcher import Watcher

log = structlog.get_logger()

_POLL_SECONDS = 3.0
#: A failed poll says nothing after this time without another one.
_STALE_SECONDS = 30.0


@dataclass(frozen=True)
class ProviderStates:
    """The polled state of the providers."""

    report: Report | None = None
    as_of: datetime | None = None
    error: IsabellaError | None = None  #: why the last poll failed, if it did
    since: datetime | None = None  #: since when polls fail
    version: int = 0  #: grows with every change


class Backend(Protocol):
    """The part of a `Runtime` that the monitor uses."""

    readiness: Readiness
    watcher: Watcher | None
    syncs: int

    @property
    def up(self) -> bool:
        """Whether the agents are open."""

    @property
    def settings(self) -> Settings:
        """The settings in force now."""

    @property
    def connection(self) -> Connection:
        """The Letta server in use."""

    async def explain(self, error: IsabellaError) -> IsabellaError:
        """Return an error as `Interrupted`, if it comes from a process that is being restarted."""

    def start_task(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        """Run an async function in the background."""


class ProviderMonitor:
    """Polls the providers while a page is open."""

    def __init__(self, runtime: Backend) -> None:
        self._runtime = runtime
        self.notifier = Notifier()
        self._states = ProviderStates()
        self._tried_at: datetime | None = None
        self._viewers = 0
        self._wake = anyio.Event()
        self._running = False
        self._polling = anyio.Lock()

    @property
    def states(self) -> ProviderStates:
        """The states from the last poll or from the last report of a sync, whichever is newer."""
        readiness, states = self._runtime.readiness, self._states
        if readiness.report is not None and (
            states.as_of is None or states.as_of < (readiness.as_of or states.as_of)
        ):
            states = replace(states, report=readiness.report, as_of=readiness.as_of, version=states.version + 1)
            self._states = states
        if states.error is not None and self._tried_at is not None:
            age = (datetime.now(UTC) - self._tried_at).total_seconds()
            if age > _STALE_SECONDS and not self._viewers:
                states = replace(states, error=None, since=None, version=states.version + 1)
                self._states = states
        return states

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """Poll for as long as the block runs."""
        self._viewers += 1
        self._wake.set()
        try:
            if not self._running:
                self._running = True
                self._runtime.start_task(self._run)
            yield
        finally:
            self._viewers -= 1

    def wake(self) -> None:
        """Poll now."""
        self._wake.set()

    async def _run(self) -> None:
        try:
            while self._viewers:
                await self.poll()
                with anyio.move_on_after(_POLL_SECONDS if self._runtime.up else 0.5):
                    await self._wake.wait()
                self._wake = anyio.Event()
        finally:
            self._running = False

    async def poll(self) -> None:
        """Read the providers now, if the agents are open."""
        async with self._polling:
            if self._runtime.up:
                await self._poll()

    async def _poll(self) -> None:
        runtime, synced_at = self._runtime, self._runtime.readiness.as_of
        syncing = self._syncing
        try:
            report = await compare_providers(runtime.settings, connection=runtime.connection)
        except IsabellaError as error:
            await self._failed(error)
            return
        except Exception:
            # A bug here must not end the backend's task group.
            log.exception("polling the providers failed")
            return
        before = self.states
        if runtime.readiness.as_of != synced_at or syncing or self._syncing:
            # A sync writes meanwhile, or has ended: its report is newer than this one.
            if runtime.readiness.as_of != synced_at:
                self.wake()
            if before.error is not None:
                self._update(replace(before, error=None, since=None, version=before.version + 1))
            self._tried_at = datetime.now(UTC)
            return
        # Counting models costs a request per provider, so a poll takes the numbers of the last sync.
        synced = runtime.readiness.report
        models = {} if synced is None else {entry.name: entry.models for entry in synced.providers}
        entries = [replace(entry, models=models.get(entry.name, 0)) for entry in report.providers]
        report = replace(report, providers=entries)
        changed = before.report is None or before.error is not None or _shown(report) != _shown(before.report)
        self._tried_at = datetime.now(UTC)
        self._update(ProviderStates(report, self._tried_at, version=before.version + changed))

    @property
    def _syncing(self) -> bool:
        watcher = self._runtime.watcher
        return self._runtime.syncs > 0 or (watcher is not None and watcher.syncing)

    async def _failed(self, error: IsabellaError) -> None:
        """Record why a poll failed, unless a supervised part is down, which has its own status."""
        explained = await self._runtime.explain(error)
        before, self._tried_at = self.states, datetime.now(UTC)
        if isinstance(explained, Interrupted):
            self.notifier.notify()
            return
        if before.error is None or before.error.what != error.what:
            since = before.since if before.error is not None else self._tried_at
            self._update(replace(before, error=error, since=since, version=before.version + 1))

    def _update(self, states: ProviderStates) -> None:
        # The time of the last look is shown in minutes.
        seen, before = states.as_of, self._states.as_of
        later = seen is not None and before is not None and seen.replace(second=0, microsecond=0) > before
        changed = states.version != self._states.version or later
        self._states = states
        if changed:
            self.notifier.notify()


def _shown(report: Report) -> list[object]:
    return [
        (entry.name, entry.condition, entry.stored, entry.proof, entry.reason, entry.key, entry.models, entry.notes)
        for entry in report.providers
    ]


def status_line(runtime: Backend, states: ProviderStates) -> StatusHeadline:
    """Return the status of the whole backend: the worst problem, with the next step."""
    readiness = runtime.readiness
    if readiness.error is not None:
        error = readiness.error
        return StatusHeadline(Level.PROBLEM, english("Isabella does not work."), error.what, error.remedy or "")
    if readiness.down and readiness.report is not None:
        lead = readiness.headline(readiness.report)
        return replace(lead, remedy=_remedy_of(readiness.down[0]), seen=readiness.down[0].since)
    if states.report is None or not readiness.opened:
        return StatusHeadline(Level.UNKNOWN, english("Isabella is starting."), joined(readiness.reasons))
    if states.error is not None:
        remedy = states.error.remedy or english("`isabella doctor` names the cause.")
        return StatusHeadline(
            Level.PROBLEM, english("Letta does not answer."), states.error.what, remedy, states.since
        )
    lead = readiness.headline(readiness.with_vendors(states.report))
    if not states.report.configured and runtime.up:
        path = runtime.settings.sources.file.absolute()
        remedy = english("Put a key into %(file)s, such as CEREBRAS_API_KEY=…; it takes effect at once.", file=path)
        lead = replace(lead, remedy=remedy)
    return lead if lead.seen is not None else replace(lead, seen=states.as_of)


def _remedy_of(part: PartStatus) -> str:
    match part.state:
        case PartState.GIVEN_UP:
            return english("`isabella doctor` names the cause.")
        case PartState.STOPPED:
            return english("It was stopped on purpose; start it with `isabella letta up`.")
        case _:
            return english("There is nothing to do: it is being restarted.")
