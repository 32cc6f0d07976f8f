"""What the buttons of the providers' page set in motion: one errand at a time, seen by every open page."""

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

from isabella.doctor.run import DoctorOptions, run_doctor
from isabella.errors import IsabellaError
from isabella.providers.api import compare_providers, ensure_providers, verify_providers
from isabella.providers.plan import Action
from isabella.providers.report import ProviderReport, Report
from isabella.server.event_log import Notifier
from isabella.server.web.context import ConsoleContext
from isabella.system.redaction import redact
from isabella.watch.events import ModelsRefreshed
from isabella.watch.model_refresh import ModelRefresh, refresh_models

log = structlog.get_logger()

_EVERY = 4.0
#: A look that takes long is not repeated at once: it is to take a twentieth of the time at most.
_SHARE = 20.0
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class ProviderStates:
    """How the providers stand.

    Attributes:
        report: as they were found; None before the first report.
        as_of: when that was.
        error: why they could not be looked at since; None where they could.
        since: since when they cannot.
        version: grows with every change.
    """

    report: Report | None = None
    as_of: datetime | None = None
    error: IsabellaError | None = None
    since: datetime | None = None
    version: int = 0


class ProviderMonitor:
    """Looks at the providers while somebody watches.

    Args:
        context: the backend.
    """

    def __init__(self, context: ConsoleContext) -> None:
        self._premises = context
        self.notifier = Notifier()
        self._standing = ProviderStates()
        self._watching = 0
        self._woken = anyio.Event()
        self._running = False
        self._counts: dict[str, int] = {}

    @property
    def standing(self) -> ProviderStates:
        """How the providers stand, by the last look or the last report, whichever is newer."""
        readiness, own = self._premises.readiness, self._standing
        if readiness.report is not None and (own.as_of is None or own.as_of < (readiness.as_of or own.as_of)):
            own = replace(own, report=readiness.report, as_of=readiness.as_of, version=own.version + 1)
            self._standing = own
        return own

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Somebody has the page open."""
        self._watching += 1
        self._woken.set()
        try:
            if not self._running:
                self._running = True
                self._premises.start(self._run)
            yield
        finally:
            self._watching -= 1

    def wake(self) -> None:
        """Look now: something was done."""
        self._woken.set()

    async def _run(self) -> None:
        try:
            while self._watching:
                pause = _EVERY if self._premises.up else 0.5
                began = time.monotonic()
                if self._premises.up and await self._look():
                    pause = min(max(_EVERY, _SHARE * (time.monotonic() - began)), _LONGEST_PAUSE)
                with anyio.move_on_after(pause):
                    await self._woken.wait()
                self._woken = anyio.Event()
        finally:
            self._running = False

    async def _look(self) -> bool:
        """Look once; whether it was a look like any other, whose duration tells what the next will cost."""
        before, settled = self.standing, self._premises.readiness.as_of
        # That costs a request for each provider, so it is done once, where nobody else has done it.
        counts = not self._count()
        try:
            found = await compare_providers(
                self._premises.settings, connection=self._premises.connection, count_models=counts
            )
        except IsabellaError as error:
            if before.error is None or before.error.what != error.what:
                since = before.since if before.error is not None else datetime.now(UTC)
                self._settle(replace(before, error=error, since=since, version=before.version + 1))
            return False
        except Exception:
            # It runs beside everything else that the backend does, and must not end that.
            log.exception("not looked")
            return False
        if self._premises.readiness.as_of != settled:
            # A sync ended meanwhile: what was seen before it says less than its own report.
            self.wake()
            return False
        self._counts |= {entry.name: entry.models for entry in found.providers if entry.models}
        report = replace(found, providers=[self._counted(entry) for entry in found.providers])
        changed = before.report is None or before.error is not None or _shown(report) != _shown(before.report)
        version = before.version + 1 if changed else before.version
        self._settle(ProviderStates(report, datetime.now(UTC), version=version))
        return not counts

    def _settle(self, standing: ProviderStates) -> None:
        changed = standing.version != self._standing.version
        self._standing = standing
        if changed:
            self.notifier.ring()

    def _counted(self, entry: ProviderReport) -> ProviderReport:
        return replace(entry, models=entry.models or self._counts.get(entry.name, 0))

    def _count(self) -> bool:
        """Take over what others have counted; whether anything is known."""
        report = self._premises.readiness.report
        if report is not None:
            self._counts |= {entry.name: entry.models for entry in report.providers if entry.models}
        return bool(self._counts)


def _shown(report: Report) -> list[object]:
    return [
        (one.name, one.condition, one.stored, one.proof, one.reason, one.key, one.models, one.notes)
        for one in report.providers
    ]


class JobKind(StrEnum):
    """What is done."""

    PLAN = "plan"
    SYNC = "sync"
    VERIFY = "verify"
    REFRESH = "refresh"
    DOCTOR = "doctor"


class JobState(StrEnum):
    """How far it has come."""

    RUNNING = "running"
    #: It would do something that has a price: somebody has to say yes.
    ASKING = "asking"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Job:
    """One errand.

    Attributes:
        kind: what is done.
        only: for which providers; all where empty.
        stage: how far it has come.
        doing: what is being done right now, in words.
        report: what came of it, for all but the doctor and the refresh.
        verdict: what the doctor says.
        census: what a refresh has found.
        error: why it failed.
        seconds: how long it took.
    """

    kind: JobKind
    only: tuple[str, ...] = ()
    stage: JobState = JobState.RUNNING
    doing: str = ""
    report: Report | None = None
    verdict: dict[str, Any] | None = None
    census: ModelRefresh | None = None
    error: IsabellaError | None = None
    seconds: float | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since it began, or that it took."""
        return time.monotonic() - self.began if self.seconds is None else self.seconds

    @property
    def recreated(self) -> list[str]:
        """The providers that would be deleted and made anew."""
        entries = self.report.ours if self.report is not None else []
        return [entry.name for entry in entries if entry.action is Action.RECREATE]


