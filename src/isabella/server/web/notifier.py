"""Waking whoever waits for something to change."""

from __future__ import annotations

import anyio


class Notifier:
    """Rings for everybody who listens; who comes too late learns it from the count.

    Attributes:
        count: how often it has rung.
    """

    def __init__(self) -> None:
        self.count = 0
        self._rung = anyio.Event()

    def ring(self) -> None:
        """Wake all who wait."""
        self.count += 1
        self._rung.set()
        self._rung = anyio.Event()

    async def after(self, count: int, seconds: float) -> None:
        """Wait until it has rung more often than this, at most so many seconds."""
        with anyio.move_on_after(seconds):
            while self.count <= count:
                await self._rung.wait()
