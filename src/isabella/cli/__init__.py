"""The command line: `isabella`.

Command modules import nothing heavy at their top, so that `isabella --help` answers at once; a command imports the
rest when it runs. All errors end in `main`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Annotated

import typer
from typer.models import TyperInfo

from isabella.cli import agents, backup, doctor, gateway, letta, practice, providers, service, vendors
from isabella.cli.audit import audit
from isabella.cli.backend import chat, login, up
from isabella.cli.commands import AsJson, EnvFile, commands, configured_settings, print_json
from isabella.errors import IsabellaError
from isabella.system.garbage import collect_rarely
from isabella.system.terminal import guard_output, messages_are_json, print_message, set_message_format

app = commands(
    name="isabella",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(up)
app.command()(chat)
app.command()(login)
app.command()(audit)
app.add_typer(vendors.app, name="vendors")
app.add_typer(providers.app, name="providers")
app.add_typer(agents.app, name="agents")
app.add_typer(letta.app, name="letta")
app.add_typer(backup.app, name="backup")
app.add_typer(gateway.app, name="gateway")
app.add_typer(practice.app, name="practice")
app.add_typer(doctor.app, name="doctor")
app.add_typer(service.app, name="service")


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"isabella {version('isabella')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Memory agents on Letta, with proof that its providers hold the keys you configured."""


@app.command()
def settings(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show every setting, its value, and the source of the value. Keys are masked."""
    from pydantic import SecretStr

    from isabella.cli.tables import show_notices, show_settings
    from isabella.config.settings import Settings, variable
    from isabella.providers.desired import desired_providers
    from isabella.system.redaction import mask

    current = configured_settings(env_file, served=True)
    desired = desired_providers(current)
    rows: list[tuple[str, str, str]] = []
    for field in Settings.model_fields:
        if field == "sources":
            continue
        value = getattr(current, field)
        if field in ("database_url", "postgres_url") and value is not None:
            shown = "(set)"
        elif isinstance(value, SecretStr):
            shown = mask(value.get_secret_value())
        elif isinstance(value, tuple):
            shown = ", ".join(value) or "-"
        else:
            shown = "-" if value is None else str(value)
        rows.append((variable(field), shown, current.origin(field)))
    for provider in desired:
        vendor = provider.vendor
        rows.append((vendor.api_key_env, provider.masked_key or provider.problem or "-", provider.key_source))
        values = (
            (vendor.base_url_env, provider.base_url),
            (vendor.type_env, provider.type),
            (vendor.model_env, vendor.default_model or "-"),
        )
        for name, shown in values:
            if name is not None:
                rows.append((name, shown, current.sources.origin(name)))
    notices = current.contradictions(tuple(provider.vendor for provider in desired))
    if as_json:
        document = {name: {"value": value, "from": origin} for name, value, origin in rows}
        print_json({"settings": document, "notices": notices})
        raise typer.Exit
    show_notices(notices)
    show_settings(rows)
    for provider in desired:
        for note in provider.notes:
            print_message(f"{provider.name}: {note}")
        if provider.problem is not None and provider.remedy:
            print_message(f"{provider.name}: {provider.remedy}")


@app.command()
def demo(
    home: Annotated[
        Path | None,
        typer.Option("--home", metavar="FOLDER", help="Folder with the installed Letta. Default: ISABELLA_HOME."),
    ] = None,
    env_file: EnvFile = None,
) -> None:
    """Show the stale-key bug and its fix, on a separate Letta with practice vendors.

    It needs no key, and uses neither your data nor your vendors. The first run installs Letta.
    Exit code: 0 if every answer was as expected, otherwise 1.
    """
    from isabella.cli.progress import show_progress
    from isabella.demo import run_demo
    from isabella.system.terminal import console

    current = configured_settings(env_file, home=home)
    raise typer.Exit(0 if run_demo(current.home, console(), show_progress, current.letta_lock) else 1)


def for_command_line(arguments: Sequence[str]) -> typer.Typer:
    """Return the application with the commands of the one group that a command line names.

    Building the options of all other groups takes as long as the rest of `isabella --help`.
    """
    if "_ISABELLA_COMPLETE" in os.environ:
        return app
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    lean = copy(app)
    lean.registered_groups = [
        group if group.name == named else _without_commands(group) for group in app.registered_groups
    ]
    return lean


def _without_commands(group: TyperInfo) -> TyperInfo:
    empty, typer_of_group = copy(group), copy(group.typer_instance or commands())
    typer_of_group.registered_commands = []
    empty.typer_instance = typer_of_group
    return empty


def main() -> None:
    """Run the command line: an error is one message and exit code 1; a wrong command line exits with 64."""
    collect_rarely()
    guard_output()
    set_message_format(as_json=False)
    try:
        # The name is in the audit log, too, and does not depend on how the program was started.
        for_command_line(sys.argv[1:])(prog_name="isabella")
    except IsabellaError as error:
        if messages_are_json():
            print_message(error.what, level="error", remedy=error.remedy)
        else:
            print_message(f"isabella: {error.what}" + (f"\n  {error.remedy}" if error.remedy else ""))
        sys.exit(1)
    except BrokenPipeError:
        # The reader of the output has ended (`isabella … | head`).
        sys.exit(1)
    except KeyboardInterrupt:
        print_message("isabella: interrupted")
        sys.exit(130)
