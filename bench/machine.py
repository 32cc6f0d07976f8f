"""The machine that runs the benchmarks: what it is, and whether other programs use it."""

from __future__ import annotations

import os
import platform
import sys

import psutil

#: Other programs that use more than this, in processors, make the machine a busy one.
BUSY = 0.25
_LOOK = 1.0


def description() -> str:
    """Return a description of the machine that does not identify it."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}"


def load() -> float:
    """Return how many processors are in use now, 1.0 for a whole one. To be asked while the bench itself is idle."""
    return psutil.cpu_percent(interval=_LOOK) / 100 * (os.cpu_count() or 1)
