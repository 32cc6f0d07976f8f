"""Files: reading within limits of size and time, and writing for the owner only."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from isabella.errors import FileAbsent, FileUnreadable
from isabella.system.english import english

LARGEST = 1024 * 1024  # the size of the largest configuration file, in bytes
PIPE_SECONDS = 2.0  # seconds within which a pipe has to deliver its content

_NAME_A_FILE = english("Name a regular file, or a pipe.")
_LONGEST_LINE = 64 * 1024

#: The content of each pipe, or the error of reading it, by path, device and inode: a pipe can be read only once.
_pipe_contents: dict[tuple[str, int, int], bytes | FileUnreadable] = {}
_pipe_lock = threading.Lock()


def unreadable(
    path: object, reason: str, *, remedy: str, kind: type[FileUnreadable] = FileUnreadable
) -> FileUnreadable:
    """Return the error for a file."""
    what = english("%(path)s: cannot be read: %(reason)s.", path=path, reason=reason)
    return kind(what, reason=reason, remedy=remedy)


@dataclass(frozen=True)
class Content:
    """The content of a file at the time of reading, and its permissions."""

    path: Path
    data: bytes = field(repr=False)
    mode: int

    @property
    def text(self) -> str:
        r"""The data as UTF-8 text, without a byte-order mark, and with `\n` at the end of lines."""
        try:
            text = self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            reason = english("it is not UTF-8 text (byte %(start)s)", start=error.start)
            raise unreadable(self.path, reason, remedy=english("Save the file as UTF-8.")) from None
        return io.StringIO(text, newline=None).read()


def read(path: Path, *, largest: int = LARGEST) -> Content:
    """Read a regular file, or a pipe that delivers within `PIPE_SECONDS`. A pipe is read once and its content kept.

    Raises `FileAbsent`, or `FileUnreadable` for anything else, or for more than `largest` bytes.
    """
    descriptor = _open(path)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISFIFO(status.st_mode):
            data = _read_pipe(path, descriptor, status, largest)
        else:
            data = os.fdopen(descriptor, "rb", closefd=False).read(largest + 1)
    except OSError as error:
        raise _failed(path, error) from None
    finally:
        os.close(descriptor)
    if len(data) > largest:
        raise _too_large(path, largest)
    return Content(path, data, stat.S_IMODE(status.st_mode))


def read_or_stdin(path: Path, *, largest: int = LARGEST) -> Content:
    """Read a file as `read` does, or standard input if the path is `-`."""
    if str(path) != "-":
        return read(path, largest=largest)
    data = sys.stdin.buffer.read(largest + 1)
    if len(data) > largest:
        raise _too_large(Path("standard input"), largest)
    return Content(Path("standard input"), data, 0)


@contextmanager
def lines(path: Path) -> Iterator[Iterator[str]]:
    """Iterate over the lines of a log of any size: a regular file or a pipe. Very long lines come in pieces."""
    descriptor = _open(path)
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            _wait_for_data(path, descriptor)
            os.set_blocking(descriptor, True)
        yield iter(lambda: file.readline(_LONGEST_LINE), "")


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically by one that only its owner can read."""
    write(path, text, mode=0o600)


def write(path: Path, text: str, *, mode: int) -> None:
    """Replace a file atomically by one with these permissions. Nobody else can read it before it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            if mode != 0o600:
                os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Flush the names of the files in a folder to disk, so that a power failure cannot undo a change of them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """Open a regular file or a pipe. The type is checked after opening, because the file may be replaced before."""
    try:
        # Without O_NONBLOCK, opening a pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        reason = english("there is no such file")
        raise unreadable(path, reason, remedy=english("Check the path."), kind=FileAbsent) from None
    except OSError as error:
        raise _failed(path, error) from None
    except ValueError:
        raise unreadable(path, english("no file can have that name"), remedy=english("Check the path.")) from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
        return descriptor
    os.close(descriptor)
    kind = english("a directory") if stat.S_ISDIR(mode) else english("a device")
    raise unreadable(path, english("it is %(kind)s, not a file", kind=kind), remedy=_NAME_A_FILE)


def _read_pipe(path: Path, descriptor: int, status: os.stat_result, largest: int) -> bytes:
    pipe = (str(path), status.st_dev, status.st_ino)
    with _pipe_lock:
        if pipe not in _pipe_contents:
            try:
                _pipe_contents[pipe] = _read_until_closed(path, descriptor, largest)
            except FileUnreadable as error:
                _pipe_contents[pipe] = error
        content = _pipe_contents[pipe]
    if isinstance(content, FileUnreadable):
        raise content.with_traceback(None)
    return content


def _read_until_closed(path: Path, descriptor: int, largest: int) -> bytes:
    deadline = time.monotonic() + PIPE_SECONDS
    _wait_for_data(path, descriptor)
    data = b""
    while len(data) <= largest:
        try:
            chunk = os.read(descriptor, largest + 1 - len(data))
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _not_delivered(
                    path,
                    english(
                        "its writer has not closed it within %(pipe_seconds)s s",
                        pipe_seconds=format(PIPE_SECONDS, "g"),
                    ),
                ) from None
            time.sleep(0.01)
            continue
        if not chunk:
            break
        data += chunk
    return data


def _wait_for_data(path: Path, descriptor: int) -> None:
    import select

    deadline = time.monotonic() + PIPE_SECONDS
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        events = poll.poll(left * 1000)
        if any(event & select.POLLIN for _, event in events):
            return
        # No process has the pipe open for writing yet.
        time.sleep(0.01)
    raise _not_delivered(
        path,
        english(
            "it is a pipe that has delivered nothing within %(pipe_seconds)s s",
            pipe_seconds=format(PIPE_SECONDS, "g"),
        ),
    )


def _not_delivered(path: Path, reason: str) -> FileUnreadable:
    return unreadable(path, reason, remedy=english("Check the command that writes to it, or name a regular file."))


def _too_large(path: Path, largest: int) -> FileUnreadable:
    reason = english("it is larger than %(size)s MiB", size=largest // (1024 * 1024))
    return unreadable(path, reason, remedy=english("Check that this is the right file."))


def _failed(path: Path, error: OSError) -> FileUnreadable:
    reason, remedy = str(error.strerror or error), english("Check the path.")
    if error.errno == errno.ENXIO:  # The error of opening a socket.
        reason, remedy = english("it is a socket or a device, not a file"), _NAME_A_FILE
    elif error.errno in (errno.EACCES, errno.EPERM):
        remedy = english("Give the user that runs Isabella the right to read it.")
    return unreadable(path, reason, remedy=remedy)
