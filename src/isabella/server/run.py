"""Running a backend: for `isabella up`, with everything it needs, or within the process of `isabella chat`."""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import structlog
import uvicorn
from filelock import FileLock, Timeout
from pydantic import SecretStr

from isabella.api import add_receipts, ensure_providers
from isabella.config.settings import Settings
from isabella.connect import embedded_connection, embedded_server
from isabella.embedded import Progress, Server, Step
from isabella.embedded.instance import make_home, make_private
from isabella.embedded.os_users import postgres_user
from isabella.embedded.progress import step
from isabella.errors import ConfigurationError, EndedWhileStarting, IsabellaError, LettaUnreachable
from isabella.gateway.process import GatewayPart, starts_here
from isabella.letta.client import Connection, LettaClient, configured_connection
from isabella.locks.provider_lock import ProviderLock, open_locks
from isabella.practice import daemon
from isabella.practice.overlay import left_out, with_practice_vendors
from isabella.providers.desired import desired_providers
from isabella.providers.report import Report
from isabella.server.app import create_app, http_server
from isabella.server.gateway_monitor import run_gateway_monitor
from isabella.server.nightly_backups import run_nightly_backups
from isabella.server.readiness import Phase
from isabella.server.runtime import Runtime, open_agents, open_turns, run_reflection, run_watcher
from isabella.server.sessions import FIRST_LINK_SECONDS, Sessions, login_link
from isabella.server.supervised import Supervised, repeat_after_outage, run_supervisor
from isabella.server.token import (
    ADDRESS_FILE,
    LOOPBACK,
    Token,
    address_published,
    check_address,
    ensure_token,
    published_address,
)
from isabella.server.window_follower import run_window_follower
from isabella.system import processes, state
from isabella.system.daemon import HOST
from isabella.system.processes import interrupt_on_sigterm
from isabella.system.sockets import kept_port, listening_socket
from isabella.system.terminal import messages_are_json
from isabella.watch.watcher import LettaActions

log = structlog.get_logger()

#: Wildcard addresses, and the address at which this machine reaches a server bound to them.
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to

_LONGEST_PAUSE = 10.0
_STOP_SECONDS = 15.0


@dataclass(frozen=True)
class ServeOptions:
    """The options of `isabella up`."""

    practice: bool | None  #: use practice vendors; None: only if no vendor has a key and Letta is the embedded one
    verify: bool  #: also send one message through each provider
    progress: Callable[[], AbstractContextManager[Progress]]  #: opens the display of what the embedded servers do
    show: Callable[[Report], None]
    say: Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """Everything that the services of a backend need."""

    settings: Settings  #: including those of practice vendors
    connection: Connection
    supervised: Supervised
    server: Server | None  #: the embedded server; None with a Letta of the operator's own


def serve(settings: Settings, options: ServeOptions) -> int:
    """Serve at once, start everything meanwhile, and stop everything in reverse order after a signal.

    Return the exit code.
    """
    with (
        only_backend(settings),
        closing(_bind(settings)) as listener,
        interrupt_on_sigterm(),
        ExitStack() as stack,
    ):
        backend = _Backend(settings, options, listener)
        # Left before Letta is stopped: the callbacks of the stack come later.
        with backend.served():
            backend.go_on(_prepare(settings, options, listener, stack, backend.on_step))
            try:
                backend.wait()
            except KeyboardInterrupt:
                options.say("Stopped.")
    return backend.exit_code


def _prepare(
    settings: Settings, options: ServeOptions, listener: socket.socket, stack: ExitStack, on_step: Progress
) -> Prepared:
    """Start what the backend needs; the callbacks in `stack` stop it."""
    options = replace(options, progress=_both(options.progress, on_step))
    # Letta sends texts for embeddings to the backend, and everything to the practice vendors.
    kept: list[tuple[str, int]] = [listener.getsockname()[:2]]
    settings = _with_practice(settings, options, stack, kept)
    # Before Letta, which keeps the gateway's port.
    gateway = _start_gateway(settings, options, stack)
    connection, server = configured_connection(settings), None
    if connection is None:
        server = embedded_server(settings, kept_ports=tuple(kept))
        connection = _start_embedded(settings, server, options, stack)
    return Prepared(settings, connection, Supervised.of(server, gateway), server)


def _both(
    display: Callable[[], AbstractContextManager[Progress]], on_step: Progress
) -> Callable[[], AbstractContextManager[Progress]]:
    """Return a display that also passes each step to a function."""

    @contextmanager
    def show() -> Iterator[Progress]:
        with display() as progress:

            def both(event: Step) -> None:
                on_step(event)
                progress(event)

            yield both

    return show


