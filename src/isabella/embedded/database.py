"""Letta's database inside the cluster: its role, the database, pgvector, and how far its migrations went.

Letta gets a role that owns this one database and nothing else; the superuser's password stays with Isabella.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from isabella.embedded.ports import LOOPBACK
from isabella.embedded.postgres import SUPERUSER
from isabella.errors import StartFailed

if TYPE_CHECKING:
    from psycopg import Connection

ROLE = "isabella"
NAME = "letta"
_METHOD = "scram-sha-256"


def url(port: int, password: SecretStr, *, user: str = ROLE, name: str = NAME) -> SecretStr:
    """The address of a database, as psycopg and Letta's migrations want it (fact R4)."""
    return SecretStr(f"postgresql://{user}:{password.get_secret_value()}@{LOOPBACK}:{port}/{name}")


def for_us(address: SecretStr) -> SecretStr:
    """The same address for psycopg, which then shows the password to no server that does not know it already.

    By SCRAM both sides prove that they know it, and neither sends it.
    """
    return SecretStr(f"{address.get_secret_value()}?require_auth={_METHOD}")


def prepare(port: int, *, superuser_password: SecretStr, password: SecretStr) -> None:
    """Make role, database and extension, as far as they are missing, and give the role its password.

    Raises:
        StartFailed: Postgres refused.
    """
    import psycopg
    from psycopg import sql

    try:
        with connect(url(port, superuser_password, user=SUPERUSER, name="postgres")) as connection:
            # What is sent is the verifier, so that no failed statement can put the password into a log.
            verifier = connection.pgconn.encrypt_password(
                password.get_secret_value().encode(), ROLE.encode(), _METHOD.encode()
            ).decode()
            known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone()
            statement = "ALTER ROLE {} LOGIN PASSWORD {}" if known else "CREATE ROLE {} LOGIN PASSWORD {}"
            connection.execute(sql.SQL(statement).format(sql.Identifier(ROLE), sql.Literal(verifier)))
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (NAME,)).fetchone():
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(NAME), sql.Identifier(ROLE))
                )
        with connect(url(port, superuser_password, user=SUPERUSER)) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except psycopg.Error as error:
        raise StartFailed(
            f"The database on port {port} could not be prepared: {str(error).strip()}",
            remedy="If a password file of this instance was changed or lost, put it back.",
        ) from error


def migrated_to(port: int, password: SecretStr) -> str | None:
    """The migration that the database is at; None where none was run.

    Raises:
        StartFailed: Postgres refused.
    """
    import psycopg

    try:
        with connect(url(port, password)) as connection:
            row = connection.execute("SELECT to_regclass('public.alembic_version')").fetchone()
            if row is None or row[0] is None:
                return None
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return str(found[0]) if found else None
    except psycopg.Error as error:
        raise StartFailed(f"The database on port {port} could not be read: {str(error).strip()}") from error


def connect(address: SecretStr) -> Connection[tuple[Any, ...]]:
    """A connection that commits each statement, unless a transaction is opened."""
    import psycopg

    # The operator's PGSSLMODE is meant for other servers.
    return psycopg.connect(
        address.get_secret_value(), autocommit=True, sslmode="disable", connect_timeout=10, require_auth=_METHOD
    )
