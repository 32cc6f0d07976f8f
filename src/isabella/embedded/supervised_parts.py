"""Postgres, of the instance or the operator's, and Letta, as parts that a supervisor watches."""

from __future__ import annotations

from dataclasses import dataclass

from isabella.embedded import letta_process
from isabella.embedded.own_postgres import OwnPostgres
from isabella.embedded.server import Server
from isabella.system.english import english
from isabella.system.processes import ChildProcess
from isabella.system.supervision import Sight

_SECONDS = 3
#: Stands for the process of a Postgres that may be on another machine.
_UNKNOWN = ChildProcess(0, 0.0)


@dataclass(frozen=True)
class PostgresPart:
    """The database of an instance."""

    server: Server
    name = "Postgres"
    word = "postgres"

    def look(self) -> Sight:
        """Look at its process."""
        postmaster = self.server.postmaster()
        return sight_of(self.name, None if postmaster is None else postmaster.process, self.server)

    def answers(self) -> bool:
        """Ask whether it accepts connections."""
        postmaster = self.server.postmaster()
        return postmaster is not None and postmaster.answers(_SECONDS)

    def start(self, silent: ChildProcess | None) -> None:
        """Start it, after the end of a process that still does not answer."""
        self.server.start_postgres(silent=silent)


@dataclass(frozen=True)
class OwnPostgresPart:
    """The operator's own Postgres. It is asked, and never started; its process is not known."""

    own: OwnPostgres

    name = "Postgres"
    word = "postgres"

    def look(self) -> Sight:
        """Return that it may answer."""
        return Sight(_UNKNOWN)

    def answers(self) -> bool:
        """Ask whether it accepts connections."""
        return self.own.ready

    def start(self, silent: ChildProcess | None) -> None:
        """Raise why it is not started, unless it answers again."""
        if not self.answers():
            raise self.own.silence()


@dataclass(frozen=True)
class LettaPart:
    """Letta of an instance."""

    server: Server
    name = "Letta"
    word = "letta"

    def look(self) -> Sight:
        """Look at its process."""
        run = letta_process.running(self.server.paths)
        return sight_of(self.name, None if run is None else run.process, self.server)

    def answers(self) -> bool:
        """Ask for its health."""
        run = letta_process.running(self.server.paths)
        return run is not None and letta_process.is_healthy(run, self.server.release, timeout=_SECONDS)

    def start(self, silent: ChildProcess | None) -> None:
        """Start it, after the end of a process that still does not answer."""
        self.server.up(silent=silent)


def sight_of(name: str, process: ChildProcess | None, server: Server) -> Sight:
    """Return the observation of a process that may have ended or be stopped."""
    if process is None:
        wanted = not server.paths.stopped_file.exists()
        return Sight(
            None,
            None
            if wanted
            else english(
                "%(name)s was stopped with `isabella letta down`; `isabella letta up` starts it.", name=name
            ),
            wanted,
        )
    return Sight(process, english("%(name)s is stopped by a signal.", name=name) if process.is_stopped() else None)
