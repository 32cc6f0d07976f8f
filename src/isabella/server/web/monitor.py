"""How the providers stand right now: looked at every few seconds, for as long as somebody has the page open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import anyio
import structlog

from isabella.api import compare_providers
from isabella.errors import IsabellaError
from isabella.providers.report import ProviderReport, Report
from isabella.server.web.context import ConsoleContext
from isabella.server.web.notifier import Notifier

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
