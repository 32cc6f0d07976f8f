"""`python -m bench`: measure, print a table, write `bench.json`; exit code 1 where a limit is not kept."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from bench import cold, console, doctor, figures, helping, rotation, thousand, turns, warm
from bench.stage import Stage
from bench.subject import Results
from isabella.config.settings import load_settings

_PROJECT = Path(__file__).resolve().parents[1]

SUBJECTS: dict[str, Callable[..., Coroutine[Any, Any, Results]]] = {
    "help": helping.measure,
    "warm": warm.measure_open,
    "warm_sealed": warm.measure_sealed,
    "cold": cold.measure,
    "thousand": thousand.measure_open,
    "thousand_sealed": thousand.measure_sealed,
    "turns": turns.measure,
    "rotation": rotation.measure,
    "console": console.measure,
    "doctor": doctor.measure,
}


def main() -> int:
    """Run the subjects that were asked for."""
    asked = _arguments()
    home = asked.home or load_settings().home
    if os.getloadavg()[0] > 1:
        print(f"note: this machine is busy (load {os.getloadavg()[0]:.1f}); the figures will be less certain")
    results = Results()
    stage = Stage(home)
    try:
        for name in asked.only or SUBJECTS:
            print(f"measuring {name} …", flush=True)
            results.include(asyncio.run(SUBJECTS[name](stage, quick=asked.quick)))
    finally:
        stage.close()
    print(f"\n{figures.table(results.values, results.details)}\n")
    figures.keep(results.values, asked.output)
    if asked.publish:
        figures.publish(results.values, results.details, _PROJECT / "docs" / "benchmarks.md")
    over = figures.beyond(results.values)
    print(f"Not within the limits: {', '.join(over)}" if over else "All within the limits.")
    return 1 if over else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure what the README claims.")
    parser.add_argument("--only", action="append", choices=SUBJECTS, metavar="NAME", help=", ".join(SUBJECTS))
    parser.add_argument("--quick", action="store_true", help="few repetitions: to see that it works")
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md, too")
    parser.add_argument("--home", type=Path, help="another ISABELLA_HOME for the servers")
    parser.add_argument("--output", type=Path, default=_PROJECT / "bench.json", help="default: bench.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
