"""The activity page: recent events, and a chart of each vendor's last hour, drawn as SVG by the template."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.server.event_log import TurnSample
from isabella.server.runtime import Runtime
from isabella.server.web.rendering import Page, Renderer, stream

_HOUR = 3600.0
_EVENTS_SHOWN, _CHARTS_SHOWN = 100, 12
_REFRESH_SECONDS = 20.0
_BAR_COUNT = 60
#: Seconds at the top of the scale.
_SCALES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)


def chart(provider: str, samples: Sequence[TurnSample], now: float, span: float = _HOUR) -> dict[str, Any]:
    """Return the chart of a provider's samples in the `span` seconds before `now`, for the template to draw.

    `answers` are pairs of a position from 0 to 1 on the time axis and the seconds to the first token; `bars` are the
    numbers of errors in equal intervals.
    """
    position = {sample: 1 - (now - sample.at) / span for sample in samples}
    bars = [0] * _BAR_COUNT
    for sample in samples:
        if sample.first_token is None:
            bars[min(_BAR_COUNT - 1, max(0, int(_BAR_COUNT * position[sample])))] += 1
    times = sorted(sample.first_token for sample in samples if sample.first_token is not None)
    longest = times[-1] if times else 1.0
    return {
        "provider": provider,
        "answers": [(position[sample], sample.first_token) for sample in samples if sample.first_token is not None],
        "bars": bars,
        "ceiling": next((scale for scale in _SCALES if longest <= scale), longest),
        "median": times[len(times) // 2] if times else None,
    }


def routes(runtime: Runtime, renderer: Renderer) -> list[Route]:
    """Return the routes of the page."""
    page = _Page(runtime, renderer)
    return [Route("/activity", page.show), Route("/activity/live", page.live)]


class _Page(Page):
    parts_template = "activity_parts.html"

    def __init__(self, runtime: Runtime, renderer: Renderer) -> None:
        super().__init__(runtime, renderer)
        self._log = runtime.event_log

    async def show(self, request: Request) -> Response:
        version = self._log.notifier.count
        return self._renderer.page(request, "activity.html", here="activity", parts=self._parts(), version=version)

    async def live(self, request: Request) -> Response:
        return stream(self._changes(request.query_params.get("v", "")))

    async def _changes(self, version: str) -> AsyncGenerator[str, None]:
        notifier = self._log.notifier
        sent = self._parts() if version == str(notifier.count) else {}
        while True:
            count = notifier.count
            parts = self._parts()
            if changed := [html for id, html in parts.items() if sent.get(id) != html]:
                yield "\n".join(changed)
            sent = parts
            await notifier.wait(count, _REFRESH_SECONDS)

    def _parts(self) -> dict[str, str]:
        samples: dict[str, list[TurnSample]] = defaultdict(list)
        for sample in self._log.samples_of_last(_HOUR):
            samples[sample.provider].append(sample)
        now = time.time()
        busiest = sorted(samples, key=lambda name: (-len(samples[name]), name))[:_CHARTS_SHOWN]
        charts = [chart(name, samples[name], now) for name in sorted(busiest)]
        return {
            "charts": self._part("charts", charts=charts, more=len(samples) - len(charts)),
            "events": self._part("events", events=list(self._log.entries)[:_EVENTS_SHOWN]),
        }
