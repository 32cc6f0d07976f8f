"""`isabella up`, `isabella chat` and `isabella login`: commands that run the backend, or use the running one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from isabella.cli.commands import EnvFile, complete_agent, complete_handle, configured_settings, service_settings
from isabella.system.terminal import messages_are_json, print_message

if TYPE_CHECKING:
    from isabella.chat.client import BackendClient
    from isabella.config.settings import Settings
    from isabella.letta.client import Connection
    from isabella.providers.report import Report
    from isabella.server.running_backend import RunningBackend

_DEFAULT_AGENT = "Isabella"
_SECONDS = 5.0


def up(
    practice: Annotated[
        bool | None,
        typer.Option(
            "--practice/--no-practice",
            help="Use practice vendors instead of the real ones. Default: if no vendor key is configured "
            "and Letta is the embedded one.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Also have each provider complete one line through Letta.")
    ] = False,
    env_file: EnvFile = None,
) -> None:
    """Start Letta, sync the providers, and serve until Ctrl-C.

    Without LETTA_BASE_URL this starts the embedded Letta and Postgres, and installs them the first time.
    """
    from isabella.cli.progress import show_progress
    from isabella.server.options import ServeOptions
    from isabella.server.up import serve

    settings, set_up_logs = service_settings(env_file)
    options = ServeOptions(practice, verify, show_progress, _show_report, print_message, set_up_logs)
    raise typer.Exit(serve(settings, options))


def _show_report(report: Report) -> None:
    from isabella.cli.tables import log_report, show_report

    (log_report if messages_are_json() else show_report)(report)


def chat(
    agent: Annotated[
        str,
        typer.Option(
            "--agent",
            help="The agent: its name, the id of its definition, or Letta's id.",
            autocompletion=complete_agent,
        ),
    ] = _DEFAULT_AGENT,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="HANDLE",
            help="Switch the agent to this model first.",
            autocompletion=complete_handle,
        ),
    ] = None,
    conversation: Annotated[
        str | None,
        typer.Option(
            "--conversation",
            metavar="NAME",
            help="Talk in this conversation of the agent: its name, its id, or `new`.",
        ),
    ] = None,
    env_file: EnvFile = None,
) -> None:
    """Talk to an agent. Reads lines from standard input if that is not a terminal.

    Uses the running backend. If none is running, Letta and a backend are started for this conversation.
    Exit code: 0 if every message was answered, otherwise 1.
    """
    from isabella.chat.session import ChatSession, Screen

    screen = Screen()
    with _backend_client(configured_settings(env_file, served=True, quiet=True), agent) as client:
        if model is not None:
            for note in client.switch(model)[1]:
                screen.note(note)
        if conversation is not None:
            screen.note(f"In: {client.use_conversation(conversation)}")
        answered = ChatSession(client, screen).run()
    raise typer.Exit(0 if answered else 1)


def login(env_file: EnvFile = None) -> None:
    """Print a link that signs one browser in to the running backend, once, within ten minutes."""
    from isabella.errors import ConfigurationError
    from isabella.server.sessions import login_link

    backend = running_backend(configured_settings(env_file))
    if backend is None:
        raise ConfigurationError("No backend is running.", remedy="Start one with `isabella up`.")
    typer.echo(login_link(backend.address, backend.token))


def running_backend(settings: Settings) -> RunningBackend | None:
    """Return the running backend of this home; None if none answers. Raise `UnverifiedPeer` for another process."""
    import httpx2 as httpx

    from isabella.server.running_backend import published_backend
    from isabella.system.peers import hooks
    from isabella.system.urls import client_options

    backend = published_backend(settings)
    if backend is None:
        return None
    try:
        verify = client_options(backend.address)["verify"]
        with httpx.Client(
            timeout=_SECONDS, verify=verify, trust_env=False, event_hooks=hooks(backend.peer)
        ) as client:
            ready = client.get(f"{backend.address}/ready")
            serves = ready.status_code < 500 or ready.json().get("status") in ("starting", "interrupted")
    except (httpx.TransportError, ValueError, AttributeError):
        return None
    return backend if serves else None


def with_observations(settings: Settings, report: Report) -> Report:
    """Return the report with the running backend's observations of each vendor, and its notes.

    Without a backend of this Letta it is returned as it is.
    """
    from isabella.chat.client import BackendClient
    from isabella.errors import IsabellaError, UnverifiedPeer
    from isabella.providers.health import with_notes, with_vendor_status
    from isabella.vendors.client import VendorObservation

    try:
        backend = running_backend(settings)
        if backend is None:
            return report
        with BackendClient(backend.address, backend.token, "", backend.peer, timeout=_SECONDS) as client:
            document = client.providers()
        if document["letta"]["base_url"] != report.base_url:
            return report
        notes = {entry["name"]: [*map(str, entry["notes"])] for entry in document["providers"]}
        seen = {
            entry["name"]: VendorObservation.from_json(entry["vendor_status"])
            for entry in document["providers"]
            if entry["vendor_status"] is not None
        }
        return with_notes(with_vendor_status(report, seen.get), lambda name: notes.get(name, ()))
    except UnverifiedPeer as error:
        # The stored keys can be compared without the backend.
        print_message(str(error))
        return report
    except (IsabellaError, ValueError, KeyError, TypeError):
        return report


@contextmanager
def _backend_client(settings: Settings, agent: str) -> Iterator[BackendClient]:
    import anyio

    from isabella.chat.client import BackendClient

    backend = running_backend(settings)
    if backend is not None:
        with BackendClient(backend.address, backend.token, agent, backend.peer) as client:
            client.wait_until_ready(settings.turn_wait, print_message)
            yield client
        return
    from isabella.connect import connect_if_running
    from isabella.server.services import in_process_backend

    connection = anyio.run(connect_if_running, settings)
    with (
        _started_letta(settings) if connection is None else nullcontext(connection) as letta,
        in_process_backend(settings, letta) as temporary,
        BackendClient(temporary.address, temporary.token, agent) as client,
    ):
        yield client


@contextmanager
def _started_letta(settings: Settings) -> Iterator[Connection]:
    """Run the embedded Letta for one conversation."""
    from isabella.cli.progress import show_progress
    from isabella.server.options import ServeOptions
    from isabella.server.services import temporary_letta

    print_message("No backend runs, so Letta is started for this conversation; `isabella up` keeps it running.")
    options = ServeOptions(False, verify=False, progress=show_progress, show=lambda _: None, say=print_message)
    with temporary_letta(settings, options) as connection:
        yield connection
