"""The providers page: the state of each provider, live, and buttons for plan, sync, verify, refresh and doctor."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from isabella.config.settings import Settings
from isabella.errors import ConfigurationError, LettaError
from isabella.practice.overlay import ORIGIN
from isabella.providers.desired import desired_providers
from isabella.providers.report import ProviderReport
from isabella.server.practice_leftovers import Leftover, candidates, find_leftovers, remove_leftovers
from isabella.server.runtime import Runtime
from isabella.server.web.jobs import JobKind, JobRunner
from isabella.server.web.rendering import Page, Renderer, wait_for_any
from isabella.system.english import english

_NOTICES_SHOWN_FOR = 3600.0
_TICK_SECONDS, _REFRESH_SECONDS = 1.0, 20.0
_LEFTOVERS_SECONDS = 30.0


def routes(runtime: Runtime, renderer: Renderer) -> list[Route]:
    """Return the routes of the page."""
    page = ProvidersPage(runtime, renderer, JobRunner(runtime))
    return [
        Route("/providers", page.show),
        Route("/providers/live", page.live),
        Route("/providers/dismiss", page.dismiss, methods=["POST"]),
        Route("/providers/remove-practice", page.remove_practice, methods=["POST"]),
        Route("/providers/{kind}", page.start, methods=["POST"]),
    ]


class ProvidersPage(Page):
    """The page of one backend."""

    parts_template = "providers_parts.html"

    def __init__(self, runtime: Runtime, renderer: Renderer, jobs: JobRunner) -> None:
        super().__init__(runtime, renderer)
        self._monitor = runtime.monitor
        self._jobs = jobs
        self._leftovers: tuple[Leftover, ...] = ()
        self._leftover_names: frozenset[str] = frozenset()
        self._looked_at = float("-inf")

    async def show(self, request: Request) -> Response:
        """Return the page."""
        return self._renderer.page(
            request, "providers.html", here="providers", parts=self.parts(), version=self._version()
        )

    async def live(self, request: Request) -> Response:
        """Stream the parts of the page as they change."""
        return self._stream(self._changes(request.query_params.get("v", "")))

    async def start(self, request: Request) -> Response:
        """Start a job."""
        fields = await self._form(request)
        try:
            kind = JobKind(request.path_params["kind"])
        except ValueError:
            raise ConfigurationError(english("There is no such job.")) from None
        only = [fields["only"]] if fields.get("only") else []
        self._jobs.start(kind, only, confirmed=fields.get("confirmed") == "yes")
        return self._fragment("job_panel", job=self._jobs.current)

    async def dismiss(self, request: Request) -> Response:
        """Remove the result of the last job."""
        await self._form(request)
        self._jobs.dismiss()
        return self._fragment("job_panel", job=self._jobs.current)

    async def remove_practice(self, request: Request) -> Response:
        """Remove the providers of practice vendors that real keys have replaced."""
        await self._form(request)
        runtime = self._runtime
        with runtime.syncing():
            removed = await remove_leftovers(runtime.settings, runtime.connection, runtime.turns.deps.gate)
        for name in removed:
            runtime.event_log.add_notice(
                english("Removed from Letta: %(name)s, a practice provider.", name=name), name
            )
        self._looked_at = float("-inf")
        await self._monitor.poll()
        await self._look_for_leftovers()
        return HTMLResponse(self._overview())

    async def _look_for_leftovers(self) -> None:
        """Look for leftovers of practice vendors, if there may be some, every half a minute."""
        runtime, report = self._runtime, self._monitor.states.report
        if report is None or not runtime.up:
            return
        names, now = candidates(report, runtime.settings), time.monotonic()
        if names == self._leftover_names and (not names or now - self._looked_at < _LEFTOVERS_SECONDS):
            return
        try:
            self._leftovers = await find_leftovers(runtime.settings, runtime.connection, names)
        except LettaError:
            # The status line says that Letta does not answer.
            return
        self._leftover_names, self._looked_at = names, now

    def _version(self) -> str:
        return f"{self._monitor.states.version}.{self._jobs.notifier.count}.{self._runtime.readiness.phase.value}"

    async def _changes(self, version: str) -> AsyncGenerator[str, None]:
        """Yield every part of the page that has changed since it was sent last."""
        sent = self.parts() if version == self._version() else {}
        notifiers = (self._monitor.notifier, self._jobs.notifier, self._runtime.event_log.notifier)
        while True:
            await self._look_for_leftovers()
            counts = {notifier: notifier.count for notifier in notifiers}
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
            await wait_for_any(counts, _TICK_SECONDS if ticking else _REFRESH_SECONDS)

    def parts(self) -> dict[str, str]:
        """Return the HTML of all parts that change, by id; providers by name."""
        parts = {"overview": self._overview(), "job": self._part("job_panel", job=self._jobs.current)}
        return parts | {entry.name: self._part("row", entry=entry, oob=True) for entry in self._entries()}

    def _overview(self) -> str:
        states = self._monitor.states
        report = None if states.report is None else self._runtime.readiness.with_vendors(states.report)
        settings = self._runtime.settings if self._runtime.up else None
        practice = settings is not None and any(one.origin == ORIGIN for one in settings.sources.overlay.values())
        return self._part(
            "overview",
            up=self._runtime.up,
            letta=report,
            practice=_practice_of(settings) if settings is not None and practice else None,
            env_file=".env" if settings is None else str(settings.sources.file.absolute()),
            leftovers=self._leftovers,
            notices=self._runtime.event_log.notices(_NOTICES_SHOWN_FOR)[:3],
        )

    def _entries(self) -> Sequence[ProviderReport]:
        report = self._monitor.states.report
        return () if report is None else self._runtime.readiness.with_vendors(report).providers


@dataclass(frozen=True)
class PracticeNotice:
    """The page's notice about practice vendors that are in use.

    Attributes:
        until_key: whether a real key replaces them at once.
        found: the variables of keys that are set, and wait for a restart.
        unusable: what is wrong with keys that are set, one sentence each.
    """

    until_key: bool
    found: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()


def _practice_of(settings: Settings) -> PracticeNotice:
    sources = settings.sources
    until_key = sources.overlay_until_key
    added = [name for name in sources.dotenv if name in sources.overlay]
    if not added:
        return PracticeNotice(until_key)
    without = settings.model_copy(update={"sources": replace(sources, overlay={}, overlaid_from=None)})
    desired = desired_providers(without)
    unusable = tuple(one.problem for one in desired if one.problem is not None)
    found = tuple(name for one in desired if (name := one.vendor.api_key_env) in added and one.problem is None)
    return PracticeNotice(until_key, () if until_key else found, unusable)
