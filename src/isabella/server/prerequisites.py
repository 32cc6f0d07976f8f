"""The prerequisites of a backend, and how they start: practice vendors, the gateway, and the embedded Letta."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

from isabella.config.settings import Settings
from isabella.connect import embedded_connection, embedded_server
from isabella.embedded import Progress, Server, Step
from isabella.embedded.progress import step
from isabella.errors import EndedWhileStarting
from isabella.gateway.process import GatewayPart, starts_here
from isabella.letta.client import Connection, configured_connection
from isabella.practice import daemon
from isabella.practice.overlay import left_out, with_practice_vendors
from isabella.providers.desired import desired_providers
from isabella.server.options import ServeOptions
from isabella.system.daemon import HOST
from isabella.system.sockets import kept_port


@dataclass(frozen=True)
class Prerequisites:
    """The running prerequisites of a backend's services."""

    settings: Settings  #: including those of practice vendors
    connection: Connection
    gateway: GatewayPart | None  #: None if Isabella does not run one
    server: Server | None  #: the embedded server; None with the operator's own Letta


def start_prerequisites(
    settings: Settings, options: ServeOptions, listener: socket.socket, stack: ExitStack, on_step: Progress
) -> Prerequisites:
    """Start the prerequisites of a backend; the callbacks in `stack` stop them."""
    options = replace(options, progress=_both(options.progress, on_step))
    # Letta sends texts for embeddings to the backend, and everything to the practice vendors.
    kept: list[tuple[str, int]] = [listener.getsockname()[:2]]
    settings = _with_practice(settings, options, stack, kept)
    # Before Letta, which keeps the gateway's port.
    gateway = start_gateway(settings, options, stack)
    connection, server = configured_connection(settings), None
    if connection is None:
        server = embedded_server(settings, kept_ports=tuple(kept))
        connection = start_embedded(settings, server, options, stack)
    return Prerequisites(settings, connection, gateway, server)


def start_embedded(settings: Settings, server: Server, options: ServeOptions, stack: ExitStack) -> Connection:
    """Start the embedded Letta. The callbacks in `stack` stop it, unless it ran before."""
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


def start_gateway(settings: Settings, options: ServeOptions, stack: ExitStack) -> GatewayPart | None:
    """Start the gateway, if these settings have one that Isabella runs."""
    if not starts_here(settings):
        return None
    gateway = GatewayPart(settings)
    # Registered before it is up, so that an interrupted start is cleaned up as well.
    stack.callback(gateway.stop)
    with options.progress() as progress, step(progress, "gateway", "between Letta and the vendors"):
        gateway.start()
    return gateway


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


def _with_practice(
    settings: Settings, options: ServeOptions, stack: ExitStack, kept: list[tuple[str, int]]
) -> Settings:
    practice = options.practice
    if practice is None:
        # The operator's own Letta server never gets practice vendors unless asked for.
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


def _stop_embedded(server: Server, options: ServeOptions) -> None:
    with options.progress() as progress:
        server.down(progress)
