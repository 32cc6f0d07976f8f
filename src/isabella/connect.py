"""Connections to the Letta that the settings mean: the one at `LETTA_BASE_URL`, or the embedded one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio.to_thread

from isabella.config.settings import Settings
from isabella.errors import ConfigurationError
from isabella.letta.client import Connection, configured_connection

if TYPE_CHECKING:
    from isabella.embedded import Letta, Server


def embedded_server(settings: Settings, **options: Any) -> Server:
    """Return the embedded server that the settings mean; `options` are further fields of `Server`."""
    # Imported late: with LETTA_BASE_URL, nothing of the embedded server is needed.
    from isabella.embedded import Server
    from isabella.embedded.backups import BackupPolicy
    from isabella.embedded.own_postgres import OwnPostgres

    url = settings.postgres_url
    given: dict[str, Any] = {
        "master_key": settings.letta_encryption_key,
        "backups": BackupPolicy.of(settings),
        "own": None if url is None else OwnPostgres.of(url, "ISABELLA_POSTGRES_URL"),
    }
    return Server(settings.home, lock=settings.letta_lock, sandbox=settings.tool_sandbox, **(given | options))


def embedded_connection(settings: Settings, letta: Letta) -> Connection:
    """Return the connection to an embedded Letta that runs."""
    return Connection(
        base_url=letta.base_url,
        password=letta.password,
        master_key=letta.master_key,
        database_url=letta.database_url,
        home=settings.home,
        timeout=settings.timeout,
        embedded=True,
        peer=letta.peer,
    )


async def connect(settings: Settings) -> Connection:
    """Return the connection to the Letta at `LETTA_BASE_URL`, or else to the embedded one. It starts nothing.

    Raises `ConfigurationError` if neither is there, and `EmbeddedError` if the embedded one has another master key,
    or the operator's Postgres does not answer.
    """
    connection = await connect_if_running(settings)
    if connection is None:
        await anyio.to_thread.run_sync(_refuse_silent_postgres, settings)
        raise ConfigurationError(
            "No Letta is configured, and none is running here.",
            remedy="Start one with `isabella letta up`, or put LETTA_BASE_URL into .env.",
        )
    return connection


async def connect_if_running(settings: Settings) -> Connection | None:
    """Return the connection to the Letta at `LETTA_BASE_URL`, or to the embedded one; None if that does not run.

    Raises `EmbeddedError` if the embedded one has another master key.
    """
    configured = configured_connection(settings)
    if configured is not None:
        return configured
    letta = await anyio.to_thread.run_sync(_running, settings)
    return None if letta is None else embedded_connection(settings, letta)


def _running(settings: Settings) -> Letta | None:
    return embedded_server(settings).running()


def _refuse_silent_postgres(settings: Settings) -> None:
    """Raise `EmbeddedError` if the embedded Letta is missing because the operator's Postgres is."""
    own = embedded_server(settings).own
    if own is not None and not own.ready:
        raise own.silence()
