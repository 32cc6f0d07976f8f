"""The gateway as a process of its own, started and stopped with the embedded Letta."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread

from isabella.config.gateway_address import DEFAULT_PORT, SERVICE, state_file
from isabella.config.settings import Settings
from isabella.errors import GatewayError, IsabellaError
from isabella.gateway.app import TOKEN_HEADER
from isabella.providers.desired import desired_providers
from isabella.system.daemon import Daemon, RunningDaemon
from isabella.system.processes import ChildProcess

#: The environment variables that a Python program needs.
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "SYSTEMROOT", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
_CHECK_SECONDS = 0.25
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_REMEDY = "Start it: isabella gateway up"


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
        supervised: whether this process keeps the listening socket and starts the gateway again when it ends.

    Raises:
        GatewayError: it did not start; the message names its log.
    """
    argv = [sys.executable, "-P", "-m", "isabella.gateway", str(settings.home.absolute())]
    if settings.sources.dotenv or settings.sources.file != Path(".env"):
        argv += ["--env-file", str(settings.sources.file)]
    if settings.sources.overlay:
        argv += ["--practice"]
    environment = _environment(settings)
    identity = hashlib.sha256(repr([argv, str(Path.cwd()), _configured_by(settings)]).encode()).hexdigest()
    return daemon(settings.home).start(
        [*argv, "--fd"], environment, identity=identity, listener=listener, supervised=supervised
    )


def _configured_by(settings: Settings) -> list[tuple[str, str]]:
    """Return the variables of the environment that configure a gateway. It reads the files again by itself."""
    vendors = [desired.vendor for desired in desired_providers(settings)]
    names = {
        name for vendor in vendors for name in (vendor.api_key_env, vendor.api_key_file_env, vendor.base_url_env)
    }
    return sorted(
        (name, value)
        for name, value in settings.sources.environment.items()
        if name in names or name.startswith(("LETTA_", "ISABELLA_"))
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


class Supervisor:
    """Starts the gateway of this home, and starts it again when it has ended.

    It keeps the port open meanwhile: requests wait, and no other program can take the port and receive a key.

    Args:
        settings: the settings, practice vendors included.
        on_restart: is called with a sentence after the gateway was started again, or could not be.
    """

    def __init__(self, settings: Settings, on_restart: Callable[[str], None] = lambda _sentence: None) -> None:
        self.settings = settings
        self.on_restart = on_restart
        self._daemon = daemon(settings.home)
        self._listener: socket.socket | None = None
        self._process: ChildProcess | None = None

    def start(self) -> None:
        """Start the gateway, unless it runs already.

        Raises:
            GatewayError: it did not start.
        """
        if self._process is not None and self._daemon.recorded() is None:
            # Its record may have been lost while it runs.
            self._process.stop()
        running = up(self.settings, self._listener, supervised=True)
        if running.listener is not None:
            self._listener, self._process = running.listener, running.process

    async def run(self) -> None:
        """Start the gateway again whenever it has ended, until cancelled."""
        pause = _FIRST_PAUSE
        while True:
            await anyio.sleep(_CHECK_SECONDS)
            if self._daemon.recorded() is not None:
                continue
            try:
                await anyio.to_thread.run_sync(self.start)
            except IsabellaError as error:
                self.on_restart(f"{error} Trying again in {pause:g} s.")
                await anyio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                self.on_restart("The gateway had ended and was started again.")
                pause = _FIRST_PAUSE

    def stop(self) -> None:
        """Stop the gateway if this object started it, and release its port."""
        if self._listener is not None:
            self._daemon.stop()
            self._listener.close()
            self._listener = None
        if self._process is not None:
            self._process.stop()
            self._process = None
