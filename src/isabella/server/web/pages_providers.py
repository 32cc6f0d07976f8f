"""The providers page: the state of each provider, live, and buttons for plan, sync, verify, refresh and doctor."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.errors import ConfigurationError
from isabella.practice.overlay import ORIGIN
from isabella.providers.report import ProviderReport
from isabella.server.event_log import Notifier
from isabella.server.runtime import Runtime
from isabella.server.web.jobs import JobKind, JobRunner, ProviderMonitor
from isabella.server.web.rendering import Page, Renderer, stream

_NOTICES_SHOWN_FOR = 3600.0
_TICK_SECONDS, _REFRESH_SECONDS = 1.0, 20.0


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


class ProvidersPage(Page):
    """The page of one backend."""

    parts_template = "providers_parts.html"

    def __init__(self, runtime: Runtime, renderer: Renderer, monitor: ProviderMonitor, jobs: JobRunner) -> None:
        super().__init__(runtime, renderer)
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
        fields = await self._form(request)
        try:
            kind = JobKind(request.path_params["kind"])
        except ValueError:
            raise ConfigurationError("There is no such job.") from None
        only = [fields["only"]] if fields.get("only") else []
        self._jobs.start(kind, only, confirmed=fields.get("confirmed") == "yes")
        return self._fragment("job_panel", job=self._jobs.current)

    async def dismiss(self, request: Request) -> Response:
        """Remove the result of the last job."""
        await self._form(request)
        self._jobs.dismiss()
        return self._fragment("job_panel", job=self._jobs.current)

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
                    changed = [self._part("rows", entries=self._entries(), oob=True), *changed]
                if changed:
                    yield "\n".join(changed)
                sent = parts
                # During a job or the start, the page shows the seconds that have passed.
                ticking = self._jobs.running or not self._runtime.up
                await _wait_for_any(
                    dict(zip(notifiers, counts, strict=True)), _TICK_SECONDS if ticking else _REFRESH_SECONDS
                )

    def parts(self) -> dict[str, str]:
        """Return the HTML of all parts that change, by id; providers by name."""
        parts = {"overview": self._overview(), "job": self._part("job_panel", job=self._jobs.current)}
        return parts | {entry.name: self._part("row", entry=entry, oob=True) for entry in self._entries()}

    def _overview(self) -> str:
        states, readiness = self._monitor.states, self._runtime.readiness
        report = None if states.report is None else readiness.with_vendors(states.report)
        sources = self._runtime.settings.sources if self._runtime.up else None
        practice = sources is not None and any(value.origin == ORIGIN for value in sources.overlay.values())
        added = (
            [name for name in sources.dotenv if name in sources.overlay] if sources is not None and practice else []
        )
        return self._part(
            "overview",
            phase=readiness.phase.value,
            up=self._runtime.up,
            reasons=readiness.reasons if report is None else [],
            states=states,
            letta=report,
            summary=None if report is None else readiness.headline(report),
            practice=practice,
            added_keys=[name for name in added if name.endswith("_KEY")],
            env_file=".env" if sources is None else sources.file.name,
            notices=self._runtime.event_log.notices(_NOTICES_SHOWN_FOR)[:3],
        )

    def _entries(self) -> Sequence[ProviderReport]:
        report = self._monitor.states.report
        return () if report is None else self._runtime.readiness.with_vendors(report).providers


async def _wait_for_any(counts: dict[Notifier, int], seconds: float) -> None:
    """Wait until a notifier exceeds its count, at most this many seconds."""
    async with anyio.create_task_group() as tasks:

        async def wait(notifier: Notifier, count: int) -> None:
            await notifier.wait(count, seconds)
            tasks.cancel_scope.cancel()

        for notifier, count in counts.items():
            tasks.start_soon(wait, notifier, count)
