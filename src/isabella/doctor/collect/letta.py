"""Looks at Letta over REST, everything at the same time. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from pydantic import SecretStr

from isabella.doctor.collect.process import find_process
from isabella.doctor.evidence import AgentEvidence, LettaEvidence, ProviderEvidence, VendorEvidence
from isabella.errors import IsabellaError, LettaError, LettaUnreachable
from isabella.letta import releases
from isabella.letta.client import LettaClient
from isabella.letta.connection import Connection
from isabella.letta.encryption import KeyMatch, KeyReading, ProofMemo, read_back
from isabella.letta.store import StoredProvider, read_store
from isabella.providers.desired import Desired
from isabella.system.tasks import gather
from isabella.vendors.client import KeyVerdict

_PATIENCE = 2


@dataclass(frozen=True)
class DatabaseEvidence:
    """What only the database tells.

    Attributes:
        deleted: names of soft-deleted providers (fact P6).
        base: names of base providers (fact P10).
        bare: names of live providers whose key stands in the old plaintext column only (fact O4).
    """

    deleted: frozenset[str]
    base: frozenset[str]
    bare: frozenset[str]


async def read_database(database_url: SecretStr) -> DatabaseEvidence | None:
    """Read it; None where that does not work, which is no finding: everything else goes on without."""
    import psycopg

    try:
        async with await psycopg.AsyncConnection.connect(
            database_url.get_secret_value(), connect_timeout=_PATIENCE, autocommit=True
        ) as connection:
            await connection.execute("SET default_transaction_read_only = on")
            await connection.execute(f"SET statement_timeout = {_PATIENCE * 1000}")
            found = await connection.execute(
                "SELECT name, is_deleted, organization_id IS NULL, "
                "coalesce(api_key, '') <> '' AND coalesce(api_key_enc, '') = '' FROM providers"
            )
            rows = await found.fetchall()
    except (psycopg.Error, OSError):
        return None
    return DatabaseEvidence(
        deleted=frozenset(name for name, deleted, base, _ in rows if deleted and not base),
        base=frozenset(name for name, deleted, base, _ in rows if base and not deleted),
        bare=frozenset(name for name, deleted, _, bare in rows if bare and not deleted),
    )


#: Seconds that a request may take, and that all of them may take together.
PATIENCE, ALTOGETHER = 3.0, 5.0
_RECEIPT = "isabella-receipt-"
_CHECKS = 8


class LettaCollector:
    """Looks at one Letta.

    Args:
        connection: how to reach it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def look(self, desired: Sequence[Desired]) -> LettaEvidence:
        """Everything that can be seen. Never raises for what Letta does."""
        connection = self._connection
        seen = LettaEvidence(base_url=connection.base_url, embedded=connection.embedded)
        try:
            with anyio.fail_after(ALTOGETHER):
                async with self._open() as letta:
                    snapshot = await read_store(letta.providers)
                    reached = replace(seen, abilities=snapshot.abilities)
                    return await self._beyond(letta, reached, snapshot.stored, desired)
        except IsabellaError as error:
            return replace(seen, error=error)
        except TimeoutError:
            what = f"Letta at {connection.base_url} did not answer within {ALTOGETHER:g} s."
            return replace(seen, error=LettaUnreachable(what, remedy="Look at its log.", sent=True))

    async def check(self, seen: LettaEvidence, asked: Mapping[str, VendorEvidence]) -> LettaEvidence:
        """Have Letta itself open the keys about which doubt is left, and show them to their vendors."""
        rows = list(seen.rows or ())
        doubtful = [index for index, row in enumerate(rows) if _doubtful(row, seen, asked)][:_CHECKS]
        if not doubtful:
            return seen
        async with self._open() as letta:
            checked = await gather([partial(_check, letta, rows[index]) for index in doubtful])
        for index, row in zip(doubtful, checked, strict=True):
            rows[index] = row
        return replace(seen, rows=tuple(rows))

    async def _beyond(
        self, letta: LettaClient, seen: LettaEvidence, stored: Sequence[StoredProvider], desired: Sequence[Desired]
    ) -> LettaEvidence:
        """What is asked once it is known that Letta answers."""
        connection = self._connection
        found: dict[str, Any] = {}

        async def rows() -> None:
            found["rows"] = await self._rows(stored, desired)

        async def agents() -> None:
            try:
                found["agents"] = await _agents(letta)
            except LettaError as error:
                found["agents_error"] = f"Letta did not list them ({type(error).__name__})"

        async def base() -> None:
            try:
                found["base"] = await letta.providers.base_providers()
            except LettaError:
                found["base"] = frozenset()

        async def open_() -> None:
            found["open"] = True if connection.password is None else await self._is_open()

        async def process() -> None:
            found["process"] = await anyio.to_thread.run_sync(
                find_process, connection.base_url, connection.master_key, abandon_on_cancel=True
            )

        async def database() -> None:
            if connection.database_url is not None:
                found["database"] = await read_database(connection.database_url)

        await gather([rows, agents, base, open_, process, database])
        known = found.pop("database", None)
        if known is not None:
            found["deleted"], found["bare"] = known.deleted, known.bare
            found["base"] |= known.base
        return replace(seen, **found)

    async def _rows(
        self, stored: Sequence[StoredProvider], desired: Sequence[Desired]
    ) -> tuple[ProviderEvidence, ...]:
        connection = self._connection
        memo = None
        if connection.master_key is not None:
            # The proofs that syncs have left behind; the doctor leaves none of its own.
            memo = ProofMemo.of(connection.home, connection.base_url, connection.master_key)
        by_name = {one.name: one for one in desired}

        async def row(one: StoredProvider) -> ProviderEvidence:
            wanted = by_name.get(one.name)
            if wanted is None:
                return ProviderEvidence(one)
            # Without a configured key there is still something to see: whether it is sealed, and whether it opens.
            key = "" if wanted.key is None else wanted.key.get_secret_value()
            read = partial(read_back, one.key_text, key, connection.master_key, memo, shown=one.key_shown)
            reading: KeyReading = await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
            return ProviderEvidence(one, reading)

        return tuple(await gather([partial(row, one) for one in stored], at_once=64))

    async def _is_open(self) -> bool | None:
        """Whether the providers are shown to somebody without a password."""
        try:
            async with self._open(replace(self._connection, password=None)) as letta:
                return await letta.providers.is_listed()
        except LettaError:
            return None

    def _open(self, connection: Connection | None = None) -> LettaClient:
        # Letta breaks a connection after it has answered 500; each request gets one of its own.
        return LettaClient.open(connection or self._connection, timeout=PATIENCE, keep_alive=False)


