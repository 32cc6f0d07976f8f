"""The background work of the providers page: polling the providers, and the jobs that its buttons start."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import anyio
import structlog

from isabella.api import compare_providers, ensure_providers, verify_providers
from isabella.doctor.run import DoctorOptions, run_doctor
from isabella.errors import IsabellaError
from isabella.providers.plan import Action
from isabella.providers.report import Report
from isabella.server.event_log import Notifier
from isabella.server.runtime import Runtime
from isabella.system.redaction import redact
from isabella.watch.events import ModelsRefreshed
from isabella.watch.model_refresh import ModelRefresh, refresh_models

log = structlog.get_logger()

_POLL_SECONDS = 4.0


@dataclass(frozen=True)
class ProviderStates:
    """The polled state of the providers."""

    report: Report | None = None
    as_of: datetime | None = None
    error: IsabellaError | None = None  #: why the last poll failed, if it did
    since: datetime | None = None  #: since when polls fail
    version: int = 0  #: grows with every change


class ProviderMonitor:
    """Polls the providers while a page shows them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.notifier = Notifier()
        self._states = ProviderStates()
        self._viewers = 0
        self._wake = anyio.Event()
        self._running = False

    @property
    def states(self) -> ProviderStates:
        """The states from the last poll or from the last report of a sync, whichever is newer."""
        readiness, states = self._runtime.readiness, self._states
        if readiness.report is not None and (
            states.as_of is None or states.as_of < (readiness.as_of or states.as_of)
        ):
            states = replace(states, report=readiness.report, as_of=readiness.as_of, version=states.version + 1)
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
                if self._runtime.up:
                    await self._poll()
                with anyio.move_on_after(_POLL_SECONDS if self._runtime.up else 0.5):
                    await self._wake.wait()
                self._wake = anyio.Event()
        finally:
            self._running = False

    async def _poll(self) -> None:
        runtime, before, synced_at = self._runtime, self.states, self._runtime.readiness.as_of
        try:
            report = await compare_providers(runtime.settings, connection=runtime.connection)
        except IsabellaError as error:
            if before.error is None or before.error.what != error.what:
                since = before.since if before.error is not None else datetime.now(UTC)
                self._update(replace(before, error=error, since=since, version=before.version + 1))
            return
        except Exception:
            # A bug here must not end the backend's task group.
            log.exception("polling the providers failed")
            return
        if runtime.readiness.as_of != synced_at:
            # A sync ended during the poll, so its report is newer.
            self.wake()
            return
        # Counting models costs a request per provider, so a poll takes the numbers of the last sync.
        synced = runtime.readiness.report
        models = {} if synced is None else {entry.name: entry.models for entry in synced.providers}
        entries = [replace(entry, models=models.get(entry.name, 0)) for entry in report.providers]
        report = replace(report, providers=entries)
        changed = before.report is None or before.error is not None or _shown(report) != _shown(before.report)
        self._update(ProviderStates(report, datetime.now(UTC), version=before.version + changed))

    def _update(self, states: ProviderStates) -> None:
        changed = states.version != self._states.version
        self._states = states
        if changed:
            self.notifier.notify()


def _shown(report: Report) -> list[object]:
    return [
        (entry.name, entry.condition, entry.stored, entry.proof, entry.reason, entry.key, entry.models, entry.notes)
        for entry in report.providers
    ]


class JobKind(StrEnum):
    """The kind of a job."""

    PLAN = "plan"
    SYNC = "sync"
    VERIFY = "verify"
    REFRESH = "refresh"
    DOCTOR = "doctor"


