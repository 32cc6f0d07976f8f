"""The time of `isabella --help` in a fresh process, over a bare interpreter."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import anyio

from bench.results import Results
from bench.setup import Servers
from bench.timing import Way, alternate, medians


async def bare_interpreter() -> None:
    """Start Python, and nothing in it."""
    await anyio.run_process([sys.executable, "-c", ""])


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure the installed command."""
    command = Path(sysconfig.get_path("scripts")) / "isabella"

    async def ask() -> None:
        await anyio.run_process([command, "--help"], stdout=subprocess.DEVNULL)

    ours, bare = await alternate(5 if quick else 15, Way(ask), Way(bare_interpreter))
    results = Results()
    results.compare("help_over_bare", ours, bare, medians(ours=ours, a_bare_interpreter=bare))
    return results
