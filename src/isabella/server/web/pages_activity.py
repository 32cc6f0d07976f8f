"""The page of activity: what was done, when and why, and how vendors did in the last hour."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.server.web.charts import HEIGHT, WIDTH, chart
from isabella.server.web.context import ConsoleContext
from isabella.server.web.event_log import TurnSample
from isabella.server.web.rendering import Renderer, stream

_HOUR = 3600.0
_SHOWN, _CHARTS = 100, 12
_QUIET = 20.0


def routes(context: ConsoleContext, renderer: Renderer) -> list[Route]:
    """The routes of the page."""
    page = _Page(context, renderer)
    return [Route("/activity", page.show), Route("/activity/live", page.live)]


class _Page:
    def __init__(self, context: ConsoleContext, renderer: Renderer) -> None:
        self._premises = context
        self._press = renderer

    async def show(self, request: Request) -> Response:
        count = self._premises.event_log.notifier.count
        return self._press.page(request, "activity.html", here="activity", parts=self._parts(), version=count)

    async def live(self, request: Request) -> Response:
        return stream(self._changes(request.query_params.get("v", "")))

    async def _changes(self, seen: str) -> AsyncGenerator[str, None]:
        notifier = self._premises.event_log.notifier
        sent: dict[str, str] = self._parts() if seen == str(notifier.count) else {}
        while True:
            count = notifier.count
            parts = self._parts()
            if fresh := [html for id, html in parts.items() if sent.get(id) != html]:
                yield "\n".join(fresh)
            sent = parts
            await notifier.after(count, _QUIET)

    def _parts(self) -> dict[str, str]:
        event_log = self._premises.event_log
        samples: dict[str, list[TurnSample]] = defaultdict(list)
        for mark in event_log.recent(_HOUR):
            samples[mark.provider].append(mark)
        now = time.time()
        busiest = sorted(samples, key=lambda name: (-len(samples[name]), name))[:_CHARTS]
        charts = [chart(name, samples[name], now) for name in sorted(busiest)]
        return {
            "charts": self._press.part(
                "activity_parts.html",
                "charts",
                charts=charts,
                width=WIDTH,
                height=HEIGHT,
                more=len(samples) - len(charts),
            ),
            "happenings": self._press.part(
                "activity_parts.html", "happenings", happenings=list(event_log.happenings)[:_SHOWN]
            ),
        }
