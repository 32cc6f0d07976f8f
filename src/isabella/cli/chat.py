"""`isabella chat` and `isabella login`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from isabella.cli.options import EnvFile

if TYPE_CHECKING:
    from pydantic import SecretStr

    from isabella.chat.line import Line
    from isabella.settings import Settings

_DEFAULT_AGENT = "Isabella"


def chat(
    agent: Annotated[
        str, typer.Option("--agent", help="Whom to talk to: name, definition id, or Letta id.")
    ] = _DEFAULT_AGENT,
    model: Annotated[
        str | None, typer.Option("--model", metavar="HANDLE", help="Switch the agent to this model first.")
    ] = None,
    env_file: EnvFile = None,
) -> None:
    """Talk to an agent. Reads lines from standard input where that is no terminal.

    Talks to the running backend, or, where none runs, to Letta through an engine of its own. Exit code: 0 when
    everything was answered, otherwise 1.
    """
    from isabella.chat.screen import Screen
    from isabella.chat.session import Session
    from isabella.logs import configure_logs
    from isabella.practice.overlay import load_served_settings

    configure_logs(quiet=True)
    screen = Screen()
    with _line(load_served_settings(env_file), agent) as line:
        if model is not None:
            line.switch(model)
        answered = Session(line, screen).run()
    raise typer.Exit(0 if answered else 1)


def login(env_file: EnvFile = None) -> None:
    """Print the link that lets a browser into the running backend. It holds the token: do not pass it on."""
    from isabella.access import kept_address, kept_token
    from isabella.errors import ConfigurationError
    from isabella.settings import load_settings

    settings = load_settings(env_file)
    token, address = kept_token(settings), kept_address(settings.home)
    if token is None or address is None:
        raise ConfigurationError("No backend runs here.", remedy="Start one with `isabella up`.")
    typer.echo(f"{address}/login?token={token.get_secret_value()}")


@contextmanager
def _line(settings: Settings, agent: str) -> Iterator[Line]:
    import anyio

    from isabella.chat.line import Line

    found = _running(settings)
    if found is not None:
        with Line(*found, agent) as line:
            yield line
        return
    from isabella.backend.private import private_backend
    from isabella.connection import connect

    connection = anyio.run(connect, settings)
    with private_backend(settings, connection) as private, Line(private.address, private.token, agent) as line:
        yield line


def _running(settings: Settings) -> tuple[str, SecretStr] | None:
    """Address and token of the backend of this home, if one answers."""
    import httpx2 as httpx

    from isabella.access import kept_address, kept_token

    address, token = kept_address(settings.home), kept_token(settings)
    if address is None or token is None:
        return None
    try:
        alive = httpx.get(f"{address}/ready", timeout=5.0, trust_env=False).status_code < 500
    except httpx.TransportError:
        return None
    return (address, token) if alive else None
