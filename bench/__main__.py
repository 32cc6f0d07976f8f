"""`python -m bench`: measure, print a table, write `bench.json`; exit code 1 if a limit is exceeded.

On a busy machine limits of time are not judged, and the run says so.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

from bench import (
    backup,
    chaos,
    cold,
    console,
    doctor,
    document,
    figures,
    floods,
    gateway,
    headline,
    help_command,
    machine,
    many,
    pooled,
    prompt,
    replicas,
    rotation,
    start,
    thousand,
    turns,
    warm,
)
from bench.results import Results
from bench.setup import Servers
from isabella.config.settings import load_settings
from isabella.system.processes import interrupt_on_sigterm

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
    "replicas": replicas.measure,
    "floods": floods.measure,
    "many": many.measure,
    "backup": backup.measure,
    "console": console.measure,
    "headline": headline.measure,
    "doctor": doctor.measure,
}
#: Those of the short form, whose figures it measures over five pairs or more, as the long form does.
SHORT = ("help", "prompt", "warm", "warm_sealed", "cold", "turns", "pooled", "gateway", "doctor")


def main() -> int:
    """Run the selected subjects."""
    arguments = _arguments()
    home = arguments.home or load_settings().home
    results = Results()
    servers = Servers(home)
    with interrupt_on_sigterm(), closing(servers):
        for name in arguments.only or (SHORT if arguments.quick else SUBJECTS):
            print(f"measuring {name} …", flush=True)
            before, began = machine.load(), time.monotonic()
            measured = asyncio.run(SUBJECTS[name](servers, quick=arguments.quick))
            results.include(measured, load=max(before, machine.load()))
            print(f"measured {name} in {time.monotonic() - began:.0f} s", flush=True)
    print(f"\n{figures.table(results.figures)}\n")
    figures.keep(results.figures, arguments.output)
    if arguments.publish:
        document.publish(results)
    said, exceeded = figures.verdict(results.figures)
    print(said)
    return 1 if exceeded else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure what the README claims.")
    parser.add_argument("--only", action="append", choices=SUBJECTS, metavar="NAME", help=", ".join(SUBJECTS))
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="the short form: fewer subjects and runs")
    form.add_argument("--publish", action="store_true", help="add the run to the history and to docs/benchmarks.md")
    parser.add_argument("--home", type=Path, help="another ISABELLA_HOME for the servers")
    parser.add_argument("--output", type=Path, default=_PROJECT / "bench.json", help="default: bench.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
