"""Letta's Postgres, for queries that take long through Letta: it is one process, which runs all turns."""

from __future__ import annotations

from typing import Any

import structlog
from pydantic import SecretStr

from isabella.errors import ConfigurationError
from isabella.locks.postgres import SharedSession

log = structlog.get_logger()


class LettaDatabase:
    """One session in Letta's Postgres, if its URL is known."""

    def __init__(self, url: SecretStr | None) -> None:
        self._session = None if url is None else SharedSession(url)

    def move(self, url: SecretStr | None) -> None:
        """Open later sessions at another address of the same Postgres."""
        if self._session is not None and url is not None:
            self._session.url = url

    async def select(self, statement: str, *values: Any) -> Any:
        """Return the JSON that a statement selects; None without a row, or without a Postgres that can be used."""
        if self._session is None:
            return None
        try:
            found = await self._session.fetch(statement, values)
        except ConfigurationError as error:
            log.info("Letta is asked, its database is not", error=error.what)
            return None
        return None if found is None else found[0]

    async def close(self) -> None:
        """End the session."""
        if self._session is not None:
            await self._session.close()