async def _agents(letta: LettaClient) -> tuple[AgentEvidence, ...]:
    """Every agent with what binds it, but for the temporary ones."""
    return tuple(
        AgentEvidence(row.id, row.name or row.id, row.llm)
        for row in await letta.agents.all()
        if row.llm is not None and not (row.name or "").startswith(_RECEIPT)
    )


def _doubtful(row: ProviderEvidence, seen: LettaEvidence, asked: Mapping[str, VendorEvidence]) -> bool:
    """Whether only Letta itself can tell if it can open a key. Its process, where it is known, tells more."""
    reading = row.reading
    if reading is None or seen.process is not None:
        return False
    if reading.match is KeyMatch.UNREADABLE:
        return True
    release = seen.abilities.release if seen.abilities is not None else None
    said = asked.get(row.stored.name)
    return (
        reading.match is KeyMatch.EQUAL
        and reading.sealed
        and row.stored.type in ("cerebras", "openai")
        and said is not None
        and said.answer.verdict is KeyVerdict.ACCEPTED
        # Older releases ask with no bearer at all, which would look the same (fact O10).
        and releases.has(release, "check")
    )


async def _check(letta: LettaClient, row: ProviderEvidence) -> ProviderEvidence:
    """Have Letta itself decrypt a key and try it."""
    try:
        check = await letta.providers.check(row.stored.id)
    except LettaError:
        return row
    return replace(row, opens=check.decrypted, accepted=check.accepted)
