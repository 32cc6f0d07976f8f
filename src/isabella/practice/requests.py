"""The request log of a practice vendor: what arrived, with which key, and what it was answered."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from dataclasses import dataclass

#: How many requests a vendor remembers.
CAPACITY = 10_000


def fingerprint(key: str) -> str:
    """The SHA-256 of a key, by which a test that knows the key recognises it in a log."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Request:
    """One request at a vendor.

    Attributes:
        number: counts the requests at this vendor, from 1.
        at: when it arrived, seconds since the epoch.
        method: the HTTP method.
        path: the path, with the vendor's prefix.
        status: what it was answered; 0 where it got no answer (hang, reset).
        accepted: whether the key was on the vendor's list.
        key_masked: the key as it may be shown; None where the request had none.
        key_sha256: the key's fingerprint; None where the request had none.
        model: the model it asked for.
        stream: whether it asked for a stream.
        fault: the fault that befell it, in one word.
        strictness: what the real vendor is known to refuse in it, where it is more than was refused here.
    """

    number: int
    at: float
    method: str
    path: str
    status: int
    accepted: bool
    key_masked: str | None
    key_sha256: str | None
    model: str | None = None
    stream: bool = False
    fault: str | None = None
    strictness: str | None = None

    def carries(self, key: str) -> bool:
        """Whether it came with exactly this key."""
        return self.key_sha256 == fingerprint(key)


class RequestLog:
    """The last requests at one vendor, oldest first."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Request] = deque(maxlen=capacity)
        self._count = 0

    def next_number(self) -> int:
        """The number of the request that is coming in."""
        with self._lock:
            self._count += 1
            return self._count

    def add(self, request: Request) -> None:
        """Remember a request; the oldest is forgotten when the log is full."""
        with self._lock:
            self._entries.append(request)

    def entries(self, *, after: int = 0) -> list[Request]:
        """The requests whose number is above `after`."""
        with self._lock:
            return [entry for entry in self._entries if entry.number > after]

    def forget(self) -> None:
        """Forget all requests; their numbers are not given again."""
        with self._lock:
            self._entries.clear()
