"""The totals of the gateway in /metrics, and in the words of the activity page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from isabella.gateway.client import GatewayProvider, GatewayTraffic
from isabella.gateway.limits import Allowance, RateLimits
from isabella.gateway.traffic import VendorTraffic
from isabella.providers.report import GatewayState, GatewayStatus
from isabella.server.metrics import Metrics
from isabella.server.readiness import Readiness
from isabella.server.web.pages_activity import vendor_rows
from isabella.system import redaction
from isabella.turns.circuit_breaker import CircuitBreaker

ADDRESS = "http://127.0.0.1:8284"
GROQ = VendorTraffic(
    answers=7,
    refusals=2,
    failures=1,
    prompt_tokens=3000,
    completion_tokens=120,
    first_byte_ms=250.0,
    accepted_at=1_790_000_000.0,
    refused_at=1_790_000_100.0,
    refused_status=429,
    refused_message="Rate limit reached",
    limits=RateLimits(
        tokens_minute=Allowance(limit=8000, remaining=0, reset=7.5), requests_day=Allowance(limit=1000, remaining=990)
    ),
    stopped_keys=1,
)


def traffic(**vendors: VendorTraffic) -> GatewayTraffic:
    """What a gateway with two providers has seen."""
    providers = {name: GatewayProvider(upstream="https://api.example/v1") for name in ("byok-groq", "longcat")}
    named = {name.replace("_", "-"): vendor for name, vendor in vendors.items()}
    return GatewayTraffic(number=3, open=2, providers=providers, vendors=named)


def render(state: GatewayState | None, seen: GatewayTraffic | None) -> list[str]:
    """The lines of /metrics about the gateway."""
    readiness = Readiness()
    readiness.record_gateway(None if state is None else GatewayStatus(ADDRESS, state))
    turns: Any = SimpleNamespace(
        under_way=0, queue=SimpleNamespace(waiting=0), deps=SimpleNamespace(breaker=CircuitBreaker())
    )
    text = Metrics().render(turns, readiness, seen).decode()
    return [line for line in text.splitlines() if line.startswith("isabella_gateway")]


def test_every_total_has_a_metric() -> None:
    """Counters are the gateway's own totals; limits and times are gauges."""
    assert render(GatewayState.RUNS, traffic(byok_groq=GROQ)) == [
        "isabella_gateway_up 1.0",
        "isabella_gateway_open_requests 2.0",
        'isabella_gateway_answers_total{provider="byok-groq"} 7.0',
        'isabella_gateway_refusals_total{provider="byok-groq"} 2.0',
        'isabella_gateway_failures_total{provider="byok-groq"} 1.0',
        'isabella_gateway_stopped_keys_total{provider="byok-groq"} 1.0',
        'isabella_gateway_tokens_total{kind="prompt",provider="byok-groq"} 3000.0',
        'isabella_gateway_tokens_total{kind="completion",provider="byok-groq"} 120.0',
        'isabella_gateway_first_byte_seconds{provider="byok-groq"} 0.25',
        'isabella_gateway_limit{period="day",provider="byok-groq",unit="requests"} 1000.0',
        'isabella_gateway_limit{period="minute",provider="byok-groq",unit="tokens"} 8000.0',
        'isabella_gateway_limit_left{period="day",provider="byok-groq",unit="requests"} 990.0',
        'isabella_gateway_limit_left{period="minute",provider="byok-groq",unit="tokens"} 0.0',
    ]


def test_what_is_not_known_has_no_sample() -> None:
    """A vendor that was never asked has zeros, and neither a time nor a limit."""
    lines = render(GatewayState.RUNS, traffic(longcat=VendorTraffic()))
    assert 'isabella_gateway_answers_total{provider="longcat"} 0.0' in lines
    assert not [line for line in lines if "first_byte" in line or "limit" in line]


@pytest.mark.parametrize(
    ("state", "lines"),
    [
        (None, []),
        (GatewayState.UNKNOWN, []),
        (GatewayState.DOWN, ["isabella_gateway_up 0.0"]),
        (GatewayState.RUNS, ["isabella_gateway_up 1.0"]),
    ],
)
def test_whether_it_runs(state: GatewayState | None, lines: list[str]) -> None:
    """Without its totals only that is told; without a gateway, or if nothing is known of it, not even that."""
    assert render(state, None) == lines


def test_the_rows_of_the_activity_page() -> None:
    """A row for every configured provider, in order, asked or not; nothing without a gateway."""
    assert vendor_rows(None) == []
    groq, longcat = vendor_rows(traffic(byok_groq=GROQ))
    assert (groq.provider, groq.refusal) == ("byok-groq", "429: Rate limit reached")
    assert groq.totals == "7 accepted, 3 refused or failed, 1 other key stopped"
    assert (groq.first_byte, groq.tokens) == ("250 ms", "3,000 in, 120 out")
    assert groq.accepted_at is not None
    assert groq.accepted_at.timestamp() == 1_790_000_000.0
    assert (longcat.accepted_at, longcat.refused_at, longcat.first_byte) == (None, None, None)


def test_a_refusal_is_shown_without_secrets() -> None:
    """The words of a vendor may quote a key."""
    redaction.remember("gsk_canary-of-the-rows-0123456789")
    words = "Invalid key gsk_canary-of-the-rows-0123456789"
    (row,) = vendor_rows(traffic(byok_groq=VendorTraffic(refused_at=1.0, refused_message=words)))[:1]
    assert row.refusal.startswith("no answer: Invalid key ")
    assert "canary-of-the-rows" not in row.refusal
