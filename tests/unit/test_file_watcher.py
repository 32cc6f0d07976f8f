"""Noticing changed files, on the real file system. How long it takes decides nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from isabella.config.settings import WatchMode
from isabella.watch import config_changes
from isabella.watch.config_changes import watch_files

LONG = 30.0


class Ear:
    """Counts what it hears."""

    def __init__(self) -> None:
        self.heard = 0
        self.seen: list[str] = []
        self.again = anyio.Event()

    def read(self, path: Path) -> None:
        self.seen.append(path.read_text())

    async def next(self) -> None:
        with anyio.fail_after(LONG):
            await self.again.wait()


def listening(
    watched: Callable[[], list[Path]],
    how: WatchMode,
    play: Callable[[Ear], Awaitable[None]],
    read: Path | None = None,
) -> Ear:
    """Play a scene while somebody watches."""

    async def run() -> Ear:
        ear = Ear()

        async def changed() -> None:
            ear.heard += 1
            if read is not None:
                ear.read(read)
            ear.again.set()
            ear.again = anyio.Event()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: watch_files(watched, changed, how, every=0.05 if how is WatchMode.POLL else 1.0))
            await anyio.sleep(0.1)
            await play(ear)
            tasks.cancel_scope.cancel()
        return ear

    return anyio.run(run)


@pytest.mark.parametrize("how", [WatchMode.AUTO, WatchMode.POLL])
def test_a_file_that_is_written_replaced_removed_or_made_is_noticed(tmp_path: Path, how: WatchMode) -> None:
    """With the help of the file system and without."""
    env, other = tmp_path / ".env", tmp_path / "deeper" / "key"
    other.parent.mkdir()
    env.write_text("A=1")

    async def play(ear: Ear) -> None:
        env.write_text("A=22")
        await ear.next()
        fresh = tmp_path / "fresh"
        fresh.write_text("A=33")
        fresh.replace(env)
        await ear.next()
        env.unlink()
        await ear.next()
        other.write_text("key")
        await ear.next()

    assert listening(lambda: [env, other], how, play).heard == 4


def test_what_is_half_written_is_waited_for(tmp_path: Path) -> None:
    """A file that is emptied and filled in pieces is read once, when it is whole."""
    env = tmp_path / ".env"
    env.write_text("A=1")

    async def play(ear: Ear) -> None:
        for length in range(10):
            env.write_text("A=" + "1" * length)
            await anyio.sleep(0.05)
        env.write_text("whole")
        while "whole" not in ear.seen:
            await ear.next()

    heard = listening(lambda: [env], WatchMode.POLL, play, env).seen
    assert heard[-1] == "whole"


def test_files_that_are_named_later_are_watched_from_then_on(tmp_path: Path) -> None:
    """A change may name a key file in a folder that nobody has watched so far."""
    env, key = tmp_path / ".env", tmp_path / "secrets" / "key"
    key.parent.mkdir()
    key.write_text("first")
    env.write_text("A=1")
    named = [env]

    async def play(ear: Ear) -> None:
        named.append(key)
        env.write_text("A=22")
        await ear.next()
        key.write_text("second")
        await ear.next()

    assert listening(lambda: named, WatchMode.AUTO, play).heard == 2


def test_a_secret_that_is_mounted_behind_links_is_noticed(tmp_path: Path) -> None:
    """Kubernetes swaps a link to a folder; the file itself, by its name, was never touched."""
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "key").write_text("same length " + version)
    data, key = tmp_path / "..data", tmp_path / "key"
    data.symlink_to("v1")
    key.symlink_to("..data/key")

    async def play(ear: Ear) -> None:
        swap = tmp_path / "..data_tmp"
        swap.symlink_to("v2")
        swap.replace(data)
        await ear.next()

    assert listening(lambda: [key], WatchMode.AUTO, play, key).seen == ["same length v2"]


def test_a_file_system_that_tells_nothing_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where watching fails altogether, looking goes on."""
    import watchfiles

    def broken(*_arguments: object, **_options: object) -> None:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr(watchfiles, "awatch", broken)
    monkeypatch.setattr(config_changes, "_QUIET", 0.01)
    env = tmp_path / ".env"

    async def play(ear: Ear) -> None:
        env.write_text("A=1")
        await ear.next()

    assert listening(lambda: [env], WatchMode.AUTO, play).heard == 1


@pytest.mark.parametrize("how", [WatchMode.AUTO, WatchMode.POLL])
def test_a_file_that_is_opened_or_closed_to_others_is_noticed(tmp_path: Path, how: WatchMode) -> None:
    """Its content may be the same, but now it can be read, or by too many."""
    key = tmp_path / "key"
    key.write_text("fake")
    key.chmod(0o600)

    async def play(ear: Ear) -> None:
        key.chmod(0o644)
        await ear.next()
        key.chmod(0o600)
        await ear.next()

    assert listening(lambda: [key], how, play).heard == 2


@pytest.mark.parametrize("how", [WatchMode.AUTO, WatchMode.POLL])
def test_a_path_that_can_be_none_does_not_keep_the_others_from_being_watched(tmp_path: Path, how: WatchMode) -> None:
    """A key file may have been given a name that no file can have."""
    env, nothing = tmp_path / ".env", tmp_path / "half\0key" / "key"

    async def play(ear: Ear) -> None:
        env.write_text("A=1")
        await ear.next()

    assert listening(lambda: [env, nothing], how, play).heard == 1
