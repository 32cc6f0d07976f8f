"""Options that several commands have in common, and what happens where one is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from isabella.errors import IsabellaError

#: The exit code of a command line that cannot be understood, as in sysexits.h. Typer's own, 2, means changes pending.
USAGE = 64
_TYPER_USAGE = 2

EnvFile = Annotated[
    Path | None, typer.Option("--env-file", help="Read this file in place of .env in the working directory.")
]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help="Only this provider; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


class Commands(TyperGroup):
    """All commands. A command line that cannot be understood ends with `USAGE`, whichever of them it is for."""

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        """Read the options before the command."""
        with _usage_code():
            return super().make_context(*arguments, **named)

    def invoke(self, ctx: Any) -> Any:
        """Read the command and what is behind it, and run it."""
        with _usage_code():
            return super().invoke(ctx)


@contextmanager
def as_usage() -> Iterator[None]:
    """Where this fails, it is for the value of an option or argument."""
    try:
        yield
    except IsabellaError as error:
        raise typer.BadParameter(str(error)) from None


@contextmanager
def _usage_code() -> Iterator[None]:
    try:
        yield
    except TyperException as error:
        if error.exit_code == _TYPER_USAGE:
            error.exit_code = USAGE
        raise
