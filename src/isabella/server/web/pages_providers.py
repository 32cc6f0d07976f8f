"""The page of providers: how each stands, live, and the errands that look at them or mend them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.errors import ConfigurationError
from isabella.practice.overlay import ORIGIN
from isabella.providers.headline import Level, headline, level_of, stored_level, vendor_level, vendor_words
from isabella.providers.health import HealthState as Condition
from isabella.providers.health import stands
from isabella.providers.report import ProviderReport
from isabella.server.auth import read_form
from isabella.server.web.context import ConsoleContext
from isabella.server.web.jobs import JobKind, JobRunner, ProviderMonitor
from isabella.server.web.rendering import Renderer, stream

_NOTICED_FOR = 3600.0
_TICK, _QUIET = 1.0, 20.0

#: How a provider stands, in words that need no manual.
STANDS = {
    Condition.IN_SYNC: "proven",
    Condition.DRIFTED: "differs",
    Condition.REFUSED: "refused",
    Condition.MISCONFIGURED: "misconfigured",
    Condition.UNPROVEN: "unproven",
    Condition.FAILED: "failed",
    Condition.NO_KEY: "no key",
    Condition.FOREIGN: "not ours",
}
TONES = {Level.OK: "good", Level.UNKNOWN: "idle", Level.WARNING: "warn", Level.PROBLEM: "bad"}
STORED = {
    "in_sync": "the configured key",
    "stale": "another key",
    "absent": "nothing",
    "unreadable": "a key sealed under another master key",
    "plaintext": "the key, in plaintext",
    "mistyped": "another provider type",
    "moved": "another base URL",
    "foreign": "a provider that nobody declared",
    "hidden": "a key that cannot be read back",
}


def routes(context: ConsoleContext, renderer: Renderer, monitor: ProviderMonitor, jobs: JobRunner) -> list[Route]:
    """The routes of the page."""
    page = _Page(context, renderer, monitor, jobs)
    return [
        Route("/providers", page.show),
        Route("/providers/live", page.live),
        Route("/providers/dismiss", page.dismiss, methods=["POST"]),
        Route("/providers/{kind}", page.begin, methods=["POST"]),
    ]


class _Page:
    def __init__(
        self, context: ConsoleContext, renderer: Renderer, monitor: ProviderMonitor, jobs: JobRunner
    ) -> None:
        self._premises = context
        self._press = renderer
        self._lookout = monitor
        self._errands = jobs

    async def show(self, request: Request) -> Response:
        parts = self._parts()
        return self._press.page(request, "providers.html", here="providers", parts=parts, version=self._version())

    async def live(self, request: Request) -> Response:
        return stream(self._changes(request.query_params.get("v", "")))

    async def begin(self, request: Request) -> Response:
        fields = await read_form(request, self._premises.csrf)
        try:
            kind = JobKind(request.path_params["kind"])
        except ValueError:
            raise ConfigurationError("There is no such errand.") from None
        only = [fields["only"]] if fields.get("only") else []
        self._errands.begin(kind, only, agreed=fields.get("agreed") == "yes")
        return self._press.fragment(self._errand())

    async def dismiss(self, request: Request) -> Response:
        await read_form(request, self._premises.csrf)
        self._errands.dismiss()
        return self._press.fragment(self._errand())

    def _version(self) -> str:
        return f"{self._lookout.standing.version}.{self._errands.version}.{self._premises.readiness.phase.value}"

    async def _changes(self, seen: str) -> AsyncGenerator[str, None]:
        """Every part of the page that has changed since it was shown last."""
        sent: dict[str, str] = self._parts() if seen == self._version() else {}
        with self._lookout.watching():
            while True:
                counts = (
                    self._lookout.notifier.count,
                    self._errands.notifier.count,
                    self._premises.event_log.notifier.count,
                )
                parts = self._parts()
                fresh = [html for id, html in parts.items() if sent.get(id) != html]
                if parts.keys() != sent.keys() and sent:
                    # Providers came or went: the list as a whole.
                    fresh = [self._press.part("providers_parts.html", "rows", rows=self._rows(), oob=True), *fresh]
                if fresh:
                    yield "\n".join(fresh)
                sent = parts
                await self._something(counts)

    async def _something(self, counts: tuple[int, int, int]) -> None:
        async with anyio.create_task_group() as tasks:

            async def wait(notifier: Any, count: int) -> None:
                await notifier.after(count, _QUIET)
                tasks.cancel_scope.cancel()

            if self._errands.running or not self._premises.up:
                # The seconds that are told with it.
                tasks.start_soon(wait, self._errands.notifier, counts[1])
                await anyio.sleep(_TICK)
                tasks.cancel_scope.cancel()
                return
            tasks.start_soon(wait, self._lookout.notifier, counts[0])
            tasks.start_soon(wait, self._errands.notifier, counts[1])
            tasks.start_soon(wait, self._premises.event_log.notifier, counts[2])

    # --- what is shown --------------------------------------------------------------------------------------------

    def _parts(self) -> dict[str, str]:
        """Everything that changes on the page, by id."""
        parts = {"overview": self._overview(), "errand": self._errand()}
        for row in self._rows():
            parts[row["name"]] = self._press.part("providers_parts.html", "row", row=row, oob=True)
        return parts

    def _overview(self) -> str:
        standing, readiness = self._lookout.standing, self._premises.readiness
        report = None if standing.report is None else readiness.seen(standing.report)
        lead = None if report is None else headline(report)
        settings = self._premises.settings if self._premises.up else None
        practice = settings is not None and any(value.origin == ORIGIN for value in settings.sources.overlay.values())
        keys = (
            [name for name in settings.sources.dotenv if name in settings.sources.overlay and name.endswith("_KEY")]
            if settings is not None and practice
            else []
        )
        return self._press.part(
            "providers_parts.html",
            "overview",
            phase=readiness.phase.value,
            up=self._premises.up,
            reasons=readiness.reasons if standing.report is None else [],
            error=standing.error,
            since=standing.since,
            letta=report,
            lead=lead,
            tone="" if lead is None else TONES[lead.level],
            wanted=report is not None and bool(report.ours),
            practice=practice,
            arrived=keys,
            env_file=settings.sources.file.name if settings is not None else ".env",
            notices=self._premises.event_log.notices(_NOTICED_FOR)[:3],
            warnings=standing.report.notices if standing.report is not None else (),
        )

    def _errand(self) -> str:
        return self._press.part(
            "providers_parts.html", "errand", job=self._errands.current, stored=STORED, stands=_stands
        )

    def _rows(self) -> list[dict[str, Any]]:
        report = self._lookout.standing.report
        seen = None if report is None else self._premises.readiness.seen(report)
        return [_row(entry) for entry in (seen.providers if seen is not None else [])]


def _row(entry: ProviderReport) -> dict[str, Any]:
    kind = stands(entry)
    return {
        "name": entry.name,
        "entry": entry,
        "word": STANDS[kind],
        "tone": TONES[stored_level(entry)],
        "worse": TONES[level_of(entry)],
        # A report says what it has found; what was mended since is what counts.
        "stored": STORED["in_sync" if kind is Condition.IN_SYNC else entry.stored.value],
        "wrong": kind not in (Condition.IN_SYNC, Condition.FOREIGN, Condition.NO_KEY),
        "mendable": kind in (Condition.DRIFTED, Condition.FAILED),
        "vendor": vendor_words(entry.vendor_status),
        "vendor_tone": TONES[vendor_level(entry.vendor_status)],
    }


def _stands(entry: ProviderReport) -> tuple[str, str]:
    return STANDS[stands(entry)], TONES[stored_level(entry)]
