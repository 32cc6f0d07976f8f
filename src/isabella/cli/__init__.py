"""The command line: `isabella`.

Command modules import nothing heavy at their top, so that `isabella --help` answers at once; what a command
needs, it imports when it runs. Every failure leaves by one door, `main`.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from isabella.cli import agents, doctor, letta, practice, providers
from isabella.cli.chat import chat, login
from isabella.cli.commands import commands
from isabella.cli.demo import demo
from isabella.cli.settings import settings
from isabella.cli.up import up
from isabella.errors import IsabellaError
from isabella.system.terminal import guard_output

app = commands(
    name="isabella",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(up)
app.command()(chat)
app.command()(login)
app.add_typer(providers.app, name="providers")
app.add_typer(agents.app, name="agents")
app.add_typer(letta.app, name="letta")
app.add_typer(practice.app, name="practice")
app.add_typer(doctor.app, name="doctor")
app.command()(settings)
app.command()(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"isabella {version('isabella')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Memory agents on Letta, whose providers provably hold the keys you configured."""


def main() -> None:
    """Run the command line; what fails ends in one message and exit code 1, a wrong command line in 64."""
    guard_output()
    try:
        app()
    except IsabellaError as error:
        print(f"isabella: {error.what}", file=sys.stderr)
        if error.remedy:
            print(f"  {error.remedy}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output went away (`isabella … | head`).
        sys.exit(1)
    except KeyboardInterrupt:
        print("isabella: interrupted", file=sys.stderr)
        sys.exit(130)
