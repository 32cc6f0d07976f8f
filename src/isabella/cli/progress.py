"""Display of the embedded server's steps: one line each, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from isabella.system.terminal import console, messages_are_json, print_message

if TYPE_CHECKING:
    from isabella.embedded import Progress, Step

_MARKS = {"done": ("✓ ", "green"), "skipped": ("· ", "dim"), "note": ("! ", "yellow")}
# Takes milliseconds, and is worth a line only if it has a note.
_SILENT = {"check"}


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a `Progress` that prints each step; on a terminal, with a spinner while a step is running."""
    if messages_are_json() or not sys.stderr.isatty():
        yield _print_step
        return
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    out = console(stderr=True)
    # With redirection, text of other parts would bypass the guard of the output, and its colours would be obeyed.
    with Live(console=out, transient=True, redirect_stdout=False, redirect_stderr=False) as live:

        def show(step: Step) -> None:
            if step.state == "started":
                live.update(Spinner("dots", Text(f"{step.name.capitalize()} {step.detail}")))
            elif (text := _detail(step)) is not None:
                out.print(Text.assemble(_MARKS[step.state], _line(step, text)))

        yield show


def _print_step(step: Step) -> None:
    text = _detail(step)
    if text is None:
        return
    if messages_are_json():
        print_message(text, step=step.name, state=step.state, seconds=step.seconds)
    else:
        print_message(_line(step, text))


def _detail(step: Step) -> str | None:
    """Return the text of a step; None if it is not worth a line."""
    match step.state:
        case "started":
            # A step has its line when it is done; waiting has one at once, so that the reader knows the reason.
            return f"{step.detail} …" if step.name == "wait" else None
        case "done":
            return None if step.name in _SILENT else step.detail or "done"
        case "skipped" | "note":
            return step.detail


def _line(step: Step, text: str) -> str:
    seconds = "" if step.seconds is None else f"  {step.seconds:.1f} s"
    return f"{step.name.capitalize():<9} {text}{seconds}"
