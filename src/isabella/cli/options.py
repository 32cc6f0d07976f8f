"""Options that several commands have in common, and what happens where one is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from isabella.errors import IsabellaError

EnvFile = Annotated[
    Path | None, typer.Option("--env-file", help="Read this file in place of .env in the working directory.")
]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help="Only this provider; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@contextmanager
def as_usage() -> Iterator[None]:
    """Where this fails, it is for the value of an option or argument."""
    try:
        yield
    except IsabellaError as error:
        raise typer.BadParameter(str(error)) from None
