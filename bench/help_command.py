"""The time of `isabella --help` in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import anyio

from bench.results import Results
from bench.setup import Servers
from bench.timing import Way, medians


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure the installed command."""
    command = Path(sysconfig.get_path("scripts")) / "isabella"

    async def ask() -> None:
        await anyio.run_process([command, "--help"], stdout=subprocess.DEVNULL)

    async def bare() -> None:
        await anyio.run_process([sys.executable, "-c", ""])

    ours, interpreter = await medians(5 if quick else 15, Way(ask), Way(bare))
    results = Results()
    results.add("help_seconds", ours, f"including {interpreter * 1000:.0f} ms for a bare interpreter")
    return results
