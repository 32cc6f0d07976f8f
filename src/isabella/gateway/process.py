"""The gateway as a process of its own, started and stopped with the embedded Letta."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from isabella.config.gateway_address import DEFAULT_PORT, state_file
from isabella.config.settings import Settings
from isabella.errors import GatewayError
from isabella.gateway.app import SERVICE, TOKEN_HEADER
from isabella.system.daemon import Daemon, RunningDaemon

#: The environment variables that a Python program needs.
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "SYSTEMROOT", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
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


def up(settings: Settings, listener: socket.socket | None = None) -> RunningDaemon:
    """Start the gateway of this home, unless it runs. It reads the configuration as this process does.

    Args:
        settings: the settings, practice vendors included.
        listener: its listening socket, if the caller keeps that open.

    Raises:
        GatewayError: it did not start; the message names its log.
    """
    argv = [sys.executable, "-P", "-m", "isabella.gateway", str(settings.home.absolute())]
    if settings.sources.dotenv or settings.sources.file != Path(".env"):
        argv += ["--env-file", str(settings.sources.file)]
    if settings.sources.overlay:
        argv += ["--practice"]
    return daemon(settings.home).start([*argv, "--fd"], _environment(settings), listener)


def _environment(settings: Settings) -> dict[str, str]:
    """Return the environment of these settings, with the home even if that was given as an option."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**passed_on, **settings.sources.environment, "ISABELLA_HOME": str(settings.home.absolute())}
