"""The activity page: recent events, each vendor behind the gateway, and charts of its last hour."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.gateway.client import GatewayTraffic
from isabella.gateway.traffic import VendorTraffic
from isabella.server.runtime import Runtime
from isabella.server.web import charts
from isabella.server.web.languages import gettext, ngettext, separated
from isabella.server.web.rendering import Page, Renderer
from isabella.system.redaction import redact

_HOUR = 3600.0
_EVENTS_SHOWN, _CHARTS_SHOWN = 100, 12
_REFRESH_SECONDS = 20.0


@dataclass(frozen=True)
class VendorRow:
    """A vendor behind the gateway, in the words of the page; None for what is not known.

    Attributes:
        accepted_at, refused_at: when it last accepted a request, and when one last failed.
        refusal: its status and words, or what went wrong.
        totals: its answers, refusals and failures.
        first_byte: the time to the first byte of its last answer.
        tokens: the tokens that it has counted.
    """

    provider: str
    accepted_at: datetime | None
    refused_at: datetime | None
    refusal: str
    totals: str
    first_byte: str | None
    tokens: str


def vendor_rows(traffic: GatewayTraffic | None) -> list[VendorRow]:
    """Return a row for each configured provider behind the gateway."""
    if traffic is None:
        return []
    return [_vendor_row(name, traffic.vendors.get(name, VendorTraffic())) for name in traffic.providers]


def _vendor_row(provider: str, vendor: VendorTraffic) -> VendorRow:
    status = gettext("no answer") if vendor.refused_status is None else str(vendor.refused_status)
    return VendorRow(
        provider,
        accepted_at=_time(vendor.accepted_at),
        refused_at=_time(vendor.refused_at),
        refusal=f"{status}: {redact(vendor.refused_message or '')}".rstrip(": "),
        totals=", ".join(_totals(vendor)),
        first_byte=None if vendor.first_byte_ms is None else f"{separated(round(vendor.first_byte_ms))} ms",
        tokens=gettext("%(prompt)s in, %(completion)s out")
        % {"prompt": separated(vendor.prompt_tokens), "completion": separated(vendor.completion_tokens)},
    )


def _totals(vendor: VendorTraffic) -> Iterator[str]:
    yield gettext("%(number)s accepted") % {"number": separated(vendor.answers)}
    if failed := vendor.refusals + vendor.failures:
        yield gettext("%(number)s refused or failed") % {"number": separated(failed)}
    if stopped := vendor.stopped_keys:
        text = ngettext("%(number)s other key stopped", "%(number)s other keys stopped", stopped)
        yield text % {"number": separated(stopped)}


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
        return self._stream(self._changes(request.query_params.get("v", "")))

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
        samples, now = list(self._log.samples_of_last(_HOUR)), time.time()
        first_tokens, traffic = charts.first_token_charts(samples, now, _HOUR), self._runtime.gateway
        limits = [] if traffic is None else charts.limit_rows(traffic.vendors)
        changes = charts.change_chart(self._log.entries, datetime.now(UTC))
        return {
            "first-tokens": self._part("first_tokens", charts=first_tokens, most=_CHARTS_SHOWN),
            "answers": self._part("answers", rows=charts.answer_rows(samples)),
            "tokens": self._part("tokens", rows=charts.token_rows(samples, self._runtime.readiness.listed)),
            "limits": self._part("limits", rows=limits),
            "changes": self._part("changes", chart=changes),
            "gateway": self._gateway(),
            "events": self._part("events", events=list(self._log.entries)[:_EVENTS_SHOWN]),
        }
