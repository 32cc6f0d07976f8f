"""The console of rich for text from elsewhere: colours are ours only, and no text is taken for markup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

import rich.console
from rich.segment import Segment

from isabella.system.terminal import clean, unguarded


class GuardedConsole(rich.console.Console):
    """A console that colours a terminal, and prints every text as it is, without control characters.

    Args:
        stderr: print on standard error.
        **options: as rich takes them.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, **options)

    # Not in `print`: a table or a traceback that rich renders can hold texts from elsewhere, too.
    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(_cleaned(segment) for segment in buffer)

    @property
    def file(self) -> IO[str]:
        """The stream itself: its guard would make the colours visible as text."""
        found: IO[str] = unguarded(super().file)
        return found

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new


def _cleaned(segment: Segment) -> Segment:
    # Control segments are made by rich alone: they move the cursor of a progress display.
    return segment if segment.control else segment._replace(text=clean(segment.text))
