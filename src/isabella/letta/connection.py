"""How to reach a Letta server. `isabella.connect` adds the embedded one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from isabella.config.settings import Settings
from isabella.system.peers import Peer


@dataclass(frozen=True)
class Connection:
    """How to reach a Letta server."""

    base_url: str  # its base URL, without a trailing slash
    password: SecretStr | None = field(repr=False)  # its server password or cloud token
    master_key: SecretStr | None = field(repr=False)  # the key with which it encrypts stored keys, if it is known
    database_url: SecretStr | None = field(repr=False)  # its Postgres, for locks
    home: Path  # the folder of Isabella's locks and proofs
    timeout: float  # seconds to wait for a response
    embedded: bool  # whether Isabella runs this Letta
    #: verifies the process of an embedded Letta before anything is sent to it
    peer: Peer | None = field(default=None, repr=False, compare=False)


def configured_connection(settings: Settings) -> Connection | None:
    """Return the connection to the Letta at `LETTA_BASE_URL`; None if that is not set."""
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
