"""`isabella demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isabella.cli.options import EnvFile


def demo(
    home: Annotated[
        Path | None,
        typer.Option("--home", metavar="FOLDER", help="Where Letta is installed. Default: ISABELLA_HOME."),
    ] = None,
    env_file: EnvFile = None,
) -> None:
    """Show the stale-key bug and its fix, on a Letta of its own with practice vendors.

    Needs no key, and touches neither your data nor your vendors. The first run installs Letta.
    Exit code: 0 every answer was as expected, otherwise 1.
    """
    from isabella.cli.progress import shown
    from isabella.cli.tables import console
    from isabella.config.settings import load_settings
    from isabella.demo.story import run_demo
    from isabella.system.logging import configure_logs

    configure_logs()
    settings = load_settings(env_file, home=home)
    raise typer.Exit(0 if run_demo(settings.home, console(), shown) else 1)
