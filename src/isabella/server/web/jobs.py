"""What the buttons of the providers' page set in motion: one errand at a time, seen by every open page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from isabella.doctor.run import DoctorOptions, run_doctor
from isabella.errors import IsabellaError
from isabella.providers.api import compare_providers, ensure_providers, verify_providers
from isabella.providers.plan import Action
from isabella.providers.report import Report
from isabella.server.web.context import ConsoleContext
from isabella.server.web.monitor import ProviderMonitor
from isabella.server.web.notifier import Notifier
from isabella.system.redaction import redact
from isabella.watch.events import ModelsRefreshed
from isabella.watch.model_refresh import ModelRefresh, refresh_models


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
        premises: the backend.
        lookout: is told when something was done.
    """

    def __init__(self, premises: ConsoleContext, lookout: ProviderMonitor) -> None:
        self._premises = premises
        self._lookout = lookout
        self.bell = Notifier()
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
        errand = Job(kind, tuple(only))
        self._premises.start(self._run, errand, agreed)
        self.current = errand
        self._changed()

    def dismiss(self) -> None:
        """Take what came of the last one off the page."""
        if not self.running:
            self.current = None
            self._changed()

    async def _run(self, errand: Job, agreed: bool) -> None:
        try:
            await self._do(errand, agreed)
            if errand.stage is JobState.RUNNING:
                errand.stage = JobState.DONE
        except IsabellaError as error:
            errand.error, errand.stage = error, JobState.FAILED
        except Exception as error:  # noqa: BLE001 - it is said on the page, and ends nothing else
            errand.error = IsabellaError(f"Isabella failed: {type(error).__name__}: {redact(str(error))[:200]}")
            errand.stage = JobState.FAILED
        errand.seconds = time.monotonic() - errand.began
        self._lookout.wake()
        self._changed()

    async def _do(self, errand: Job, agreed: bool) -> None:
        premises = self._premises
        settings, connection = premises.settings, premises.connection
        match errand.kind:
            case JobKind.PLAN:
                self._say(errand, "Reading what Letta holds, and asking vendors about keys that it does not hold yet")
                errand.report = await compare_providers(settings, connection=connection, only=errand.only, probe=True)
            case JobKind.SYNC:
                self._say(errand, "Looking at what would have to change")
                errand.report = await compare_providers(settings, connection=connection, only=errand.only)
                if errand.recreated and not agreed:
                    errand.stage = JobState.ASKING
                    return
                self._say(errand, "Asking vendors about new keys, writing, and reading every key back")
                errand.report = await self._sync(errand)
            case JobKind.VERIFY:
                self._say(errand, "Reading every key back, and having an agent on each provider say one line")
                errand.report = await verify_providers(
                    settings, connection=connection, only=errand.only, count_models=True
                )
                premises.readiness.learn(errand.report)
            case JobKind.REFRESH:
                self._say(errand, "Reading the vendors' model lists anew")
                errand.census = await refresh_models(settings, connection)
                premises.readiness.counted(errand.census)
                premises.chronicle.hear(ModelsRefreshed(errand.census))
            case JobKind.DOCTOR:
                self._say(errand, "Looking at the configuration, the vendors, Letta, and what agents use")
                wishes = DoctorOptions(providers=errand.only)
                examination = await run_doctor(settings=settings, connection=connection, wishes=wishes)
                errand.verdict = examination.verdict.as_json()
                for name, asked in examination.evidence.asked.items():
                    premises.readiness.heard(name, asked.answer)

    async def _sync(self, errand: Job) -> Report:
        premises, began = self._premises, time.monotonic()
        report = await ensure_providers(
            premises.settings,
            connection=premises.connection,
            only=errand.only,
            count_models=True,
            gate=premises.desk.house.gate,
        )
        premises.chronicle.synced(report, "somebody pressed Sync", time.monotonic() - began)
        before = premises.readiness.report
        whole = report if before is None or not errand.only else before.merged_with(report)
        premises.readiness.settle(whole, report)
        return report

    def _say(self, errand: Job, doing: str) -> None:
        errand.doing = doing
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self.bell.ring()
