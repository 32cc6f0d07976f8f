"""Locks of an instance: files in Isabella's home, each held by one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from isabella.embedded.instance import make_home, make_private
from isabella.embedded.os_users import postgres_user
from isabella.embedded.progress import Progress, Step
from isabella.errors import EmbeddedError, LockTimeout
from isabella.system import state

_SECONDS = 30 * 60


@contextmanager
def hold(home: Path, path: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock, for which `progress` shows the wait. See `file_lock`; `LockTimeout` after half an hour."""
    with file_lock(home, path) as lock:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(Step("wait", "started", "for another Isabella that uses this instance"))
            try:
                lock.acquire(timeout=_SECONDS)
            except Timeout:
                raise LockTimeout(
                    f"Another process has held {path} for half an hour.",
                    remedy="Read its log (isabella letta logs) or end it, then repeat the command.",
                ) from None
            progress(Step("wait", "done", "the other Isabella is done"))
        yield


@contextmanager
def file_lock(home: Path, path: Path) -> Iterator[BaseFileLock]:
    """Yield the lock of a file, to be acquired within the block, and release it at the end.

    Raises:
        EmbeddedError: a file of the home cannot be used, also by the block.
    """
    try:
        user = postgres_user()
        make_home(home, group=user.gid if user else None)
        make_private(path.parent)
        state.make_way(path)
        lock = FileLock(path, mode=0o600)
        try:
            yield lock
        finally:
            lock.release()
    except OSError as error:
        at = error.filename2 or error.filename or home
        raise EmbeddedError(
            f"{at} cannot be used: {state.why(error)}.",
            remedy="Free space there, correct its permissions, or set ISABELLA_HOME to another folder.",
        ) from error
