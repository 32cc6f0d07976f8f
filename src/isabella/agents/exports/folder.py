"""A folder of files that is written as a whole or not at all, for its owner only, with known secrets masked."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from isabella.errors import ExportFailed, ExportRefused
from isabella.system import files
from isabella.system.redaction import redact

Write = Callable[[str], None]

_TEMPORARY = ".export-"  # the beginning of the names of temporary folders


@dataclass
class FolderWriter:
    """A folder that is being written. A file that would hold one of the secrets is an `ExportRefused`."""

    root: Path
    secrets: Sequence[str] = field(default=(), repr=False)
    lasting: bool = True  # whether each file is on the disk before the next one begins
    written: dict[str, dict[str, Any]] = field(default_factory=dict)  # size and digest of each file, by its path

    @contextmanager
    def file(self, path: str) -> Iterator[Write]:
        """Write a text file in pieces. No secret may be divided between two of them."""
        with self._opened(path) as write:
            yield lambda text: write(self.masked(text).encode())

    def text(self, path: str, text: str) -> None:
        """Write a whole text file."""
        with self.file(path) as write:
            write(text)

    def data(self, path: str, data: bytes) -> None:
        """Write a whole file of other data."""
        with self._opened(path) as write:
            write(data)

    def masked(self, text: str) -> str:
        """Return a text without known secrets; one that holds a configured one is an `ExportRefused`."""
        # A user may have told the agent a key.
        text = redact(text)
        if any(secret in text for secret in self.secrets):
            raise ExportRefused(
                "The export would have held a key, and was not written.",
                remedy="Remove the key from the agent's memory and messages, then export it again.",
            )
        return text

    @contextmanager
    def _opened(self, path: str) -> Iterator[Callable[[bytes], None]]:
        target = self.root / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:

            def write(data: bytes) -> None:
                nonlocal size
                file.write(data)
                digest.update(data)
                size += len(data)

            yield write
            if self.lasting:
                file.flush()
                os.fsync(file.fileno())
        self.written[path] = {"bytes": size, "sha256": digest.hexdigest()}


@contextmanager
def new_folder(
    target: Path, marker: str, *, replace: bool = False, secrets: Sequence[str] = ()
) -> Iterator[FolderWriter]:
    """Write a folder that appears under its name when it is complete; nothing is left of one that failed.

    An existing folder is an `ExportRefused`, unless it is to be replaced and is empty or has the file `marker`, so is
    an earlier export. Other failures are an `ExportRefused`, too.
    """
    target = target.parent.resolve() / target.name
    _check(target, marker, replace=replace)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        yield FolderWriter(part, _real(secrets))
        for folder in [part, *(path for path in part.rglob("*") if path.is_dir())]:
            files.sync_folder(folder)
        _put(part, target, marker, replace=replace)
    except OSError as error:
        raise ExportRefused(
            f"{target}: cannot be written: {error.strerror or error}.", remedy="Name another folder."
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def temporary_folder(home: Path, *, secrets: Sequence[str] = ()) -> Iterator[FolderWriter]:
    """Write a folder below `home` that exists while the block runs. Raises `ExportFailed`."""
    try:
        with TemporaryDirectory(prefix=_TEMPORARY, dir=home) as root, _locked(Path(root), fcntl.LOCK_SH):
            yield FolderWriter(Path(root), _real(secrets), lasting=False)
    except OSError as error:
        raise ExportFailed(
            f"{home}: the export cannot be written: {error.strerror or error}.",
            remedy="Free space there, or export into another folder with `isabella agents export`.",
        ) from None


def remove_leftovers(home: Path) -> None:
    """Remove the temporary folders of processes that were killed. Those of running ones are locked."""
    for folder in home.glob(f"{_TEMPORARY}*"):
        with suppress(OSError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[None]:
    """Lock a folder while the block runs. The lock ends with the process at the latest."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def _real(secrets: Sequence[str]) -> list[str]:
    return [secret for secret in secrets if secret]


def manifest_text(document: Any) -> str:
    """Return a document as JSON for people and programs."""
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _check(target: Path, marker: str, *, replace: bool) -> None:
    if not os.path.lexists(target):
        return
    if not replace:
        raise ExportRefused(f"{target} exists.", remedy="Name a new folder, or replace this one with `--replace`.")
    if not target.is_dir() or target.is_symlink() or (any(target.iterdir()) and not (target / marker).is_file()):
        raise ExportRefused(
            f"{target} is not an earlier export, and was not replaced.", remedy="Name a new folder, or move it away."
        )


def _put(part: Path, target: Path, marker: str, *, replace: bool) -> None:
    """Give a complete folder its name. The former one is kept until then."""
    _check(target, marker, replace=replace)
    former = target.with_name(f".{target.name}.{os.getpid()}.former")
    if target.exists():
        target.rename(former)
    try:
        part.rename(target)
    except OSError:
        if former.exists():
            former.rename(target)
        raise
    files.sync_folder(target.parent)
    shutil.rmtree(former, ignore_errors=True)
