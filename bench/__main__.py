"""`python -m bench`: measure, print a table, write `bench.json`; exit code 1 if a limit is exceeded."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from bench import (
    backup,
    chaos,
    cold,
    console,
    doctor,
    figures,
    floods,
    gateway,
    headline,
    help_command,
    pooled,
    prompt,
    rotation,
    start,
    thousand,
    turns,
    warm,
)
from bench.results import Results
from bench.setup import Servers
from isabella.config.settings import load_settings

_PROJECT = Path(__file__).resolve().parents[1]

SUBJECTS: dict[str, Callable[..., Coroutine[Any, Any, Results]]] = {
    "help": help_command.measure,
    "start": start.measure,
    "prompt": prompt.measure,
    "warm": warm.measure_open,
    "warm_sealed": warm.measure_sealed,
    "cold": cold.measure,
    "thousand": thousand.measure,
    "turns": turns.measure,
    "pooled": pooled.measure,
    "rotation": rotation.measure,
    "gateway": gateway.measure,
    "chaos": chaos.measure,
    "floods": floods.measure,
    "backup": backup.measure,
    "console": console.measure,
    "headline": headline.measure,
    "doctor": doctor.measure,
}


def main() -> int:
    """Run the selected subjects."""
    arguments = _arguments()
    home = arguments.home or load_settings().home
    if os.getloadavg()[0] > 1:
        print(f"note: this machine is busy (load {os.getloadavg()[0]:.1f}); the figures will be less precise")
    results = Results()
    servers = Servers(home)
    try:
        for name in arguments.only or SUBJECTS:
            print(f"measuring {name} …", flush=True)
            results.include(asyncio.run(SUBJECTS[name](servers, quick=arguments.quick)))
    finally:
        servers.close()
    print(f"\n{figures.table(results.values, results.details)}\n")
    figures.keep(results.values, arguments.output)
    if arguments.publish:
        figures.publish(results.values, results.details, _PROJECT / "docs" / "benchmarks.md")
    exceeded = figures.exceeded(results.values)
    print(f"Limits exceeded: {', '.join(exceeded)}" if exceeded else "All figures are within their limits.")
    return 1 if exceeded else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure what the README claims.")
    parser.add_argument("--only", action="append", choices=SUBJECTS, metavar="NAME", help=", ".join(SUBJECTS))
    parser.add_argument("--quick", action="store_true", help="few repetitions, to check that the bench works")
    parser.add_argument("--publish", action="store_true", help="also write docs/benchmarks.md")
    parser.add_argument("--home", type=Path, help="another ISABELLA_HOME for the servers")
    parser.add_argument("--output", type=Path, default=_PROJECT / "bench.json", help="default: bench.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
