"""The official SDK, opened for one Letta."""

from __future__ import annotations

import httpx
from letta_client import AsyncLetta

from isabella.connection import Connection
from isabella.peers import async_hooks

# Letta's server closes connections that were idle for 5 s. A message sent on one that is just being closed may or may
# not have arrived, so they are given up before; and as many turns as want to may run side by side.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0)


def open_sdk_client(connection: Connection) -> AsyncLetta:
    """A client for the agents of this Letta. It retries nothing: a repeated message would be said twice."""
    loopback = httpx.URL(connection.base_url).host in ("127.0.0.1", "localhost", "::1")
    return AsyncLetta(
        base_url=connection.base_url,
        api_key=connection.password.get_secret_value() if connection.password else None,
        max_retries=0,
        timeout=connection.timeout * 2,
        # A proxy of the environment has no business between us and a server on this machine.
        http_client=httpx.AsyncClient(
            trust_env=not loopback,
            timeout=connection.timeout * 2,
            limits=_LIMITS,
            event_hooks=async_hooks(connection.peer),
            # Loading the certificate store takes longer than all that a command does on a plain address.
            verify=connection.base_url.startswith("https:"),
        ),
    )
