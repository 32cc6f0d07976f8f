"""`isabella letta`: the embedded Letta and its Postgres."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isabella.cli.commands import (
    NOT_RUNNING,
    AsJson,
    EnvFile,
    Home,
    as_usage,
    commands,
    configured_settings,
    print_json,
)

if TYPE_CHECKING:
    from isabella.embedded import InstanceStatus, Server, ServiceStatus

app = commands(no_args_is_help=True, help="Run Letta and its Postgres on this machine, without Docker.")

DEFAULT_RELEASE = "0.16.8"
DEFAULT_INSTANCE = "default"


def _valid(parameter: typer.CallbackParam, value: str) -> str:
    from isabella.embedded.instance import InstancePaths

    with as_usage():
        InstancePaths(Path(), **{str(parameter.name): value})
    return value


Release = Annotated[str, typer.Option("--version", metavar="0.16.x", help="The release of Letta.", callback=_valid)]
Instance = Annotated[
    str,
    typer.Option(
        "--instance", metavar="NAME", help="Another server of the release, with its own data.", callback=_valid
    ),
]


@app.command()
def up(
    release: Release = DEFAULT_RELEASE,
    instance: Instance = DEFAULT_INSTANCE,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Install Letta if necessary, start it with its Postgres, and print its base URL.

    The master key is LETTA_ENCRYPTION_KEY if that is set, otherwise one that is generated and stored once.
    """
    from isabella.cli.progress import show_progress

    server = _server(release, instance, home, env_file)
    with show_progress() as progress:
        letta = server.up(progress)
    gateway = _start_gateway(server, home, env_file)
    typer.echo(f"Letta {letta.version} {'is up' if letta.started else 'was up already'} at {letta.base_url}")
    typer.echo(f"Its password is in {server.paths.password_file}")
    if gateway is not None:
        typer.echo(f"It reaches the vendors through the gateway at {gateway}")


@app.command()
def install(release: Release = DEFAULT_RELEASE, home: Home = None, env_file: EnvFile = None) -> None:
    """Install Letta with its dependencies, and start nothing. For images, and machines that lose their network."""
    from isabella.cli.progress import show_progress

    server = _server(release, DEFAULT_INSTANCE, home, env_file)
    with show_progress() as progress:
        server.install_release(progress)
    typer.echo(f"Letta {release} is installed in {server.paths.program}")


@app.command()
def run(
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port to listen on.")] = 8283,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Listen on the network: Letta has no TLS, so its password passes it."),
    ] = False,
    release: Release = DEFAULT_RELEASE,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Run an installed Letta in the foreground, on your own Postgres with pgvector, for instance in a container.

    It needs ISABELLA_DATABASE_URL (or ISABELLA_POSTGRES_URL), LETTA_API_KEY and LETTA_ENCRYPTION_KEY, or files with
    them. Its own log goes to standard output. It migrates the database first if necessary.
    """
    from isabella.embedded.foreground import prepare_letta
    from isabella.errors import ConfigurationError
    from isabella.system.urls import is_loopback

    if not (is_loopback(host) or insecure):
        raise ConfigurationError(
            f"{host} is an address of the network, and Letta has no TLS.",
            remedy="Give --insecure if only Isabella can reach it, for instance on a private network of containers.",
        )
    settings = configured_settings(env_file, service=True, home=home)
    prepare_letta(settings, host, port, release).replace_this_process()


@app.command()
def down(
    release: Release = DEFAULT_RELEASE,
    instance: Instance = DEFAULT_INSTANCE,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Stop Letta and its Postgres. The data stay."""
    from isabella.cli.progress import show_progress

    server = _server(release, instance, home, env_file)
    with show_progress() as progress:
        stopped = server.down(progress)
    if _is_default(server):
        from isabella.gateway import process

        process.daemon(server.home).stop()
    typer.echo("Stopped." if stopped else "Nothing was running.")


