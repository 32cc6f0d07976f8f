"""`isabella up`: everything that the backend stands on is brought up, and taken down again in reverse order."""

from __future__ import annotations

import logging
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio
import structlog
import uvicorn
from pydantic import SecretStr

from isabella.config.settings import Settings
from isabella.embedded import Progress, Server
from isabella.errors import ConfigurationError, IsabellaError, LettaUnreachable
from isabella.letta.connection import Connection, configured_connection, embedded_connection
from isabella.letta.providers import LettaProviders
from isabella.locks.provider_lock import ProviderLock, open_locks
from isabella.practice import daemon
from isabella.practice.overlay import left_out, with_practice_vendors
from isabella.providers.api import add_receipts, ensure_providers
from isabella.providers.desired import desired_providers
from isabella.providers.report import Report
from isabella.server.api.doctor import DoctorTarget
from isabella.server.app import create_app
from isabella.server.readiness import Phase, Readiness
from isabella.server.runtime import open_agents, open_turns, run_reflection, run_watcher
from isabella.server.token import Token, address_published, check_address, ensure_token
from isabella.system.signals import terminating
from isabella.watch.watcher import LettaActions

log = structlog.get_logger()

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: Where this machine itself reaches what listens everywhere.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what it is bound to, not what we bind

_LONGEST_PAUSE = 10.0


@dataclass(frozen=True)
class ServeOptions:
    """What the operator wants of this run.

    Attributes:
        practice: practice vendors in place of the real ones; None: where no vendor has a key and Letta is ours.
        verify: have an agent on each provider say one line, too.
        progress: shows what the embedded servers do, while they do it.
        show: shows the report.
        say: says one line to the operator.
    """

    practice: bool | None
    verify: bool
    progress: Callable[[], AbstractContextManager[Progress]]
    show: Callable[[Report], None]
    say: Callable[[str], None]


def serve(settings: Settings, options: ServeOptions) -> int:
    """Bring everything up, serve until a signal, and stop what was started.

    Returns:
        The exit code: 0 after a clean stop, 1 where the start failed.

    Raises:
        IsabellaError: something could not be brought up; what had been started is stopped again.
    """
    with closing(_bind(settings)) as listener, terminating(), ExitStack() as started:
        settings = _with_practice(settings, options, started)
        connection = configured_connection(settings) or _embedded(settings, options, started)
        readiness = _serve_http(settings, options, connection, listener)
    return 0 if readiness.serving else 1


def _bind(settings: Settings) -> socket.socket:
    """Take the port before anything is installed or started, so that one that is taken is told at once."""
    check_address(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        # A port that is only bound is still open to whoever listens first, during a start that takes minutes.
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"Port {settings.port} of {settings.host} cannot be used: {error.strerror}.",
            remedy="Set ISABELLA_PORT to another one, for instance 8001; 0 takes any that is free.",
        ) from None
    return listener


def _with_practice(settings: Settings, options: ServeOptions, started: ExitStack) -> Settings:
    wanted = options.practice
    if wanted is None:
        # Somebody's own Letta is never filled with practice vendors unasked.
        keyless = not any(provider.wanted for provider in desired_providers(settings))
        wanted = keyless and settings.letta_base_url is None
    if not wanted:
        return settings
    if options.practice is None:
        options.say(
            "No vendor key is configured, so these are PRACTICE VENDORS: stand-ins on this machine that answer "
            "from a small script. For the real ones put a key into .env (see .env.example) and start again."
        )
    else:
        options.say("These are PRACTICE VENDORS: stand-ins on this machine that answer from a small script.")
    for title in left_out():
        options.say(f"There is no practice vendor for {title}: it takes part as soon as it has a key in .env.")
    running = daemon.up(settings.home, None, options.say)
    if running.started:
        started.callback(daemon.down, settings.home)
    return with_practice_vendors(settings, running)


def _embedded(settings: Settings, options: ServeOptions, started: ExitStack) -> Connection:
    server = Server(settings.home, master_key=settings.letta_encryption_key)
    # Registered before it is up: what an interrupted start leaves behind is stopped as well.
    ours = not server.status().running
    if ours:
        started.callback(_down, server, options)
    with options.progress() as progress:
        return embedded_connection(settings, server.up(progress))


def _down(server: Server, options: ServeOptions) -> None:
    with options.progress() as progress:
        server.down(progress)


