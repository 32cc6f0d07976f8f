"""The activity page: recent events, each vendor behind the gateway, and charts of its last hour."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.gateway.client import GatewayTraffic
from isabella.gateway.traffic import VendorTraffic
from isabella.server.event_log import TurnSample
from isabella.server.gateway_metrics import NamedAllowance, allowances
from isabella.server.runtime import Runtime
from isabella.server.web.rendering import Page, Renderer, stream
from isabella.system.redaction import redact

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
        return {
            "charts": self._part("charts", charts=charts, more=len(samples) - len(charts)),
            "gateway": self._gateway(),
            "events": self._part("events", events=list(self._log.entries)[:_EVENTS_SHOWN]),
        }
