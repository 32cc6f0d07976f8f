"""A circuit breaker for each vendor.

After several failures in a row a vendor is skipped for a while; then one turn tries it again. If that fails, the
pause doubles. A vendor that asks for a pause (Retry-After) gets it at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

_FAILURES = 3
_FIRST_PAUSE = 15.0
_MAX_PAUSE = 300.0
#: The longest pause that is granted to a vendor that asks for one.
_MAX_REQUESTED_PAUSE = 3600.0


class CircuitState(StrEnum):
    """Whether a vendor is asked."""

    CLOSED = "closed"
    OPEN = "open"
    #: One turn is trying the vendor again.
    TRYING = "trying"


@dataclass
class _Circuit:
    failures: int = 0
    pauses: int = 0
    until: float = 0.0
    requested: bool = False
    trying: bool = False
    because: str = ""


@dataclass(frozen=True)
class OpenCircuit:
    """Why a vendor is skipped."""

    seconds: float  #: for how much longer
    because: str
    requested: bool  #: whether the vendor asked for the pause. Then it is not asked even as the last one left.


class CircuitBreaker:
    """The circuits of all providers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._circuits: dict[str, _Circuit] = {}
        self._renewals: dict[str, int] = {}

    def admit(self, provider: str, *, anyway: bool = False) -> OpenCircuit | None:
        """Return None if a turn may ask this provider now, otherwise why not.

        Reserves the probe of an open circuit. So call it only immediately before sending, and report the result with
        `succeeded`, `failed` or `gave_up`. `anyway` admits despite an open circuit, except during a requested pause.
        """
        circuit = self._circuits.get(provider)
        if circuit is None or not circuit.until:
            return None
        left = circuit.until - self._clock()
        if left > 0 and not (anyway and not circuit.requested):
            return OpenCircuit(left, circuit.because, circuit.requested)
        if circuit.trying and not anyway:
            return OpenCircuit(0.0, circuit.because, False)
        circuit.trying = True
        return None

    def succeeded(self, provider: str) -> None:
        """Record that an answer has begun."""
        self._circuits.pop(provider, None)

    def failed(self, provider: str, because: str, *, retry_after: float | None = None) -> float | None:
        """Record a failure; return the seconds for which the provider is skipped now, or None if it is not."""
        circuit = self._circuits.setdefault(provider, _Circuit())
        circuit.failures += 1
        circuit.because = because
        tried = circuit.trying
        circuit.trying = False
        if retry_after:
            circuit.requested = True
            pause = min(retry_after, _MAX_REQUESTED_PAUSE)
        elif tried or circuit.failures >= _FAILURES:
            circuit.requested = False
            pause = min(_FIRST_PAUSE * 2**circuit.pauses, _MAX_PAUSE)
            circuit.pauses += 1
        else:
            return None
        circuit.until = self._clock() + pause
        return pause

    def gave_up(self, provider: str) -> None:
        """Record that a turn ended without a result, so that another turn may probe."""
        circuit = self._circuits.get(provider)
        if circuit is not None:
            circuit.trying = False

    def forgive(self, provider: str) -> None:
        """Close the circuit, because the provider's key or base URL has changed."""
        self._circuits.pop(provider, None)
        self._renewals[provider] = self.renewals(provider) + 1

    def renewals(self, provider: str) -> int:
        """Return how often the provider's key or base URL has changed."""
        return self._renewals.get(provider, 0)

    def states(self) -> dict[str, CircuitState]:
        """Return the state of every provider with recorded failures."""
        return {name: self._state(circuit) for name, circuit in self._circuits.items()}

    def _state(self, circuit: _Circuit) -> CircuitState:
        if circuit.trying:
            return CircuitState.TRYING
        return CircuitState.OPEN if circuit.until > self._clock() else CircuitState.CLOSED