def _serve_http(
    settings: Settings, options: ServeOptions, connection: Connection, listener: socket.socket
) -> Readiness:
    token = ensure_token(settings)

    async def start(readiness: Readiness) -> None:
        try:
            await live(readiness)
        except Exception as error:  # noqa: BLE001 - a backend whose inside has ended must not go on answering
            readiness.fail(error)
            options.say(f"{'Stopped' if readiness.report else 'Not started'}: {readiness.error}")
            server.should_exit = True

    async def live(readiness: Readiness) -> None:
        async with open_locks(settings, connection) as locks:
            await _wait_for(connection, options.say)
            await readiness.bring(lambda: _ensure(settings, options, connection, locks.gate))
            if readiness.phase is Phase.FAILED or (settings.strict and readiness.phase is not Phase.READY):
                options.say(f"Not started: {' '.join(readiness.reasons)}")
                readiness.phase = Phase.FAILED
                server.should_exit = True
                return
            host, port = listener.getsockname()[:2]
            address = _address(_EVERYWHERE.get(host, host), port)
            async with (
                open_agents(app, settings, connection, _as_letta_reaches(connection, host, port)) as agent_service,
                open_turns(app, agent_service, locks) as turn_service,
                run_reflection(agent_service, turn_service),
                run_watcher(
                    readiness,
                    settings,
                    app.state.event_log.timed(LettaActions(locks.gate)),
                    agent_service.models,
                    on_event=app.state.event_log.on_event,
                ) as app.state.watcher,
            ):
                with address_published(settings.home, address):
                    phase = readiness.phase.value.capitalize()
                    options.say(f"{phase}: {address}  (API: {address}/docs, stop: Ctrl-C)")
                    _show_login(options, address, token)
                    await anyio.sleep_forever()

    app = create_app(start, token=token.secret)
    app.state.target = DoctorTarget(settings, connection)
    config = uvicorn.Config(
        app, log_config=None, log_level=logging.WARNING, access_log=False, timeout_graceful_shutdown=10
    )
    server = uvicorn.Server(config)
    try:
        anyio.run(_serve, server, listener)
    except KeyboardInterrupt:
        # uvicorn has stopped cleanly by then, and hands the signal on.
        options.say("Stopped.")
    readiness = app.state.readiness
    if not isinstance(readiness, Readiness):
        raise TypeError("the application was not made by create_app")
    if readiness.phase is Phase.STARTING:
        # Stopped by a signal before it had come up: that is no failure.
        return Readiness(phase=Phase.DEGRADED)
    return readiness


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _as_letta_reaches(connection: Connection, host: str, port: int) -> str | None:
    """The backend's address as Letta reaches it, for the vectors of archival memory; None where it does not."""
    if urlsplit(connection.base_url).hostname in _LOOPBACK:
        return _address(_EVERYWHERE.get(host, host), port)
    return None if host in _LOOPBACK or host in _EVERYWHERE else _address(host, port)


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])


def _show_login(options: ServeOptions, address: str, token: Token) -> None:
    """A new token is shown once, and only to somebody who looks: what is not a terminal may be kept for ever."""
    if token.made and sys.stderr.isatty():
        options.say(f"To use it in a browser: {address}/login?token={token.secret.get_secret_value()}")
    elif token.made:
        options.say("To use it in a browser: `isabella login` prints a link.")


async def _ensure(settings: Settings, options: ServeOptions, connection: Connection, gate: ProviderLock) -> Report:
    report = await ensure_providers(settings, connection=connection, count_models=True, gate=gate)
    if options.verify:
        report = await add_receipts(report, connection, desired_providers(settings))
    options.show(report)
    return report


async def _wait_for(connection: Connection, say: Callable[[str], None]) -> None:
    """Wait for somebody's own Letta, which may well be starting at the same time as we are."""
    pause = 0.5
    async with LettaProviders.at(connection) as store:
        while True:
            try:
                await store.abilities()
            except LettaUnreachable as error:
                say(f"{error.what} Trying again in {pause:g} s.")
                await anyio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except IsabellaError:
                # Something answers there; the sync will say what is wrong with it.
                return
            else:
                return


_HOST = "127.0.0.1"
_STOP_SECONDS = 15.0


@dataclass(frozen=True)
class InProcessBackend:
    """Where it listens, and what it asks for."""

    address: str
    token: SecretStr


@contextmanager
def in_process_backend(settings: Settings, connection: Connection) -> Iterator[InProcessBackend]:
    """Serve agents and turns on a loopback port, in a thread, with a token that nobody else knows.

    Providers are left as they are.

    Raises:
        IsabellaError: Letta cannot be reached, or the agents' file is malformed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind((_HOST, 0))
    address = f"http://{_HOST}:{listener.getsockname()[1]}"
    token = SecretStr(secrets.token_urlsafe(24))
    up = threading.Event()
    failed: list[BaseException] = []

    async def start(readiness: Readiness) -> None:
        try:
            # Vectors need an address that stays, so this one makes none.
            async with (
                open_locks(settings, connection) as locks,
                open_agents(app, settings, connection, None) as agent_service,
                open_turns(app, agent_service, locks),
            ):
                readiness.phase = Phase.DEGRADED
                up.set()
                await anyio.sleep_forever()
        except IsabellaError as error:
            failed.append(error)
        finally:
            up.set()

    app = create_app(start, token=token)
    config = uvicorn.Config(app, log_config=None, log_level=logging.WARNING, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="private-backend", daemon=True)
    thread.start()
    try:
        up.wait()
        if failed:
            raise failed[0]
        yield InProcessBackend(address, token)
    finally:
        server.should_exit = True
        thread.join(_STOP_SECONDS)
