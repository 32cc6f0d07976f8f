"""What the embedded server is doing, told as it happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

State = Literal["started", "done", "skipped", "note"]


@dataclass(frozen=True)
class Step:
    """One thing that happened on the way.

    Attributes:
        name: which step: check, fetch, install, postgres, database, migrate, letta, stop, wait.
        state: whether it began, ended, was not needed, or has something to say.
        detail: what the reader wants to know about it; never holds a secret.
        seconds: how long it took, once it is done.
    """

    name: str
    state: State
    detail: str = ""
    seconds: float | None = None


class Progress(Protocol):
    """Somebody who wants to be told."""

    def __call__(self, event: Step, /) -> None:
        """Take note of what happened."""


def no_progress(event: Step) -> None:
    """Tell nobody."""


@contextmanager
def step(progress: Progress, name: str, detail: str = "") -> Iterator[None]:
    """Tell that a step begins and, unless it fails, that it is done and how long it took."""
    progress(Step(name, "started", detail))
    began = time.monotonic()
    yield
    progress(Step(name, "done", detail, time.monotonic() - began))
