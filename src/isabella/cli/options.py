"""Options that several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EnvFile = Annotated[
    Path | None, typer.Option("--env-file", help="Read this file in place of .env in the working directory.")
]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help="Only this provider; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
