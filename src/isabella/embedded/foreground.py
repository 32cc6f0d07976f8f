"""Letta as the process of a container or of a service manager, on the operator's own Postgres.

The release is installed before, for instance in an image. This process becomes Letta's: it is replaced by it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field

from pydantic import SecretStr

from isabella.config.settings import Settings
from isabella.embedded import install, letta_process
from isabella.embedded.instance import DEFAULT_RELEASE, InstancePaths, make_private
from isabella.embedded.own_postgres import OwnPostgres
from isabella.errors import ConfigurationError, StartFailed
from isabella.system import state


@dataclass(frozen=True)
class ForegroundLetta:
    """The command and the environment of a Letta process. The environment has secrets, the command none."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)

    def replace_this_process(self) -> None:
        """Run it in the place of this process."""
        os.execve(self.command[0], self.command, self.environment)  # noqa: S606


def prepare_letta(settings: Settings, host: str, port: int, release: str = DEFAULT_RELEASE) -> ForegroundLetta:
    """Prepare Letta's database and folder, and return the process to run.

    Raises:
        ConfigurationError: a setting is missing or cannot be used, or the port is taken.
        EmbeddedError: the release is not installed, or the database cannot be used.
    """
    paths = InstancePaths(settings.home.expanduser().absolute(), release)
    password, master_key, url = _secrets(settings)
    variable = "ISABELLA_POSTGRES_URL" if settings.database_url is None else "ISABELLA_DATABASE_URL"
    installation = install.installed(paths)
    if installation is None:
        raise StartFailed(f"Letta {release} is not installed in {paths.program}.", remedy="isabella letta install")
    database = OwnPostgres.of(url, variable)
    revision = database.prepare()
    _refuse_taken_port(host, port)
    for folder in (paths.folder, paths.server_home):
        make_private(folder)
    letta_process.clear(paths)
    environment = letta_process.environment(
        paths,
        port=port,
        database=database.url,
        password=password,
        socket=None,
        master_key=master_key,
        extra=database.environment,
        sandbox=settings.tool_sandbox,
        migrate=revision != installation.migration_head,
        tls=database.tls,
    )
    command = [*letta_process.launch_command(paths), "server", "--secure", "--host", host, "--port", str(port)]
    # Letta writes files relative to its working directory, and reads a `.env` there.
    os.chdir(paths.server_home)
    return ForegroundLetta(tuple(command), environment)


def _secrets(settings: Settings) -> tuple[SecretStr, SecretStr, SecretStr]:
    """Return Letta's password, its master key and the URL of its database."""
    found = {
        "LETTA_API_KEY": settings.letta_api_key,
        "LETTA_ENCRYPTION_KEY": settings.letta_encryption_key,
        "ISABELLA_DATABASE_URL": settings.known_database,
    }
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise ConfigurationError(
            f"Letta needs {', '.join(missing)}: its password, its master key, and its database.",
            remedy="Set them, or name files that hold them (LETTA_API_KEY_FILE, …).",
        )
    password, master_key, url = (value for value in found.values() if value is not None)
    return password, master_key, url


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
