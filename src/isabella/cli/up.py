"""`isabella up`."""

from __future__ import annotations

from typing import Annotated

import typer

from isabella.cli.options import EnvFile


def up(
    practice: Annotated[
        bool | None,
        typer.Option(
            "--practice/--no-practice",
            help="Practice vendors in place of the real ones. Default: where no vendor key is configured "
            "and Letta is the embedded one.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Have an agent on each provider say one line, too.")
    ] = False,
    env_file: EnvFile = None,
) -> None:
    """Bring up Letta, bring the providers in line, and serve until Ctrl-C.

    Without LETTA_BASE_URL this starts the embedded Letta and Postgres; the first time it installs them.
    """
    from isabella.cli.progress import shown
    from isabella.cli.tables import say, show_report
    from isabella.config.settings import load_settings
    from isabella.server.run import ServeOptions, serve
    from isabella.system.logging import configure_logs

    configure_logs()
    settings = load_settings(env_file)
    raise typer.Exit(serve(settings, ServeOptions(practice, verify, progress=shown, show=show_report, say=say)))
