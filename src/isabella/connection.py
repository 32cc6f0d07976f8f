"""Which Letta is meant: the one at `LETTA_BASE_URL`, or the embedded one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from isabella.settings import Settings


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
    """

    base_url: str
    password: SecretStr | None = field(repr=False)
    master_key: SecretStr | None = field(repr=False)
    database_url: SecretStr | None = field(repr=False)
    home: Path
    timeout: float
    embedded: bool


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


async def connect(settings: Settings) -> Connection:
    """The Letta that the settings name, or else the embedded one, if it is running. Starts nothing.

    Raises:
        ConfigurationError: none is named, and none runs here.
    """
    configured = configured_connection(settings)
    if configured is not None:
        return configured
    raise NotImplementedError
