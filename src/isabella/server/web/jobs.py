"""The jobs that the buttons of the providers page start, and their outcomes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from isabella.api import compare_providers, ensure_providers, verify_providers
from isabella.doctor.findings import Diagnosis
from isabella.doctor.run import DoctorOptions, run_doctor
from isabella.errors import IsabellaError
from isabella.providers.health import current_health
from isabella.providers.plan import Action
from isabella.providers.report import Report
from isabella.server.event_log import Notifier
from isabella.server.runtime import Runtime
from isabella.system.english import english
from isabella.system.redaction import redact
from isabella.watch.events import ModelsRefreshed
from isabella.watch.model_refresh import ModelRefresh, refresh_models


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
    #: It would recreate providers, which must be confirmed.
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
    diagnosis: Diagnosis | None = None  #: the result of the doctor
    model_refresh: ModelRefresh | None = None
    error: IsabellaError | None = None
    seconds: float | None = None  #: its duration, once it has ended
    ended_at: datetime | None = None
    #: everything that its outcome speaks of, as it was at its end; None until that was read
    basis: tuple[object, ...] | None = field(default=None, repr=False)
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
    """Runs one job at a time. Its outcome stays until what it speaks of has changed, or it is dismissed."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.notifier = Notifier()
        self._last: Job | None = None

    @property
    def current(self) -> Job | None:
        """The job that is running, or the last one while its outcome holds."""
        job = self._last
        if job is not None and job.basis is not None and job.basis != self._basis(job):
            self._last = None
        return self._last

    @property
    def running(self) -> bool:
        """Whether a job is running."""
        return self._last is not None and self._last.state is JobState.RUNNING

    def start(self, kind: JobKind, only: Sequence[str] = (), *, confirmed: bool = False) -> None:
        """Start a job, unless one is running. `confirmed` allows it to recreate providers."""
        if self.running:
            return
        job = Job(kind, tuple(only))
        self._runtime.start_task(self._run, job, confirmed)
        self._last = job
        self.notifier.notify()

    def dismiss(self) -> None:
        """Remove the result of the last job."""
        if not self.running:
            self._last = None
            self.notifier.notify()

    async def _run(self, job: Job, confirmed: bool) -> None:
        try:
            await self._work(job, confirmed)
        except IsabellaError as error:
            job.error = error
        except Exception as error:  # noqa: BLE001 - shown on the page; must not end the backend's task group
            what = f"{type(error).__name__}: {redact(str(error))[:200]}"
            job.error = IsabellaError(
                english("Internal error: %(error)s", error=what),
                remedy=english("Try again. If it happens again, report it with the lines of the log."),
            )
        if job.state is JobState.RUNNING:
            job.state = JobState.DONE if job.error is None else JobState.FAILED
        job.seconds, job.ended_at = time.monotonic() - job.began, datetime.now(UTC)
        self.notifier.notify()
        # What the pages know may be older than the outcome. If they know already that Letta is down, it may be back
        # at the next look: a failure that it caused has to go then.
        away = self._runtime.monitor.states.error is not None
        known = self._basis(job) if job.error is not None and away else None
        await self._runtime.monitor.poll()
        job.basis = known or self._basis(job)

    def _basis(self, job: Job) -> tuple[object, ...]:
        """Return the current state of the subject of a job's outcome."""
        readiness, states = self._runtime.readiness, self._runtime.monitor.states
        entries = [] if states.report is None else states.report.providers
        entries = [entry for entry in entries if not job.only or entry.name in job.only]
        basis: list[object] = [
            (entry.name, entry.type, entry.base_url, entry.upstream, entry.key, current_health(entry))
            for entry in entries
        ]
        if job.kind is JobKind.REFRESH:
            basis.append(readiness.model_refresh)
        if job.kind in (JobKind.VERIFY, JobKind.DOCTOR):
            basis += [readiness.vendors.of(entry.name).state for entry in entries]
        if job.kind is JobKind.DOCTOR:
            basis.append((readiness.gateway, [part.state for part in readiness.parts], readiness.agents))
        if job.kind is JobKind.DOCTOR or job.error is not None:
            basis.append((states.error is None, not readiness.down))
        return tuple(basis)

    async def _work(self, job: Job, confirmed: bool) -> None:
        runtime = self._runtime
        settings, connection = runtime.settings, runtime.connection
        match job.kind:
            case JobKind.PLAN:
                self._step(
                    job, english("Reading what Letta holds, and asking vendors about keys that it does not hold yet")
                )
                job.report = await compare_providers(settings, connection=connection, only=job.only, probe=True)
            case JobKind.SYNC:
                self._step(job, english("Comparing Letta with the configuration"))
                job.report = await compare_providers(settings, connection=connection, only=job.only)
                if job.recreated and not confirmed:
                    job.state = JobState.ASKING
                    return
                self._step(job, english("Asking vendors about new keys, writing, and reading every key back"))
                job.report = await self._sync(job)
            case JobKind.VERIFY:
                self._step(job, english("Reading every key back, and sending a message through each provider"))
                job.report = await verify_providers(settings, connection=connection, only=job.only, count_models=True)
                runtime.readiness.record_vendors(job.report)
            case JobKind.REFRESH:
                self._step(job, english("Reading the vendors' model lists"))
                job.model_refresh = await refresh_models(settings, connection)
                runtime.readiness.record_model_refresh(job.model_refresh)
                runtime.event_log.on_watch_event(ModelsRefreshed(job.model_refresh))
            case JobKind.DOCTOR:
                self._step(job, english("Checking configuration, vendors, Letta, and agents"))
                options = DoctorOptions(providers=job.only)
                result = await run_doctor(settings=settings, connection=connection, options=options)
                job.diagnosis = result.diagnosis
                for name, asked in result.evidence.vendors.items():
                    runtime.readiness.record_answer(name, asked.answer)

    async def _sync(self, job: Job) -> Report:
        runtime, began = self._runtime, time.monotonic()
        with runtime.syncing():
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
