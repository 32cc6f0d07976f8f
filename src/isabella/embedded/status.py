"""What is there of an instance, and what of it runs: looked at, with nothing touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isabella.embedded import install, postgres, program
from isabella.embedded.paths import InstancePaths
from isabella.embedded.ports import base_url


@dataclass(frozen=True)
class ServiceStatus:
    """One of the two servers.

    Attributes:
        pid: its process; None where it does not run.
        port: where it listens on loopback; None where it does not run.
        healthy: whether it takes requests.
    """

    pid: int | None = None
    port: int | None = None
    healthy: bool = False


@dataclass(frozen=True)
class InstanceStatus:
    """What is there of an instance, and what of it runs.

    Attributes:
        release: Letta's version.
        instance: which instance of that release.
        installed: whether the release is installed completely.
        letta: the server.
        postgres: its database.
        base_url: Letta's address; None where it does not run.
        folder: the data of the instance.
        data: Postgres's data folder; None where there is none yet.
        password_file: where Letta's password is.
        letta_log: what Letta says.
        postgres_log: what Postgres says; None where it never ran.
    """

    release: str
    instance: str
    installed: bool
    letta: ServiceStatus
    postgres: ServiceStatus
    base_url: str | None
    folder: Path
    data: Path | None
    password_file: Path
    letta_log: Path
    postgres_log: Path | None

    @property
    def running(self) -> bool:
        """Whether both run and take requests."""
        return self.letta.healthy and self.postgres.healthy


def look(paths: InstancePaths, *, release: str, instance: str) -> InstanceStatus:
    """Look at what lies there and what runs of it.

    Args:
        paths: where everything of the instance lies.
        release: Letta's version.
        instance: which of several servers of that release.
    """
    run = program.running(paths)
    cluster = postgres.find(paths)
    postmaster = cluster.running() if cluster is not None else None
    return InstanceStatus(
        release=release,
        instance=instance,
        installed=install.installed(paths) is not None,
        letta=ServiceStatus(run.process.pid, run.port, program.is_healthy(run, release)) if run else ServiceStatus(),
        postgres=ServiceStatus(postmaster.process.pid, postmaster.port, postmaster.ready)
        if postmaster
        else ServiceStatus(),
        base_url=base_url(run.port) if run else None,
        folder=paths.folder,
        data=cluster.data if cluster else None,
        password_file=paths.password_file,
        letta_log=paths.letta_log,
        postgres_log=cluster.log if cluster else None,
    )
