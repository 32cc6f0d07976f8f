"""The state of the vendors as the requests through the gateway show it, and the requests that are under way."""

from __future__ import annotations

import os
import secrets
import time
from asyncio import Task
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isabella.errors import FileUnreadable
from isabella.gateway.limits import RateLimits
from isabella.gateway.quotes import LONGEST
from isabella.system import files, state

#: Outcomes and stopped keys that are kept for other programs.
_KEPT = 256


@dataclass
class VendorTraffic:
    """The requests to one vendor since the gateway was first started. Times are in seconds since the epoch.

    Attributes:
        answers: requests that the vendor accepted; its model lists do not count.
        refusals: requests that it refused.
        failures: requests to which it did not answer, or whose answer broke off.
        prompt_tokens, completion_tokens: as the vendor counts them.
        first_byte_ms: the time to the first byte of the last answer.
        accepted_at: when it last accepted a request.
        refused_at, refused_status, refused_message: its last refusal or failure; no status if nothing came.
        limits: the rate limits in its last answer.
        stopped_keys: requests that carried a key other than the configured one.
    """

    answers: int = 0
    refusals: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_byte_ms: float | None = None
    accepted_at: float | None = None
    refused_at: float | None = None
    refused_status: int | None = None
    refused_message: str | None = None
    limits: RateLimits | None = None
    stopped_keys: int = 0


@dataclass(frozen=True)
class Outcome:
    """A request that was not answered in full.

    Attributes:
        number: rises with every outcome and stopped key.
        at: when it ended, in seconds since the epoch.
        agent: Letta's id of the agent, if the request names it.
        status: the vendor's own status; None if there was none.
        code: `refused`, `unreachable`, `broken`, `ended` (the turn was over) or `cut` (the limit of tokens).
        message: the vendor's own words, without keys and without quotes of the request.
        retry_after: seconds after which the vendor asks to be called again.
        window: the model's true context window in tokens, if the refusal states it.
        never_fits: the allowance in tokens that a single request of this size exceeds.
    """

    number: int
    at: float
    provider: str
    agent: str | None
    model: str | None
    code: str
    message: str
    status: int | None = None
    retry_after: float | None = None
    window: int | None = None
    never_fits: int | None = None


@dataclass(frozen=True)
class StoppedKey:
    """A key that is not the configured one.

    Attributes:
        kind: a `KeyKind`.
        answered: whether the request was sent to the vendor.
        replaced: whether the configured key was sent in its place. A former key is sent itself as long as the vendor
            refuses the configured one.
    """

    number: int
    at: float
    provider: str
    kind: str
    masked: str
    answered: bool
    replaced: bool = True


@dataclass(eq=False)
class Call:
    """A request to a vendor that is under way.

    Attributes:
        task: runs it.
        began: when it began, in seconds since the epoch.
        over: whether it was ended because its turn is over.
    """

    provider: str
    agent: str | None
    model: str | None
    task: Task[None] | None = field(default=None, repr=False)
    began: float = field(default_factory=time.time)
    over: bool = False


class OutcomeMark:
    """A file that changes with each outcome, before the end of the answer is passed on to Letta.

    So a backend knows without a request that every answer since a moment was complete: the content is the same.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = secrets.token_hex(8)
        # A former one may not be writable.
        self._delete()
        self.write(0)

    @staticmethod
    def read(path: Path) -> str | None:
        """Return the content of such a file; None if it cannot be read."""
        try:
            return files.read(path).text or None
        except FileUnreadable:
            return None

    def write(self, number: int) -> None:
        """Write the number of the last outcome. If that fails, the file is deleted, so that backends ask."""
        try:
            state.make_way(self._path)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{self._start} {number}\n")
        except OSError as error:
            state.report(self._path, f"it cannot be written ({state.why(error)})")
            self._delete()

    def _delete(self) -> None:
        with suppress(OSError):
            state.make_way(self._path)
            self._path.unlink(missing_ok=True)


class Traffic:
    """The gateway's record of its requests. Bounded, and without prompts, answers or keys.

    Args:
        vendors: the traffic before the gateway was started.
        mark: is changed with each outcome.
    """

    def __init__(self, vendors: Mapping[str, VendorTraffic] | None = None, mark: OutcomeMark | None = None) -> None:
        self._mark = mark
        self.vendors: dict[str, VendorTraffic] = dict(vendors or {})
        self.calls: set[Call] = set()
        self.outcomes: deque[Outcome] = deque(maxlen=_KEPT)
        self.stopped: deque[StoppedKey] = deque(maxlen=_KEPT)
        self._number = 0

    def vendor(self, provider: str) -> VendorTraffic:
        """Return the traffic of a provider."""
        return self.vendors.setdefault(provider, VendorTraffic())

    def accepted(self, provider: str, first_byte_ms: float) -> None:
        """Note that the vendor accepted a request."""
        vendor = self.vendor(provider)
        vendor.answers += 1
        vendor.accepted_at, vendor.first_byte_ms = time.time(), round(first_byte_ms, 1)

    def used(self, provider: str, prompt_tokens: int, completion_tokens: int, limits: RateLimits) -> None:
        """Note the tokens of an answer, and the rate limits that came with it."""
        vendor = self.vendor(provider)
        vendor.prompt_tokens += prompt_tokens
        vendor.completion_tokens += completion_tokens
        if limits != RateLimits():
            vendor.limits = limits

    def add_outcome(self, call: Call, code: str, message: str, **fields: Any) -> None:
        """Note that a request was not answered in full."""
        message = message[:LONGEST]
        outcome = Outcome(
            number=self._next(),
            at=time.time(),
            provider=call.provider,
            agent=call.agent,
            model=call.model,
            code=code,
            message=message,
            **fields,
        )
        self.outcomes.append(outcome)
        if self._mark is not None:
            self._mark.write(outcome.number)
        if code in ("ended", "cut"):
            return
        vendor = self.vendor(call.provider)
        if code == "refused":
            vendor.refusals += 1
        else:
            vendor.failures += 1
        vendor.refused_at, vendor.refused_status, vendor.refused_message = outcome.at, outcome.status, message

    def add_stopped(self, provider: str, kind: str, masked: str, *, answered: bool, replaced: bool = True) -> None:
        """Note a key that is not the configured one."""
        self.vendor(provider).stopped_keys += 1
        self.stopped.append(StoppedKey(self._next(), time.time(), provider, kind, masked, answered, replaced))

    def end(self, agent: str) -> int:
        """End the requests of an agent, whose turn is over. Return their number."""
        calls = [call for call in self.calls if call.agent == agent]
        for call in calls:
            call.over = True
            if call.task is not None:
                call.task.cancel()
        return len(calls)

    def as_json(self, after: int = 0, agent: str | None = None) -> dict[str, Any]:
        """Return everything; of outcomes and stopped keys only those after this number, of outcomes of this agent."""
        return {
            "number": self._number,
            "vendors": {name: asdict(vendor) for name, vendor in self.vendors.items()},
            "open": len(self.calls),
            "outcomes": [asdict(one) for one in self.outcomes if one.number > after and agent in (None, one.agent)],
            "stopped_keys": [asdict(one) for one in self.stopped if one.number > after],
        }

    def _next(self) -> int:
        self._number += 1
        return self._number
