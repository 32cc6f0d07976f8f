"""`isabella letta`: the Letta and the Postgres that Isabella runs herself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isabella.cli.commands import commands
from isabella.cli.options import AsJson, EnvFile, as_usage

if TYPE_CHECKING:
    from isabella.embedded import InstanceStatus, Server, ServiceStatus

app = commands(no_args_is_help=True, help="Run Letta and its Postgres on this machine, without Docker.")

NOT_RUNNING = 3


def _release(value: str) -> str:
    from isabella.embedded.instance import InstancePaths

    with as_usage():
        return InstancePaths(Path(), release=value).release


def _instance(value: str) -> str:
    from isabella.embedded.instance import InstancePaths

    with as_usage():
        return InstancePaths(Path(), instance=value).instance


Release = Annotated[
    str, typer.Option("--version", metavar="0.16.x", help="Which release of Letta.", callback=_release)
]
Instance = Annotated[
    str,
    typer.Option(
        "--instance",
        metavar="NAME",
        help="Another server of the release, with data of its own.",
        callback=_instance,
    ),
]
Home = Annotated[
    Path | None,
    typer.Option("--home", metavar="FOLDER", help="Where everything is kept. Default: ISABELLA_HOME, or user data."),
]

_RELEASE = "0.16.8"
_INSTANCE = "default"


@app.command()
def up(
    release: Release = _RELEASE, instance: Instance = _INSTANCE, home: Home = None, env_file: EnvFile = None
) -> None:
    """Install what is missing and start what does not run; prints the address.

    The master key is LETTA_ENCRYPTION_KEY if that is set, otherwise one that is made once and kept.
    """
    from isabella.cli.progress import shown

    server = _server(release, instance, home, env_file)
    with shown() as progress:
        letta = server.up(progress)
    typer.echo(f"Letta {letta.version} {'is up' if letta.started else 'was up already'} at {letta.base_url}")
    typer.echo(f"Its password is in {server.paths.password_file}")


@app.command()
def down(
    release: Release = _RELEASE, instance: Instance = _INSTANCE, home: Home = None, env_file: EnvFile = None
) -> None:
    """Stop Letta and its Postgres. The data stay."""
    from isabella.cli.progress import shown

    with shown() as progress:
        stopped = _server(release, instance, home, env_file).down(progress)
    typer.echo("Stopped." if stopped else "Nothing was running.")


@app.command()
def status(
    release: Release = _RELEASE,
    instance: Instance = _INSTANCE,
    home: Home = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what is there and what runs.

    Exit code: 0 Letta and Postgres run and take requests, 3 they do not, 1 error.
    """
    found = _server(release, instance, home, env_file).status()
    typer.echo(json.dumps(_as_json(found), indent=2) if as_json else _as_text(found))
    raise typer.Exit(0 if found.running else NOT_RUNNING)


@app.command()
def rekey(
    release: Release = _RELEASE,
    instance: Instance = _INSTANCE,
    home: Home = None,
    env_file: EnvFile = None,
    from_env: Annotated[
        bool,
        typer.Option("--from-env", help="Take LETTA_ENCRYPTION_KEY as the new master key, in place of making one."),
    ] = False,
    former_key_file: Annotated[
        Path | None,
        typer.Option(
            "--former-key-file", metavar="FILE", help="Holds the master key so far, if Isabella has not kept it."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Change the master key, and seal everything that Letta holds under the new one.

    Letta is stopped for about half a minute. Interrupted at any point, the next `isabella letta up` goes on with it.
    Exit code: 0 all providers proven under the new key, otherwise 1; a dry run changes nothing and exits with 0.
    """
    from isabella.cli.rekey import RekeyOptions
    from isabella.cli.rekey import rekey as carry_out
    from isabella.practice.overlay import load_served_settings

    settings = load_served_settings(env_file, home=home)
    wish = RekeyOptions(release, instance, from_env, former_key_file, dry_run, yes)
    raise typer.Exit(0 if carry_out(settings, wish) else 1)


@app.command()
def logs(
    release: Release = _RELEASE,
    instance: Instance = _INSTANCE,
    home: Home = None,
    env_file: EnvFile = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is added, until interrupted.")
    ] = False,
    postgres: Annotated[bool, typer.Option("--postgres", help="The log of Postgres in place of Letta's.")] = False,
) -> None:
    """Show what Letta, or Postgres, said last."""
    from isabella.embedded import child_processes as log_files
    from isabella.errors import EmbeddedError

    server = _server(release, instance, home, env_file)
    found = server.status()
    path = found.postgres_log if postgres else found.letta_log
    if path is None or not (path.exists() or follow):
        raise EmbeddedError(
            f"There is no log of {'Postgres' if postgres else f'Letta {release}'} yet.",
            remedy="It begins with `isabella letta up`.",
        )
    server.know_secrets()
    following = log_files.follow_log(path) if follow else iter(())
    for line in log_files.tail_log(path, lines):
        typer.echo(line)
    for line in following:
        typer.echo(line)
        sys.stdout.flush()


def _server(release: str, instance: str, home: Path | None, env_file: Path | None) -> Server:
    from isabella.config.settings import load_settings
    from isabella.embedded import Server

    settings = load_settings(env_file, home=home)
    return Server(settings.home, release=release, instance=instance, master_key=settings.letta_encryption_key)


def _as_json(found: InstanceStatus) -> dict[str, Any]:
    def service(one: ServiceStatus) -> dict[str, Any]:
        return {"running": one.pid is not None, "pid": one.pid, "port": one.port, "healthy": one.healthy}

    return {
        "version": found.release,
        "instance": found.instance,
        "installed": found.installed,
        "running": found.running,
        "base_url": found.base_url,
        "letta": service(found.letta),
        "postgres": service(found.postgres),
        "folder": str(found.folder),
        "data": str(found.data) if found.data else None,
        "password_file": str(found.password_file),
        "letta_log": str(found.letta_log),
        "postgres_log": str(found.postgres_log) if found.postgres_log else None,
    }


def _as_text(found: InstanceStatus) -> str:
    def service(one: ServiceStatus) -> str:
        if one.pid is None:
            return "does not run"
        return f"{'runs' if one.healthy else 'runs, but does not answer'}, pid {one.pid}, port {one.port}"

    rows = {
        f"Letta {found.release}": service(found.letta) if found.installed else "is not installed",
        "Postgres": service(found.postgres),
        "Address": found.base_url or "-",
        "Password": str(found.password_file) if found.password_file.exists() else "-",
        "Data": str(found.data or found.folder),
        "Log": str(found.letta_log),
    }
    return "\n".join(f"{name:<13} {value}" for name, value in rows.items())
