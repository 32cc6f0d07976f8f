"""When what is to be done: drift, model lists, and another try of what failed. No sleeping here, and no clock."""

from __future__ import annotations

import random
import time as clocks
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta

#: Resyncs of several backends must not fall together.
_JITTER = 0.1
_FIRST_PAUSE = 5.0
_LONGEST_PAUSE = 1800.0
#: The wall clock may be set, and a machine may sleep: it is looked at again after so long, whatever is due.
_LONGEST_WAIT = 30.0
_MORE_THAN_A_DAY = timedelta(hours=26)


@dataclass(frozen=True)
class Clock:
    """What time it is.

    Attributes:
        monotonic: seconds that only ever grow.
        now: local time.
        chance: a random number from 0 to 1.
    """

    monotonic: Callable[[], float] = clocks.monotonic
    now: Callable[[], datetime] = field(default=lambda: datetime.now().astimezone())
    chance: Callable[[], float] = random.random


@dataclass(frozen=True)
class Due:
    """What is to be done now.

    Attributes:
        resync: look for drift.
        refresh: read the model lists anew.
        retry: try these providers again.
    """

    resync: bool = False
    refresh: bool = False
    retry: tuple[str, ...] = ()


@dataclass
class _Pause:
    until: float
    seconds: float


class Schedule:
    """When the next things are due.

    Args:
        resync: seconds between looks for drift; 0 for never.
        refresh_at: the local time of the nightly refresh; None for never.
        clock: what time it is.
    """

    def __init__(self, resync: float, refresh_at: time | None, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._resync = resync
        self._refresh_at = refresh_at
        self._pauses: dict[str, _Pause] = {}
        self._next_resync = self._after_resync()
        self._next_refresh = self._after_refresh()

    def change(self, resync: float, refresh_at: time | None) -> None:
        """Go by other times from now on; what is being tried again stays."""
        self._resync, self._refresh_at = resync, refresh_at
        self._next_resync, self._next_refresh = self._after_resync(), self._after_refresh()

    @property
    def waiting(self) -> frozenset[str]:
        """The providers that are left alone until their pause is over."""
        return frozenset(self._pauses)

    def pause_of(self, name: str) -> float | None:
        """Seconds until a provider is tried again; None where it is not waited for."""
        pause = self._pauses.get(name)
        return None if pause is None else max(0.0, pause.until - self._clock.monotonic())

    def failed(self, names: Iterable[str]) -> None:
        """Try these again: after 5 seconds at first, then after twice as long each time, at most half an hour."""
        for name in names:
            before = self._pauses.get(name)
            seconds = _FIRST_PAUSE if before is None else min(before.seconds * 2, _LONGEST_PAUSE)
            self._pauses[name] = _Pause(self._clock.monotonic() + self._spread(seconds), seconds)

    def succeeded(self, names: Iterable[str]) -> None:
        """These need not be tried again."""
        for name in names:
            self._pauses.pop(name, None)

    def due(self) -> Due:
        """What is due now. It counts as done with this; what fails is told by `failed`."""
        now = self._clock.monotonic()
        resync = self._next_resync is not None and now >= self._next_resync
        if resync:
            self._next_resync = self._after_resync()
        if self._next_refresh is not None and self._next_refresh - self._clock.now() > _MORE_THAN_A_DAY:
            # The wall clock was set back.
            self._next_refresh = self._after_refresh()
        refresh = self._next_refresh is not None and self._clock.now() >= self._next_refresh
        if refresh:
            self._next_refresh = self._after_refresh()
        return Due(resync, refresh, tuple(name for name, pause in self._pauses.items() if now >= pause.until))

    def seconds(self) -> float:
        """How long nothing is due; at most half a minute, because clocks are set and machines sleep."""
        now = self._clock.monotonic()
        times = [pause.until - now for pause in self._pauses.values()]
        if self._next_resync is not None:
            times.append(self._next_resync - now)
        if self._next_refresh is not None:
            times.append((self._next_refresh - self._clock.now()).total_seconds())
        return max(0.0, min([*times, _LONGEST_WAIT]))

    def _spread(self, seconds: float) -> float:
        return seconds * (1 + _JITTER * (2 * self._clock.chance() - 1))

    def _after_resync(self) -> float | None:
        return self._clock.monotonic() + self._spread(self._resync) if self._resync > 0 else None

    def _after_refresh(self) -> datetime | None:
        if self._refresh_at is None:
            return None
        now = self._clock.now()
        today = now.replace(
            hour=self._refresh_at.hour, minute=self._refresh_at.minute, second=0, microsecond=0, fold=0
        )
        return today if today > now else today + timedelta(days=1)
