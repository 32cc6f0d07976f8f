"""The rate limits that vendors report in the headers of their answers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal

Period = Literal["minute", "day"]

_NAME = re.compile(
    r"x-ratelimit-(?P<fact>limit|remaining|reset)(?:-(?P<of>requests|req|tokens))?(?:-(?P<period>minute|day))?"
)
_DURATION = re.compile(
    r"(?a)(?:(?P<d>\d+(?:\.\d+)?)d)?(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m(?!s))?"
    r"(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+(?:\.\d+)?)ms)?"
)
_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
#: Numbers above this are points in time: seconds, or milliseconds, since 1970.
_EPOCH = 1_000_000_000.0
_EPOCH_MILLISECONDS = 100 * _EPOCH
#: A reset further away than this many seconds is not one of a minute's limit.
_MINUTE_RESET = 120.0


@dataclass(frozen=True)
class Allowance:
    """One limit of a vendor; None if it is not reported.

    Attributes:
        limit: how many requests or tokens a period has.
        remaining: how many are left.
        reset: seconds until there are more.
    """

    limit: int | None = None
    remaining: int | None = None
    reset: float | None = None


@dataclass(frozen=True)
class RateLimits:
    """The limits that an answer reports; None if it reports nothing.

    Attributes:
        requests_minute, requests_day, tokens_minute, tokens_day: the limits.
        retry_after: seconds until the next request may succeed.
    """

    requests_minute: Allowance | None = None
    requests_day: Allowance | None = None
    tokens_minute: Allowance | None = None
    tokens_day: Allowance | None = None
    retry_after: float | None = None

    @property
    def exhausted_for(self) -> float | None:
        """The seconds until every limit that is used up has more; None if none is, or no reset is reported."""
        allowances = (self.requests_minute, self.requests_day, self.tokens_minute, self.tokens_day)
        return max((a.reset for a in allowances if a and a.remaining == 0 and a.reset is not None), default=None)


def parse_limits(headers: Mapping[str, str], *, now: float, request_period: Period = "minute") -> RateLimits:
    """Return the limits in the headers of an answer. Malformed values count as absent.

    Args:
        headers: the headers; upper and lower case in their names make no difference.
        now: the time, in seconds since 1970.
        request_period: the period of limits of requests whose names do not state it; tokens are the minute's.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    found: dict[str, dict[str, float]] = {}
    for name, value in lowered.items():
        match = _NAME.fullmatch(name)
        parsed = None if match is None else _fact(match["fact"], value, now)
        if match is None or parsed is None:
            continue
        of = "tokens" if match["of"] == "tokens" else "requests"
        period = match["period"] or (
            "minute" if of == "tokens" else _period(match["of"], lowered, now, request_period)
        )
        found.setdefault(f"{of}_{period}", {})[match["fact"]] = parsed
    allowances = {
        name: Allowance(_whole(facts.get("limit")), _whole(facts.get("remaining")), facts.get("reset"))
        for name, facts in found.items()
    }
    return RateLimits(**allowances, retry_after=_retry_after(lowered, now))


def parse_duration(text: str) -> float | None:
    """Return the seconds of a duration such as `7.66`, `7.66s`, `2m59.56s` or `12ms`; None if it is malformed."""
    text = text.strip()
    if (seconds := _number(text)) is not None:
        return seconds
    match = _DURATION.fullmatch(text) if text and len(text) < 100 else None
    if match is None:
        return None
    return _finite(sum(float(match[unit] or 0) * _SECONDS[unit] for unit in _SECONDS))


def _period(of: str | None, headers: Mapping[str, str], now: float, request_period: Period) -> Period:
    """Return the period of a limit of requests. OpenRouter's names have neither a kind nor a period."""
    if of is not None:
        return request_period
    reset = _fact("reset", headers.get("x-ratelimit-reset", ""), now)
    return "day" if reset is not None and reset > _MINUTE_RESET else "minute"


def _fact(fact: str, value: str, now: float) -> float | None:
    if fact != "reset":
        return _number(value.strip())
    reset = parse_duration(value)
    if reset is None or reset < _EPOCH:
        return reset
    return max(0.0, (reset / 1000 if reset >= _EPOCH_MILLISECONDS else reset) - now)


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms", "").strip())
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after", "")
    if (seconds := parse_duration(value)) is not None:
        return seconds
    try:
        at = parsedate_to_datetime(value)
        return max(0.0, at.replace(tzinfo=at.tzinfo or UTC).timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _number(text: str) -> float | None:
    if not re.fullmatch(r"[0-9]{1,18}(?:\.[0-9]{1,30})?", text):
        return None
    return float(text)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
