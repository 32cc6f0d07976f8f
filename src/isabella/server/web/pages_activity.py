"""The activity page: recent events, each vendor behind the gateway, and its last hour as an SVG chart."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.gateway.client import GatewayTraffic
from isabella.gateway.traffic import VendorTraffic
from isabella.server.event_log import TurnSample
from isabella.server.gateway_metrics import NamedAllowance, allowances
from isabella.server.runtime import Runtime
from isabella.server.web.rendering import Renderer, stream
from isabella.system.redaction import redact

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
class TurnPoint:
    """A turn in a chart, and its label."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class ErrorBar:
    """The number of errors in an interval."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class VendorChart:
    """A chart of a vendor's results: a point per answer, and bars of errors.

    Attributes:
        ceiling: the top of the scale, in seconds.
        median: the median time to the first token, in seconds.
    """

    provider: str
    points: tuple[TurnPoint, ...]
    bars: tuple[ErrorBar, ...]
    ceiling: float
    median: float | None
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
    points = tuple(
        TurnPoint(
            round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (1 - (now - sample.at) / span), 1),
            round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - sample.first_token / ceiling), 1),
            f"{sample.first_token:.2f} s",
        )
        for sample in samples
        if sample.first_token is not None
    )
    median = times[len(times) // 2] if times else None
    return VendorChart(provider, points, _bars(errors, now, span), ceiling, median, len(times), len(errors))


def _bars(errors: Sequence[TurnSample], now: float, span: float) -> tuple[ErrorBar, ...]:
    counts = [0] * _BAR_COUNT
    for sample in errors:
        counts[min(_BAR_COUNT - 1, max(0, int(_BAR_COUNT * (1 - (now - sample.at) / span))))] += 1
    width = (WIDTH - _LEFT - _RIGHT) / _BAR_COUNT
    unit = (HEIGHT - _TOP - _BOTTOM) * 0.6 / max([*counts, 1])
    return tuple(
        ErrorBar(
            round(_LEFT + index * width, 1),
            round(HEIGHT - _BOTTOM - unit * count, 1),
            round(width - 1, 1),
            round(unit * count, 1),
        )
        for index, count in enumerate(counts)
        if count
    )


@dataclass(frozen=True)
class VendorRow:
    """A vendor behind the gateway, in the words of the page; None for what is not known.

    Attributes:
        accepted_at, refused_at: when it last accepted a request, and when one last failed.
        refusal: its status and words, or what went wrong.
        totals: its answers, refusals and failures.
        first_byte: the time to the first byte of its last answer.
        tokens: the tokens that it has counted.
        limits: what is left of its rate limits, one text each.
    """

    provider: str
    accepted_at: datetime | None
    refused_at: datetime | None
    refusal: str
    totals: str
    first_byte: str | None
    tokens: str
    limits: tuple[str, ...]


def vendor_rows(traffic: GatewayTraffic | None) -> list[VendorRow]:
    """Return a row for each configured provider behind the gateway."""
    if traffic is None:
        return []
    return [_vendor_row(name, traffic.vendors.get(name, VendorTraffic())) for name in traffic.providers]


def _vendor_row(provider: str, vendor: VendorTraffic) -> VendorRow:
    status = "no answer" if vendor.refused_status is None else str(vendor.refused_status)
    failed = vendor.refusals + vendor.failures
    stopped = vendor.stopped_keys
    return VendorRow(
        provider,
        accepted_at=_time(vendor.accepted_at),
        refused_at=_time(vendor.refused_at),
        refusal=f"{status}: {redact(vendor.refused_message or '')}".rstrip(": "),
        totals=f"{vendor.answers:,} accepted"
        + (f", {failed:,} refused or failed" if failed else "")
        + (f", {stopped} other key{'' if stopped == 1 else 's'} stopped" if stopped else ""),
        first_byte=None if vendor.first_byte_ms is None else f"{vendor.first_byte_ms:,.0f} ms",
        tokens=f"{vendor.prompt_tokens:,} in, {vendor.completion_tokens:,} out",
        limits=tuple(_limit(one) for one in allowances(vendor.limits)),
    )


def _limit(named: NamedAllowance) -> str:
    left, limit = (
        "?" if value is None else f"{value:,}" for value in (named.allowance.remaining, named.allowance.limit)
    )
    return f"{left} of {limit} {named.unit} a {named.period}"


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def routes(runtime: Runtime, renderer: Renderer) -> list[Route]:
    """Return the routes of the page."""
    page = _Page(runtime, renderer)
    return [Route("/activity", page.show), Route("/activity/live", page.live)]


class _Page:
    def __init__(self, runtime: Runtime, renderer: Renderer) -> None:
        self._runtime = runtime
        self._log = runtime.event_log
        self._renderer = renderer

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

    def _gateway(self) -> str:
        rows, status = vendor_rows(self._runtime.gateway), self._runtime.readiness.gateway
        return self._renderer.part("activity_parts.html", "gateway", status=status, rows=rows)

    def _parts(self) -> dict[str, str]:
        samples: dict[str, list[TurnSample]] = defaultdict(list)
        for sample in self._log.samples_of_last(_HOUR):
            samples[sample.provider].append(sample)
        now = time.time()
        busiest = sorted(samples, key=lambda name: (-len(samples[name]), name))[:_CHARTS_SHOWN]
        charts = [chart(name, samples[name], now) for name in sorted(busiest)]
        size = {"width": WIDTH, "height": HEIGHT}
        part = self._renderer.part
        return {
            "charts": part("activity_parts.html", "charts", charts=charts, more=len(samples) - len(charts), **size),
            "gateway": self._gateway(),
            "events": part("activity_parts.html", "events", events=list(self._log.entries)[:_EVENTS_SHOWN]),
        }
