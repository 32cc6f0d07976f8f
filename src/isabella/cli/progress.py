"""The steps of the embedded server as people read them: one line each, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.live import Live

    from isabella.embedded import Progress, Step
    from isabella.system.console import GuardedConsole

_TITLES = {
    "check": "Check",
    "wait": "Wait",
    "fetch": "Fetch",
    "install": "Install",
    "postgres": "Postgres",
    "migrate": "Migrate",
    "reseal": "Reseal",
    "letta": "Letta",
    "stop": "Stop",
}
# Over in milliseconds, and only interesting when it says something.
_SILENT = {"check"}


@contextmanager
def shown() -> Iterator[Progress]:
    """A `Progress` that prints; on a terminal with something moving while a step takes its time."""
    if not sys.stderr.isatty():
        yield _print_plain
        return
    from rich.live import Live

    from isabella.system.console import GuardedConsole

    console = GuardedConsole(stderr=True)
    # Redirected, what others print meanwhile would get past the guard of the output, and its colours would be obeyed.
    with Live(console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as live:
        yield _Terminal(console, live)


def _print_plain(event: Step) -> None:
    line = _line(event)
    if line is not None:
        print(line, file=sys.stderr, flush=True)


def _line(event: Step) -> str | None:
    title = f"{_TITLES.get(event.name, event.name):<9}"
    match event.state:
        case "started":
            # A step is told when it is over; but whoever waits wants to know for what.
            return f"{title} {event.detail} …" if event.name == "wait" else None
        case "done" if event.name in _SILENT:
            return None
        case "done":
            seconds = "" if event.seconds is None else f"  {event.seconds:.1f} s"
            return f"{title} {event.detail or 'done'}{seconds}"
        case "skipped" | "note":
            return f"{title} {event.detail}"


class _Terminal:
    """Lines above, and what is going on below them."""

    def __init__(self, console: GuardedConsole, live: Live) -> None:
        self._console = console
        self._live = live

    def __call__(self, event: Step) -> None:
        from rich.spinner import Spinner
        from rich.text import Text

        if event.state == "started":
            self._live.update(Spinner("dots", Text(f"{_TITLES.get(event.name, event.name)} {event.detail}")))
        line = _line(event)
        if line is not None and event.state != "started":
            mark = {"done": ("✓ ", "green"), "skipped": ("· ", "dim"), "note": ("! ", "yellow")}[event.state]
            self._console.print(Text.assemble(mark, line))
