"""The file lock: one process at a time, and it goes away with its holder, however that ends."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from isabella.errors import ConfigurationError, LockTimeout
from isabella.locks.sync_lock import sync_lock

LETTA = "http://127.0.0.1:8283"

HOLDER = """
import sys
from pathlib import Path
import anyio
from isabella.locks.sync_lock import sync_lock

async def hold():
    async with sync_lock(sys.argv[1], home=Path(sys.argv[2]), database_url=None):
        print("held", flush=True)
        sys.stdin.read()

anyio.run(hold)
"""


@contextmanager
def held_elsewhere(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its standard input closes."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, LETTA, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()
        for stream in (holder.stdin, holder.stdout):
            if stream is not None:
                stream.close()


def take(home: Path, *, letta: str = LETTA, timeout: float = 0.0) -> bool:
    """Take the lock and give it back; whether it could be had."""

    async def scenario() -> bool:
        async with sync_lock(letta, home=home, database_url=None, timeout=timeout):
            return True

    return anyio.run(scenario)


def test_while_another_process_holds_it_one_waits_and_then_gives_up(tmp_path: Path) -> None:
    """The lock of one Letta excludes other processes, and the message says what to do."""
    with held_elsewhere(tmp_path), pytest.raises(LockTimeout) as timed_out:
        take(tmp_path, timeout=0.2)
    assert timed_out.value.remedy


def test_the_lock_of_another_letta_is_another_lock(tmp_path: Path) -> None:
    """Syncing one Letta does not keep anybody from syncing another."""
    with held_elsewhere(tmp_path):
        assert take(tmp_path, letta="http://127.0.0.1:8284")


def test_a_holder_that_ends_gives_it_back(tmp_path: Path) -> None:
    """When the holder is done, whoever waits gets the lock."""
    with held_elsewhere(tmp_path) as holder:
        assert holder.stdin is not None
        holder.stdin.close()
        assert take(tmp_path, timeout=30)


def test_a_holder_that_is_killed_gives_it_back(tmp_path: Path) -> None:
    """A crash of the holder leaves no lock behind."""
    with held_elsewhere(tmp_path) as holder:
        holder.kill()
        assert take(tmp_path, timeout=30)


def test_within_one_process_it_excludes_too(tmp_path: Path) -> None:
    """Two tasks of one process do not hold it together, and nothing of it is left when both are done."""
    inside, most = 0, 0

    async def one() -> None:
        nonlocal inside, most
        async with sync_lock(LETTA, home=tmp_path, database_url=None):
            inside += 1
            most = max(most, inside)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            inside -= 1

    async def scenario() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(one)

    anyio.run(scenario)
    assert most == 1
    assert take(tmp_path)


def test_the_lock_file_is_private(tmp_path: Path) -> None:
    """Folder and file of the lock are their owner's alone."""
    home = tmp_path / "home"
    assert take(home)
    files = list((home / "locks").iterdir())
    assert stat.S_IMODE((home / "locks").stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * len(files)


def test_a_home_that_cannot_be_used_is_a_configuration_error(tmp_path: Path) -> None:
    """A file where the home folder should be is told, with the setting to correct."""
    (tmp_path / "home").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used for the lock") as error:
        take(tmp_path / "home")
    assert "ISABELLA_HOME" in str(error.value)
