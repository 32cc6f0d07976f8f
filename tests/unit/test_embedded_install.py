"""Installing: complete or not at all, and repaired when it was interrupted. With a release of two small files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from isabella.embedded import Step, install, sdist
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
    assert done == "bbb"
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
    for leftover in (".fetch-x", ".gone-y", f".gone-{RELEASE}"):
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
    paths.program.mkdir(parents=True)
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "--project", str(paths.program)])
    install.install(paths, quiet)
    assert not psutil.pid_exists(orphan.pid)


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
