"""When things are due, by a clock that the tests move."""

from __future__ import annotations

from datetime import datetime, time, timedelta

from isabella.watch.watcher import Clock, Due, Schedule


class Now:
    """A clock that stands still until it is moved."""

    def __init__(self, chance: float = 0.5) -> None:
        self.seconds = 50.0
        self.date = datetime(2026, 11, 22, 12, 0).astimezone()
        self.clock = Clock(lambda: self.seconds, lambda: self.date, lambda: chance)

    def go_on(self, seconds: float) -> None:
        self.seconds += seconds
        self.date += timedelta(seconds=seconds)


def test_drift_is_looked_for_again_and_again() -> None:
    """Each interval once, however late somebody asks."""
    now = Now()
    schedule = Schedule(300, None, now.clock)
    assert schedule.due() == Due()
    now.go_on(299)
    assert schedule.due() == Due()
    assert schedule.seconds() == 1
    now.go_on(1)
    assert schedule.due() == Due(resync=True)
    assert schedule.due() == Due()
    now.go_on(1000)
    assert schedule.due() == Due(resync=True)
    assert schedule.due() == Due()


def test_backends_that_came_up_together_do_not_look_together() -> None:
    """The interval is spread by a tenth to both sides."""
    early, late = Now(chance=0.0), Now(chance=1.0)
    first, last = Schedule(300, None, early.clock), Schedule(300, None, late.clock)
    early.go_on(271)
    assert first.due().resync
    late.go_on(329)
    assert not last.due().resync
    late.go_on(2)
    assert last.due().resync


def test_zero_and_no_time_switch_it_off() -> None:
    """Nothing is ever due then, and nobody has to wake up often."""
    now = Now()
    schedule = Schedule(0, None, now.clock)
    now.go_on(1_000_000)
    assert schedule.due() == Due()
    assert schedule.seconds() == 30


def test_the_refresh_is_due_once_a_night() -> None:
    """At its time, and then at the same time of the next day."""
    now = Now()
    schedule = Schedule(0, time(3, 30), now.clock)
    now.go_on(15.5 * 3600 - 1)
    assert schedule.due() == Due()
    now.go_on(1)
    assert schedule.due() == Due(refresh=True)
    now.go_on(24 * 3600 - 1)
    assert schedule.due() == Due()
    now.go_on(1)
    assert schedule.due() == Due(refresh=True)


def test_a_wall_clock_that_is_set_moves_the_refresh_and_nothing_else() -> None:
    """Forward: it is due at once. Back by days: it is due in the next night, not when the old date has come."""
    now = Now()
    schedule = Schedule(300, time(3, 30), now.clock)
    now.date += timedelta(hours=20)
    assert schedule.due() == Due(refresh=True)
    now.date -= timedelta(days=30)
    assert schedule.due() == Due()
    now.date += timedelta(days=1)
    assert schedule.due() == Due(refresh=True)
    now.go_on(300)
    assert schedule.due().resync


def test_what_fails_is_tried_again_more_and_more_slowly_and_never_given_up() -> None:
    """5 seconds, then twice as long each time, at most half an hour; success forgets it."""
    now = Now()
    schedule = Schedule(0, None, now.clock)
    pauses = []
    for _ in range(12):
        schedule.failed(["groq"])
        pause = schedule._pauses["groq"][0] - now.seconds
        pauses.append(pause)
        assert schedule.seconds() == min(pause, 30)
        now.go_on(pause)
        assert schedule.due() == Due(retry=("groq",))
        assert schedule.waiting == {"groq"}
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 1800, 1800, 1800]
    schedule.succeeded(["groq", "never-failed"])
    assert (schedule.waiting, schedule.due()) == (frozenset(), Due())
    schedule.failed(["groq"])
    assert schedule.seconds() == 5


def test_other_times_take_effect_at_once() -> None:
    """What is being tried again is not forgotten for it."""
    now = Now()
    schedule = Schedule(0, None, now.clock)
    schedule.failed(["groq"])
    schedule.change(10, time(12, 1))
    now.go_on(60)
    assert schedule.due() == Due(resync=True, refresh=True, retry=("groq",))
