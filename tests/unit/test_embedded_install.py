"""Installing: complete or not at all, and repaired when it was interrupted. With a release of two small files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from isabella.config.choices import LettaLock
from isabella.embedded import Server, Step, install, sdist
from isabella.embedded.instance import InstancePaths
from isabella.errors import InstallFailed

RELEASE = "9.9.9"
_PYPROJECT = """
[project]
name = "letta"
version = "9.9.9"
requires-python = ">=3.11"
dependencies = []
[tool.uv]
package = false
"""
_LOCK = """
version = 1
revision = 3
requires-python = ">=3.11"

[[package]]
name = "letta"
version = "9.9.9"
source = { virtual = "." }
"""


def fake_archive(lock: str = _LOCK) -> bytes:
    """A release whose environment is empty, so that installing it needs no network."""
    files = {
        "pyproject.toml": _PYPROJECT,
        "uv.lock": lock,
        "alembic.ini": "",
        ".python-version": "2.7",
        "alembic/versions/a.py": 'revision: str = "aaa"\ndown_revision = None\n',
        "alembic/versions/b.py": 'revision = "bbb"\ndown_revision: str | None = "aaa"\n',
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"letta-{RELEASE}/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture
def paths(tmp_path: Path) -> InstancePaths:
    """An empty home."""
    return InstancePaths(tmp_path / "home", RELEASE)


@pytest.fixture
def deliver(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Lets the fetching bring these bytes."""

    def set_content(content: bytes) -> None:
        def fetch(release: str, folder: Path, progress: object) -> Path:
            path = folder / "it.tar.gz"
            path.write_bytes(content)
            return path

        monkeypatch.setattr(sdist, "fetch", fetch)

    set_content(fake_archive())
    return set_content


def quiet(event: Step) -> None:
    """Nobody listens."""


@pytest.mark.usefixtures("deliver")
def test_an_installation_is_complete_when_it_says_so(paths: InstancePaths) -> None:
    """With its own interpreter, whatever version the tree asks for, and the last migration known."""
    assert install.installed(paths) is None
    done = install.install(paths, quiet)
    assert (done.migration_head, done.lock) == ("bbb", "original")
    assert install.installed(paths) == done
    version = subprocess.run([paths.python, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.strip() == f"Python {sys.version.split()[0]}"
    assert paths.install_log.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("deliver")
def test_what_an_interruption_left_is_not_trusted(paths: InstancePaths) -> None:
    """A tree without its marker, an unpacking without its end, a deletion without its end: all are made anew."""
    install.install(paths, quiet)
    (paths.program / "isabella-complete.json").unlink()
    (paths.program / ".venv" / "bin" / "python").unlink()
    (paths.program / "half").write_text("made")
    for leftover in (".fetch-x", ".gone-y", f".gone-{RELEASE}", paths.staging.name):
        (paths.releases / leftover / "letta").mkdir(parents=True)
    assert install.installed(paths) is None
    install.install(paths, quiet)
    assert install.installed(paths) is not None
    assert not (paths.program / "half").exists()
    assert sorted(path.name for path in paths.releases.iterdir()) == [RELEASE, f"{RELEASE}.log"]


@pytest.mark.usefixtures("deliver")
def test_a_damaged_marker_or_a_removed_interpreter_is_no_installation(paths: InstancePaths) -> None:
    """Python may have been upgraded away since."""
    install.install(paths, quiet)
    marker = paths.program / "isabella-complete.json"
    text = marker.read_text()
    marker.write_text(text[:10])
    assert install.installed(paths) is None
    marker.write_text(text)
    assert install.installed(paths) is not None
    paths.python.unlink()
    paths.python.symlink_to("/nowhere/python")
    assert install.installed(paths) is None


@pytest.mark.usefixtures("deliver")
def test_an_installer_that_lost_its_parent_is_stopped_first(paths: InstancePaths) -> None:
    """Two uv at work on one environment would leave something in between."""
    paths.staging.mkdir(parents=True)
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "--project", str(paths.staging)])
    install.install(paths, quiet)
    assert not psutil.pid_exists(orphan.pid)


