"""Whether the backend is ready, and if not, why."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

import structlog

from isabella.errors import IsabellaError
from isabella.providers.headline import Level, headline, vendor_level, vendor_words, with_vendors
from isabella.providers.plan import WRITES
from isabella.providers.report import Proof, ProviderReport, Report
from isabella.system.redaction import unforeseen
from isabella.vendors.client import KeyVerdict, VendorAnswer
from isabella.vendors.status import VendorState, VendorStatusBoard
from isabella.watch.model_refresh import ModelRefresh

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
        vendors: what the vendors did when they were asked last.
        on_event: is told of the sync at the start: its report, why it ran, and how many seconds it took.
        tell: are told what every sync has found and done.
    """

    phase: Phase = Phase.STARTING
    report: Report | None = None
    as_of: datetime | None = None
    error: IsabellaError | None = None
    census: ModelRefresh | None = None
    vendors: VendorStatusBoard = field(default_factory=VendorStatusBoard, repr=False)
    on_event: Callable[[Report, str, float], None] = field(default=lambda *_: None, repr=False)
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
        return [reason for provider in self.seen(self.report).ours for reason in _reasons(provider)]

    @property
    def status(self) -> Phase:
        """How far it has come; degraded, too, where a vendor refuses or cannot be reached."""
        troubled = self.report is not None and headline(self.seen(self.report)).level > Level.UNKNOWN
        return Phase.DEGRADED if self.phase is Phase.READY and troubled else self.phase

    def seen(self, report: Report) -> Report:
        """The report, with what the vendors did when they were asked last."""
        return with_vendors(report, self.vendors.of)

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
        self.on_event(report, "the start", time.monotonic() - began)

    def learn(self, part: Report) -> None:
        """Take note of what vendors did in a run."""
        for entry in part.ours:
            seen = entry.vendor_status
            if seen is not None and not entry.refused_by_vendor:
                self.vendors.observe(entry.name, seen.state, seen.reason, seen.at)
            elif entry.action in WRITES and entry.proof is not Proof.FAILED:
                self.vendors.observe(entry.name, VendorState.NOT_ASKED, "not asked since its key or address changed")

    def heard(self, provider: str, answer: VendorAnswer) -> None:
        """Take note of what a vendor answered to the configured key, where that is the one that Letta holds."""
        entries = self.report.ours if self.report is not None else []
        proven = any(entry.name == provider and entry.proof is Proof.PROVEN for entry in entries)
        # Many serve conversations, and no list of models.
        if proven and answer.verdict is not KeyVerdict.WRONG_ADDRESS:
            seen = answer.vendor_status
            self.vendors.observe(provider, seen.state, seen.reason, seen.at, listing=True)

    def counted(self, census: ModelRefresh) -> None:
        """Take note of a refresh of the model lists."""
        self.census = census
        for count in census.counts:
            if count.answer is not None:
                self.heard(count.provider, count.answer)

    def fail(self, error: Exception) -> None:
        """Take note of what has ended all work; of something unforeseen, with its traceback in the log."""
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, IsabellaError):
            log.error("unforeseen", exc_info=error)
            error = IsabellaError(unforeseen(error), remedy="Start it again; its log has the details.")
        self.error = error
        self.phase = Phase.FAILED

    def settle(self, report: Report, part: Report | None = None, *, quiet: bool = False) -> None:
        """Take note of a sync.

        Args:
            report: how all providers stand.
            part: what the sync has found and done, where it was not about all of them.
            quiet: whether somebody else says what is in it.
        """
        self.report, self.error, self.as_of = report, None, datetime.now(UTC)
        self.phase = Phase.READY if report.all_proven else Phase.DEGRADED
        self.learn(part or report)
        for tell in self.tell:
            tell(part or report)
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


def _reasons(entry: ProviderReport) -> Iterator[str]:
    """Why a provider is not in order: what is wrong with the stored key, and with the vendor."""
    if entry.proof is not Proof.PROVEN:
        yield f"{entry.name}: {entry.reason}."
    seen = entry.vendor_status
    if seen is not None and not entry.refused_by_vendor and vendor_level(seen) > Level.UNKNOWN:
        yield f"{entry.name}: the vendor {vendor_words(seen)} ({seen.reason})."
