"""What a vendor allows per minute, and what its rate-limit headers tell about it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from isabella.errors import PracticeError

Exceeded = Literal["requests_used_up", "tokens_used_up", "too_large"]

_MINUTE = 60.0
_DAY = 86_400.0


@dataclass(frozen=True)
class VendorAllowance:
    """Requests and tokens per minute, and requests per day. The day's are told, and never used up."""

    requests: int
    tokens: int
    requests_day: int = 14_400


@dataclass(frozen=True)
class LimitDecision:
    """What the limits say to a request; times are in seconds.

    Attributes:
        exceeded: the limit that it exceeds; the names are those of refusals in `vendors.toml`.
        retry_after: the time until it would be admitted; 0 if it is, or never would be.
        limit, used, requested: the figures of the limit that it exceeds.
        told: the values for the placeholders of the rate-limit headers.
    """

    exceeded: Exceeded | None
    retry_after: float
    limit: int
    used: int
    requested: int
    told: Mapping[str, float | int]


class _Bucket:
    """An allowance per minute that comes back steadily."""

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._used = 0.0
        self._at = now

    def used(self, now: float) -> float:
        self._used = max(0.0, self._used - (now - self._at) * self.limit / _MINUTE)
        self._at = now
        return self._used

    def take(self, amount: int) -> None:
        self._used += amount

    def left(self, now: float) -> int:
        return max(0, math.floor(self.limit - self.used(now) + 1e-9))

    def reset(self, now: float) -> float:
        """Return the seconds until nothing of it is used."""
        return self.used(now) * _MINUTE / self.limit

    def wait(self, amount: int, now: float) -> float:
        """Return the seconds until so much is left."""
        return max(0.0, self.used(now) + amount - self.limit) * _MINUTE / self.limit


class VendorLimits:
    """The limits of a vendor: off at first, so that every request finds the whole allowance.

    When they are on, their clock stands still until `advance`, unless it is to run.
    """

    def __init__(self, usual: VendorAllowance) -> None:
        self._usual = usual
        self._lock = threading.Lock()
        self._buckets: tuple[_Bucket, _Bucket] | None = None
        self._runs_since: float | None = None
        self._advanced = 0.0
        self._admitted = 0

    def limit(self, *, requests: int | None = None, tokens: int | None = None, running: bool = False) -> None:
        """Switch the limits on, with the whole allowance left; what is not given is the vendor's usual.

        Raises:
            PracticeError: an allowance is less than 1.
        """
        allowed = [self._usual.requests if requests is None else requests]
        allowed.append(self._usual.tokens if tokens is None else tokens)
        if min(allowed) < 1:
            raise PracticeError("An allowance per minute is at least 1.")
        with self._lock:
            self._runs_since = time.monotonic() if running else None
            self._advanced = 0.0
            self._buckets = (_Bucket(allowed[0], 0.0), _Bucket(allowed[1], 0.0))

    def lift(self) -> None:
        """Switch the limits off."""
        with self._lock:
            self._buckets = None

    def advance(self, seconds: float) -> None:
        """Advance the clock of the limits.

        Raises:
            PracticeError: the time is negative.
        """
        if seconds < 0:
            raise PracticeError("The clock does not go back.")
        with self._lock:
            self._advanced += seconds

    def state(self) -> dict[str, int | bool] | None:
        """Return the allowances and what is left of them; None if the limits are off."""
        with self._lock:
            if self._buckets is None:
                return None
            requests, tokens = self._buckets
            now = self._now()
            return {
                "requests": requests.limit,
                "requests_left": requests.left(now),
                "tokens": tokens.limit,
                "tokens_left": tokens.left(now),
                "running": self._runs_since is not None,
            }

    def told(self) -> Mapping[str, float | int]:
        """Return the values for the headers of an answer to a request that costs nothing."""
        with self._lock:
            now = self._now()
            return self._told(*(self._buckets or self._whole(now)), cost=0, now=now)

    def admit(self, cost: int) -> LimitDecision:
        """Decide on a request that costs so many tokens; if it is admitted, it is charged."""
        with self._lock:
            now = self._now()
            requests, tokens = self._buckets or self._whole(now)
            exceeded: Exceeded | None = None
            bucket, amount, wait = requests, 1, 0.0
            if self._buckets is None:
                pass
            elif cost > tokens.limit:
                exceeded, bucket, amount = "too_large", tokens, cost
            elif wait := tokens.wait(cost, now):
                exceeded, bucket, amount = "tokens_used_up", tokens, cost
            elif wait := requests.wait(1, now):
                exceeded = "requests_used_up"
            used = math.ceil(bucket.used(now))
            if exceeded is None:
                requests.take(1)
                tokens.take(cost)
                self._admitted += 1
            return LimitDecision(
                exceeded=exceeded,
                retry_after=wait,
                limit=bucket.limit,
                used=used,
                requested=amount,
                told=self._told(requests, tokens, cost=cost, now=now),
            )

    def _whole(self, now: float) -> tuple[_Bucket, _Bucket]:
        return _Bucket(self._usual.requests, now), _Bucket(self._usual.tokens, now)

    def _told(self, requests: _Bucket, tokens: _Bucket, *, cost: int, now: float) -> dict[str, float | int]:
        day = self._usual.requests_day
        return {
            "requests_limit": requests.limit,
            "requests_left": requests.left(now),
            "tokens_limit": tokens.limit,
            "tokens_left": tokens.left(now),
            "tokens_reset": tokens.reset(now),
            "day_limit": day,
            "day_left": max(0, day - self._admitted),
            "day_reset": min(self._admitted, day) * _DAY / day,
            "cost": cost,
        }

    def _now(self) -> float:
        ran = 0.0 if self._runs_since is None else time.monotonic() - self._runs_since
        return ran + self._advanced


def go_duration(seconds: float) -> str:
    """Return a time as Groq tells it: `7.66s`, `2m59.56s`, `120ms`."""
    if seconds < 1:
        return f"{round(seconds * 1000, 3):g}ms"
    minutes, rest = divmod(round(seconds, 3), _MINUTE)
    hours, minutes = divmod(int(minutes), 60)
    told = f"{hours}h" if hours else ""
    told += f"{minutes}m" if hours or minutes else ""
    return f"{told}{round(rest, 3):g}s"
