"""Noticing that one of a few files was changed, replaced, or has appeared.

The file system tells where it can. But mounts and network folders often tell nothing, so the files are looked at
every two seconds all the same; that costs a few microseconds. What is being written is waited for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from stat import S_ISFIFO

import anyio
import structlog
from anyio.streams.memory import MemoryObjectSendStream

from isabella.config.settings import Watch

log = structlog.get_logger()

LOOK_EVERY = 2.0
#: For so long nothing may change before a file counts as written.
_QUIET = 0.25
#: A file that is written without pause is read in the end, as it is.
_LONGEST = 5.0

_Mark = tuple[int, int, int, int] | None
Marks = Mapping[Path, _Mark]


def file_marks(files: Iterable[Path]) -> Marks:
    """By what a change of these files shows; None for one that cannot be looked at."""
    return {path: _mark(path) for path in files}


def _mark(path: Path) -> _Mark:
    try:
        found = path.stat()
    except (OSError, ValueError):
        # A path with a NUL in it cannot even be asked for.
        return None
    if S_ISFIFO(found.st_mode):
        # A pipe is read once, whatever is written to it later.
        return found.st_ino, 0, 0, 0
    # The inode changes where a file is replaced, also behind a symbolic link; the last one with owner and mode.
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


async def watch_files(
    files: Callable[[], Sequence[Path]],
    changed: Callable[[], Awaitable[None]],
    how: Watch = Watch.AUTO,
    *,
    every: float = LOOK_EVERY,
    since: Marks | None = None,
) -> None:
    """Call `changed` whenever one of the files has changed, until cancelled.

    Args:
        files: which ones; asked again after every change, which may have named others.
        changed: what to do. It must not raise.
        how: whether the file system is asked to tell.
        every: seconds between looks where it tells nothing.
        since: how the files looked when they were read last; by default as they are now.
    """
    seen = {**file_marks(files()), **(since or {})}
    while True:
        folders = sorted({path.parent for path in seen})
        async with anyio.create_task_group() as tasks:
            told, on_event = anyio.create_memory_object_stream[None](1)
            with told, on_event:
                if how is Watch.AUTO:
                    tasks.start_soon(_listen, folders, told)
                while folders == sorted({path.parent for path in seen}):
                    with anyio.move_on_after(every):
                        await on_event.receive()
                    if file_marks(seen) != seen:
                        await _settle(seen)
                        # What is written from now on is another change.
                        before = file_marks(seen)
                        await changed()
                        seen = {path: before[path] if path in before else _mark(path) for path in files()}
                tasks.cancel_scope.cancel()


async def _settle(seen: Marks) -> None:
    """Wait until nothing changes any more: what is half written now will be whole."""
    with anyio.move_on_after(_LONGEST):
        last = file_marks(seen)
        while True:
            await anyio.sleep(_QUIET)
            if (now := file_marks(seen)) == last:
                return
            last = now


async def _listen(folders: Sequence[Path], told: MemoryObjectSendStream[None]) -> None:
    """Say so when the file system tells of anything in these folders. Files themselves are replaced too often."""
    from watchfiles import awatch

    stop = anyio.Event()
    there = [folder for folder in folders if folder.is_dir()]
    if not there:
        return
    try:
        async with anyio.create_task_group() as tasks:
            # The watching thread is not interrupted by a cancellation, but by this event within 50 ms.
            tasks.start_soon(_set_when_cancelled, stop)
            async for _changes in awatch(
                *there,
                watch_filter=None,
                stop_event=stop,
                recursive=False,
                debounce=200,
                ignore_permission_denied=True,
            ):
                try:
                    told.send_nowait(None)
                except anyio.WouldBlock:
                    continue
    except Exception as error:  # noqa: BLE001 - whatever it is, looking goes on without being told
        log.info("the file system does not tell of changes; looking instead", reason=type(error).__name__)


async def _set_when_cancelled(stop: anyio.Event) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        stop.set()
