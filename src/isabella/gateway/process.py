"""The gateway as a separate process, started and stopped with the embedded Letta."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
from pathlib import Path

from isabella.config.gateway_address import DEFAULT_PORT, SERVICE, state_file
from isabella.config.settings import Settings
from isabella.errors import GatewayError
from isabella.gateway.app import TOKEN_HEADER
from isabella.providers.desired import desired_providers
from isabella.system.daemon import Daemon, RunningDaemon
from isabella.system.english import english
from isabella.system.processes import ChildProcess
from isabella.system.supervision import Sight

#: The environment variables that a Python program needs.
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "SYSTEMROOT", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
_REMEDY = english("Start it: isabella gateway up")


def daemon(home: Path) -> Daemon:
    """Return the gateway of this home."""
    return Daemon(
        title="the gateway",
        folder=state_file(home).parent,
        default_port=DEFAULT_PORT,
        token_header=TOKEN_HEADER,
        health=("/control/health", SERVICE),
        error=GatewayError,
        remedy=_REMEDY,
    )


def starts_here(settings: Settings) -> bool:
    """Return whether Isabella runs the gateway of these settings, as opposed to one at a configured URL."""
    return settings.uses_gateway and settings.gateway in ("auto", "on")


def up(settings: Settings, listener: socket.socket | None = None, *, supervised: bool = False) -> RunningDaemon:
    """Start the gateway of this home, unless it runs with these settings. It reads the configuration by itself.

    A gateway that another process supervises stays as it is.

    Args:
        settings: the settings, practice vendors included.
        listener: the listening socket of a gateway that has ended.
        supervised: whether this process keeps the listening socket and restarts the gateway when it ends.

    Raises:
        GatewayError: it did not start; the message names its log.
    """
    argv = [sys.executable, "-P", "-m", "isabella.gateway", str(settings.home.absolute())]
    if settings.sources.dotenv or settings.sources.file != Path(".env"):
        argv += ["--env-file", str(settings.sources.file)]
    if settings.sources.overlay:
        argv += ["--practice", "until-key" if settings.sources.overlay_until_key else "always"]
    environment = _environment(settings)
    identity = hashlib.sha256(repr([argv, str(Path.cwd()), _configured_by(settings)]).encode()).hexdigest()
    return daemon(settings.home).start(
        [*argv, "--fd"], environment, identity=identity, listener=listener, supervised=supervised
    )


def _configured_by(settings: Settings) -> list[tuple[str, str]]:
    """Return the variables of the environment that configure a gateway. It reads the files again by itself."""
    names = {name for desired in desired_providers(settings) for name in desired.vendor.variables}
    return sorted(
        (name, value)
        for name, value in settings.sources.environment.items()
        if name in names or name.startswith(("LETTA_", "ISABELLA_", "OTEL_"))
    )


def _environment(settings: Settings) -> dict[str, str]:
    """Return the environment of these settings, with the home even if that was given as an option."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**passed_on, **settings.sources.environment, "ISABELLA_HOME": str(settings.home.absolute())}


def start(settings: Settings) -> RunningDaemon:
    """Start the gateway of this home, to run until it is stopped. Raises as `up` does."""
    running = up(settings)
    if running.listener is not None:
        running.listener.close()
    return running


class GatewayPart:
    """The gateway of this home, as a part that a supervisor watches.

    It keeps the port open while the gateway is down: requests wait, and no other program can take the port and
    receive a key.

    Args:
        settings: the settings, practice vendors included.
    """

    name = "The gateway"
    word = "gateway"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._daemon = daemon(settings.home)
        self._listener: socket.socket | None = None
        self._process: ChildProcess | None = None
        self._starting = threading.Lock()

    def look(self) -> Sight:
        """Look at its process; if it has ended, take its port."""
        running = self._daemon.recorded()
        if running is None:
            self._hold_port()
            return Sight(None)
        return Sight(
            running.process,
            english("%(name)s is stopped by a signal.", name=self.name) if running.process.is_stopped() else None,
        )

    def answers(self) -> bool:
        """Ask for its health."""
        return self._daemon.status() is not None

    def start(self, silent: ChildProcess | None = None) -> None:
        """Start the gateway, unless it runs already, and replace one that does not answer.

        Raises:
            GatewayError: it did not start.
        """
        with self._starting:
            if self._process is not None and self._daemon.recorded() is None:
                # Its record may have been lost while it runs.
                self._process.stop()
            running = up(self.settings, self._listener, supervised=True)
            if running.listener is not None:
                self._listener, self._process = running.listener, running.process

    def stop(self) -> None:
        """Stop the gateway if this object started it, and release its port."""
        # A signal can interrupt the start between the gateway's first answer and its return.
        if self._listener is not None or self._daemon.is_supervised_here():
            self._daemon.stop()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _hold_port(self) -> None:
        """Take the port of a gateway that another program had started, as soon as it has ended."""
        if self._listener is None and self._starting.acquire(blocking=False):
            try:
                self._listener = self._daemon.hold()
            finally:
                self._starting.release()
