"""The circuit breaker: whom turns leave out, and for how long."""

from __future__ import annotations

import pytest

from isabella.turns.circuit_breaker import CircuitBreaker, CircuitState


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """One for both of us."""
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    """A new one."""
    return CircuitBreaker(clock)


def fail(breaker: CircuitBreaker, times: int) -> float | None:
    """Let it fail so often; what came of the last time."""
    left = None
    for _ in range(times):
        assert breaker.admit("groq", anyway=True) is None
        left = breaker.failed("groq", "401: Invalid API Key")
    return left


def test_unknown_vendors_are_asked(breaker: CircuitBreaker) -> None:
    """Nothing is held against a vendor that nothing is known of."""
    assert breaker.admit("groq") is None
    assert breaker.states() == {}


def test_left_out_after_three_failures(breaker: CircuitBreaker) -> None:
    """Two failures are bad luck, three are a reason to leave the vendor out."""
    assert fail(breaker, 2) is None
    assert breaker.admit("groq") is None
    assert breaker.failed("groq", "401: Invalid API Key") == 15.0
    out = breaker.admit("groq")
    assert out is not None
    assert (out.seconds, out.because, out.requested) == (15.0, "401: Invalid API Key", False)
    assert breaker.states() == {"groq": CircuitState.OPEN}


def test_success_forgets(breaker: CircuitBreaker) -> None:
    """An answer wipes out what came before it."""
    fail(breaker, 2)
    breaker.succeeded("groq")
    assert fail(breaker, 2) is None


def test_one_turn_tries_again(breaker: CircuitBreaker, clock: Clock) -> None:
    """When the time is over one turn may try; others wait for what it finds."""
    fail(breaker, 3)
    clock.now += 15.0
    assert breaker.admit("groq") is None
    assert breaker.admit("groq") is not None
    assert breaker.states() == {"groq": CircuitState.TRYING}
    breaker.succeeded("groq")
    assert breaker.admit("groq") is None


def test_the_pause_doubles(breaker: CircuitBreaker, clock: Clock) -> None:
    """Each failed trial doubles the pause, up to five minutes."""
    pauses = [fail(breaker, 3)]
    for _ in range(6):
        clock.now += pauses[-1] or 0.0
        assert breaker.admit("groq") is None
        pauses.append(breaker.failed("groq", "still refuses"))
    assert pauses == [15.0, 30.0, 60.0, 120.0, 240.0, 300.0, 300.0]


def test_a_trial_that_learns_nothing_leaves_room(breaker: CircuitBreaker, clock: Clock) -> None:
    """A trial that was stopped lets the next turn try."""
    fail(breaker, 3)
    clock.now += 15.0
    assert breaker.admit("groq") is None
    breaker.gave_up("groq")
    assert breaker.admit("groq") is None


def test_a_wish_is_granted_at_once(breaker: CircuitBreaker, clock: Clock) -> None:
    """A vendor that asks for a pause is left alone for it, even where nobody else is left."""
    assert breaker.admit("groq") is None
    assert breaker.failed("groq", "429: too fast", retry_after=40.0) == 40.0
    out = breaker.admit("groq", anyway=True)
    assert out is not None
    assert out.requested
    clock.now += 40.0
    assert breaker.admit("groq") is None


def test_others_are_asked_anyway_where_nobody_is_left(breaker: CircuitBreaker) -> None:
    """A vendor that is left out without a wish of its own is the last resort."""
    fail(breaker, 3)
    assert breaker.admit("groq", anyway=True) is None


def test_a_new_key_is_a_new_start(breaker: CircuitBreaker) -> None:
    """What was refused with the former key says nothing about the new one."""
    fail(breaker, 3)
    breaker.forgive("groq")
    assert breaker.admit("groq") is None
