"""The services of a backend: for `isabella up`, once its prerequisites run, or in the process of `isabella chat`."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import structlog
from fastapi import FastAPI
from pydantic import SecretStr

from isabella.agents.exports.folder import remove_leftovers
from isabella.api import add_receipts, ensure_providers
from isabella.config.settings import Settings
from isabella.connect import embedded_server
from isabella.errors import ConfigurationError, IsabellaError, LettaUnreachable
from isabella.letta.client import Connection, LettaClient
from isabella.locks.provider_lock import ProviderLock, open_locks
from isabella.providers.desired import desired_providers
from isabella.providers.report import Report
from isabella.server.app import create_app
from isabella.server.gateway_monitor import run_gateway_monitor
from isabella.server.nightly_backups import run_nightly_backups
from isabella.server.options import ServeOptions
from isabella.server.prerequisites import Prerequisites, start_embedded, start_gateway
from isabella.server.readiness import Phase
from isabella.server.running_backend import LOOPBACK, WILDCARDS, backend_url, only_backend
from isabella.server.runtime import Runtime, open_agents, open_turns, run_reflection, run_watcher
from isabella.server.sessions import Sessions
from isabella.server.startup_app import http_server
from isabella.server.supervised import Supervised, repeat_after_outage, run_supervisor
from isabella.server.window_follower import run_window_follower
from isabella.system import tracing
from isabella.system.processes import interrupt_on_sigterm
from isabella.system.sockets import listening_socket
from isabella.watch.watcher import LettaActions

log = structlog.get_logger()

_LONGEST_PAUSE = 10.0
_STOP_SECONDS = 15.0


class Services:
    """The services of a backend, which open once its prerequisites run.

    Args:
        settings: the settings of the start.
        options: the options of `isabella up`.
        token: the token that clients must send.
        bound: the host and the port that the server is bound to.
        steps: what is being done before that, the innermost last.
    """

    def __init__(
        self, settings: Settings, options: ServeOptions, token: SecretStr, bound: tuple[str, int], steps: list[str]
    ) -> None:
        self._options = options
        self._bound = bound
        self._address = backend_url(*bound)
        self._runtime = Runtime(token, settings, sessions=Sessions(token, _sessions(settings)))
        self._runtime.readiness.opened = False
        self._runtime.readiness.steps = steps

    @property
    def failed(self) -> bool:
        """Whether the backend has failed."""
        return self._runtime.readiness.phase is Phase.FAILED

    def application(self, prerequisites: Future[Prerequisites], stop: Callable[[], None]) -> FastAPI:
        """Return the application, which opens the services; `stop` stops its server if they fail."""

        async def start() -> None:
            await self._start(await asyncio.wrap_future(prerequisites), stop)

        settings = self._runtime.start_settings
        tracing.configure("isabella", {} if settings is None else settings.sources.dotenv)
        return create_app(self._runtime, start)

    async def _start(self, prerequisites: Prerequisites, stop: Callable[[], None]) -> None:
        runtime, supervised = self._runtime, Supervised.of(prerequisites.server, prerequisites.gateway)
        runtime.start_settings, runtime.start_connection = prerequisites.settings, prerequisites.connection
        served = anyio.Event()
        remove_leftovers(prerequisites.connection.home)

        async def run_services() -> None:
            await self._run_services(prerequisites, served, stop)

        try:
            async with run_supervisor(runtime, supervised, prerequisites.settings):
                await repeat_after_outage(
                    supervised.supervisor,
                    run_services,
                    seconds=prerequisites.settings.turn_wait,
                    until=served.is_set,
                )
        except Exception as error:  # noqa: BLE001 - a backend whose services have ended must not keep answering
            readiness = runtime.readiness
            readiness.fail(error)
            self._options.say(f"{'Stopped' if readiness.report else 'Not started'}: {readiness.error}")
            stop()

    async def _run_services(
        self, prerequisites: Prerequisites, served: anyio.Event, stop: Callable[[], None]
    ) -> None:
        runtime, settings, options = self._runtime, prerequisites.settings, self._options
        readiness, connection = runtime.readiness, runtime.start_connection or prerequisites.connection
        readiness.phase, readiness.error, readiness.opened = Phase.STARTING, None, False
        several = settings.several_backends
        async with open_locks(connection.database_url, patience=settings.gate_timeout, several=several) as locks:
            await _wait_for_letta(connection, options.say)
            await readiness.run_start_sync(lambda: _sync(settings, options, connection, locks))
            if readiness.error is not None:
                raise readiness.error
            if settings.strict and readiness.phase is not Phase.READY:
                options.say(f"Not started: {' '.join(readiness.reasons)}")
                readiness.phase = Phase.FAILED
                stop()
                return
            async with (
                open_agents(runtime, settings, connection, _url_for_letta(connection, *self._bound)) as agent_service,
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
                run_nightly_backups(runtime, settings, prerequisites.server),
            ):
                readiness.opened = True
                served.set()
                phase = readiness.phase.value.capitalize()
                options.say(f"{phase}: {self._address}  (API: {self._address}/docs, stop: Ctrl-C)")
                await anyio.sleep_forever()


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
        start_gateway(settings, options, stack)
        connection = start_embedded(settings, embedded_server(settings), options, stack)
        anyio.run(partial(ensure_providers, settings, connection=connection))
        yield connection


@dataclass(frozen=True)
class InProcessBackend:
    """The base URL and the token of a backend in this process."""

    address: str
    token: SecretStr


@contextmanager
def in_process_backend(settings: Settings, connection: Connection) -> Iterator[InProcessBackend]:
    """Serve agents and turns on a loopback port, in a thread, with its own token. Providers are not synced."""
    listener = listening_socket("127.0.0.1", 0)
    backend = InProcessBackend(
        backend_url("127.0.0.1", listener.getsockname()[1]), SecretStr(secrets.token_urlsafe(24))
    )
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


def _sessions(settings: Settings) -> Path:
    return settings.home / "sessions.json"


def _url_for_letta(connection: Connection, host: str, port: int) -> str | None:
    """Return the backend's base URL as Letta reaches it, for embeddings; None if Letta cannot reach it."""
    if urlsplit(connection.base_url).hostname in LOOPBACK:
        return backend_url(host, port)
    return None if host in LOOPBACK or host in WILDCARDS else backend_url(host, port)


async def _sync(settings: Settings, options: ServeOptions, connection: Connection, gate: ProviderLock) -> Report:
    report = await ensure_providers(settings, connection=connection, count_models=True, gate=gate)
    if options.verify:
        report = await add_receipts(report, connection, desired_providers(settings))
    options.show(report)
    return report


async def _wait_for_letta(connection: Connection, say: Callable[[str], None]) -> None:
    """Wait until Letta answers: the operator's own Letta server may be starting at the same time."""
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
