"""The encrypted values in Letta's database: found by the names of their columns, decrypted, and re-encrypted.

Letta 0.16.8 has encrypted columns for providers' keys, environment variables of agents and of sandboxes, and tokens,
headers and OAuth secrets of MCP servers; their names end in `_enc`. The columns are read from the database, so that
those of any release are found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
_AGAIN = "Repeat the command."
#: Columns with a name of the row for people; the first that the table has is used.
_NAME_COLUMNS = ("name", "server_name", "key")


class ValueState(StrEnum):
    """State of a value in an encrypted column."""

    ENCRYPTED = "encrypted"  # encrypted with a known master key
    PLAINTEXT = "plaintext"
    UNREADABLE = "unreadable"  # encrypted with an unknown master key, or damaged: Letta cannot decrypt it either


@dataclass(frozen=True)
class StoredValue:
    """One value in one row, and, once it is decrypted, the result."""

    table: str
    column: str
    id: str
    name: str  # the name of the row for people
    text: str = field(repr=False)
    key: SecretStr | None = None  # the master key that decrypts it; None if no key does, or none is needed
    plaintext: SecretStr | None = field(default=None, repr=False)  # None if the value is unreadable

    @property
    def state(self) -> ValueState:
        """Whether it is encrypted, and can be decrypted."""
        if self.plaintext is None:
            return ValueState.UNREADABLE
        return ValueState.PLAINTEXT if self.key is None else ValueState.ENCRYPTED

    @property
    def place(self) -> str:
        """Column and row, for messages."""
        return f"{self.table}.{self.column} of {self.name}"


def read_values(address: SecretStr, keys: Sequence[SecretStr]) -> list[StoredValue]:
    """Read and decrypt all encrypted values with the given master keys. Changes nothing."""
    with _connected(address) as connection:
        return read_values_in(connection, keys)


def read_values_in(connection: Connection[Any], keys: Sequence[SecretStr]) -> list[StoredValue]:
    """Read and decrypt all encrypted values that a connection sees."""
    return _decrypt_all(_read(connection), keys)


def reencrypt(address: SecretStr, former: Sequence[SecretStr], key: SecretStr) -> None:
    """Encrypt all values with one master key, in one transaction. `former` are the keys that may have been used.

    Plaintext is encrypted as well. Values that have the key already, or that no key decrypts, are left as they are,
    so the function can be called again. Letta must not be running: it would write with the key it was started with.
    """
    with _connected(address) as connection, connection.transaction():
        _lock_tables(connection)
        values = _decrypt_all(_read(connection), [key, *former])
        changed = [value for value in values if value.plaintext is not None and value.key != key]
        encrypted = list(zip(changed, _encrypt_all(changed, key), strict=True))
        for value, text in encrypted:
            _write(connection, value, text)
        _verify_written(_read(connection), encrypted)


@contextmanager
def hold_sync_lock(address: SecretStr) -> Iterator[None]:
    """Hold the lock under which providers are written, so that no sync is running; see `sync_lock`."""
    import psycopg

    with _connected(address) as connection:
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{_SECONDS_FOR_LOCK}s",))
        try:
            connection.execute("SELECT pg_advisory_lock(%s)", (ADVISORY_KEY,))
        except psycopg.errors.LockNotAvailable:
            raise LockTimeout(
                f"Another process has been syncing this Letta for {_SECONDS_FOR_LOCK} s.",
                remedy="Wait until it is done, or end it if it hangs.",
            ) from None
        yield


@contextmanager
def _connected(address: SecretStr) -> Iterator[Connection[Any]]:
    import psycopg

    try:
        with postgres.connect(address) as connection:
            yield connection
    except psycopg.Error as error:
        lines = str(error).strip().splitlines()
        raise EmbeddedError(
            f"Letta's database cannot be used: {lines[0] if lines else type(error).__name__}",
            remedy=postgres.UNUSABLE,
        ) from error


def _decrypt_all(values: Iterable[StoredValue], keys: Sequence[SecretStr]) -> list[StoredValue]:
    def decrypted(value: StoredValue) -> StoredValue:
        if not looks_encrypted(value.text):
            return replace(value, plaintext=SecretStr(value.text))
        for key in keys:
            plaintext = decrypt(value.text, key.get_secret_value())
            if plaintext is not None:
                return replace(value, key=key, plaintext=SecretStr(plaintext))
        return value

    # Deriving a key takes 35 ms and releases the GIL.
    with ThreadPoolExecutor() as threads:
        return list(threads.map(decrypted, values))


def _encrypt_all(values: Sequence[StoredValue], key: SecretStr) -> list[str]:
    """Return the new text of each value, which is decrypted once to verify it."""

    def encrypted(value: StoredValue) -> str:
        plaintext = value.plaintext.get_secret_value() if value.plaintext is not None else ""
        text = encrypt(plaintext, key.get_secret_value())
        if decrypt(text, key.get_secret_value()) != plaintext:
            raise EmbeddedError(f"{value.place} could not be encrypted; nothing was changed.", remedy=_AGAIN)
        return text

    with ThreadPoolExecutor() as threads:
        return list(threads.map(encrypted, values))


def _read(connection: Connection[Any]) -> list[StoredValue]:
    from psycopg import sql

    values: list[StoredValue] = []
    for table, columns, all_columns in connection.execute(_COLUMNS).fetchall():
        if "id" not in all_columns:
            raise EmbeddedError(
                f"Letta's table {table} has encrypted values, but no column `id`: Isabella cannot re-encrypt it.",
                remedy="Use a release of Letta that is known to work: docs/compatibility.md lists them.",
            )
        name_column = next((name for name in _NAME_COLUMNS if name in all_columns), "id")
        query = sql.SQL("SELECT id, {}, {} FROM {} ORDER BY id").format(
            sql.Identifier(name_column), sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(table)
        )
        for id, name, *texts in connection.execute(query).fetchall():
            values += [
                StoredValue(table, column, str(id), str(name or id), str(text))
                for column, text in zip(columns, texts, strict=True)
                if text
            ]
    return values


def _lock_tables(connection: Connection[Any]) -> None:
    from psycopg import sql

    for table, *_ in connection.execute(_COLUMNS).fetchall():
        # Other connections can read, but not write.
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(sql.Identifier(table)))


def _write(connection: Connection[Any], value: StoredValue, text: str) -> None:
    from psycopg import sql

    statement = sql.SQL("UPDATE {} SET {column} = %s WHERE id = %s AND {column} = %s").format(
        sql.Identifier(value.table), column=sql.Identifier(value.column)
    )
    if connection.execute(statement, (text, value.id, value.text)).rowcount != 1:
        raise EmbeddedError(f"{value.place} was changed by another process; nothing was written.", remedy=_AGAIN)


def _verify_written(now: Iterable[StoredValue], written: Iterable[tuple[StoredValue, str]]) -> None:
    """Compare the stored values with the written ones, before the transaction is committed."""
    texts = {(value.table, value.column, value.id): value.text for value in now}
    for value, text in written:
        if texts.get((value.table, value.column, value.id)) != text:
            raise EmbeddedError(
                f"{value.place} does not hold the value that was written; nothing was changed.", remedy=_AGAIN
            )
