"""Logs: the last lines, without secrets, and what comes after them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from isabella.system.redaction import redact

_BLOCK = 64 * 1024
_TOO_LARGE = 20 * 1024 * 1024


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log, secrets taken out; none where there is no log."""
    try:
        with path.open("rb") as file:
            position = file.seek(0, os.SEEK_END)
            data = b""
            while position > 0 and data.count(b"\n") <= lines:
                size = min(_BLOCK, position)
                position = file.seek(position - size)
                data = file.read(size) + data
    except FileNotFoundError:
        return []
    text = data.decode(errors="replace").splitlines()
    return [redact(line) for line in text[-lines:]] if lines > 0 else []


def follow(path: Path, *, every: float = 0.3) -> Iterator[str]:
    """What is appended to a log after this call, line by line, for ever.

    Args:
        path: the log; it need not be there yet, and may be replaced.
        every: seconds between looks.
    """
    return _after(path, path.stat().st_size if path.exists() else 0, every)


def _after(path: Path, offset: int, every: float) -> Iterator[str]:
    rest = ""
    while True:
        size = path.stat().st_size if path.exists() else 0
        if size < offset:
            offset, rest = 0, ""
        if size > offset:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size - offset)
            offset += len(data)
            *complete, rest = (rest + data.decode(errors="replace")).split("\n")
            yield from (redact(line) for line in complete)
        else:
            time.sleep(every)


def rotate(path: Path) -> None:
    """Put a log that has grown too large aside; the one put aside before is dropped."""
    if path.exists() and path.stat().st_size > _TOO_LARGE:
        path.replace(path.with_name(f"{path.name}.1"))


def quoted(path: Path, lines: int = 15) -> str:
    """The last lines of a log and its name, as the end of an error message."""
    last = "".join(f"\n    {line}" for line in tail(path, lines))
    return f"Its log is {path}{':' if last else ' (empty).'}{last}"
