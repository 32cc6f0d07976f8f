"""`isabella service`: `isabella up` as a service of this user, started with the machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from isabella.cli.commands import NOT_RUNNING, AsJson, EnvFile, Home, commands, configured_settings, print_json

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from isabella.system.audit import Change
    from isabella.system.service import Service

app = commands(
    no_args_is_help=True,
    help="Run Isabella as a service of this user: a unit of systemd, or an agent of launchd on macOS.",
)


@app.command()
def install(home: Home = None, env_file: EnvFile = None) -> None:
    """Install the service, and start it now and with the machine. It uses this folder, with its `.env`."""
    service = _service(home, env_file)
    with _recorded("service.installed", service):
        service.install()
    typer.echo(f"Installed and started: {service.file}")
    if not service.starts_before_login():
        typer.echo("It starts when you log in. To start it with the machine: loginctl enable-linger")
    if names := _only_in_this_shell(env_file):
        typer.echo(f"Variables of this shell do not reach it; put them into .env: {', '.join(names)}")
    typer.echo(f"Its log: {service.log or 'journalctl --user -u isabella'}")


@app.command()
def uninstall() -> None:
    """Stop the service and delete it. Data, settings and programs stay."""
    service = _service(None, None)
    if not service.file.exists():
        typer.echo("It was not installed.")
        return
    with _recorded("service.uninstalled", service):
        service.uninstall()
    typer.echo("Uninstalled.")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show whether the service is installed, starts by itself, and runs.

    Exit code: 0 it runs, 3 it does not, 1 error.
    """
    current = _service(None, None).status()
    if as_json:
        print_json(
            {
                "file": str(current.file),
                "installed": current.installed,
                "enabled": current.enabled,
                "active": current.active,
            }
        )
    elif not current.installed:
        typer.echo("It is not installed.")
    else:
        starts = "starts by itself" if current.enabled else "does not start by itself"
        typer.echo(f"{current.file}: {'runs' if current.active else 'does not run'}, {starts}")
    raise typer.Exit(0 if current.active else NOT_RUNNING)


def _recorded(change: str, service: Service) -> AbstractContextManager[Change]:
    from isabella.system import audit

    return audit.change(change, str(service.file), home=Path(service.environment["ISABELLA_HOME"]))


def _service(home: Path | None, env_file: Path | None) -> Service:
    import shutil
    import sys

    from isabella.system.service import Service

    program = Path(sys.executable).with_name("isabella")
    if not program.exists():
        program = Path(shutil.which("isabella") or program)
    command = [str(program), "up", *(["--env-file", str(env_file.absolute())] if env_file else [])]
    settings = configured_settings(env_file, home=home)
    environment = {"ISABELLA_HOME": str(settings.home.absolute()), "ISABELLA_LOG_FORMAT": "json"}
    return Service(command, Path.cwd(), environment)


def _only_in_this_shell(env_file: Path | None) -> list[str]:
    """Return the names of variables that configure Isabella, and are in the environment of this shell only."""
    from isabella.config.settings import Settings, variable
    from isabella.providers.desired import desired_providers

    settings = configured_settings(env_file)
    names = {variable(name) for name in Settings.model_fields if name not in ("sources", "home", "log_format")}
    names |= {name for desired in desired_providers(settings) for name in desired.vendor.variables}
    return sorted(name for name in settings.sources.environment if name in names)
