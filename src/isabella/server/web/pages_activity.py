"""The activity page: recent events, and a chart of each vendor's last hour, drawn as SVG on the server."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
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

#: The size of a chart in pixels.
WIDTH, HEIGHT = 600, 96
_LEFT, _RIGHT, _BOTTOM, _TOP = 34, 6, 16, 8
_BAR_COUNT = 60
#: Seconds at the top of the scale.
_SCALES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True)
class VendorChart:
    """A chart of a vendor's results: a point per answer, and bars of errors; places and sizes in pixels."""

    provider: str
    points: Sequence[Mapping[str, Any]]
    bars: Sequence[Mapping[str, Any]]
    ceiling: float  #: the top of the scale, in seconds
    median: float | None  #: the median time to the first token, in seconds
    answered: int
    errors: int

    @property
    def summary(self) -> str:
        """The chart in words."""
        median = "" if self.median is None else f", half of them within {self.median:.2g} s"
        errors = "no error" if not self.errors else f"{self.errors} error{'s' if self.errors > 1 else ''}"
        answers = f"{self.answered} answer{'s' if self.answered != 1 else ''}"
        return f"{self.provider}: {answers}{median}, {errors} in the last hour"


def chart(provider: str, samples: Sequence[TurnSample], now: float, span: float = _HOUR) -> VendorChart:
    """Return the chart of a provider's samples in the `span` seconds before `now`."""
    times = sorted(sample.first_token for sample in samples if sample.first_token is not None)
    errors = [sample for sample in samples if sample.first_token is None]
    longest = times[-1] if times else 1.0
    ceiling = next((scale for scale in _SCALES if longest <= scale), longest)
    points = [
        {
            "x": round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (1 - (now - sample.at) / span), 1),
            "y": round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - sample.first_token / ceiling), 1),
            "text": f"{sample.first_token:.2f} s",
        }
        for sample in samples
        if sample.first_token is not None
    ]
    median = times[len(times) // 2] if times else None
    return VendorChart(provider, points, _bars(errors, now, span), ceiling, median, len(times), len(errors))


def _bars(errors: Sequence[TurnSample], now: float, span: float) -> list[dict[str, float]]:
    counts = [0] * _BAR_COUNT
    for sample in errors:
        counts[min(_BAR_COUNT - 1, max(0, int(_BAR_COUNT * (1 - (now - sample.at) / span))))] += 1
    width = (WIDTH - _LEFT - _RIGHT) / _BAR_COUNT
    unit = (HEIGHT - _TOP - _BOTTOM) * 0.6 / max([*counts, 1])
    return [
        {
            "x": round(_LEFT + index * width, 1),
            "y": round(HEIGHT - _BOTTOM - unit * count, 1),
            "width": round(width - 1, 1),
            "height": round(unit * count, 1),
        }
        for index, count in enumerate(counts)
        if count
    ]


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
        size = {"width": WIDTH, "height": HEIGHT}
        return {
            "charts": self._part("charts", charts=charts, more=len(samples) - len(charts), **size),
            "events": self._part("events", events=list(self._log.entries)[:_EVENTS_SHOWN]),
        }
