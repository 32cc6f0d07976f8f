"""Letta as the process of a container or of a service manager, on a Postgres of the operator's own.

The release is installed before, for instance in an image. This process becomes Letta's: it is replaced by it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from pydantic import SecretStr

from isabella.config.settings import Settings
from isabella.embedded import install, postgres, program
from isabella.embedded.instance import DEFAULT_RELEASE, InstancePaths, make_private
from isabella.errors import ConfigurationError, StartFailed
from isabella.system import state
from isabella.system.redaction import redact

_TLS = ("verify-full", "verify-ca", "require")
_PLAIN = "disable"
_SECONDS_TO_CONNECT = 10


@dataclass(frozen=True)
class LettaProcess:
    """The command and the environment of a Letta process. The environment has secrets, the command none."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)

    def replace_this_process(self) -> None:
        """Run it in the place of this process."""
        os.execve(self.command[0], self.command, self.environment)  # noqa: S606


@dataclass(frozen=True)
class Database:
    """Letta's database: its URL without options, and how connections to it are protected."""

    url: SecretStr
    tls: str  # `sslmode` of libpq

    @classmethod
    def of(cls, url: SecretStr) -> Database:
        """Return the database of a URL for psycopg; `ConfigurationError` if Letta cannot use it."""
        parsed = urlsplit(url.get_secret_value())
        if parsed.scheme not in ("postgresql", "postgres") or not parsed.hostname or not parsed.path.strip("/"):
            raise ConfigurationError(
                "ISABELLA_DATABASE_URL is not a URL of Postgres that Letta can use.",
                remedy="Write it as postgresql://user:password@host:5432/letta",
            )
        wanted = (parse_qs(parsed.query).get("sslmode") or [_PLAIN])[-1]
        plain = f"postgresql://{parsed.netloc}{parsed.path}"
        # `prefer` and `allow` protect against nothing, and Letta's two drivers understand them differently.
        return cls(SecretStr(plain), wanted if wanted in _TLS else _PLAIN)


def letta_process(settings: Settings, host: str, port: int, release: str = DEFAULT_RELEASE) -> LettaProcess:
    """Prepare Letta's database and folder, and return the process to run.

    Raises:
        ConfigurationError: a setting is missing or cannot be used, or the port is taken.
        EmbeddedError: the release is not installed, or the database cannot be used.
    """
    paths = InstancePaths(settings.home.expanduser().absolute(), release)
    password, master_key, url = _secrets(settings)
    installation = install.installed(paths)
    if installation is None:
        raise StartFailed(f"Letta {release} is not installed in {paths.program}.", remedy="isabella letta install")
    database = Database.of(url)
    revision = _prepare(url)
    _refuse_taken_port(host, port)
    for folder in (paths.folder, paths.server_home):
        make_private(folder)
    program.clear(paths)
    environment = program.environment(
        paths,
        port=port,
        database=database.url,
        password=password,
        socket=None,
        master_key=master_key,
        # With `verify-full`, Letta's driver looks for the authorities there.
        extra={name: os.environ[name] for name in ("PGSSLROOTCERT",) if name in os.environ},
        sandbox=settings.tool_sandbox,
        migrate=revision != installation.migration_head,
        tls=database.tls,
    )
    command = [*program.launch_command(paths), "server", "--secure", "--host", host, "--port", str(port)]
    # Letta writes files relative to its working directory, and reads a `.env` there.
    os.chdir(paths.server_home)
    return LettaProcess(tuple(command), environment)


def _secrets(settings: Settings) -> tuple[SecretStr, SecretStr, SecretStr]:
    """Return Letta's password, its master key and the URL of its database."""
    found = {
        "LETTA_API_KEY": settings.letta_api_key,
        "LETTA_ENCRYPTION_KEY": settings.letta_encryption_key,
        "ISABELLA_DATABASE_URL": settings.database_url,
    }
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise ConfigurationError(
            f"Letta needs {', '.join(missing)}: its password, its master key, and its database.",
            remedy="Set them, or name files that hold them (LETTA_API_KEY_FILE, …).",
        )
    password, master_key, url = (value for value in found.values() if value is not None)
    return password, master_key, url


def _prepare(url: SecretStr) -> str | None:
    """Create the extension for vectors if it is missing, and return the last migration; None if there was none."""
    import psycopg

    try:
        with psycopg.connect(url.get_secret_value(), connect_timeout=_SECONDS_TO_CONNECT) as connection:
            known = connection.execute(
                "SELECT 1 FROM pg_extension WHERE extname = %s", (postgres.EXTENSION,)
            ).fetchone()
            if known is None:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            return postgres.revision_in(connection)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported) as error:
        raise StartFailed(
            f"The extension vector (pgvector) is not in Letta's database: {redact(str(error).strip())}",
            remedy="Install pgvector, and as a superuser run in this database: CREATE EXTENSION vector",
        ) from None
    except psycopg.Error as error:
        raise StartFailed(
            f"Letta's database cannot be used: {redact(str(error).strip())}",
            remedy="Check ISABELLA_DATABASE_URL, and that Postgres accepts connections from here.",
        ) from None


def _refuse_taken_port(host: str, port: int) -> None:
    """Raise if the address cannot be used: Letta would import for ten seconds first."""
    with closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"Letta cannot listen on port {port} of {host}: {state.why(error)}.", remedy="Choose another --port."
            ) from None
