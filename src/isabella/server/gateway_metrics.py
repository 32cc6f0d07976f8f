"""The totals of the gateway, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from isabella.gateway.client import GatewayTraffic
from isabella.gateway.limits import Allowance, RateLimits
from isabella.gateway.traffic import VendorTraffic
from isabella.providers.report import GatewayState, GatewayStatus

#: Name, help, and field of the counters.
_COUNTERS = (
    ("isabella_gateway_answers", "Requests that a vendor accepted.", "answers"),
    ("isabella_gateway_refusals", "Requests that a vendor refused.", "refusals"),
    ("isabella_gateway_failures", "Requests without an answer, or whose answer broke off.", "failures"),
    ("isabella_gateway_stopped_keys", "Requests with a key other than the configured one.", "stopped_keys"),
)
#: Kind and field of the tokens.
_TOKENS = (("prompt", "prompt_tokens"), ("completion", "completion_tokens"))
#: Unit, period and field of the limits.
_LIMITS = (
    ("requests", "minute", "requests_minute"),
    ("requests", "day", "requests_day"),
    ("tokens", "minute", "tokens_minute"),
    ("tokens", "day", "tokens_day"),
)


class GatewayCollector(Collector):
    """Yields the totals that the gateway counts itself, so that they continue across a restart of either.

    Attributes:
        status: whether the gateway runs; None if there is none.
        traffic: what it last reported; None if it does not answer.
    """

    def __init__(self) -> None:
        self.status: GatewayStatus | None = None
        self.traffic: GatewayTraffic | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; none without a gateway."""
        if self.status is not None and self.status.state is not GatewayState.UNKNOWN:
            runs = self.status.state is GatewayState.RUNS
            yield GaugeMetricFamily("isabella_gateway_up", "Whether the gateway runs: 1 or 0.", float(runs))
        if self.traffic is not None:
            open_requests = "Requests to vendors that are under way."
            yield GaugeMetricFamily("isabella_gateway_open_requests", open_requests, self.traffic.open)
            yield from _of_vendors(self.traffic.vendors)


def _of_vendors(vendors: dict[str, VendorTraffic]) -> Iterator[Metric]:
    for name, help, field in _COUNTERS:
        counter = CounterMetricFamily(name, help, labels=("provider",))
        for provider, vendor in vendors.items():
            counter.add_metric((provider,), getattr(vendor, field))
        yield counter
    tokens = CounterMetricFamily(
        "isabella_gateway_tokens", "Tokens as vendors count them.", labels=("provider", "kind")
    )
    first_byte = GaugeMetricFamily(
        "isabella_gateway_first_byte_seconds",
        "Seconds until the first byte of the last answer.",
        labels=("provider",),
    )
    for provider, vendor in vendors.items():
        for kind, field in _TOKENS:
            tokens.add_metric((provider, kind), getattr(vendor, field))
        if vendor.first_byte_ms is not None:
            first_byte.add_metric((provider,), vendor.first_byte_ms / 1000)
    yield tokens
    yield first_byte
    yield from _of_limits(vendors)


def _of_limits(vendors: dict[str, VendorTraffic]) -> Iterator[Metric]:
    labels = ("provider", "unit", "period")
    limit = GaugeMetricFamily(
        "isabella_gateway_limit", "A rate limit, as the vendor's last answer reported it.", labels=labels
    )
    left = GaugeMetricFamily("isabella_gateway_limit_left", "What is left of a rate limit.", labels=labels)
    for provider, vendor in vendors.items():
        for one in allowances(vendor.limits):
            if one.allowance.limit is not None:
                limit.add_metric((provider, one.unit, one.period), one.allowance.limit)
            if one.allowance.remaining is not None:
                left.add_metric((provider, one.unit, one.period), one.allowance.remaining)
    yield limit
    yield left


@dataclass(frozen=True)
class NamedAllowance:
    """One limit of a vendor, with its unit (`requests` or `tokens`) and period (`minute` or `day`)."""

    unit: str
    period: str
    allowance: Allowance


def allowances(limits: RateLimits | None) -> list[NamedAllowance]:
    """Return the limits that a vendor has reported."""
    named = [] if limits is None else [(unit, period, getattr(limits, field)) for unit, period, field in _LIMITS]
    return [NamedAllowance(unit, period, allowance) for unit, period, allowance in named if allowance is not None]