@contextmanager
def temporary_letta(settings: Settings, options: ServeOptions) -> Iterator[Connection]:
    """Run the embedded Letta and the gateway while the block runs, as `serve` does, with the providers synced.

    Raises:
        ConfigurationError: no vendor is set up, or another backend of this home is starting.
    """
    if not any(provider.configured for provider in desired_providers(settings)):
        raise ConfigurationError(
            "No vendor is set up, and no Letta runs here.",
            remedy="Set one up with `isabella vendors add NAME`, or start practice vendors with `isabella up`.",
        )
    with only_backend(settings), interrupt_on_sigterm(), ExitStack() as stack:
        _start_gateway(settings, options, stack)
        connection = _start_embedded(settings, embedded_server(settings), options, stack)
        anyio.run(partial(ensure_providers, settings, connection=connection))
        yield connection


@contextmanager
def only_backend(settings: Settings) -> Iterator[None]:
    """Hold the lock of a home's backend while the block runs: a lock of the system, which ends with its process.

    Raises:
        ConfigurationError: another backend of this home runs, or the lock cannot be used.
    """
    home = settings.home.absolute()
    # The group passes through a home of root's to the database (see `os_users`).
    user = postgres_user() if settings.letta_base_url is None else None
    try:
        make_home(home, group=user.gid if user else None)
        make_private(home / "locks")
        state.make_way(home / "locks" / "backend.lock")
        lock = FileLock(home / "locks" / "backend.lock", mode=0o600)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigurationError(
            f"Isabella already runs on {home}{_running_at(home)}.",
            remedy="Use that one or stop it; for a second one, set ISABELLA_HOME to another folder.",
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or home}: cannot be used: {state.why(error)}.", remedy="Correct ISABELLA_HOME."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _running_at(home: Path) -> str:
    """Return the address of the running backend as the end of a sentence; a phrase for one that is starting."""
    process, address = processes.load(home / ADDRESS_FILE), published_address(home)
    if process is None or address is None or not process.is_running():
        return ", and is starting or stopping"
    return f" at {address} (process {process.pid})"


def _bind(settings: Settings) -> socket.socket:
    """Bind the port before anything is installed or started, so that a port in use is reported at once."""
    check_address(settings)
    try:
        return listening_socket(settings.host, settings.port)
    except OSError as error:
        raise ConfigurationError(
            f"Port {settings.port} of {settings.host} cannot be used: {error.strerror}.",
            remedy="Set ISABELLA_PORT to another port, for instance 8001, or to 0 for any free port.",
        ) from None


def _with_practice(
    settings: Settings, options: ServeOptions, stack: ExitStack, kept: list[tuple[str, int]]
) -> Settings:
    practice = options.practice
    if practice is None:
        # A Letta server of the operator's own never gets practice vendors unless asked for.
        keyless = not any(provider.configured for provider in desired_providers(settings))
        practice = keyless and settings.letta_base_url is None
    if not practice:
        return settings
    if options.practice is None:
        options.say(
            "No vendor key is configured, so Isabella uses PRACTICE VENDORS: local stand-ins that answer from a "
            "small script. To use real vendors, put a key into .env (see .env.example); it takes effect at once."
        )
    else:
        options.say("Isabella uses PRACTICE VENDORS: local stand-ins that answer from a small script.")
    for title in left_out():
        options.say(f"There is no practice vendor for {title}: it is used as soon as .env has a key for it.")
    running = daemon.up(settings.home, None, options.say)
    if running.started:
        stack.callback(daemon.down, settings.home)
    kept.append((HOST, running.port))
    if (port := kept_port(HOST, running.port)) is not None:
        stack.enter_context(port)
    return with_practice_vendors(settings, running, until_key=options.practice is None)


def _start_embedded(settings: Settings, server: Server, options: ServeOptions, stack: ExitStack) -> Connection:
    # Registered before the server is up, so that an interrupted start is cleaned up as well.
    if not server.status().running:
        stack.callback(_stop_embedded, server, options)
    with options.progress() as progress:
        try:
            letta = server.up(progress)
        except EndedWhileStarting as error:
            progress(Step("letta", "note", f"{error.what.splitlines()[0]} It is started once more."))
            letta = server.up(progress)
        return embedded_connection(settings, letta)


