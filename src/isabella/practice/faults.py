"""Faults on demand: what a practice vendor does wrong, to whom, and how often."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

from isabella.errors import PracticeError

Route = Literal["models", "chat", "embeddings"]
Reset = Literal["at_once", "midway"]


@dataclass(frozen=True)
class VendorFault:
    """One thing that goes wrong. All times are in seconds.

    Attributes:
        on: the requests it is limited to; None for all.
        times: how many requests it befalls before it is over; None for ever.
        share: the part of the requests that it befalls, evenly spread (0.25: every fourth).
        latency: waiting before the answer begins.
        between: waiting between the pieces of a stream.
        status: the refusal to send, in the vendor's own words.
        retry_after: what the refusal asks clients to wait.
        body: text to send instead of the vendor's own words.
        hang: accept, then stay silent for so long, or until the client goes away.
        reset: cut the connection with a TCP reset, before the answer or in the middle of it.
        truncated: end the answer in the middle, without what marks its end.
        html: answer with a proxy's HTML page, with this status.
        malformed: answer 200 with JSON that breaks off.
    """

    on: Route | None = None
    times: int | None = None
    share: float = 1.0
    latency: float = 0.0
    between: float = 0.0
    status: int | None = None
    retry_after: float | None = None
    body: str | None = None
    hang: float | None = None
    reset: Reset | None = None
    truncated: bool = False
    html: int | None = None
    malformed: bool = False

    def __post_init__(self) -> None:
        if self.on not in (None, "models", "chat", "embeddings"):
            raise PracticeError(
                f"A fault cannot be limited to {self.on!r}.", remedy="Use models, chat or embeddings."
            )
        if self.reset not in (None, "at_once", "midway"):
            raise PracticeError(f"There is no reset {self.reset!r}.", remedy="Use at_once or midway.")
        if not 0.0 < self.share <= 1.0:
            raise PracticeError(f"A share of {self.share} of the requests is not between 0 and 1.")
        if self.times is not None and self.times < 1:
            raise PracticeError(f"A fault cannot happen {self.times} times.")
        if min(self.latency, self.between, self.hang or 0.0, self.retry_after or 0.0) < 0:
            raise PracticeError("A fault cannot wait a negative time.")
        for status in (self.status, self.html):
            if status is not None and not 200 <= status <= 599:
                raise PracticeError(f"{status} is not an HTTP status that a vendor answers with.")
        if not self._does_something():
            raise PracticeError("This fault does nothing.", remedy="Give it a latency, a status, a hang, …")

    @property
    def kind(self) -> str:
        """What it does, in one word, for the request log."""
        if self.hang is not None:
            return "hang"
        if self.reset is not None:
            return "reset" if self.reset == "at_once" else "reset_midway"
        if self.html is not None:
            return "html"
        if self.status is not None:
            return str(self.status)
        if self.truncated:
            return "truncated"
        return "malformed" if self.malformed else "latency"

    @property
    def before_the_vendor(self) -> bool:
        """Whether the network or a proxy does it, so that it befalls requests whatever their key."""
        return self.kind in ("hang", "reset", "html", "latency")

    def _does_something(self) -> bool:
        return bool(
            self.latency
            or self.between
            or self.status is not None
            or self.hang is not None
            or self.reset
            or self.truncated
            or self.html is not None
            or self.malformed
        )


@dataclass(frozen=True)
class ActiveFaults:
    """What befalls one request: the sum of the waits, and the first fault that is more than a wait.

    Attributes:
        latency: seconds before the answer begins.
        between: seconds between the pieces of a stream.
        fault: what goes wrong, if anything does.
    """

    latency: float = 0.0
    between: float = 0.0
    fault: VendorFault | None = None


FAIR = ActiveFaults()


class Faults:
    """The faults of one vendor, in the order in which they were switched on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: list[_Active] = []
        #: How often they were switched off: what began before the last time is not held up any more.
        self.cleared = 0

    def add(self, fault: VendorFault) -> None:
        """Switch a fault on, beside those that are on already."""
        with self._lock:
            self._active.append(_Active(fault, fault.times))

    def clear(self) -> None:
        """Switch all faults off."""
        with self._lock:
            self._active.clear()
            self.cleared += 1

    def active(self) -> list[tuple[VendorFault, int | None]]:
        """The faults that are on, each with the number of times that is left of it."""
        with self._lock:
            return [(active.fault, active.left) for active in self._active]

    def befall(self, route: Route | None, *, accepted: bool = True) -> ActiveFaults:
        """What befalls a request that has just come in; counted as having happened.

        Args:
            route: the endpoint that it asks.
            accepted: whether its key is accepted; where not, only what happens before the vendor looks at keys.
        """
        if not self._active:
            return FAIR
        latency = between = 0.0
        failure: VendorFault | None = None
        with self._lock:
            for active in self._active:
                fault = active.fault
                if fault.on is not None and fault.on != route:
                    continue
                if failure is not None and fault.kind != "latency":
                    continue
                if not accepted and not fault.before_the_vendor:
                    continue
                if not active.strikes():
                    continue
                latency += fault.latency
                between += fault.between
                if fault.kind != "latency":
                    failure = fault
            self._active = [active for active in self._active if active.left != 0]
        return ActiveFaults(latency, between, failure)


class _Active:
    """A fault that is on, and how much of it is left."""

    def __init__(self, fault: VendorFault, left: int | None) -> None:
        self.fault = fault
        self.left = left
        # Starts full, so that the first request is struck and a share comes out the same in every run.
        self._due = 1.0 - fault.share

    def strikes(self) -> bool:
        self._due += self.fault.share
        # The sum of many small shares is a little off.
        if self._due < 1.0 - 1e-9:
            return False
        self._due -= 1.0
        if self.left is not None:
            self.left -= 1
        return True
