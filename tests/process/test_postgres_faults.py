"""A real Postgres whose disk, data folder or pid file is not as it was: named, and nothing made worse."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pytest
from pydantic import SecretStr

from isabella.embedded import ports, postgres
from isabella.embedded.instance import InstancePaths, make_home, make_private
from isabella.embedded.os_users import postgres_user
from isabella.embedded.postgres import Cluster
from isabella.errors import StartFailed

SUPERUSER = SecretStr("ab" * 16)
PORT = ports.choose_port(15433)


@pytest.fixture(scope="module")
def made() -> Iterator[Cluster]:
    """A cluster that does not run, with one table."""
    folder = Path(tempfile.mkdtemp(prefix="isabella-postgres-"))
    # Root's Postgres runs as another user, who has to pass through it.
    folder.chmod(0o755)
    paths = InstancePaths(folder / "home")
    user = postgres_user()
    make_home(paths.home, group=user.gid if user else None)
    for each in (paths.folder.parent, paths.folder, paths.logs):
        make_private(each)
    cluster = postgres.prepare_cluster(paths)
    cluster.make(SUPERUSER)
    cluster.start(PORT)
    with connect() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    cluster.stop()
    yield cluster
    cluster.stop()
    shutil.rmtree(folder)


def connect() -> psycopg.Connection[tuple[object, ...]]:
    """A session of the superuser."""
    return postgres.connect(postgres.database_url(PORT, SUPERUSER, user="postgres", name="postgres"))


def assert_starts(cluster: Cluster) -> None:
    """It starts, and the data are as they were."""
    postmaster = cluster.start(PORT)
    assert postmaster.answers(5)
    with connect() as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)


@pytest.fixture
def cluster(made: Cluster) -> Iterator[Cluster]:
    """The same for each test, stopped at its end."""
    yield made
    made.stop()


def files_of(folder: Path) -> dict[str, str]:
    """The content of every file below a folder, as hashes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("content", ["", "garbage\n", "{pid}\n/elsewhere\n1\n5433\n", "999999999\n/x\n"])
def test_a_leftover_pid_file_does_not_stop_it(cluster: Cluster, content: str) -> None:
    """Empty after a full disk, damaged, or with a pid that another program has by now."""
    (cluster.data / "postmaster.pid").write_text(content.replace("{pid}", str(os.getpid())))
    cluster._give_to_user(cluster.data / "postmaster.pid")
    assert_starts(cluster)


def test_what_a_killed_server_leaves_is_stopped(cluster: Cluster) -> None:
    """A session that does not notice the end of its server, because it is stopped, still uses the data."""
    postmaster = cluster.start(PORT)
    with connect() as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        session = psutil.Process(int(str(row[0])))
        session.suspend()
        killed = psutil.Process(postmaster.process.pid)
        killed.kill()
        psutil.wait_procs([killed], timeout=10)
        assert_starts(cluster)
        assert not session.is_running() or session.status() == psutil.STATUS_ZOMBIE


def test_a_second_server_on_the_same_data_is_refused(cluster: Cluster) -> None:
    """One that runs is left alone, even if its pid file was lost."""
    postmaster = cluster.start(PORT)
    (cluster.data / "postmaster.pid").rename(cluster.data / "lost")
    try:
        with pytest.raises(StartFailed, match="another Postgres uses"):
            cluster.start(ports.choose_port(PORT + 1))
        assert postmaster.process.is_running()
    finally:
        (cluster.data / "lost").rename(cluster.data / "postmaster.pid")


def test_a_full_disk_is_named(cluster: Cluster) -> None:
    """A file that it writes at its start takes no byte: with room again, it starts."""
    written = cluster.data / "postmaster.opts"
    written.unlink()
    written.symlink_to("/dev/full")
    try:
        with pytest.raises(StartFailed, match=r"the disk of .* is full") as failed:
            cluster.start(PORT)
    finally:
        written.unlink()
    assert "Free space" in str(failed.value.remedy)
    assert_starts(cluster)


def test_a_folder_that_cannot_be_written_is_named(cluster: Cluster) -> None:
    """Neither owner nor mode are changed for it."""
    cluster.data.chmod(0o755 | 0o070)
    try:
        with pytest.raises(StartFailed, match="cannot be written"):
            cluster.start(PORT)
        assert cluster.data.stat().st_mode & 0o777 == 0o775
    finally:
        cluster.data.chmod(0o700)
    assert_starts(cluster)


@pytest.mark.parametrize(
    "damage", ["PG_VERSION", "global/pg_control", "half of pg_control", "pg_wal", "another major"]
)
def test_a_damaged_folder_is_named_and_left_as_it_is(made: Cluster, damage: str) -> None:
    """Nothing is created anew in its place, and none of its files is changed."""
    cluster = replace(made, data=made.data.with_name("damaged"), log=made.log.with_name("damaged.log"))
    shutil.copytree(made.data, cluster.data, symlinks=True)
    for path in (cluster.data, *cluster.data.rglob("*")):
        cluster._give_to_user(path)
    control = cluster.data / "global" / "pg_control"
    match damage:
        case "half of pg_control":
            control.write_bytes(control.read_bytes()[:100])
        case "pg_wal":
            for path in (cluster.data / "pg_wal").iterdir():
                if path.is_file():
                    path.unlink()
        case "another major":
            (cluster.data / "PG_VERSION").write_text("17\n")
        case name:
            (cluster.data / name).unlink()
    before = files_of(cluster.data)
    try:
        assert cluster.exists()
        with pytest.raises(StartFailed, match="is damaged") as failed:
            cluster.start(PORT)
        assert "backup" in str(failed.value.remedy)
        after = files_of(cluster.data)
        assert {name: after.get(name) for name in before if name != "postmaster.opts"} == {
            name: digest for name, digest in before.items() if name != "postmaster.opts"
        }
    finally:
        shutil.rmtree(cluster.data)
