"""The page of activity: what was done, when and why, and how vendors did in the last hour."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.server.event_log import TurnSample
from isabella.server.web.context import ConsoleContext
from isabella.server.web.rendering import Renderer, stream

WIDTH, HEIGHT = 600, 96
_LEFT, _RIGHT, _BOTTOM, _TOP = 34, 6, 16, 8


@dataclass(frozen=True)
class TurnPoint:
    """A turn in a chart.

    Attributes:
        x: from the left.
        y: from the top.
        text: what it is, for the pointer.
    """

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class ErrorBar:
    """The errors of some minutes.

    Attributes:
        x: from the left.
        y: from the top.
        width: how wide.
        height: how high.
    """

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class VendorChart:
    """How a vendor did in the last hour.

    Attributes:
        provider: the provider's name in Letta.
        dots: the times to the first token.
        bars: the errors.
        ceiling: what the top of the scale stands for, in seconds.
        median: of the times to the first token, in seconds.
        answered: how many turns it answered.
        errors: how many times it did not.
    """

    provider: str
    dots: tuple[TurnPoint, ...]
    bars: tuple[ErrorBar, ...]
    ceiling: float
    median: float | None
    answered: int
    errors: int

    @property
    def summary(self) -> str:
        """The chart in words."""
        middle = "" if self.median is None else f", half of them within {self.median:.2g} s"
        errors = "no error" if not self.errors else f"{self.errors} error{'s' if self.errors > 1 else ''}"
        answers = f"{self.answered} answer{'s' if self.answered != 1 else ''}"
        return f"{self.provider}: {answers}{middle}, {errors} in the last hour"


def chart(provider: str, samples: Sequence[TurnSample], now: float, span: float = 3600.0) -> VendorChart:
    """Draw how a vendor did.

    Args:
        provider: the provider's name in Letta.
        samples: what is known of it.
        now: where the chart ends, in seconds since the epoch.
        span: how many seconds it shows.
    """
    times = sorted(mark.first_token for mark in samples if mark.first_token is not None)
    errors = [mark for mark in samples if mark.first_token is None]
    ceiling = _ceiling(times[-1] if times else 1.0)
    inner = WIDTH - _LEFT - _RIGHT
    dots = tuple(
        TurnPoint(
            round(_LEFT + inner * (1 - (now - mark.at) / span), 1),
            round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - mark.first_token / ceiling), 1),
            f"{mark.first_token:.2f} s",
        )
        for mark in samples
        if mark.first_token is not None
    )
    return VendorChart(
        provider,
        dots,
        _bars(errors, now, span),
        ceiling,
        times[len(times) // 2] if times else None,
        len(times),
        len(errors),
    )


def _bars(errors: Sequence[TurnSample], now: float, span: float, slots: int = 60) -> tuple[ErrorBar, ...]:
    counted = [0] * slots
    for mark in errors:
        counted[min(slots - 1, max(0, int(slots * (1 - (now - mark.at) / span))))] += 1
    most = max([*counted, 1])
    width = (WIDTH - _LEFT - _RIGHT) / slots
    room = (HEIGHT - _TOP - _BOTTOM) * 0.6
    return tuple(
        ErrorBar(
            round(_LEFT + slot * width, 1),
            round(HEIGHT - _BOTTOM - room * number / most, 1),
            round(width - 1, 1),
            round(room * number / most, 1),
        )
        for slot, number in enumerate(counted)
        if number
    )


def _ceiling(value: float) -> float:
    """The next round number."""
    for step in (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300):
        if value <= step:
            return float(step)
    return value


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