@app.command()
def status(
    release: Release = DEFAULT_RELEASE,
    instance: Instance = DEFAULT_INSTANCE,
    home: Home = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show whether Letta is installed, and whether it and its Postgres are running.

    Exit code: 0 both run and accept requests, 3 they do not, 1 error.
    """
    current = _server(release, instance, home, env_file).status()
    if as_json:
        print_json(_as_json(current))
    else:
        _show(current)
    raise typer.Exit(0 if current.running else NOT_RUNNING)


@app.command()
def rekey(
    release: Release = DEFAULT_RELEASE,
    instance: Instance = DEFAULT_INSTANCE,
    home: Home = None,
    env_file: EnvFile = None,
    from_env: Annotated[
        bool,
        typer.Option("--from-env", help="Take LETTA_ENCRYPTION_KEY as the new master key instead of generating one."),
    ] = False,
    former_key_file: Annotated[
        Path | None,
        typer.Option(
            "--former-key-file", metavar="FILE", help="File with the previous master key, if it is not stored here."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Change the master key, and encrypt everything that Letta holds with the new one.

    Letta is stopped for about half a minute. If the change is interrupted, the next `isabella letta up` completes it.
    Exit code: 0 all providers proven under the new key, otherwise 1; a dry run changes nothing and exits with 0.
    """
    from isabella.cli import rekey as command

    settings = configured_settings(env_file, served=True, home=home)
    proven = command.rekey(
        settings, release, instance, from_env=from_env, former_key_file=former_key_file, dry_run=dry_run, yes=yes
    )
    raise typer.Exit(0 if proven else 1)


@app.command()
def logs(
    release: Release = DEFAULT_RELEASE,
    instance: Instance = DEFAULT_INSTANCE,
    home: Home = None,
    env_file: EnvFile = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="The number of last lines to show.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Also show new lines, until interrupted.")] = False,
    postgres: Annotated[bool, typer.Option("--postgres", help="Show Postgres's log instead of Letta's.")] = False,
) -> None:
    """Show the last lines of the log of Letta, or of Postgres."""
    from isabella.embedded import child_processes
    from isabella.errors import EmbeddedError

    server = _server(release, instance, home, env_file)
    current = server.status()
    path = current.postgres_log if postgres else current.letta_log
    if postgres and current.own_postgres is not None:
        raise EmbeddedError(
            f"Letta's database is in your own Postgres, at {current.own_postgres}.",
            remedy="Read the log that this Postgres writes.",
        )
    if path is None or not (path.exists() or follow):
        raise EmbeddedError(
            f"{'Postgres' if postgres else f'Letta {release}'} has no log yet.",
            remedy="`isabella letta up` creates it.",
        )
    server.load_secrets()
    # The position is taken before the last lines are printed, so that no line is missed.
    new_lines = child_processes.follow_log(path) if follow else iter(())
    for line in child_processes.tail_log(path, lines):
        typer.echo(line)
    for line in new_lines:
        typer.echo(line)
        sys.stdout.flush()


def _is_default(server: Server) -> bool:
    return (server.release, server.instance) == (DEFAULT_RELEASE, DEFAULT_INSTANCE)


def _start_gateway(server: Server, home: Path | None, env_file: Path | None) -> str | None:
    """Start the gateway of the default instance, and return its address; None if it has none."""
    from isabella.gateway import process

    settings = configured_settings(env_file, served=True, home=home)
    if not _is_default(server) or settings.letta_base_url is not None or not process.starts_here(settings):
        return None
    return process.start(settings).address


def _server(release: str, instance: str, home: Path | None, env_file: Path | None) -> Server:
    from isabella.connect import embedded_server

    return embedded_server(configured_settings(env_file, home=home), release=release, instance=instance)


def _as_json(current: InstanceStatus) -> dict[str, Any]:
    letta, postgres = (
        {"running": status.pid is not None, "pid": status.pid, "port": status.port, "healthy": status.healthy}
        for status in (current.letta, current.postgres)
    )
    own = {"own": current.own_postgres, "healthy": current.postgres.healthy}
    return {
        "version": current.release,
        "instance": current.instance,
        "installed": current.installed,
        "lock": current.lock,
        "running": current.running,
        "base_url": current.base_url,
        "letta": letta,
        "postgres": postgres if current.own_postgres is None else own,
        "folder": str(current.folder),
        "data": str(current.data) if current.data else None,
        "password_file": str(current.password_file),
        "letta_log": str(current.letta_log),
        "postgres_log": str(current.postgres_log) if current.postgres_log else None,
    }


def _show(current: InstanceStatus) -> None:
    def service(status: ServiceStatus) -> str:
        if status.pid is None:
            return "not running"
        return f"{'running' if status.healthy else 'does not answer'}, pid {status.pid}, port {status.port}"

    def own(where: str) -> str:
        return f"{'answers' if current.postgres.healthy else 'does not answer'}, your own, at {where}"

    rows = {
        f"Letta {current.release}": service(current.letta) if current.installed else "not installed",
        "Dependencies": f"{current.lock} lock" if current.lock else "-",
        "Postgres": service(current.postgres) if current.own_postgres is None else own(current.own_postgres),
        "Base URL": current.base_url or "-",
        "Password": str(current.password_file) if current.password_file.exists() else "-",
        "Data": current.own_postgres or str(current.data or current.folder),
        "Log": str(current.letta_log),
    }
    for name, value in rows.items():
        typer.echo(f"{name:<13} {value}")
