"""The files in Isabella's home: reading what may be damaged, and replacing it.

A file may be missing, cut off, written by another program, or not a file at all. What is read is limited in size and
time. A damaged file that can be recreated is reported once and replaced; what a new file cannot replace in place, for
instance a directory, is renamed to `NAME.damaged`. Nothing is deleted.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from isabella.errors import FileAbsent, FileUnreadable
from isabella.system import files, redaction
from isabella.system.files import write_private

log = logging.getLogger(__name__)

_LARGEST = 8 * 1024 * 1024  # the size of the largest file, in bytes

#: The damages that were reported, by path; a file that was written may be reported again.
_reported: dict[Path, str] = {}


def read(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if the file is missing.

    Raises:
        FileUnreadable: it is damaged.
    """
    try:
        document = json.loads(files.read(path, largest=_LARGEST).text)
    except FileAbsent:
        return None
    except (ValueError, RecursionError):
        raise files.unreadable(path, "it is not JSON", remedy="Restore it from a backup.") from None
    if not isinstance(document, dict):
        raise files.unreadable(path, "it is not a JSON object", remedy="Restore it from a backup.")
    return document


def load(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file is missing or damaged, which is reported."""
    try:
        return read(path) or {}
    except FileUnreadable as error:
        report(path, error.reason)
        return {}


def save(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object to a file that only its owner can read. Raises `OSError`."""
    write(path, json.dumps(document))


def write(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whatever is at this path. Raises `OSError`."""
    make_way(path)
    write_private(path, text)
    _reported.pop(path, None)


def keep(path: Path, document: Mapping[str, Any]) -> bool:
    """Write a JSON object as `save` does, with its folder; return whether it was written. A failure is reported."""
    return keep_text(path, json.dumps(document))


def keep_text(path: Path, text: str) -> bool:
    """Write a file as `write` does, with its folder; return whether it was written. A failure is reported."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(path, text)
    except OSError as error:
        report(path, f"it cannot be written ({why(error)})")
        return False
    return True


def report(path: Path, reason: str) -> None:
    """Log a warning about a file that does not hold what it should, once for each reason."""
    if _reported.get(path) != reason:
        _reported[path] = reason
        # Without structlog, which takes long to import and may not be configured yet.
        log.warning("%s: %s. Isabella continues without its content.", path, reason)


def report_fields(path: Path) -> None:
    """Log a warning about a file whose JSON object has missing or unusable fields."""
    report(path, "it has unexpected fields")


def make_way(path: Path, *, log: bool = False) -> None:
    """Rename anything that is not a regular file at this path. A log may be a link to one, and must be writable."""
    try:
        mode = path.stat().st_mode if log else path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        set_aside(path, "it is not a regular file")
    elif log and not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        set_aside(path, "it cannot be written")


def set_aside(path: Path, reason: str) -> None:
    """Rename a file to `NAME.damaged`, or a name with a number if that exists, and report it. Raises `OSError`."""
    other, number = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(other):
        number += 1
        other = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(other)
    report(path, f"{reason}, and was renamed to {other.name}")


def read_secret(path: Path, form: re.Pattern[str]) -> str | None:
    """Return the secret in a file; None if the file is missing or empty. The file is closed to other users.

    Raises:
        FileUnreadable: it is damaged, or holds something else.
    """
    try:
        content = files.read(path)
    except FileAbsent:
        return None
    text = content.text.strip()
    if not text:
        return None
    if not form.fullmatch(text):
        reason = f"its content is not a secret of Isabella's ({len(text)} characters)"
        raise files.unreadable(path, reason, remedy="Restore it from a backup.")
    if content.mode & 0o077:
        with suppress(OSError):
            path.chmod(0o600)
    redaction.remember(text)
    return text


def read_or_make_secret(path: Path, form: re.Pattern[str], make: Callable[[], str]) -> tuple[str, bool]:
    """Return the secret in a file, and whether it was made now: if there was none, or a damaged one.

    Raises:
        OSError: it cannot be written.
    """
    try:
        stored = read_secret(path, form)
    except FileUnreadable as error:
        set_aside(path, error.reason)
        stored = None
    if stored is not None:
        return stored, False
    made = make()
    redaction.remember(made)
    write(path, made + "\n")
    return made, True


def port_in(record: Mapping[str, Any], name: str) -> int | None:
    """Return the port in a field of a record; None if it holds none."""
    port = record.get(name)
    return port if type(port) is int and 0 < port < 65536 else None


def why(error: OSError) -> str:
    """Return the reason of a failed operation on a file, for a sentence."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "a file is in the place of a folder"
    return str(error.strerror or error)
