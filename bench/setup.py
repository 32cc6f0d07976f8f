"""The servers of the bench: a Letta with a master key, one without, and practice vendors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from isabella.api import ensure_providers
from isabella.config.settings import Settings
from isabella.config.sources import Sources
from isabella.connect import embedded_connection
from isabella.embedded import Letta, Server, Step
from isabella.embedded.instance_postgres import superuser_password
from isabella.embedded.postgres import SUPERUSER, database_url
from isabella.letta.client import Connection
from isabella.practice import PracticeVendors
from isabella.practice.overlay import with_practice_vendors
from isabella.providers.report import Report

#: The instances of the Letta with a master key, and of the one without.
_INSTANCES = {True: "bench-sealed", False: "bench-open"}


@dataclass(frozen=True)
class Setup:
    """A Letta server and a configuration for it.

    Attributes:
        letta: the server.
        settings: independent of the user's own `.env`.
        folder: a temporary folder, in which proofs are stored.
    """

    letta: Letta
    settings: Settings
    folder: Path

    @classmethod
    def in_home(cls, letta: Letta, home: Path, **variables: str) -> Setup:
        """Return a setup whose folder is the home of the backend, with these variables."""
        own = {"ISABELLA_HOME": str(home), "ISABELLA_CONFIG_FILE": str(home / "isabella.toml")}
        return cls(letta, Settings(sources=Sources(own | variables)), home)

    @property
    def connection(self) -> Connection:
        """The connection to the server."""
        return embedded_connection(self.settings, self.letta)

    async def start(self) -> Report:
        """Sync the providers as a start of the backend does; all must be proven."""
        report = await ensure_providers(self.settings, connection=self.connection)
        assert report.configured, "nothing was configured"
        assert report.all_proven, [entry.reason for entry in report.configured if entry.proof != "proven"][:3]
        return report

    async def forget_proofs(self) -> None:
        """Delete the remembered proofs."""
        for path in self.folder.glob("proofs/*"):
            path.unlink()


@dataclass
class Servers:
    """Starts each server when it is first used, and erases all of them at the end.

    Attributes:
        home: Isabella's home; the servers are separate instances there.
        prepare: called with a server before its first start.
    """

    home: Path
    prepare: Callable[[Server], None] = lambda _server: None
    _open: ExitStack = field(default_factory=ExitStack)
    _lettas: dict[bool, Letta] = field(default_factory=dict)

    @contextmanager
    def new(self, instance: str, **options: Any) -> Iterator[Server]:
        """Yield a server that has not been started, and erase it at the end."""
        server = Server(self.home, instance=instance, **options)
        # Remove the leftovers of a killed run.
        server.erase()
        try:
            self.prepare(server)
            yield server
        finally:
            server.erase()

    def letta(self, *, sealed: bool) -> Letta:
        """Return the Letta with a master key, or the one without."""
        if sealed not in self._lettas:
            server = self._open.enter_context(self.new(_INSTANCES[sealed], encrypt=sealed))
            print(f"starting a Letta {'with' if sealed else 'without'} a master key …", flush=True)
            self._lettas[sealed] = server.up(_print_long_step)
        return self._lettas[sealed]

    @contextmanager
    def vendors(self, *, sealed: bool) -> Iterator[tuple[Setup, PracticeVendors]]:
        """Yield a setup with the four practice vendors."""
        with PracticeVendors() as vendors, self.setup({}, sealed=sealed) as setup:
            settings = with_practice_vendors(setup.settings, vendors)
            yield Setup(setup.letta, settings, setup.folder), vendors

    @contextmanager
    def setup(self, environment: Mapping[str, str], *, sealed: bool, declared: str = "") -> Iterator[Setup]:
        """Yield a setup with this environment, and this text as `isabella.toml`."""
        letta = self.letta(sealed=sealed)
        with tempfile.TemporaryDirectory(prefix="isabella-bench-") as folder:
            path = Path(folder)
            file = path / "isabella.toml"
            file.write_text(declared)
            own: dict[str, Any] = {"ISABELLA_HOME": path, "ISABELLA_CONFIG_FILE": file}
            yield Setup(letta, Settings(sources=Sources(environment), **own), path)

    def close(self) -> None:
        """Stop and erase all servers."""
        self._open.close()


def superuser_url(server: Server, letta: Letta) -> SecretStr:
    """Return the URL of a running Letta's database, with the superuser of its Postgres."""
    port = urlsplit(letta.database_url.get_secret_value()).port or 0
    return database_url(port, superuser_password(server.paths), user=SUPERUSER)


def _print_long_step(event: Step) -> None:
    if event.state == "started" and event.name in ("fetch", "install", "wait"):
        print(f"  {event.name} {event.detail} …", flush=True)
