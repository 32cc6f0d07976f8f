"""A Postgres with pgvector that Isabella does not run, as an operator has one."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import psycopg
from psycopg import sql
from pydantic import SecretStr

from isabella.embedded import ports, postgres
from isabella.embedded.instance import InstancePaths, make_home, make_private
from isabella.embedded.os_users import postgres_user, system_folder
from isabella.embedded.postgres import Cluster

ROLE = "letta_of_the_operator"
_SECONDS = 60.0


@dataclass(frozen=True)
class OperatorsPostgres:
    """A running one, with a role that owns nothing yet.

    Attributes:
        cluster: its data.
        port: its port on loopback.
        superuser: the password of `postgres`.
        password: that of the role.
    """

    cluster: Cluster
    port: int
    superuser: SecretStr
    password: SecretStr

    def url(self, name: str = "letta") -> str:
        """Return the URL of a database, as the role."""
        return f"postgresql://{ROLE}:{self.password.get_secret_value()}@127.0.0.1:{self.port}/{name}"

    def connect(self, name: str = "postgres") -> psycopg.Connection[Any]:
        """Return a connection of the superuser."""
        address = postgres.database_url(self.port, self.superuser, user=postgres.SUPERUSER, name=name)
        return postgres.connect(address)

    def create(self, name: str = "letta", *, extension: bool = True) -> None:
        """Create a database that the role owns, with pgvector."""
        with self.connect() as connection:
            made = sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(ROLE))
            connection.execute(made)
        if extension:
            with self.connect(name) as connection:
                connection.execute("CREATE EXTENSION vector")

    def size(self) -> int:
        """Return the size of the database in bytes."""
        with self.connect("letta") as connection:
            row = connection.execute("SELECT pg_database_size('letta')").fetchone()
        return int(row[0]) if row else 0

    def kill(self) -> None:
        """Kill it, with all its sessions, as the kernel does when memory is short."""
        running = self.cluster.running()
        assert running is not None, "Postgres does not run"
        os.kill(running.process.pid, signal.SIGKILL)
        deadline = time.monotonic() + _SECONDS
        while self.cluster.running() is not None:
            assert time.monotonic() < deadline, "Postgres does not end"
            time.sleep(0.02)

    def start(self) -> None:
        """Start it on its port, as a service manager does."""
        self.cluster.start(self.port)

    def restart(self) -> None:
        """Stop it in order, and start it."""
        self.cluster.stop()
        self.start()


@contextmanager
def operators_postgres(home: Path) -> Iterator[OperatorsPostgres]:
    """Run one in a home of its own, which is deleted at the end."""
    paths, user = InstancePaths(home), postgres_user()
    make_home(home, group=user.gid if user else None)
    for folder in (paths.folder.parent, paths.folder, paths.logs):
        make_private(folder, group=user.gid if user else None)
    cluster = postgres.prepare_cluster(paths)
    superuser, password = SecretStr(token_hex(32)), SecretStr(f"canary-{token_hex(12)}")
    cluster.make(superuser)
    port = cluster.start(ports.choose_port(5434)).port
    running = OperatorsPostgres(cluster, port, superuser, password)
    try:
        with running.connect() as connection:
            made = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
            connection.execute(made.format(sql.Identifier(ROLE), sql.Literal(password.get_secret_value())))
        yield running
    finally:
        cluster.stop()
        shutil.rmtree(system_folder(home), ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)
