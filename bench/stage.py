"""Where it is measured: two Lettas of the bench's own, with and without a master key, and practice vendors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isabella.api import ensure_providers
from isabella.config.settings import Settings
from isabella.config.sources import Sources
from isabella.connect import embedded_connection
from isabella.embedded import Letta, Server, Step
from isabella.letta.connection import Connection
from isabella.practice import PracticeVendors
from isabella.practice.overlay import with_practice_vendors
from isabella.providers.report import Report


@dataclass(frozen=True)
class Scene:
    """One Letta, and a configuration for it.

    Attributes:
        letta: the server.
        settings: what is configured; nothing of the reader's own `.env`.
        folder: a temporary folder, in which proofs are remembered.
    """

    letta: Letta
    settings: Settings
    folder: Path

    @property
    def connection(self) -> Connection:
        """How to reach it."""
        return embedded_connection(self.settings, self.letta)

    async def start(self) -> Report:
        """What a start of the backend does about providers; it has to end with all of them proven."""
        report = await ensure_providers(self.settings, connection=self.connection)
        assert report.ours, "nothing was configured"
        assert report.all_proven, [entry.reason for entry in report.ours if entry.proof != "proven"][:3]
        return report

    async def forget_proofs(self) -> None:
        """The next start has to derive every proof anew."""
        for path in self.folder.glob("proofs/*"):
            path.unlink()


@dataclass
class Stage:
    """Brings up what a subject asks for, once, and takes it all down in the end.

    Attributes:
        home: Isabella's home; the bench's servers are instances of their own there, and erased.
    """

    home: Path
    _open: ExitStack = field(default_factory=ExitStack)
    _lettas: dict[bool, Letta] = field(default_factory=dict)

    def letta(self, *, sealed: bool) -> Letta:
        """The Letta that seals, or the one that does not."""
        if sealed not in self._lettas:
            server = Server(self.home, instance="bench-sealed" if sealed else "bench-open", seal=sealed)
            # Whatever a run that was killed has left there.
            server.erase()
            self._open.callback(server.erase)
            print(f"starting a Letta {'with' if sealed else 'without'} a master key …", flush=True)
            self._lettas[sealed] = server.up(_say_what_takes_long)
        return self._lettas[sealed]

    @contextmanager
    def vendors(self, *, sealed: bool) -> Iterator[tuple[Scene, PracticeVendors]]:
        """A scene with the four vendors, played by practice vendors."""
        with PracticeVendors() as vendors, self.scene({}, sealed=sealed) as scene:
            settings = with_practice_vendors(scene.settings, vendors)
            yield Scene(scene.letta, settings, scene.folder), vendors

    @contextmanager
    def scene(self, environment: Mapping[str, str], *, sealed: bool, declared: str = "") -> Iterator[Scene]:
        """A scene with this environment, and this text as `isabella.toml`."""
        letta = self.letta(sealed=sealed)
        with tempfile.TemporaryDirectory(prefix="isabella-bench-") as folder:
            path = Path(folder)
            file = path / "isabella.toml"
            file.write_text(declared)
            own: dict[str, Any] = {"ISABELLA_HOME": path, "ISABELLA_CONFIG_FILE": file}
            yield Scene(letta, Settings(sources=Sources(environment), **own), path)

    def close(self) -> None:
        """Stop and erase all that was brought up."""
        self._open.close()


def _say_what_takes_long(event: Step) -> None:
    if event.state == "started" and event.name in ("fetch", "install", "wait"):
        print(f"  {event.name} {event.detail} …", flush=True)
