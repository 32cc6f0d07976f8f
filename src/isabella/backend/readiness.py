"""Whether the backend is ready, and if not, why."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

import structlog

from isabella.errors import IsabellaError
from isabella.providers.report import Proof, Report
from isabella.redaction import unforeseen
from isabella.watching.census import Census

log = structlog.get_logger()


class Phase(StrEnum):
    """How far the backend has come."""

    STARTING = "starting"
    #: Every provider that the configuration wants is proven.
    READY = "ready"
    #: It serves, though a provider is not proven: the others work.
    DEGRADED = "degraded"
    FAILED = "failed"


@dataclass
class Readiness:
    """What the backend knows of itself.

    Attributes:
        phase: how far it has come.
        report: the last report on the providers.
        as_of: when that was made.
        error: why there is none.
        census: what the last nightly refresh of the model lists has shown.
        hear: is told of the sync at the start: its report, why it ran, and how many seconds it took.
        tell: are told of every report.
    """

    phase: Phase = Phase.STARTING
    report: Report | None = None
    as_of: datetime | None = None
    error: IsabellaError | None = None
    census: Census | None = None
    hear: Callable[[Report, str, float], None] = field(default=lambda *_: None, repr=False)
    tell: list[Callable[[Report], None]] = field(default_factory=list, repr=False)

    @property
    def serving(self) -> bool:
        """Whether requests that need providers can be answered."""
        return self.phase in (Phase.READY, Phase.DEGRADED)

    @property
    def reasons(self) -> list[str]:
        """Why it is not ready, one sentence each."""
        if self.error is not None:
            return [str(self.error)]
        if self.report is None:
            return ["The providers are being brought in line."]
        return [
            f"{provider.name}: {provider.reason}."
            for provider in self.report.ours
            if provider.proof is not Proof.PROVEN
        ]

    async def bring(self, ensure: Callable[[], Awaitable[Report]]) -> None:
        """Run a sync and take note of how it went. Raises nothing that the operator can mend."""
        began = time.monotonic()
        try:
            report = await ensure()
        except IsabellaError as error:
            self.error = error
            self.phase = Phase.FAILED
            log.error("providers not in line", error=error.what, remedy=error.remedy)
            return
        self.settle(report)
        self.hear(report, "the start", time.monotonic() - began)

    def fail(self, error: Exception) -> None:
        """Take note of what has ended all work; of something unforeseen, with its traceback in the log."""
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, IsabellaError):
            log.error("unforeseen", exc_info=error)
            error = IsabellaError(unforeseen(error), remedy="Start it again; its log has the details.")
        self.error = error
        self.phase = Phase.FAILED

    def settle(self, report: Report, *, quiet: bool = False) -> None:
        """Take note of a report; quietly, where somebody else says what is in it."""
        self.report, self.error, self.as_of = report, None, datetime.now(UTC)
        self.phase = Phase.READY if report.all_proven else Phase.DEGRADED
        for tell in self.tell:
            tell(report)
        for provider in () if quiet else report.ours:
            proven = provider.proof is Proof.PROVEN
            # The report is shown as a table, too; a log wants what is out of order.
            (log.debug if proven else log.warning)(
                "provider",
                name=provider.name,
                stored=provider.stored.value,
                action=provider.action.value,
                proof=provider.proof.value,
                reason=provider.reason,
            )
