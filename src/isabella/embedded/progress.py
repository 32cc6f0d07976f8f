"""Progress of starting, stopping and installing the embedded server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Step:
    """An event of one step."""

    name: str  # check, wait, fetch, install, postgres, backup, restore, migrate, reencrypt, letta or stop
    state: Literal["started", "done", "skipped", "note"]  # "skipped": not needed; "note": for the operator
    detail: str = ""  # text for the operator; contains no secret
    seconds: float | None = None  # how long the step took, if it is done


Progress = Callable[[Step], None]


def no_progress(event: Step) -> None:
    """Ignore the event."""


@contextmanager
def step(progress: Progress, name: str, detail: str = "") -> Iterator[None]:
    """Report that a step starts and, unless it fails, that it is done and how long it took."""
    progress(Step(name, "started", detail))
    began = time.monotonic()
    yield
    progress(Step(name, "done", detail, time.monotonic() - began))