@pytest.fixture
def patched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A patched lock for the release, in a folder of its own. It has no packages."""
    folder = tmp_path / "dependencies"
    folder.mkdir()
    monkeypatch.setattr(install, "_LOCKS", folder)
    path = folder / f"letta-{RELEASE}.txt"
    path.write_text("# empty\n")
    return path


def imported_version(paths: InstancePaths) -> str:
    """Ask the installed environment which version of Letta it has, and where the package is."""
    program = (
        "from importlib.metadata import version; from importlib.util import find_spec; import pathlib;"
        "print(version('letta'), pathlib.Path(find_spec('alembic.versions').origin or"
        " list(find_spec('alembic.versions').submodule_search_locations)[0]).resolve())"
    )
    return subprocess.run([paths.python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.usefixtures("deliver")
@pytest.mark.parametrize("choice", LettaLock)
def test_the_project_is_importable_from_its_last_place(
    paths: InstancePaths, patched: Path, choice: LettaLock
) -> None:
    """The environment is moved after it was made, and knows the version without having built the package."""
    done = install.install(paths, quiet, choice)
    assert done.lock == ("original" if choice is LettaLock.ORIGINAL else install.lock_name(RELEASE, choice))
    assert imported_version(paths) == f"{RELEASE} {paths.program / 'alembic' / 'versions'}"


@pytest.mark.usefixtures("deliver")
def test_the_lock_is_part_of_an_installation(paths: InstancePaths, patched: Path) -> None:
    """Another choice or a changed patched lock is another installation. A marker of 0.1 means the original."""
    first = install.install(paths, quiet)
    assert first.lock == install.lock_name(RELEASE, LettaLock.PATCHED)
    assert install.install(paths, quiet, LettaLock.ORIGINAL).lock == "original"
    patched.write_text("# empty, but another\n")
    assert install.lock_name(RELEASE, LettaLock.PATCHED) not in (first.lock, "original")
    patched.unlink()
    assert install.lock_name(RELEASE, LettaLock.PATCHED) == "original"
    (paths.program / "isabella-complete.json").write_text('{"release": "9.9.9", "migration_head": "bbb"}')
    assert install.installed(paths) == install.Installation(RELEASE, "bbb", "original")


def test_a_server_is_installed_anew_for_another_lock(
    paths: InstancePaths, patched: Path, deliver: Callable[[bytes], None]
) -> None:
    """If the wanted lock is installed, nothing happens; a server that wants another one replaces it."""
    server = Server(paths.home, RELEASE)
    events: list[Step] = []
    for wanted, states in (
        (server, ["started", "done", "started", "done"]),
        (server, ["skipped"]),
        (replace(server, lock=LettaLock.ORIGINAL), ["started", "done", "started", "done"]),
        (replace(server, lock=LettaLock.ORIGINAL), ["skipped"]),
    ):
        events.clear()
        assert wanted.install_release(events.append) == "bbb"
        assert [event.state for event in events] == states
    assert server.status().lock == "original"


def test_a_failed_change_leaves_the_former_installation(
    paths: InstancePaths, patched: Path, deliver: Callable[[bytes], None]
) -> None:
    """Without a network, or with a file of another hash, Letta stays as it was."""
    before = install.install(paths, quiet, LettaLock.ORIGINAL)
    patched.write_text("six==1.17.0 --hash=sha256:" + "0" * 64 + "\n")
    with pytest.raises(InstallFailed, match="uv could not install"):
        install.install(paths, quiet)
    assert install.installed(paths) == before
    assert imported_version(paths)


def test_an_installation_that_is_used_is_not_replaced(paths: InstancePaths, deliver: Callable[[bytes], None]) -> None:
    """The server of another instance would load modules of two versions."""
    before = install.install(paths, quiet)
    with subprocess.Popen([paths.python, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as user:
        with pytest.raises(InstallFailed, match=f"pid {user.pid}"):
            install.install(paths, quiet)
        user.communicate(b"")
    assert install.install(paths, quiet) == before


def test_a_process_in_a_container_is_none_of_this_installation(
    paths: InstancePaths, deliver: Callable[[bytes], None]
) -> None:
    """It may have the same path, and nothing is there that it could run from."""
    command = [str(paths.python), "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE) as user:
        assert install.install(paths, quiet).release == paths.release
        user.communicate(b"")


def test_uv_that_fails_is_quoted(paths: InstancePaths, deliver: Callable[[bytes], None]) -> None:
    """The error has uv's own words, the log's name and a remedy; nothing counts as installed."""
    deliver(fake_archive(lock="no lock"))
    with pytest.raises(InstallFailed, match="uv could not install") as failure:
        install.install(paths, quiet)
    assert str(paths.install_log) in str(failure.value)
    assert "TOML" in str(failure.value)
    assert failure.value.remedy
    assert install.installed(paths) is None


def test_a_full_disk_is_named(paths: InstancePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where there is no room, and what to do."""

    def full(*_: object) -> Path:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(sdist, "fetch", full)
    with pytest.raises(InstallFailed, match="No space left") as failure:
        install.install(paths, quiet)
    assert "ISABELLA_HOME" in str(failure.value.remedy)


@pytest.mark.usefixtures("deliver")
def test_the_steps_are_told(paths: InstancePaths) -> None:
    """Each step begins and ends, with its seconds."""
    events: list[Step] = []
    began = time.monotonic()
    install.install(paths, events.append)
    assert [(event.name, event.state) for event in events] == [
        ("fetch", "started"),
        ("fetch", "done"),
        ("install", "started"),
        ("install", "done"),
    ]
    assert sum(event.seconds or 0 for event in events) <= time.monotonic() - began


def test_two_last_migrations_are_refused(tmp_path: Path) -> None:
    """Better no installation than a database of which nobody can say how far it is."""
    (tmp_path / "a.py").write_text('revision = "a"\ndown_revision = None')
    (tmp_path / "b.py").write_text('revision = "b"\ndown_revision = ("a",)')
    assert install.migration_head(tmp_path) == "b"
    (tmp_path / "c.py").write_text('revision = "c"\ndown_revision = "a"')
    with pytest.raises(InstallFailed, match="but have 2"):
        install.migration_head(tmp_path)
