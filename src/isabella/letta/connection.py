"""Which Letta is meant: the one at `LETTA_BASE_URL`, or the embedded one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
from pydantic import SecretStr

from isabella.config.settings import Settings
from isabella.errors import ConfigurationError
from isabella.system.peers import Peer

if TYPE_CHECKING:
    from isabella.embedded import Letta


@dataclass(frozen=True)
class Connection:
    """How to reach a Letta.

    Attributes:
        base_url: its address.
        password: its server password or cloud token.
        master_key: the one under which it seals keys, as far as we know it.
        database_url: its Postgres, for the lock.
        home: the folder for locks and proofs.
        timeout: seconds it may take to answer.
        embedded: whether Isabella runs it herself.
        peer: by which its process is known before anything is sent there; None for a Letta that is not ours.
    """

    base_url: str
    password: SecretStr | None = field(repr=False)
    master_key: SecretStr | None = field(repr=False)
    database_url: SecretStr | None = field(repr=False)
    home: Path
    timeout: float
    embedded: bool
    peer: Peer | None = field(default=None, repr=False, compare=False)


def configured_connection(settings: Settings) -> Connection | None:
    """The Letta at `LETTA_BASE_URL`; None where that is not set."""
    if settings.letta_base_url is None:
        return None
    return Connection(
        base_url=settings.letta_base_url,
        password=settings.letta_api_key,
        master_key=settings.letta_encryption_key,
        database_url=settings.database_url,
        home=settings.home,
        timeout=settings.timeout,
        embedded=False,
    )


def embedded_connection(settings: Settings, letta: Letta) -> Connection:
    """The connection to an embedded Letta that runs."""
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
    """The Letta that the settings name, or else the embedded one, if it is running. Starts nothing.

    Raises:
        ConfigurationError: none is named, and none runs here.
        EmbeddedError: the embedded one runs under another master key than the configured one.
    """
    configured = configured_connection(settings)
    if configured is not None:
        return configured
    letta = await anyio.to_thread.run_sync(_running, settings)
    if letta is None:
        raise ConfigurationError(
            "No Letta is named, and none runs here.",
            remedy="Start one with `isabella letta up`, or put LETTA_BASE_URL into .env.",
        )
    return embedded_connection(settings, letta)


def _running(settings: Settings) -> Letta | None:
    from isabella.embedded import Server

    server = Server(settings.home, master_key=settings.letta_encryption_key)
    return server.up() if server.status().running else None
