"""How long `isabella --help` takes in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import anyio

from bench.stage import Stage
from bench.subject import Results
from bench.timing import Way, medians


async def measure(stage: Stage, *, quick: bool) -> Results:
    """The installed command, as somebody at a prompt has it."""
    command = Path(sysconfig.get_path("scripts")) / "isabella"

    async def ask() -> None:
        await anyio.run_process([command, "--help"], stdout=subprocess.DEVNULL)

    async def bare() -> None:
        await anyio.run_process([sys.executable, "-c", ""])

    ours, interpreter = await medians(5 if quick else 15, Way(ask), Way(bare))
    results = Results()
    results.add("help_seconds", ours, f"of these {interpreter * 1000:.0f} ms for a bare interpreter")
    return results
