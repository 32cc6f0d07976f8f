"""Leaving out, for a while, a vendor that keeps refusing.

After a few failures in a row a vendor is left out; when the time is over, one turn tries it again. If that fails, it
is left out for twice as long. A vendor that asks to be left alone for a time is left alone for it, at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

_FAILURES = 3
_FIRST_PAUSE = 15.0
_LONGEST_PAUSE = 300.0
#: Nobody is left alone for longer than this because it once asked for it.
_LONGEST_WISH = 3600.0


class CircuitState(StrEnum):
    """Whether a vendor is asked."""

    CLOSED = "closed"
    OPEN = "open"
    #: One turn is trying it.
    TRYING = "trying"


@dataclass
class _Circuit:
    failures: int = 0
    pauses: int = 0
    until: float = 0.0
    wished: bool = False
    trying: bool = False
    because: str = ""


@dataclass(frozen=True)
class OpenCircuit:
    """Why a vendor is not asked.

    Attributes:
        seconds: for how much longer.
        because: what it said last.
        wished: whether it asked for that itself, so that it is not asked even where nobody else is left.
    """

    seconds: float
    because: str
    wished: bool


class CircuitBreaker:
    """The circuits of all vendors.

    Args:
        clock: tells the time, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._circuits: dict[str, _Circuit] = {}
        self._renewals: dict[str, int] = {}

    def admit(self, provider: str, *, anyway: bool = False) -> OpenCircuit | None:
        """Whether a turn may ask this provider now. What it then found has to be told by one of the others.

        Args:
            provider: its name in Letta.
            anyway: ask it even though it is left out, because nobody else is left; its own wish is still granted.

        Returns:
            None where it may; otherwise why not.
        """
        circuit = self._circuits.get(provider)
        if circuit is None or not circuit.until:
            return None
        left = circuit.until - self._clock()
        if left > 0 and not (anyway and not circuit.wished):
            return OpenCircuit(left, circuit.because, circuit.wished)
        if circuit.trying and not anyway:
            return OpenCircuit(0.0, circuit.because, False)
        circuit.trying = True
        return None

    def succeeded(self, provider: str) -> None:
        """It has begun an answer."""
        self._circuits.pop(provider, None)

    def failed(self, provider: str, because: str, *, retry_after: float | None = None) -> float | None:
        """It has refused or failed.

        Args:
            provider: its name in Letta.
            because: why, for people.
            retry_after: seconds that it asked to be left alone.

        Returns:
            Seconds that it is left out for now; None where it is not.
        """
        circuit = self._circuits.setdefault(provider, _Circuit())
        circuit.failures += 1
        circuit.because = because
        tried = circuit.trying
        circuit.trying = False
        if retry_after:
            circuit.wished = True
            pause = min(retry_after, _LONGEST_WISH)
        elif tried or circuit.failures >= _FAILURES:
            circuit.wished = False
            pause = min(_FIRST_PAUSE * 2**circuit.pauses, _LONGEST_PAUSE)
            circuit.pauses += 1
        else:
            return None
        circuit.until = self._clock() + pause
        return pause

    def gave_up(self, provider: str) -> None:
        """The turn ended without learning anything of it, so another one may try."""
        circuit = self._circuits.get(provider)
        if circuit is not None:
            circuit.trying = False

    def forgive(self, provider: str) -> None:
        """Its key or address has changed: what was learnt no longer holds."""
        self._circuits.pop(provider, None)
        self._renewals[provider] = self.renewals(provider) + 1

    def renewals(self, provider: str) -> int:
        """How often its key or address has changed so far."""
        return self._renewals.get(provider, 0)

    def states(self) -> dict[str, CircuitState]:
        """The providers of which something is held against, and whether they are asked."""
        now = self._clock()
        return {
            name: CircuitState.TRYING
            if circuit.trying
            else CircuitState.OPEN
            if circuit.until > now
            else CircuitState.CLOSED
            for name, circuit in self._circuits.items()
        }
