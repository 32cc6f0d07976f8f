"""The providers page: the state of each provider, live, and buttons for plan, sync, verify, refresh and doctor."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.errors import ConfigurationError
from isabella.practice.overlay import ORIGIN
from isabella.providers.health import (
    HealthState,
    Level,
    current_health,
    headline,
    level_of,
    stored_level,
    vendor_level,
    vendor_words,
)
from isabella.providers.report import ProviderReport
from isabella.server.auth import read_form
from isabella.server.event_log import Notifier
from isabella.server.runtime import Runtime
from isabella.server.web.jobs import JobKind, JobRunner, ProviderMonitor
from isabella.server.web.rendering import Renderer, stream
from isabella.system.urls import same_address

_NOTICES_SHOWN_FOR = 3600.0
_TICK_SECONDS, _REFRESH_SECONDS = 1.0, 20.0

#: The state of a provider in words that need no manual.
STATES = {
    HealthState.IN_SYNC: "proven",
    HealthState.DRIFTED: "differs",
    HealthState.REFUSED: "refused",
    HealthState.MISCONFIGURED: "misconfigured",
    HealthState.UNPROVEN: "unproven",
    HealthState.FAILED: "failed",
    HealthState.NO_KEY: "no key",
    HealthState.FOREIGN: "not ours",
}
TONES = {Level.OK: "good", Level.UNKNOWN: "idle", Level.WARNING: "warn", Level.PROBLEM: "bad"}
STORED = {
    "in_sync": "the configured key",
    "stale": "another key",
    "absent": "nothing",
    "unreadable": "a key encrypted with another master key",
    "plaintext": "the key, in plaintext",
    "mistyped": "another provider type",
    "moved": "another base URL",
    "foreign": "a provider that is not configured here",
    "hidden": "a key that cannot be read back",
}


def routes(runtime: Runtime, renderer: Renderer) -> list[Route]:
    """Return the routes of the page."""
    monitor = ProviderMonitor(runtime)
    page = ProvidersPage(runtime, renderer, monitor, JobRunner(runtime, monitor))
    return [
        Route("/providers", page.show),
        Route("/providers/live", page.live),
        Route("/providers/dismiss", page.dismiss, methods=["POST"]),
        Route("/providers/{kind}", page.start, methods=["POST"]),
    ]


class ProvidersPage:
    """The page of one backend."""

    def __init__(self, runtime: Runtime, renderer: Renderer, monitor: ProviderMonitor, jobs: JobRunner) -> None:
        self._runtime = runtime
        self._renderer = renderer
        self._monitor = monitor
        self._jobs = jobs

    async def show(self, request: Request) -> Response:
        """Return the page."""
        return self._renderer.page(
            request, "providers.html", here="providers", parts=self.parts(), version=self._version()
        )

    async def live(self, request: Request) -> Response:
        """Stream the parts of the page as they change."""
        return stream(self._changes(request.query_params.get("v", "")))

    async def start(self, request: Request) -> Response:
        """Start a job."""
        fields = await read_form(request, self._runtime.csrf)
        try:
            kind = JobKind(request.path_params["kind"])
        except ValueError:
            raise ConfigurationError("There is no such job.") from None
        only = [fields["only"]] if fields.get("only") else []
        self._jobs.start(kind, only, confirmed=fields.get("confirmed") == "yes")
        return self._job_response()

    async def dismiss(self, request: Request) -> Response:
        """Remove the result of the last job."""
        await read_form(request, self._runtime.csrf)
        self._jobs.dismiss()
        return self._job_response()

    def _version(self) -> str:
        return f"{self._monitor.states.version}.{self._jobs.notifier.count}.{self._runtime.readiness.phase.value}"

    async def _changes(self, version: str) -> AsyncGenerator[str, None]:
        """Yield every part of the page that has changed since it was sent last."""
        sent = self.parts() if version == self._version() else {}
        notifiers = (self._monitor.notifier, self._jobs.notifier, self._runtime.event_log.notifier)
        with self._monitor.viewing():
            while True:
                counts = [notifier.count for notifier in notifiers]
                parts = self.parts()
                changed = [html for id, html in parts.items() if sent.get(id) != html]
                if parts.keys() != sent.keys() and sent:
                    # Providers were added or removed: replace the whole list.
                    changed = [self._part("rows", rows=self._rows(), oob=True), *changed]
                if changed:
                    yield "\n".join(changed)
                sent = parts
                # During a job or the start, the page shows the seconds that have passed.
                ticking = self._jobs.running or not self._runtime.up
                await _wait_for_any(
                    dict(zip(notifiers, counts, strict=True)), _TICK_SECONDS if ticking else _REFRESH_SECONDS
                )

    # --- parts ----------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, str]:
        """Return the HTML of all parts that change, by id; providers by name."""
        parts = {"overview": self._overview(), "job": self._job()}
        for row in self._rows():
            parts[row["name"]] = self._part("row", row=row, oob=True)
        return parts

    def _overview(self) -> str:
        states, readiness = self._monitor.states, self._runtime.readiness
        report = None if states.report is None else readiness.with_vendors(states.report)
        summary = None if report is None else headline(report)
        settings = self._runtime.settings if self._runtime.up else None
        practice = settings is not None and any(value.origin == ORIGIN for value in settings.sources.overlay.values())
        added_keys = (
            [name for name in settings.sources.dotenv if name in settings.sources.overlay and name.endswith("_KEY")]
            if settings is not None and practice
            else []
        )
        return self._part(
            "overview",
            phase=readiness.phase.value,
            up=self._runtime.up,
            reasons=readiness.reasons if states.report is None else [],
            error=states.error,
            since=states.since,
            letta=report,
            summary=summary,
            tone="" if summary is None else TONES[summary.level],
            configured=report is not None and bool(report.configured),
            practice=practice,
            added_keys=added_keys,
            env_file=settings.sources.file.name if settings is not None else ".env",
            notices=self._runtime.event_log.notices(_NOTICES_SHOWN_FOR)[:3],
            warnings=states.report.notices if states.report is not None else (),
        )

    def _job(self) -> str:
        return self._part("job_panel", job=self._jobs.current, stored=STORED, state_of=_state_of)

    def _job_response(self) -> Response:
        return self._renderer.fragment(
            "providers_parts.html", "job_panel", job=self._jobs.current, stored=STORED, state_of=_state_of
        )

    def _rows(self) -> list[dict[str, Any]]:
        report = self._monitor.states.report
        return (
            []
            if report is None
            else [_row(entry) for entry in self._runtime.readiness.with_vendors(report).providers]
        )

    def _part(self, macro: str, /, **values: Any) -> str:
        return self._renderer.part("providers_parts.html", macro, **values)


async def _wait_for_any(counts: dict[Notifier, int], seconds: float) -> None:
    """Wait until a notifier exceeds its count, at most this many seconds."""
    async with anyio.create_task_group() as tasks:

        async def wait(notifier: Notifier, count: int) -> None:
            await notifier.wait(count, seconds)
            tasks.cancel_scope.cancel()

        for notifier, count in counts.items():
            tasks.start_soon(wait, notifier, count)


def _row(entry: ProviderReport) -> dict[str, Any]:
    state = current_health(entry)
    word, tone = _state_of(entry)
    return {
        "name": entry.name,
        "entry": entry,
        "word": word,
        "tone": tone,
        "worst_tone": TONES[level_of(entry)],
        # A report of a sync says what was stored before; after a repair the configured key is stored.
        "stored": STORED["in_sync" if state is HealthState.IN_SYNC else entry.stored.value],
        "base_url": entry.stored_base_url or entry.base_url,
        "configured_url": entry.base_url if _moved(entry) else None,
        "wrong": state not in (HealthState.IN_SYNC, HealthState.FOREIGN, HealthState.NO_KEY),
        "repairable": state in (HealthState.DRIFTED, HealthState.FAILED),
        "vendor": vendor_words(entry.vendor_status),
        "vendor_tone": TONES[vendor_level(entry.vendor_status)],
    }


def _moved(entry: ProviderReport) -> bool:
    stored = entry.stored_base_url
    return stored is not None and not same_address(stored, entry.base_url)


def _state_of(entry: ProviderReport) -> tuple[str, str]:
    return STATES[current_health(entry)], TONES[stored_level(entry)]