def _start_gateway(settings: Settings, options: ServeOptions, stack: ExitStack) -> GatewayPart | None:
    """Start the gateway, if these settings have one that Isabella runs."""
    if not starts_here(settings):
        return None
    gateway = GatewayPart(settings)
    # Registered before it is up, so that an interrupted start is cleaned up as well.
    stack.callback(gateway.stop)
    with options.progress() as progress, step(progress, "gateway", "between Letta and the vendors"):
        gateway.start()
    return gateway


def _stop_embedded(server: Server, options: ServeOptions) -> None:
    with options.progress() as progress:
        server.down(progress)


class _Backend:
    """The HTTP server in a thread of its own, and the services, which open when everything is prepared.

    The main thread prepares, so that a signal can interrupt it.
    """

    def __init__(self, settings: Settings, options: ServeOptions, listener: socket.socket) -> None:
        self._settings = settings
        self._options = options
        self._listener = listener
        self._token = ensure_token(settings)
        self._runtime = Runtime(
            self._token.secret, settings, sessions=Sessions(self._token.secret, _sessions(settings))
        )
        self._prepared: Future[Prepared] = Future()
        self._server = http_server(create_app(self._runtime, self._start))
        self._thread = threading.Thread(target=self._run, name="backend", daemon=True)
        self._runtime.readiness.opened = False
        self._runtime.readiness.steps = ["Isabella is starting."]  # until the first step, and between two of them
        self._errors: list[BaseException] = []
        host, port = listener.getsockname()[:2]
        self._address = _url(_WILDCARDS.get(host, host), port)

    @property
    def exit_code(self) -> int:
        """0 if it served until a signal, or was stopped by one while it was starting; 1 if it failed."""
        readiness = self._runtime.readiness
        return 1 if readiness.phase is Phase.FAILED else 0

    @contextmanager
    def served(self) -> Iterator[None]:
        """Serve while the block runs; its address is published."""
        with address_published(self._settings.home, self._address):
            self._thread.start()
            self._options.say(f"Starting: {self._address} shows the progress  (stop: Ctrl-C)")
            _show_login(self._options, self._address, self._token)
            try:
                yield
            finally:
                self._prepared.cancel()
                self._server.should_exit = True
                try:
                    self._thread.join()
                except KeyboardInterrupt:
                    self._server.force_exit = True
                    self._thread.join()

    def on_step(self, event: Step) -> None:
        """Show a step of the start as the reason why the backend is not ready."""
        steps = self._runtime.readiness.steps
        if event.state == "started":
            steps.append(f"{event.name.capitalize()}: {event.detail}.")
        elif event.state == "done" and steps:
            steps.pop()

    def go_on(self, prepared: Prepared) -> None:
        """Open the services."""
        self._runtime.readiness.steps.clear()
        self._prepared.set_result(prepared)

    def wait(self) -> None:
        """Wait until the backend ends. Raises `KeyboardInterrupt` at a signal, or the error that ended the server."""
        self._thread.join()
        for error in self._errors:
            raise error

    def _run(self) -> None:
        try:
            anyio.run(_run_server, self._server, self._listener)
        except BaseException as error:  # noqa: BLE001 - raised by `wait`
            self._errors.append(error)

    async def _start(self) -> None:
        runtime, prepared = self._runtime, await asyncio.wrap_future(self._prepared)
        runtime.start_settings, runtime.start_connection = prepared.settings, prepared.connection
        served = anyio.Event()

        async def run_services() -> None:
            await self._run_services(prepared, served)

        try:
            async with run_supervisor(runtime, prepared.supervised, prepared.settings):
                await repeat_after_outage(
                    prepared.supervised.supervisor,
                    run_services,
                    seconds=prepared.settings.turn_wait,
                    until=served.is_set,
                )
        except Exception as error:  # noqa: BLE001 - a backend whose services have ended must not go on answering
            readiness = runtime.readiness
            readiness.fail(error)
            self._options.say(f"{'Stopped' if readiness.report else 'Not started'}: {readiness.error}")
            self._server.should_exit = True

    async def _run_services(self, prepared: Prepared, served: anyio.Event) -> None:
        runtime, settings, options = self._runtime, prepared.settings, self._options
        readiness, connection = runtime.readiness, runtime.start_connection or prepared.connection
        readiness.phase, readiness.error, readiness.opened = Phase.STARTING, None, False
        async with open_locks(connection.database_url, patience=settings.gate_timeout) as locks:
            await _wait_for_letta(connection, options.say)
            await readiness.run_start_sync(lambda: _sync(settings, options, connection, locks))
            if readiness.error is not None:
                raise readiness.error
            if settings.strict and readiness.phase is not Phase.READY:
                options.say(f"Not started: {' '.join(readiness.reasons)}")
                readiness.phase = Phase.FAILED
                self._server.should_exit = True
                return
            host, port = self._listener.getsockname()[:2]
            async with (
                open_agents(runtime, settings, connection, _url_for_letta(connection, host, port)) as agent_service,
                open_turns(runtime, agent_service, locks) as turn_service,
                run_reflection(agent_service, turn_service),
                run_window_follower(agent_service, turn_service.queue, runtime.event_log),
                run_watcher(
                    readiness,
                    settings,
                    LettaActions(locks),
                    agent_service.models,
                    on_event=runtime.on_watch_event,
                ) as runtime.watcher,
                run_gateway_monitor(runtime, turn_service),
                run_nightly_backups(runtime, settings, prepared.server),
            ):
                readiness.opened = True
                served.set()
                phase = readiness.phase.value.capitalize()
                options.say(f"{phase}: {self._address}  (API: {self._address}/docs, stop: Ctrl-C)")
                await anyio.sleep_forever()


