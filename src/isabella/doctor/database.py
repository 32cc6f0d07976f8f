"""Looks into Letta's database, where its address is known: what no request shows. Only reads."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretStr

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
