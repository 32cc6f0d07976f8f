"""`isabella chat` and `isabella login`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from isabella.cli.options import EnvFile

if TYPE_CHECKING:
    from isabella.chat.line import BackendClient
    from isabella.config.settings import Settings
    from isabella.server.token import RunningBackend

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
    from isabella.chat.screen import Terminal
    from isabella.chat.session import ChatSession
    from isabella.practice.overlay import load_served_settings
    from isabella.system.logging import configure_logs

    configure_logs(quiet=True)
    screen = Terminal()
    with _line(load_served_settings(env_file), agent) as line:
        if model is not None:
            for note in line.switch(model)[1]:
                screen.note(note)
        answered = ChatSession(line, screen).run()
    raise typer.Exit(0 if answered else 1)


def login(env_file: EnvFile = None) -> None:
    """Print the link that lets a browser into the running backend. It holds the token: do not pass it on."""
    from isabella.config.settings import load_settings
    from isabella.errors import ConfigurationError

    found = running_backend(load_settings(env_file))
    if found is None:
        raise ConfigurationError("No backend runs here.", remedy="Start one with `isabella up`.")
    typer.echo(f"{found.address}/login?token={found.token.get_secret_value()}")


@contextmanager
def _line(settings: Settings, agent: str) -> Iterator[BackendClient]:
    import anyio

    from isabella.chat.line import BackendClient

    found = running_backend(settings)
    if found is not None:
        with BackendClient(found.address, found.token, agent, found.peer) as line:
            yield line
        return
    from isabella.embedded.connection import connect
    from isabella.server.run import in_process_backend

    connection = anyio.run(connect, settings)
    with (
        in_process_backend(settings, connection) as private,
        BackendClient(private.address, private.token, agent) as line,
    ):
        yield line


def running_backend(settings: Settings) -> RunningBackend | None:
    """The backend of this home, if one answers.

    Raises:
        UnverifiedPeer: another process listens in its place.
    """
    import httpx2 as httpx

    from isabella.server.token import published_backend
    from isabella.system.peers import hooks

    found = published_backend(settings)
    if found is None:
        return None
    try:
        with httpx.Client(timeout=5.0, trust_env=False, event_hooks=hooks(found.peer)) as client:
            alive = client.get(f"{found.address}/ready").status_code < 500
    except httpx.TransportError:
        return None
    return found if alive else None