def _sessions(settings: Settings) -> Path:
    return settings.home / "sessions.json"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _url_for_letta(connection: Connection, host: str, port: int) -> str | None:
    """Return the backend's base URL as Letta reaches it, for embeddings; None if Letta cannot reach it."""
    if urlsplit(connection.base_url).hostname in LOOPBACK:
        return _url(_WILDCARDS.get(host, host), port)
    return None if host in LOOPBACK or host in _WILDCARDS else _url(host, port)


async def _run_server(server: uvicorn.Server, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])


def _show_login(options: ServeOptions, address: str, token: Token) -> None:
    """Print a link with a new token, and only on a terminal: other outputs may be stored."""
    if token.made and sys.stderr.isatty() and not messages_are_json():
        link = login_link(address, token.secret, FIRST_LINK_SECONDS)
        options.say(f"To use it in a browser, within an hour: {link}")
    elif token.made:
        options.say("To use it in a browser: `isabella login` prints a link.")


async def _sync(settings: Settings, options: ServeOptions, connection: Connection, gate: ProviderLock) -> Report:
    report = await ensure_providers(settings, connection=connection, count_models=True, gate=gate)
    if options.verify:
        report = await add_receipts(report, connection, desired_providers(settings))
    options.show(report)
    return report


async def _wait_for_letta(connection: Connection, say: Callable[[str], None]) -> None:
    """Wait until Letta answers: a Letta server of the operator's own may be starting at the same time."""
    pause = 0.5
    async with LettaClient.open(connection) as letta:
        while True:
            try:
                await letta.providers.abilities()
            except LettaUnreachable as error:
                say(f"{error.what} Trying again in {pause:g} s.")
                await anyio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except IsabellaError:
                # A server answers; the sync reports what is wrong with it.
                return
            else:
                return


@dataclass(frozen=True)
class InProcessBackend:
    """The base URL and the token of a backend in this process."""

    address: str
    token: SecretStr


@contextmanager
def in_process_backend(settings: Settings, connection: Connection) -> Iterator[InProcessBackend]:
    """Serve agents and turns on a loopback port, in a thread, with a token of its own. Providers are not synced."""
    listener = listening_socket("127.0.0.1", 0)
    backend = InProcessBackend(_url("127.0.0.1", listener.getsockname()[1]), SecretStr(secrets.token_urlsafe(24)))
    runtime = Runtime(backend.token, settings, connection)
    started = threading.Event()
    errors: list[IsabellaError] = []

    async def start() -> None:
        try:
            # No base URL for embeddings: Letta stores it with the agent, and this port is temporary.
            async with (
                open_locks(connection.database_url, patience=settings.gate_timeout) as locks,
                open_agents(runtime, settings, connection, None) as agent_service,
                open_turns(runtime, agent_service, locks),
            ):
                runtime.readiness.phase = Phase.DEGRADED
                started.set()
                await anyio.sleep_forever()
        except IsabellaError as error:
            errors.append(error)
        finally:
            started.set()

    server = http_server(create_app(runtime, start))
    thread = threading.Thread(target=server.run, args=([listener],), name="in-process-backend", daemon=True)
    thread.start()
    try:
        started.wait()
        if errors:
            raise errors[0]
        yield backend
    finally:
        server.should_exit = True
        thread.join(_STOP_SECONDS)