class JobRunner:
    """Runs errands.

    Args:
        context: the backend.
        monitor: is told when something was done.
    """

    def __init__(self, context: ConsoleContext, monitor: ProviderMonitor) -> None:
        self._premises = context
        self._lookout = monitor
        self.notifier = Notifier()
        self.current: Job | None = None
        self.version = 0

    @property
    def running(self) -> bool:
        """Whether one is under way."""
        return self.current is not None and self.current.stage is JobState.RUNNING

    def begin(self, kind: JobKind, only: Sequence[str] = (), *, agreed: bool = False) -> None:
        """Begin an errand, unless one is under way.

        Args:
            kind: what is to be done.
            only: for which providers.
            agreed: whether somebody has seen what it will do, and said yes.

        Raises:
            NotReady: the backend has not come up.
        """
        if self.running:
            return
        job = Job(kind, tuple(only))
        self._premises.start(self._run, job, agreed)
        self.current = job
        self._changed()

    def dismiss(self) -> None:
        """Take what came of the last one off the page."""
        if not self.running:
            self.current = None
            self._changed()

    async def _run(self, job: Job, agreed: bool) -> None:
        try:
            await self._do(job, agreed)
            if job.stage is JobState.RUNNING:
                job.stage = JobState.DONE
        except IsabellaError as error:
            job.error, job.stage = error, JobState.FAILED
        except Exception as error:  # noqa: BLE001 - it is said on the page, and ends nothing else
            job.error = IsabellaError(f"Isabella failed: {type(error).__name__}: {redact(str(error))[:200]}")
            job.stage = JobState.FAILED
        job.seconds = time.monotonic() - job.began
        self._lookout.wake()
        self._changed()

    async def _do(self, job: Job, agreed: bool) -> None:
        context = self._premises
        settings, connection = context.settings, context.connection
        match job.kind:
            case JobKind.PLAN:
                self._say(job, "Reading what Letta holds, and asking vendors about keys that it does not hold yet")
                job.report = await compare_providers(settings, connection=connection, only=job.only, probe=True)
            case JobKind.SYNC:
                self._say(job, "Looking at what would have to change")
                job.report = await compare_providers(settings, connection=connection, only=job.only)
                if job.recreated and not agreed:
                    job.stage = JobState.ASKING
                    return
                self._say(job, "Asking vendors about new keys, writing, and reading every key back")
                job.report = await self._sync(job)
            case JobKind.VERIFY:
                self._say(job, "Reading every key back, and having an agent on each provider say one line")
                job.report = await verify_providers(settings, connection=connection, only=job.only, count_models=True)
                context.readiness.learn(job.report)
            case JobKind.REFRESH:
                self._say(job, "Reading the vendors' model lists anew")
                job.census = await refresh_models(settings, connection)
                context.readiness.counted(job.census)
                context.event_log.on_event(ModelsRefreshed(job.census))
            case JobKind.DOCTOR:
                self._say(job, "Looking at the configuration, the vendors, Letta, and what agents use")
                options = DoctorOptions(providers=job.only)
                doctor_run = await run_doctor(settings=settings, connection=connection, options=options)
                job.verdict = doctor_run.verdict.as_json()
                for name, asked in doctor_run.evidence.asked.items():
                    context.readiness.heard(name, asked.answer)

    async def _sync(self, job: Job) -> Report:
        context, began = self._premises, time.monotonic()
        report = await ensure_providers(
            context.settings,
            connection=context.connection,
            only=job.only,
            count_models=True,
            gate=context.turn_service.deps.gate,
        )
        context.event_log.synced(report, "somebody pressed Sync", time.monotonic() - began)
        before = context.readiness.report
        whole = report if before is None or not job.only else before.merged_with(report)
        context.readiness.settle(whole, report)
        return report

    def _say(self, job: Job, doing: str) -> None:
        job.doing = doing
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self.notifier.ring()
