"""Letta's database in a Postgres of the instance, as opposed to one of the operator's (`own_postgres`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from isabella.embedded import instance, ports, postgres
from isabella.embedded.databases import DatabaseAccess
from isabella.embedded.instance import InstancePaths
from isabella.embedded.postgres import Cluster, Postmaster
from isabella.embedded.progress import Progress, Step, step
from isabella.errors import EmbeddedError, StartFailed


class LettaPostgres(Protocol):
    """A Postgres as Letta's server needs it: the instance's or the operator's."""

    @property
    def where(self) -> str:
        """Host, port and name of the operator's database; empty for the one of the instance."""

    @property
    def url(self) -> SecretStr:
        """The URL of Letta's database, without options."""

    @property
    def client_url(self) -> SecretStr:
        """The URL for psycopg and Postgres' programs, with the options that protect the connection."""

    @property
    def tls(self) -> str:
        """The protection of connections: `sslmode` of libpq."""

    @property
    def socket(self) -> Path | None:
        """The Unix socket that Letta uses, if there is one."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Further variables for Letta."""

    @property
    def ready(self) -> bool:
        """Whether it accepts connections."""

    def stays(self) -> bool:
        """Return whether it runs; one that Isabella started is restarted on the same port if it has ended."""

    def access(self) -> DatabaseAccess:
        """Return the access to the database, and to databases beside it."""


@dataclass(frozen=True)
class InstancePostgres:
    """The Postgres of an instance as it was found or started."""

    paths: InstancePaths
    cluster: Cluster
    postmaster: Postmaster

    where = ""
    tls = "disable"

    @property
    def url(self) -> SecretStr:
        """The URL of Letta's database, without options."""
        return postgres.database_url(self.postmaster.port, self._password)

    @property
    def client_url(self) -> SecretStr:
        """The URL for psycopg and Postgres' programs."""
        return postgres.psycopg_url(self.url)

    @property
    def socket(self) -> Path | None:
        """Its socket; None if it has none, as one that an earlier version started."""
        path = self.cluster.socket(self.postmaster.port)
        return path if path is not None and path.is_socket() else None

    @property
    def environment(self) -> Mapping[str, str]:
        """No variables."""
        return {}

    @property
    def ready(self) -> bool:
        """Whether it accepted connections."""
        return self.postmaster.ready

    def stays(self) -> bool:
        """Return whether it runs; it is restarted on the same port if it has ended."""
        if self.cluster.running() is not None:
            return True
        try:
            self.cluster.start(self.postmaster.port)
        except StartFailed:
            return False
        return True

    def access(self) -> DatabaseAccess:
        """Return the access to the database, and to databases beside it."""
        return DatabaseAccess.of_instance(self.postmaster.port, superuser_password(self.paths), self._password)

    def prepare(self) -> None:
        """Create role, database and extension if they are missing."""
        postgres.prepare_database(
            self.postmaster.port, superuser_password=superuser_password(self.paths), password=self._password
        )

    @property
    def _password(self) -> SecretStr:
        """The password of the role that owns Letta's database."""
        return instance.load_or_create_secret(self.paths.database_password_file)


def find(paths: InstancePaths) -> InstancePostgres | None:
    """Return the running Postgres of an instance; None if it does not run."""
    cluster = postgres.find_cluster(paths)
    postmaster = None if cluster is None else cluster.running()
    return None if cluster is None or postmaster is None else InstancePostgres(paths, cluster, postmaster)


def cluster_of(paths: InstancePaths) -> Cluster:
    """Return the cluster of an instance; raise `EmbeddedError` if it was not created yet."""
    cluster = postgres.find_cluster(paths)
    if cluster is None:
        raise EmbeddedError(
            f"There is no database of Letta {paths.release} in this home.",
            remedy="Start one with `isabella letta up`.",
        )
    return cluster


def start(paths: InstancePaths, cluster: Cluster, progress: Progress, *, anew: bool = False) -> InstancePostgres:
    """Start the Postgres of an instance unless it runs. With `anew`, a cluster that was lost is recreated.

    Raises `StartFailed`.
    """
    running = cluster.wait()
    if running is not None:
        progress(Step("postgres", "skipped", f"is running on port {running.port}"))
        return InstancePostgres(paths, cluster, running)
    with step(progress, "postgres", "database of this instance, on loopback, with a password"):
        if not cluster.exists():
            if not anew:
                _refuse_lost_database(paths, cluster)
            cluster.make(instance.load_or_create_secret(paths.superuser_password_file))
        postmaster = ports.start_on_port(paths, "postgres", cluster.start, progress)
    return InstancePostgres(paths, cluster, postmaster)


def stop(paths: InstancePaths, progress: Progress) -> bool:
    """Stop the Postgres of an instance. Return whether it ran."""
    running = find(paths)
    if running is None:
        return False
    with step(progress, "stop", "Postgres"):
        return running.cluster.stop()


def superuser_password(paths: InstancePaths) -> SecretStr:
    """Return the password of the superuser; raise `StartFailed` if it is lost."""
    path = paths.superuser_password_file
    password = instance.load_secret(path)
    if password is None:
        raise StartFailed(
            f"{path} holds no password, and the database of this instance requires the one that it held.",
            remedy="Restore the file from a backup.",
        )
    return password


def _refuse_lost_database(paths: InstancePaths, cluster: Cluster) -> None:
    """Raise `StartFailed` if there was a database: an empty one in its place would hide the loss."""
    known = paths.database_password_file
    if known.exists():
        raise StartFailed(
            f"{cluster.data} is missing, or not a complete database: it has no file PG_VERSION.",
            remedy=f"Restore the folder from a backup. For an empty one, move {known.parent} away.",
        )