class JobState(StrEnum):
    """The state of a job."""

    RUNNING = "running"
    #: It would recreate providers, which has to be confirmed.
    ASKING = "asking"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Job:
    """A job and its result."""

    kind: JobKind
    only: tuple[str, ...] = ()  #: the providers that it is about; all if empty
    state: JobState = JobState.RUNNING
    step: str = ""
    report: Report | None = None  #: the result of plan, sync and verify
    verdict: dict[str, Any] | None = None  #: the result of the doctor, as JSON
    model_refresh: ModelRefresh | None = None
    error: IsabellaError | None = None
    seconds: float | None = None  #: its duration, once it has ended
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since it began, or its duration."""
        return time.monotonic() - self.began if self.seconds is None else self.seconds

    @property
    def recreated(self) -> list[str]:
        """The names of the providers that it would recreate."""
        entries = self.report.configured if self.report is not None else []
        return [entry.name for entry in entries if entry.action is Action.RECREATE]


class JobRunner:
    """Runs one job at a time, and wakes the monitor at its end."""

    def __init__(self, runtime: Runtime, monitor: ProviderMonitor) -> None:
        self._runtime = runtime
        self._monitor = monitor
        self.notifier = Notifier()
        self.current: Job | None = None

    @property
    def running(self) -> bool:
        """Whether a job is running."""
        return self.current is not None and self.current.state is JobState.RUNNING

    def start(self, kind: JobKind, only: Sequence[str] = (), *, confirmed: bool = False) -> None:
        """Start a job, unless one is running. `confirmed` allows it to recreate providers."""
        if self.running:
            return
        job = Job(kind, tuple(only))
        self._runtime.start_task(self._run, job, confirmed)
        self.current = job
        self.notifier.notify()

    def dismiss(self) -> None:
        """Remove the result of the last job."""
        if not self.running:
            self.current = None
            self.notifier.notify()

    async def _run(self, job: Job, confirmed: bool) -> None:
        try:
            await self._work(job, confirmed)
        except IsabellaError as error:
            job.error = error
        except Exception as error:  # noqa: BLE001 - shown on the page; must not end the backend's task group
            job.error = IsabellaError(f"Internal error: {type(error).__name__}: {redact(str(error))[:200]}")
        if job.state is JobState.RUNNING:
            job.state = JobState.DONE if job.error is None else JobState.FAILED
        job.seconds = time.monotonic() - job.began
        self._monitor.wake()
        self.notifier.notify()

    async def _work(self, job: Job, confirmed: bool) -> None:
        runtime = self._runtime
        settings, connection = runtime.settings, runtime.connection
        match job.kind:
            case JobKind.PLAN:
                self._step(job, "Reading what Letta holds, and asking vendors about keys that it does not hold yet")
                job.report = await compare_providers(settings, connection=connection, only=job.only, probe=True)
            case JobKind.SYNC:
                self._step(job, "Comparing Letta with the configuration")
                job.report = await compare_providers(settings, connection=connection, only=job.only)
                if job.recreated and not confirmed:
                    job.state = JobState.ASKING
                    return
                self._step(job, "Asking vendors about new keys, writing, and reading every key back")
                job.report = await self._sync(job)
            case JobKind.VERIFY:
                self._step(job, "Reading every key back, and sending a message through each provider")
                job.report = await verify_providers(settings, connection=connection, only=job.only, count_models=True)
                runtime.readiness.record_vendors(job.report)
            case JobKind.REFRESH:
                self._step(job, "Reading the vendors' model lists")
                job.model_refresh = await refresh_models(settings, connection)
                runtime.readiness.record_model_refresh(job.model_refresh)
                runtime.event_log.on_watch_event(ModelsRefreshed(job.model_refresh))
            case JobKind.DOCTOR:
                self._step(job, "Checking configuration, vendors, Letta, and agents")
                options = DoctorOptions(providers=job.only)
                result = await run_doctor(settings=settings, connection=connection, options=options)
                job.verdict = result.diagnosis.as_json()
                for name, asked in result.evidence.vendors.items():
                    runtime.readiness.record_answer(name, asked.answer)

    async def _sync(self, job: Job) -> Report:
        runtime, began = self._runtime, time.monotonic()
        report = await ensure_providers(
            runtime.settings,
            connection=runtime.connection,
            only=job.only,
            count_models=True,
            gate=runtime.turns.deps.gate,
        )
        runtime.event_log.add_sync(report, "Sync button", time.monotonic() - began)
        before = runtime.readiness.report
        whole = report if before is None or not job.only else before.merged_with(report)
        runtime.readiness.record(whole, report)
        return report

    def _step(self, job: Job, step: str) -> None:
        job.step = step
        self.notifier.notify()
