"""The phase of the backend, and the reasons it is not ready."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum

import structlog

from isabella.errors import IsabellaError
from isabella.providers.health import (
    Level,
    StatusHeadline,
    gateway_level,
    headline,
    vendor_level,
    vendor_words,
    with_notes,
    with_vendor_status,
)
from isabella.providers.plan import WRITE_ACTIONS
from isabella.providers.report import GatewayStatus, Proof, ProviderReport, Report
from isabella.system.english import english, joined
from isabella.system.redaction import unforeseen
from isabella.system.supervision import PartStatus, Supervisor
from isabella.vendors.client import KeyVerdict, VendorAnswer, VendorState, VendorStatusBoard
from isabella.vendors.model_lists import ListedModel
from isabella.watch.events import unproven_sentence
from isabella.watch.model_refresh import BoundAgent, ModelRefresh, ending_models

log = structlog.get_logger()


class Phase(StrEnum):
    """The phase of a backend."""

    STARTING = "starting"
    #: Every configured provider is proven.
    READY = "ready"
    #: It serves, but at least one provider is not proven.
    DEGRADED = "degraded"
    FAILED = "failed"
    #: Letta, Postgres or the gateway does not work, and is being restarted. Only a status, not a phase.
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class BackupStatus:
    """The newest backup of the embedded Letta, and the error of the last attempt to make one."""

    made_at: datetime | None = None  #: None if there is none
    size: int = 0  #: in bytes
    failure: str | None = None  #: None if the last attempt succeeded, or none was made


@dataclass
class Readiness:
    """The phase of a backend, the last report on its providers, and the last answers of their vendors."""

    phase: Phase = Phase.STARTING
    report: Report | None = None
    as_of: datetime | None = None
    error: IsabellaError | None = None  #: why the backend failed, or has no report
    opened: bool = True  #: whether agents can be used; False until the services of a starting backend are open
    steps: list[str] = field(default_factory=list)  #: what is being done before the sync, the innermost last
    model_refresh: ModelRefresh | None = None  #: the result of the last nightly refresh of the model lists
    #: the gateway as it was last observed; None before that, or if Letta calls the vendors directly
    gateway: GatewayStatus | None = None
    #: the agents and their models, as of the start or the last refresh, and the models that the vendors list
    agents: tuple[BoundAgent, ...] = ()
    listed: dict[str, Mapping[str, ListedModel]] = field(default_factory=dict, repr=False)
    backups: BackupStatus | None = None  #: None if this backend makes no backups
    supervisor: Supervisor | None = field(default=None, repr=False)  #: None if nothing is supervised
    vendors: VendorStatusBoard = field(default_factory=VendorStatusBoard, repr=False)
    #: is called after the sync at the start, with its report, its cause and its duration in seconds
    on_start_sync: Callable[[Report, str, float], None] = field(default=lambda *_: None, repr=False)
    #: are called after every sync, with the report on the providers it was about
    on_sync: list[Callable[[Report], None]] = field(default_factory=list, repr=False)

    @property
    def serving(self) -> bool:
        """Whether requests that need providers can be answered."""
        return self.opened and self.phase in (Phase.READY, Phase.DEGRADED)

    @property
    def reasons(self) -> list[str]:
        """Why the backend is not ready, one sentence each."""
        if self.error is not None:
            return [joined([self.error.what, *([self.error.remedy] if self.error.remedy else [])])]
        reasons = [part.reason for part in self.down]
        if self.report is None:
            return [*reasons, *(self.steps[-1:] or [english("The providers are being synced.")])]
        if not self.opened:
            return [*reasons, english("The agents are being created or updated.")]
        report = self.with_vendors(self.report)
        if not reasons and report.gateway is not None and gateway_level(report.gateway) > Level.UNKNOWN:
            reasons = [report.gateway.sentence]
        reasons += [reason for entry in report.configured for reason in _reasons(entry)]
        return [*reasons, *self._backup_reasons]

    @property
    def _backup_reasons(self) -> list[str]:
        failure = None if self.backups is None else self.backups.failure
        return (
            []
            if failure is None
            else [english("The nightly backup failed, and is retried every hour: %(failure)s", failure=failure)]
        )

    @property
    def status(self) -> Phase:
        """The phase; interrupted if a supervised part does not work.

        Degraded also if a vendor refuses or cannot be reached, a gateway that is not supervised does not run, or the
        last nightly backup failed.
        """
        if not self.opened and self.phase is not Phase.FAILED:
            return Phase.STARTING
        if self.serving and self.down:
            return Phase.INTERRUPTED
        if self.phase is Phase.READY and self.report is not None:
            degraded = headline(self.with_vendors(self.report)).level > Level.UNKNOWN or self._backup_reasons
            return Phase.DEGRADED if degraded else self.phase
        return self.phase

    @property
    def parts(self) -> tuple[PartStatus, ...]:
        """The processes that are supervised: Postgres, Letta and the gateway, as far as Isabella runs them."""
        return () if self.supervisor is None else self.supervisor.statuses

    @property
    def down(self) -> tuple[PartStatus, ...]:
        """Those that do not work."""
        return () if self.supervisor is None else self.supervisor.down

    def headline(self, report: Report) -> StatusHeadline:
        """Return the headline over the providers, or over what they need if that does not work."""
        if not self.down:
            return headline(report)
        first = self.down[0]
        title = english("%(part)s does not work; agents answer when it does again.", part=first.name)
        return StatusHeadline(Level.PROBLEM, title, joined([part.reason for part in self.down]))

    def with_vendors(self, report: Report) -> Report:
        """Return the report with the last answer of each vendor, its ends of models, and the state of the gateway."""
        report = with_notes(with_vendor_status(report, self.vendors.of), self._announced_ends)
        return report if self.gateway is None else replace(report, gateway=self.gateway)

    def _announced_ends(self, provider: str) -> tuple[str, ...]:
        ending = ending_models(provider, self.listed.get(provider, {}), self.agents)
        return tuple(one.sentence for one in ending)

    async def run_start_sync(self, sync: Callable[[], Awaitable[Report]]) -> None:
        """Run the sync at the start and record its report, or the `IsabellaError` it failed with."""
        began = time.monotonic()
        try:
            report = await sync()
        except IsabellaError as error:
            self.error = error
            self.phase = Phase.FAILED
            sentence = f"The providers could not be synced: {error}"
            log.error("sync failed", error=error.what, remedy=error.remedy, sentence=sentence)
            return
        self.record(report)
        self.on_start_sync(report, "the start", time.monotonic() - began)

    def record(self, report: Report, part: Report | None = None, *, quiet: bool = False) -> None:
        """Record a sync: the state of all providers, and the report on some of them. With `quiet`, log nothing."""
        self.report, self.error, self.as_of = report, None, datetime.now(UTC)
        self.phase = Phase.READY if report.all_proven else Phase.DEGRADED
        self.record_vendors(part or report)
        for callback in self.on_sync:
            callback(part or report)
        # The report is also printed as a table, so the log needs only the exceptions.
        for entry in () if quiet else (entry for entry in report.configured if entry.proof is not Proof.PROVEN):
            document = entry.as_json()
            fields = {name: document[name] for name in ("name", "stored", "action", "proof", "reason")}
            log.warning("provider", **fields, sentence=unproven_sentence(entry))

    def record_vendors(self, report: Report) -> None:
        """Record the answers of vendors that a report contains."""
        for entry in report.configured:
            status = entry.vendor_status
            if status is not None and not entry.refused_by_vendor:
                self.vendors.observe(entry.name, status.state, status.reason, status.at)
            elif entry.action in WRITE_ACTIONS and entry.proof is not Proof.FAILED:
                self.vendors.observe(
                    entry.name, VendorState.NOT_ASKED, english("not asked since its key or base URL changed")
                )

    def record_answer(self, provider: str, answer: VendorAnswer) -> None:
        """Record the models that a vendor lists, and its answer to the configured key if Letta holds the same key."""
        if answer.listed:
            self.listed[provider] = answer.listed
        entries = self.report.configured if self.report is not None else []
        proven = any(entry.name == provider and entry.proof is Proof.PROVEN for entry in entries)
        # WRONG_ADDRESS is not an error here: many vendors serve chat completions but no list of models.
        if proven and answer.verdict is not KeyVerdict.WRONG_ADDRESS:
            status = answer.vendor_status
            self.vendors.observe(provider, status.state, status.reason, status.at, listing=True)

    def record_gateway(self, gateway: GatewayStatus | None) -> None:
        """Record whether the gateway runs."""
        if gateway != self.gateway:
            self.gateway = gateway
            self.vendors.changed()

    def record_model_refresh(self, model_refresh: ModelRefresh) -> None:
        """Record a refresh of the model lists."""
        self.model_refresh, self.agents = model_refresh, model_refresh.agents
        for count in model_refresh.providers:
            if count.answer is not None:
                self.record_answer(count.provider, count.answer)

    def fail(self, error: Exception) -> None:
        """Record the error that ended the backend. An unexpected one is logged with its traceback."""
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, IsabellaError):
            log.error("unexpected error", exc_info=error)
            error = IsabellaError(unforeseen(error), remedy=english("Restart it; its log has the details."))
        self.error = error
        self.phase = Phase.FAILED


def _reasons(entry: ProviderReport) -> Iterator[str]:
    """Yield what is wrong with the stored key and with the vendor of a provider."""
    if entry.proof is not Proof.PROVEN:
        yield english("%(name)s: %(reason)s.", name=entry.name, reason=entry.reason)
    status = entry.vendor_status
    if status is not None and not entry.refused_by_vendor and vendor_level(status) > Level.UNKNOWN:
        yield english(
            "%(name)s: the vendor %(does)s (%(reason)s).",
            name=entry.name,
            does=vendor_words(status),
            reason=status.reason,
        )
