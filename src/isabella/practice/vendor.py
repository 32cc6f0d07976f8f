"""One practice vendor as it runs: which keys it takes, what goes wrong at it, and what arrived."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from isabella.errors import PracticeError
from isabella.practice.faults import Faults
from isabella.practice.profiles import Profile
from isabella.practice.requests import RequestLog, fingerprint


class PracticeVendor:
    """A practice vendor; its parts may be used from other threads than the server's.

    Args:
        profile: who it is.
        keys: the keys that it accepts at first.
    """

    def __init__(self, profile: Profile, keys: Sequence[str]) -> None:
        self.profile = profile
        self.faults = Faults()
        self.log = RequestLog()
        #: Whether it refuses what the real vendor is known to refuse (see `strictness`); None: what is certain.
        self.strict: bool | None = None
        self._lock = threading.Lock()
        self._accepted: Mapping[str, str] = {}
        self._tokens_used = 0
        self._requests = 0
        self.accept(keys)

    @property
    def keys(self) -> list[str]:
        """The keys on the list, in the order in which they were given."""
        return list(self._accepted.values())

    def accept(self, keys: Sequence[str]) -> None:
        """Replace the list of accepted keys; what comes in from now on is judged by the new one.

        Raises:
            PracticeError: one of the keys cannot be sent in a header.
        """
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise PracticeError(f"A key for {self.profile.title} cannot be sent in a header.")
        # Replaced in one step: a request sees the old list or the new one.
        self._accepted = {fingerprint(key): key for key in keys}

    def takes(self, key_sha256: str | None) -> bool:
        """Whether a key with this fingerprint is on the list."""
        return key_sha256 in self._accepted

    def limit_headers(self, tokens: int) -> list[tuple[bytes, bytes]]:
        """The rate-limit headers after one more request that cost so many tokens."""
        with self._lock:
            self._requests += 1
            self._tokens_used += tokens
            requests, used = self._requests, self._tokens_used
        headers = []
        limits = self.profile.limits
        for name, value in limits.items():
            if value == "requests-left":
                text = str(_left(self._limit("req"), requests))
            elif value == "tokens-left":
                text = str(_left(self._limit("tokens"), used))
            elif value == "tokens-cost":
                text = str(tokens)
            else:
                text = str(value)
            headers.append((name.encode("ascii"), text.encode("ascii")))
        return headers

    def _limit(self, counted: str) -> int:
        for name, value in self.profile.limits.items():
            if isinstance(value, int) and f"-limit-{counted}" in name:
                return value
        return 1


def _left(limit: int, used: int) -> int:
    # The windows never close here; starting over keeps the number plausible.
    return limit - used % limit
