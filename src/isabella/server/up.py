"""`isabella up`: it answers at once, and imports and starts everything else meanwhile.

What this module imports is imported before the backend answers, so it imports the rest inside functions.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

from uvicorn import Server as HttpServer

from isabella.config.settings import Settings
from isabella.errors import ConfigurationError
from isabella.server.options import ServeOptions
from isabella.server.running_backend import address_published, backend_url, check_address, ensure_token, only_backend
from isabella.server.startup_app import FIRST_STEP, STOP_SECONDS, StartupApp, http_server
from isabella.system.processes import interrupt_on_sigterm
from isabella.system.sockets import listening_socket
from isabella.system.terminal import messages_are_json

if TYPE_CHECKING:
    from isabella.embedded import Step
    from isabella.server.prerequisites import Prerequisites
    from isabella.server.running_backend import Token
    from isabella.server.services import Services

#: Seconds until a signal is handled at the latest.
_SIGNAL_SECONDS = 0.5


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
        with backend.served() as token:
            from isabella.server.prerequisites import start_prerequisites

            backend.load(token)
            prerequisites = start_prerequisites(settings, options, listener, stack, backend.on_step)
            try:
                backend.go_on(prerequisites)
                backend.wait()
            except KeyboardInterrupt:
                options.say(f"Stopping. Turns under way have {STOP_SECONDS} s to end; a second Ctrl-C ends them now.")
    return backend.exit_code


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


class _Backend:
    """The HTTP server in its own thread, which answers at once, and the application that it gets when imported.

    The main thread prepares, so that a signal can interrupt it.
    """

    def __init__(self, settings: Settings, options: ServeOptions, listener: socket.socket) -> None:
        self._settings = settings
        self._options = options
        self._listener = listener
        self._steps = [FIRST_STEP]
        self._prerequisites: Future[Prerequisites] = Future()
        self._services: Services | None = None
        self._app = StartupApp(self._steps, settings.host_names, self._fail)
        self._server = http_server(self._app)
        self._thread = threading.Thread(target=self._run, name="backend", daemon=True)
        # Until Python 3.13, a `Thread.join` that a signal interrupts takes the thread for ended.
        self._ended = threading.Event()
        self._errors: list[BaseException] = []
        self._address = backend_url(*listener.getsockname()[:2])

    @property
    def exit_code(self) -> int:
        """0 if it served until a signal, or was stopped by one while it was starting; 1 if it failed."""
        return 1 if self._services is not None and self._services.failed else 0

    @contextmanager
    def served(self) -> Iterator[Token]:
        """Serve while the block runs; its address is published. Yields the token that clients must send."""
        with address_published(self._settings.home, self._address):
            self._thread.start()
            try:
                self._options.say(f"Starting: {self._address} shows the progress  (stop: Ctrl-C)")
                self._options.set_up_logs()
                token = ensure_token(self._settings)
                _show_login(self._options, self._address, token)
                yield token
            finally:
                self._prerequisites.cancel()
                self._stop()
                try:
                    self._wait_until_ended()
                except KeyboardInterrupt:
                    self._server.force_exit = True
                    self._wait_until_ended()

    def load(self, token: Token) -> None:
        """Import the application in a separate thread; the server passes requests on to it when it is there."""
        threading.Thread(target=self._load, args=(token,), name="imports", daemon=True).start()

    def on_step(self, event: Step) -> None:
        """Show a step of the start as the reason why the backend is not ready."""
        if event.state == "started":
            self._steps.append(f"{event.name.capitalize()}: {event.detail}.")
        elif event.state == "done" and self._steps:
            self._steps.pop()

    def go_on(self, prerequisites: Prerequisites) -> None:
        """Open the services."""
        self._steps.clear()
        self._prerequisites.set_result(prerequisites)

    def wait(self) -> None:
        """Wait until the backend ends. Raises `KeyboardInterrupt` at a signal, or the error that ended the server."""
        self._wait_until_ended()
        for error in self._errors:
            raise error

    def _wait_until_ended(self) -> None:
        # A signal that comes just before this thread sleeps, or to another thread, does not wake it. Python handles
        # it when this thread runs again.
        while not self._ended.wait(_SIGNAL_SECONDS):
            pass

    def _load(self, token: Token) -> None:
        if not self._app.loaded.set_running_or_notify_cancel():
            return
        try:
            from isabella.server.services import Services

            bound = self._listener.getsockname()[:2]
            self._services = Services(self._settings, self._options, token.secret, bound, self._steps)
            self._app.loaded.set_result(self._services.application(self._prerequisites, self._stop))
        except BaseException as error:  # noqa: BLE001 - raised by `wait`
            self._app.loaded.set_exception(error)

    def _run(self) -> None:
        try:
            asyncio.run(_run_server(self._server, self._listener))
        except BaseException as error:  # noqa: BLE001 - raised by `wait`
            self._errors.append(error)
        finally:
            self._ended.set()

    def _fail(self, error: BaseException) -> None:
        self._errors.append(error)
        self._stop()

    def _stop(self) -> None:
        self._server.should_exit = True


async def _run_server(server: HttpServer, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])


def _show_login(options: ServeOptions, address: str, token: Token) -> None:
    """Print a link with a new token, and only on a terminal: other outputs may be stored."""
    from isabella.server.sessions import FIRST_LINK_SECONDS, login_link

    if token.made and sys.stderr.isatty() and not messages_are_json():
        link = login_link(address, token.secret, FIRST_LINK_SECONDS)
        options.say(f"To use it in a browser, within an hour: {link}")
    elif token.made:
        options.say("To use it in a browser: `isabella login` prints a link.")
