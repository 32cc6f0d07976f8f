"""The options of `isabella up`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isabella.embedded import Progress
    from isabella.providers.report import Report


@dataclass(frozen=True)
class ServeOptions:
    """The options of `isabella up`."""

    practice: bool | None  #: use practice vendors; None: only if no vendor has a key and Letta is the embedded one
    verify: bool  #: also send one message through each provider
    progress: Callable[[], AbstractContextManager[Progress]]  #: opens the display of the embedded servers' progress
    show: Callable[[Report], None]
    say: Callable[[str], None]
    set_up_logs: Callable[[], None] = lambda: None  #: is called as soon as the backend answers
