"""Rate limits in headers, as the vendors send them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isabella.gateway.limits import Allowance, RateLimits, parse_duration, parse_limits

NOW = 1_800_000_000.0
HTTP_DATE = "Fri, 15 Jan 2027 08:01:30 GMT"  # NOW and 90 seconds
SAMPLES = {
    "groq": (
        {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-limit-tokens": "18000",
            "x-ratelimit-remaining-requests": "14370",
            "x-ratelimit-remaining-tokens": "17997",
            "x-ratelimit-reset-requests": "2m59.56s",
            "x-ratelimit-reset-tokens": "7.66s",
            "retry-after": "2",
        },
        RateLimits(
            requests_day=Allowance(14_400, 14_370, 179.56),
            tokens_minute=Allowance(18_000, 17_997, 7.66),
            retry_after=2.0,
        ),
    ),
    "cerebras": (
        {
            "x-ratelimit-limit-requests-day": "14400",
            "x-ratelimit-limit-tokens-minute": "60000",
            "x-ratelimit-remaining-requests-day": "14370",
            "x-ratelimit-remaining-tokens-minute": "58211",
            "x-ratelimit-reset-requests-day": "33011.382867097855",
            "x-ratelimit-reset-tokens-minute": "11.382867097854614",
        },
        RateLimits(
            requests_day=Allowance(14_400, 14_370, 33011.382867097855),
            tokens_minute=Allowance(60_000, 58_211, 11.382867097854614),
        ),
    ),
    "mistral": (
        {
            "x-ratelimit-limit-tokens-minute": "5000000",
            "x-ratelimit-remaining-tokens-minute": "4998211",
            "x-ratelimit-tokens-query-cost": "1789",
            "x-ratelimit-limit-req-minute": "720",
            "x-ratelimit-remaining-req-minute": "719",
        },
        RateLimits(requests_minute=Allowance(720, 719), tokens_minute=Allowance(5_000_000, 4_998_211)),
    ),
    "openai": (
        {
            "X-RateLimit-Limit-Requests": "5000",
            "X-RateLimit-Limit-Tokens": "160000",
            "X-RateLimit-Limit-Tokens_usage_based": "160000",
            "X-RateLimit-Remaining-Requests": "4999",
            "X-RateLimit-Remaining-Tokens": "0",
            "X-RateLimit-Reset-Requests": "12ms",
            "X-RateLimit-Reset-Tokens": "6m0s",
            "Retry-After-Ms": "1500",
            "Retry-After": "2",
        },
        RateLimits(
            requests_minute=Allowance(5_000, 4_999, 0.012),
            tokens_minute=Allowance(160_000, 0, 360.0),
            retry_after=1.5,
        ),
    ),
    "openrouter": (
        {"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1800003600000"},
        RateLimits(requests_day=Allowance(50, 0, 3_600.0)),
    ),
    "openrouter, a minute": (
        {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "3", "X-RateLimit-Reset": "1800000030"},
        RateLimits(requests_minute=Allowance(20, 3, 30.0)),
    ),
    "none": ({"content-type": "application/json"}, RateLimits()),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_limits_are_read_as_each_vendor_sends_them(name: str) -> None:
    """Groq's header for requests counts the day's."""
    headers, limits = SAMPLES[name]
    assert parse_limits(headers, now=NOW, request_period="day" if name == "groq" else "minute") == limits


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7.66s", 7.66),
        ("2m59.56s", 179.56),
        ("1h2m3s", 3_723.0),
        ("1d", 86_400.0),
        ("12ms", 0.012),
        ("1s250ms", 1.25),
        (" 11.5 ", 11.5),
        ("0", 0.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("-1s", None),
        ("nan", None),
        ("inf", None),
        ("1e400", None),
        ("1m1m", None),
        ("９s", None),
        ("9" * 200 + "s", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    """Numbers are seconds; what is malformed counts as absent."""
    assert parse_duration(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30", 30.0),
        ("2.5", 2.5),
        (HTTP_DATE, 90.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("Fri, 99 Jan 2027 07:00:00 GMT", None),
        ("later", None),
        ("", None),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(value: str, seconds: float | None) -> None:
    """A date in the past means at once."""
    assert parse_limits({"Retry-After": value}, now=NOW).retry_after == seconds


def test_how_long_nothing_is_left() -> None:
    """The longest wait of what is used up; what is left over does not count."""
    used_up = RateLimits(requests_day=Allowance(9, 0, 50.0), tokens_minute=Allowance(9, 0, 7.0))
    assert used_up.exhausted_for == 50.0
    assert RateLimits(tokens_minute=Allowance(9, 1, 7.0)).exhausted_for is None
    assert RateLimits(tokens_minute=Allowance(9, 0)).exhausted_for is None


NAMES = st.sampled_from([name for headers, _ in SAMPLES.values() for name in headers])


@given(st.dictionaries(NAMES | st.text(), st.text() | st.from_regex(r"[-0-9.dhms,:]{0,30}")))
def test_no_header_breaks_it(headers: dict[str, str]) -> None:
    """Whatever a vendor sends, times are never negative."""
    limits = parse_limits(headers, now=NOW)
    resets = [a.reset for a in (limits.requests_minute, limits.requests_day, limits.tokens_minute) if a]
    assert all(seconds is None or seconds >= 0 for seconds in [limits.retry_after, *resets])
