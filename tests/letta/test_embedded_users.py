"""The embedded server for whoever runs it: root, whose Postgres needs a user of its own, and a normal user."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import psycopg
import pytest
from pydantic import SecretStr

from isabella.embedded import Letta, ports, postgres
from isabella.embedded.instance import DEFAULT_RELEASE, InstancePaths, make_home, make_private
from isabella.embedded.os_users import system_folder

PROJECT = Path(__file__).resolve().parents[2]
NORMAL_USER = "nobody"

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root: the other tests ran as a normal user already")


@pytest.fixture
def closed_home() -> Iterator[Path]:
    """A home below a folder that only its owner may enter, as /root is."""
    folder = Path(tempfile.mkdtemp(prefix="isabella-closed-"))
    yield folder / "home"
    shutil.rmtree(system_folder(folder / "home"), ignore_errors=True)
    shutil.rmtree(folder)


@only_root
def test_below_a_closed_folder_root_keeps_the_database_elsewhere(closed_home: Path) -> None:
    """Postgres runs as another user, who cannot enter there; the folder stays as closed as it was."""
    paths = InstancePaths(closed_home)
    make_home(paths.home)
    for folder in (paths.folder.parent, paths.folder, paths.logs):
        make_private(folder)
    cluster = postgres.prepare_cluster(paths)
    assert cluster.user is not None
    assert system_folder(closed_home) in cluster.data.parents
    superuser, password = SecretStr("ab" * 16), SecretStr("cd" * 16)
    cluster.make(superuser)
    postmaster = cluster.start(ports.choose_port(5433))
    try:
        assert psutil.Process(postmaster.process.pid).username() == cluster.user.name
        postgres.prepare_database(postmaster.port, superuser_password=superuser, password=password)
        address = postgres.database_url(postmaster.port, password).get_secret_value()
        with psycopg.connect(address) as connection:
            assert connection.execute("SELECT '[1,2]'::vector <-> '[1,2]'").fetchone() == (0.0,)
        # Once it is there, it is found there, wherever a new one would be made.
        closed_home.parent.chmod(0o755)
        closed_home.chmod(0o755)
        assert postgres.find_cluster(paths) == cluster
        assert postgres.prepare_cluster(paths) == cluster
    finally:
        assert cluster.stop()
    assert closed_home.stat().st_gid == 0
    for folder in (cluster.data.parent, cluster.data.parent.parent):
        assert (folder.stat().st_mode & 0o777, folder.stat().st_gid) == (0o710, cluster.user.gid)


@only_root
def test_programs_that_cannot_be_reached_are_copied(closed_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment below /root is as closed to Postgres's user as a home there."""
    package = postgres._binaries(closed_home, None).parent.parent
    closed_home.mkdir(mode=0o700)
    for folder in (package, Path(f"{package}.libs")):
        if folder.is_dir():
            shutil.copytree(folder, closed_home / folder.name)
    paths = InstancePaths(closed_home)
    make_private(paths.logs)
    cluster = postgres.prepare_cluster(paths)
    spec = SimpleNamespace(submodule_search_locations=[str(closed_home / package.name)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    cluster.make(SecretStr("ab" * 16))
    programs = [path for path in cluster.data.parent.parent.iterdir() if "programs" in path.name]
    assert len(programs) == 1
    cluster.start(ports.choose_port(5433))
    assert cluster.stop()


@only_root
def test_a_normal_user_brings_it_up(letta_server: Letta, letta_home: Path) -> None:
    """The whole of it, as a user without any rights: up, status, down, and every file is that user's own."""
    program = letta_home / "releases" / DEFAULT_RELEASE
    user = pwd.getpwnam(NORMAL_USER)
    folder = Path(tempfile.mkdtemp(prefix="isabella-user-"))
    home = folder / "with a space"
    # The release that is installed already, as if the user had installed it.
    (home / "releases" / DEFAULT_RELEASE).mkdir(parents=True)
    for entry in program.iterdir():
        (home / "releases" / DEFAULT_RELEASE / entry.name).symlink_to(entry)
    marker = home / "releases" / DEFAULT_RELEASE / "isabella-complete.json"
    marker.unlink()
    shutil.copyfile(program / marker.name, marker)
    for path in (folder, home, *home.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)

    def isabella(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-c",
            "from isabella.cli import main; main()",
            "letta",
            *arguments,
            "--home",
            str(home),
        ]
        return _run_as(user, command, cwd=folder, reach=[Path(sys.base_prefix), PROJECT, program])

    try:
        up = isabella("up")
        try:
            assert up.returncode == 0, up.stderr
            found = json.loads(isabella("status", "--json").stdout)
            assert found["running"]
            assert found["data"].startswith(str(home))
            for service in ("letta", "postgres"):
                assert psutil.Process(found[service]["pid"]).username() == NORMAL_USER
            data = home / "letta"
            assert all(path.lstat().st_uid == user.pw_uid for path in data.rglob("*"))
            assert all(
                path.lstat().st_mode & 0o077 == 0 for path in (data, *data.rglob("*")) if not path.is_symlink()
            )
        finally:
            down = isabella("down")
        assert down.stdout.strip() == "Stopped."
        assert not psutil.pid_exists(found["letta"]["pid"]) or _zombie(found["letta"]["pid"])
        assert not psutil.pid_exists(found["postgres"]["pid"]) or _zombie(found["postgres"]["pid"])
    finally:
        shutil.rmtree(folder)


# Arguments: a folder for mounts, a user, what to do, `--`, the command. Seen by the command alone, `cover FOLDER`
# puts an empty open folder in the place of a closed one, and `bind PATH` puts back what was there before.
_OPEN = """
set -e
keep="$1"; user="$2"; shift 2
mount -t tmpfs tmpfs "$keep"
record() { while [ "$1" != -- ]; do [ "$1" = cover ] || kept "$2"; shift 2; done; }
kept() { number=$((number + 1)); mkdir "$keep/$number"; mount --rbind "$1" "$keep/$number"; }
number=0; record "$@"; number=0
while [ "$1" != -- ]; do
  case "$1" in
    cover) [ ! -d "$2" ] || mount -t tmpfs -o mode=0755 tmpfs "$2" ;;
    bind) number=$((number + 1)); mkdir -p "$2"; mount --rbind "$keep/$number" "$2" ;;
  esac
  shift 2
done
shift
exec setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@"
"""


def _run_as(
    user: pwd.struct_passwd, command: list[str], *, cwd: Path, reach: list[Path]
) -> subprocess.CompletedProcess[str]:
    """Run a command as a normal user, to whom the given paths are open, whatever lies above them."""
    mounts: list[str] = []
    for path in sorted(reach, key=lambda path: len(path.parts)):
        closed = [above for above in reversed(path.parents) if not above.stat().st_mode & 0o001]
        for above in closed:
            if str(above) not in mounts:
                mounts += ["cover", str(above)]
        if closed:
            mounts += ["bind", str(path)]
    environ = {"PATH": os.environ["PATH"], "HOME": str(cwd), "LANG": "C.UTF-8"}
    try:
        subprocess.run(["unshare", "--mount", "setpriv", "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mounts of one's own here (unshare, setpriv): a normal user could not reach the interpreter")
    with tempfile.TemporaryDirectory() as keep:
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", _OPEN, "sh", keep, str(user.pw_uid), *mounts, "--", *command],
            cwd=cwd,
            env=environ,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )


def _zombie(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
