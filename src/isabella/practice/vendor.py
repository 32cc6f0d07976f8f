"""A practice vendor as it runs: the keys it accepts, the faults that are on, and the requests that arrived."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

from isabella.errors import FileUnreadable, PracticeError
from isabella.practice.limits import VendorAllowance, VendorLimits
from isabella.practice.wire import NAMES, Profile, overflow_wordings, profile, profiles
from isabella.system import state
from isabella.system.files import write_private

Route = Literal["models", "chat", "embeddings", "other"]
Reset = Literal["at_once", "midway"]
Ended = Literal["completed", "disconnected", "broken"]

#: How many requests the log of a vendor holds.
_LOG_CAPACITY = 10_000


@dataclass(frozen=True)
class VendorFault:
    """A fault of a vendor. All times are in seconds.

    Attributes:
        on: the route it is limited to; None for all.
        times: how many requests it fails before it ends; None for no end.
        share: the part of the requests that it fails, evenly spread (0.25: every fourth).
        latency: the time before the answer begins.
        between: the time between the pieces of a stream.
        status: the status of the refusal to send, which has the vendor's own text.
        retry_after: the time that the refusal asks clients to wait.
        body: a text to send instead of the vendor's own.
        hang: accept the request, then send nothing for so long, or until the client disconnects.
        reset: break the connection with a TCP reset, before the answer or in the middle of it.
        truncated: end the answer in the middle, without its end mark.
        html: answer with the HTML page of a proxy, with this status.
        malformed: answer 200 with JSON that breaks off.
        endless: repeat the answer until the limit of tokens is reached, the client disconnects, or the faults are
            switched off.
        stuck: call a tool that fails, again and again, as far as the request offers one.
        window: refuse prompts of more tokens than this, whatever the model list tells.
        overflow: the server whose words that refusal has (`llama.cpp`, `vllm`, …; None: the vendor's own). Without a
            window every prompt is refused.
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
    endless: bool = False
    stuck: bool = False
    window: int | None = None
    overflow: str | None = None

    def __post_init__(self) -> None:
        if self.on not in (None, *get_args(Route)):
            raise PracticeError(f"There is no route {self.on!r}.", remedy="Use models, chat, embeddings or other.")
        if self.reset not in (None, *get_args(Reset)):
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
        if self.window is not None and self.window < 1:
            raise PracticeError(f"A window of {self.window} tokens is too small.")
        if self.overflow not in (None, *overflow_wordings()):
            raise PracticeError(
                f"There is no overflow {self.overflow!r}.", remedy=f"Use {', '.join(overflow_wordings())}."
            )
        if self.kind == "latency" and not (self.latency or self.between):
            raise PracticeError("This fault does nothing.", remedy="Give it a latency, a status, a hang, …")

    @property
    def kind(self) -> str:
        """The fault in one word, for the request log."""
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
        if self.endless:
            return "endless"
        if self.stuck:
            return "stuck"
        if self.window is not None or self.overflow is not None:
            return "overflow"
        return "malformed" if self.malformed else "latency"

    @property
    def before_the_vendor(self) -> bool:
        """Whether the network or a proxy causes it, so that it also fails requests whose key is not accepted."""
        return self.kind in ("hang", "reset", "html", "latency")

    def applies_to(self, route: Route | None) -> bool:
        """Whether it fails requests of this route."""
        return self.on in (None, route) and (route == "chat" or self.kind not in ("endless", "stuck", "overflow"))


@dataclass(frozen=True)
class ActiveFaults:
    """The faults of one request: the sum of the waits in seconds, and the first fault that is more than a wait."""

    latency: float = 0.0
    between: float = 0.0
    fault: VendorFault | None = None

    @property
    def endless(self) -> bool:
        """Whether the answer has no end."""
        return self.fault is not None and self.fault.kind == "endless"

    @property
    def stuck(self) -> bool:
        """Whether the model repeats a failing call of a tool."""
        return self.fault is not None and self.fault.kind == "stuck"


class Faults:
    """The faults of a vendor, in the order in which they were switched on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: list[_ActiveFault] = []
        #: How often all faults were switched off. An answer that began before the last time is no longer delayed.
        self.cleared = 0

    def add(self, fault: VendorFault) -> None:
        """Switch a fault on, beside those that are on."""
        with self._lock:
            self._active.append(_ActiveFault(fault))

    def clear(self) -> None:
        """Switch all faults off."""
        with self._lock:
            self._active.clear()
            self.cleared += 1

    def active(self) -> list[tuple[VendorFault, int | None]]:
        """Return the faults that are on, each with the number of times that is left."""
        with self._lock:
            return [(active.fault, active.left) for active in self._active]

    def take(self, route: Route | None, *, accepted: bool = True) -> ActiveFaults:
        """Return the faults of a new request, and count them as having happened.

        If its key is not accepted, only faults before the vendor apply.
        """
        latency = between = 0.0
        failure: VendorFault | None = None
        with self._lock:
            for active in self._active:
                fault = active.fault
                applies = fault.applies_to(route) and (accepted or fault.before_the_vendor)
                if not applies or (failure is not None and fault.kind != "latency") or not active.strikes():
                    continue
                latency += fault.latency
                between += fault.between
                if fault.kind != "latency":
                    failure = fault
            self._active = [active for active in self._active if active.left != 0]
        return ActiveFaults(latency, between, failure)


class _ActiveFault:
    """A fault that is on, and the number of times that is left."""

    def __init__(self, fault: VendorFault) -> None:
        self.fault = fault
        self.left = fault.times
        # Starts full, so that the first request fails and a share comes out the same in every run.
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


@dataclass(frozen=True)
class Request:
    """A request at a vendor, numbered from 1; `at` is in seconds since the epoch.

    Attributes:
        status: the status of the answer; 0 if there was none (hang, reset).
        accepted: whether the vendor accepts its key.
        key_masked, key_sha256: the key, masked and as a fingerprint; None if there was none.
        fault: the fault that failed it, in one word.
        strictness: the first thing in it that the real vendor is known to refuse.
        generated: the tokens of the answer that have been generated so far, also while it is being answered.
        last_token: the time of the last of them, in seconds since the request arrived.
        ended: how it ended: the answer was completed (a refusal, too), the client disconnected before, or a fault or
            the end of the server broke it. None while it is being answered.
        ended_after: the time of that, in seconds since the request arrived.
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
    generated: int = 0
    last_token: float | None = None
    ended: Ended | None = None
    ended_after: float | None = None

    def carries(self, key: str) -> bool:
        """Whether it came with exactly this key."""
        return self.key_sha256 == fingerprint(key)


class Progress:
    """How far the answer to a request is; the fields are those of `Request`."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._generated: tuple[int, float | None] = (0, None)
        self._ended: tuple[Ended | None, float | None] = (None, None)

    def generate(self, tokens: int) -> None:
        """Note that so many tokens have been generated in all."""
        if tokens != self._generated[0]:
            self._generated = tokens, time.monotonic() - self._started

    def end(self, how: Ended) -> None:
        """Note the end of the answer; only the first counts."""
        if self._ended[0] is None:
            self._ended = how, time.monotonic() - self._started

    def fields(self) -> dict[str, Any]:
        """Return the fields that it has for an entry of the log."""
        # The end is read first: nothing is generated after it.
        ended, ended_after = self._ended
        generated, last_token = self._generated
        return {"generated": generated, "last_token": last_token, "ended": ended, "ended_after": ended_after}


class RequestLog:
    """The last requests at a vendor, oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[tuple[Request, Progress]] = deque(maxlen=_LOG_CAPACITY)
        self._count = 0

    def add(self, progress: Progress, **fields: Any) -> None:
        """Add a request with the next number; if the log is full, the oldest is removed."""
        with self._lock:
            self._count += 1
            self._entries.append((Request(number=self._count, **fields), progress))

    def entries(self, *, after: int = 0) -> list[Request]:
        """Return the requests with a number above `after`."""
        with self._lock:
            return [replace(entry, **progress.fields()) for entry, progress in self._entries if entry.number > after]

    def clear(self) -> None:
        """Remove all requests; their numbers are not used again."""
        with self._lock:
            self._entries.clear()


class PracticeVendor:
    """A practice vendor; its parts may be used from threads other than the server's."""

    def __init__(self, profile: Profile, keys: Sequence[str]) -> None:
        self.profile = profile
        self.faults = Faults()
        self.log = RequestLog()
        self.limits = VendorLimits(VendorAllowance(**profile.allowance))
        #: Whether it refuses everything that the real vendor is known to refuse (see `strictness`). None: only what
        #: is certain.
        self.strict: bool | None = None
        self._accepted: Mapping[str, str] = {}
        self.accept(keys)

    @property
    def keys(self) -> list[str]:
        """The accepted keys, in the order in which they were given."""
        return list(self._accepted.values())

    def accept(self, keys: Sequence[str]) -> None:
        """Replace the accepted keys, for all requests that arrive from now on.

        Raises:
            PracticeError: one of the keys cannot be sent in a header.
        """
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise PracticeError(f"A key for {self.profile.title} cannot be sent in a header.")
        # Replaced in one step: a request sees the old list or the new one.
        self._accepted = {fingerprint(key): key for key in keys}

    def accepts(self, key_sha256: str | None) -> bool:
        """Whether a request with the key of this fingerprint is accepted; None for a request without a key."""
        return key_sha256 in self._accepted or (self.profile.key_optional and not self._accepted)


def fingerprint(key: str) -> str:
    """Return the SHA-256 of a key, by which a test that knows the key recognises it in a log."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key(vendor: str) -> str:
    """Return a new key for a vendor. Raises as `profile` does."""
    return profile(vendor).new_key()


def new_keys(vendors: Mapping[str, Profile] | None = None) -> dict[str, list[str]]:
    """Return one new key for each vendor that needs one; without vendors, for the usual four."""
    vendors = profiles() if vendors is None else vendors
    return {name: [] if each.key_optional else [each.new_key()] for name, each in vendors.items()}


def load_keys(path: Path) -> dict[str, list[str]] | None:
    """Read the accepted keys of each vendor from a file; None if there is no file.

    Raises:
        PracticeError: the file cannot be read or is damaged.
    """
    try:
        match state.read(path):
            case None:
                return None
            case {"accepted": {**accepted}}:
                keys = {name: value for name in NAMES if _are_keys(value := accepted.get(name))}
                if len(keys) == len(NAMES):
                    return keys
        reason = "it has unexpected fields"
    except FileUnreadable as error:
        reason = error.reason
    raise PracticeError(
        f"The practice vendors' keys in {path} cannot be read: {reason}.",
        remedy="Delete the file; new practice keys are made at the next start.",
    )


def _are_keys(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(key, str) for key in value)


def load_or_make_keys(path: Path) -> dict[str, list[str]]:
    """Read the accepted keys, or write new ones if there is no file. Raises as `load_keys` does."""
    accepted = load_keys(path)
    if accepted is None:
        accepted = new_keys()
        save_keys(path, accepted)
    return accepted


def save_keys(path: Path, accepted: Mapping[str, Sequence[str]]) -> None:
    """Write the accepted keys of each vendor to a file that only its owner may read."""
    write_private(path, json.dumps({"accepted": {name: list(accepted[name]) for name in NAMES}}, indent=2) + "\n")
