"""The address of the gateway between Letta and the vendors."""

from __future__ import annotations

from pathlib import Path

from isabella.config.settings import Settings
from isabella.system import state
from isabella.system.urls import GATEWAY_ERROR

#: What the gateway calls itself: in the answer of its health route, and as the type of its own errors.
SERVICE = GATEWAY_ERROR
HOST = "127.0.0.1"
DEFAULT_PORT = 8284


def state_file(home: Path) -> Path:
    """Return the file with the gateway's port and control token."""
    return home / "gateway" / "state.json"


def mark_file(folder: Path) -> Path:
    """Return the file in the gateway's folder that changes when a request was not answered in full."""
    return folder / "outcomes"


def gateway_address(settings: Settings) -> str | None:
    """Return the URL at which Letta reaches the gateway, without a path; None if it reaches the vendors directly.

    The gateway of this home keeps its port. With `auto` there is none before it was started for the first time.
    """
    if not settings.uses_gateway:
        return None
    if settings.gateway not in ("auto", "on"):
        return settings.gateway
    port = saved_port(settings.home)
    if port is None:
        return None if settings.gateway == "auto" else f"http://{HOST}:{DEFAULT_PORT}"
    return f"http://{HOST}:{port}"


def saved_port(home: Path) -> int | None:
    """Return the port of the gateway of this home; None if none was started yet."""
    return state.port_in(state.load(state_file(home)), "port")
