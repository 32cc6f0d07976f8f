"""Everything that Letta's database holds sealed: found by the names of its columns, opened, and sealed anew.

Letta 0.16.8 has such columns for providers' keys, environment variables of agents and of sandboxes, and tokens,
headers and OAuth secrets of MCP servers; each ends in `_enc`. Which there are is asked of the database, so that no
release's list can be incomplete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from isabella.embedded import postgres
from isabella.errors import EmbeddedError, LockTimeout
from isabella.letta.encryption import decrypt, encrypt, looks_encrypted
from isabella.locks.sync_lock import ADVISORY_KEY

if TYPE_CHECKING:
    from psycopg import Connection

_COLUMNS = """
SELECT table_name, array_agg(column_name::text ORDER BY column_name) FILTER (WHERE column_name LIKE '%\\_enc'),
       array_agg(column_name::text)
FROM information_schema.columns
WHERE table_schema = 'public'
GROUP BY table_name
HAVING count(*) FILTER (WHERE column_name LIKE '%\\_enc') > 0
ORDER BY table_name
"""
_SECONDS_FOR_LOCK = 120
#: By what a row is known to people, where its table has such a column.
_NAMES = ("name", "server_name", "key")


class ValueState(StrEnum):
    """How a value stands in the database."""

    #: Sealed under a key that we have.
    SEALED = "sealed"
    PLAINTEXT = "plaintext"
    #: Sealed under a key that we do not have, or damaged: Letta cannot open it either.
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class EncryptedValue:
    """One value in one row.

    Attributes:
        table: the table.
        column: the column.
        id: the row.
        name: what people know the row by.
        text: what stands there.
    """

    table: str
    column: str
    id: str
    name: str
    text: str = field(repr=False)

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.table}.{self.column} of {self.name}"


@dataclass(frozen=True)
class DecryptedValue:
    """A value, and what became of opening it.

    Attributes:
        value: the value.
        how: how it stands there.
        key: which of the keys opens it; None where none does, or none is needed.
        plain: what is in it.
    """

    value: EncryptedValue
    how: ValueState
    key: SecretStr | None = None
    plain: SecretStr | None = field(default=None, repr=False)


def read_values(address: SecretStr, keys: Sequence[SecretStr]) -> list[DecryptedValue]:
    """Open everything that is sealed. Changes nothing.

    Args:
        address: the database.
        keys: the master keys that may open it.

    Raises:
        EmbeddedError: the database cannot be read.
    """
    import psycopg

    try:
        with postgres.connect(address) as connection:
            return _decrypt_all(_values(connection), keys)
    except psycopg.Error as error:
        raise _unreadable(error) from error


def reencrypt(address: SecretStr, former: Sequence[SecretStr], key: SecretStr) -> list[DecryptedValue]:
    """Seal everything under one key, in one transaction: afterwards all of it is, or nothing was changed.

    What is under that key already is left as it is, so this can be done again. Plaintext is sealed, too. What no
    key opens is left as it is. Letta must not run: it would go on writing under the key that it was started with.

    Args:
        address: the database.
        former: the master keys that may have been used.
        key: the one to seal under.

    Returns:
        What was found.

    Raises:
        EmbeddedError: the database cannot be written, or what was written could not be proven.
    """
    import psycopg

    try:
        with postgres.connect(address) as connection, connection.transaction():
            _lock(connection)
            found = _decrypt_all(_values(connection), [key, *former])
            todo = [one for one in found if one.plain is not None and one.key != key]
            written = _encrypt_all(todo, key)
            for value, text in written:
                _write(connection, value, text)
            _verify_written(_values(connection), written)
            return found
    except psycopg.Error as error:
        raise _unreadable(error) from error


@contextmanager
def hold_sync_lock(address: SecretStr) -> Iterator[None]:
    """Hold the lock under which providers are written, so that nobody is in the middle of it.

    Raises:
        EmbeddedError: the database cannot be used.
        LockTimeout: somebody has been at it for too long.
    """
    import psycopg

    try:
        connection = postgres.connect(address)
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{_SECONDS_FOR_LOCK}s",))
        connection.execute("SELECT pg_advisory_lock(%s)", (ADVISORY_KEY,))
    except psycopg.errors.LockNotAvailable:
        raise LockTimeout(
            f"Another process has been syncing this Letta for {_SECONDS_FOR_LOCK} s.",
            remedy="Wait for it, or look for a process that hangs.",
        ) from None
    except psycopg.Error as error:
        raise _unreadable(error) from error
    with connection:
        yield


def _decrypt_all(values: Iterable[EncryptedValue], keys: Sequence[SecretStr]) -> list[DecryptedValue]:
    def opened(value: EncryptedValue) -> DecryptedValue:
        if not looks_encrypted(value.text):
            return DecryptedValue(value, ValueState.PLAINTEXT, plain=SecretStr(value.text))
        for key in keys:
            plain = decrypt(value.text, key.get_secret_value())
            if plain is not None:
                return DecryptedValue(value, ValueState.SEALED, key, SecretStr(plain))
        return DecryptedValue(value, ValueState.UNREADABLE)

    # Deriving a key takes 35 ms, and lets other threads work meanwhile.
    with ThreadPoolExecutor() as threads:
        return list(threads.map(opened, values))


def _encrypt_all(found: Sequence[DecryptedValue], key: SecretStr) -> list[tuple[EncryptedValue, str]]:
    """Each value with its new text, which has been opened again: nothing else is ever written."""

    def sealed(one: DecryptedValue) -> tuple[EncryptedValue, str]:
        plain = one.plain.get_secret_value() if one.plain is not None else ""
        text = encrypt(plain, key.get_secret_value())
        if decrypt(text, key.get_secret_value()) != plain:
            raise EmbeddedError(f"{one.value.place} could not be sealed; nothing was changed.")
        return one.value, text

    with ThreadPoolExecutor() as threads:
        return list(threads.map(sealed, found))


def _values(connection: Connection[Any]) -> list[EncryptedValue]:
    from psycopg import sql

    values: list[EncryptedValue] = []
    for table, columns, every in connection.execute(_COLUMNS).fetchall():
        if "id" not in every:
            raise EmbeddedError(f"Letta's table {table} holds secrets, and has no id: this is not done here.")
        name = next((name for name in _NAMES if name in every), "id")
        query = sql.SQL("SELECT id, {}, {} FROM {} ORDER BY id").format(
            sql.Identifier(name), sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(table)
        )
        for id, known_by, *texts in connection.execute(query).fetchall():
            values += [
                EncryptedValue(table, column, str(id), str(known_by or id), str(text))
                for column, text in zip(columns, texts, strict=True)
                if text
            ]
    return values


def _lock(connection: Connection[Any]) -> None:
    from psycopg import sql

    for table, *_ in connection.execute(_COLUMNS).fetchall():
        # Reading goes on; whoever else would write waits until this is over.
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(sql.Identifier(table)))


def _write(connection: Connection[Any], value: EncryptedValue, text: str) -> None:
    from psycopg import sql

    statement = sql.SQL("UPDATE {} SET {column} = %s WHERE id = %s AND {column} = %s").format(
        sql.Identifier(value.table), column=sql.Identifier(value.column)
    )
    if connection.execute(statement, (text, value.id, value.text)).rowcount != 1:
        raise EmbeddedError(f"{value.place} was changed meanwhile; nothing was written.")


def _verify_written(now: Iterable[EncryptedValue], written: Iterable[tuple[EncryptedValue, str]]) -> None:
    """Read back what was written, before it counts."""
    texts = {(value.table, value.column, value.id): value.text for value in now}
    for value, text in written:
        if texts.get((value.table, value.column, value.id)) != text:
            raise EmbeddedError(f"{value.place} does not hold what was written; nothing was changed.")


def _unreadable(error: Exception) -> EmbeddedError:
    lines = str(error).strip().splitlines()
    return EmbeddedError(f"Letta's database: {lines[0] if lines else type(error).__name__}")
