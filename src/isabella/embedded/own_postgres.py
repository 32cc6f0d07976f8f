"""The operator's own Postgres, with pgvector, for Letta's database: verified, never started or stopped."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit

from pydantic import SecretStr

from isabella.embedded import postgres
from isabella.embedded.databases import DatabaseAccess
from isabella.errors import ConfigurationError, StartFailed
from isabella.locks.postgres import is_address
from isabella.system.redaction import redact

_TLS = ("verify-full", "verify-ca", "require")
_PLAIN = "disable"
_AUTHORITIES = "sslrootcert"
_DEFAULT_PORT = 5432
_SECONDS_TO_CONNECT = 10
_SECONDS_TO_ANSWER = 3


@dataclass(frozen=True)
class OwnPostgres:
    """Letta's database in it."""

    given: SecretStr = field(repr=False)
    url: SecretStr = field(repr=False)  # without options
    tls: str  # how connections are protected: `sslmode` of libpq
    variable: str  # the setting with the URL, for messages

    socket = None  # Letta reaches it over TCP

    @classmethod
    def of(cls, url: SecretStr, variable: str) -> OwnPostgres:
        """Return the database of a URL for psycopg; `ConfigurationError` if Letta cannot use it."""
        try:
            parsed = urlsplit(url.get_secret_value())
            usable = parsed.hostname and parsed.path.strip("/") and parsed.port != 0
            usable = usable and parsed.scheme in ("postgresql", "postgres") and is_address(url.get_secret_value())
        except ValueError:
            # A special character of the password that is not encoded is taken for the end of the host.
            usable = False
        if not usable:
            raise ConfigurationError(
                f"{variable} is not a URL of Postgres that Letta can use.",
                remedy="Write it as postgresql://user:password@host:5432/letta, with special characters in the "
                "password percent-encoded: %40 for @, %2F for /.",
            )
        wanted = (parse_qs(parsed.query).get("sslmode") or [_PLAIN])[-1]
        plain = f"postgresql://{parsed.netloc}{parsed.path}"
        # `prefer` and `allow` protect against nothing, and Letta's two drivers understand them differently.
        return cls(url, SecretStr(plain), wanted if wanted in _TLS else _PLAIN, variable)

    @property
    def where(self) -> str:
        """Host, port and name of the database."""
        parsed = urlsplit(self.url.get_secret_value())
        host = f"[{parsed.hostname}]" if ":" in str(parsed.hostname) else parsed.hostname
        return f"{host}:{self.port}{parsed.path}"

    @property
    def port(self) -> int:
        """Its port."""
        return urlsplit(self.url.get_secret_value()).port or _DEFAULT_PORT

    @property
    def client_url(self) -> SecretStr:
        """The URL for psycopg and Postgres' programs, with the protection that Letta's connections have."""
        options = {"sslmode": self.tls}
        if (authorities := self._authorities()) is not None and self.tls != _PLAIN:
            options[_AUTHORITIES] = authorities
        return SecretStr(f"{self.url.get_secret_value()}?{urlencode(options, safe='/')}")

    @property
    def environment(self) -> dict[str, str]:
        """Variables for Letta, whose driver looks there for the authorities of certificates."""
        authorities = self._authorities()
        return {} if authorities is None else {"PGSSLROOTCERT": authorities}

    def prepare(self) -> str | None:
        """Create the extension for vectors if it is missing, and return the last migration; None if there was none.

        Raises:
            StartFailed: the database cannot be used, or lacks what Letta needs. The message has no password.
        """
        import psycopg

        try:
            with psycopg.connect(
                self.client_url.get_secret_value(), connect_timeout=_SECONDS_TO_CONNECT
            ) as connection:
                known = connection.execute(
                    "SELECT 1 FROM pg_extension WHERE extname = %s", (postgres.EXTENSION,)
                ).fetchone()
                if known is None:
                    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
                revision = postgres.revision_in(connection)
                row = connection.execute("SELECT has_schema_privilege('public', 'CREATE'), current_user").fetchone()
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported) as error:
            raise StartFailed(
                f"The extension vector (pgvector) is not in Letta's database at {self.where}: {_said(error)}",
                remedy="Install pgvector, and as a superuser run in this database: CREATE EXTENSION vector",
            ) from None
        except psycopg.Error as error:
            raise StartFailed(
                f"Letta's database at {self.where} cannot be used: {_said(error)}",
                remedy=f"Check {self.variable}, that this database exists, and that Postgres accepts connections "
                "from here.",
            ) from None
        if row is not None and not row[0]:
            raise StartFailed(
                f"The role {row[1]} may not create tables in Letta's database at {self.where}.",
                remedy="As a superuser, make it the owner: ALTER DATABASE … OWNER TO …, or run in this database: "
                f'GRANT CREATE ON SCHEMA public TO "{row[1]}"',
            )
        return revision

    @property
    def ready(self) -> bool:
        """Whether it accepts connections. It is sent no secret."""
        from psycopg import pq

        parsed = urlsplit(self.url.get_secret_value())
        where = f"host={parsed.hostname} port={self.port} connect_timeout={_SECONDS_TO_ANSWER} sslmode={self.tls}"
        return pq.PGconn.ping(where.encode()) == pq.Ping.OK

    def stays(self) -> bool:
        """Return whether it accepts connections."""
        return self.ready

    def access(self) -> DatabaseAccess:
        """Return the access to the database, and to databases beside it, with the one role that is known."""
        return DatabaseAccess.of_own(self.client_url)

    def silence(self) -> StartFailed:
        """Return the error of a Postgres that does not answer."""
        return StartFailed(
            f"Postgres at {self.where} does not answer.",
            remedy=f"Start it, or check {self.variable}: Isabella starts and stops only a Postgres that it created.",
        )

    def _authorities(self) -> str | None:
        given = parse_qs(urlsplit(self.given.get_secret_value()).query).get(_AUTHORITIES)
        return given[-1] if given else os.environ.get("PGSSLROOTCERT")


def _said(error: Exception) -> str:
    return redact(" ".join(str(error).split()))
