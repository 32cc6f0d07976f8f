"""The file of a backup: a tar archive, encrypted as a whole in the format of `age`.

Nothing of it can be read without a key, and anyone with one can open it without Isabella: `age -d FILE | tar x`.
It is written and read as a stream. Long parts are stored in pieces, because a tar archive needs the size of each
member before its content. The last member is the manifest, with size and hash of every part.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from isabella.errors import BackupRefused, EmbeddedError, NoKeyOpens
from isabella.system import files, state
from isabella.system.english import english

if TYPE_CHECKING:
    from pyrage import x25519

FORMAT = 1
PIECE = 4 * 1024 * 1024  # the size of the pieces of a long part, in bytes
MANIFEST = "manifest.json"
_LARGEST_MEMBER = 64 * 1024 * 1024
_BLOCK = tarfile.BLOCKSIZE
_HEADER = "its header"

#: The name of a part, and its content. A name that ends in a slash is that of a part in pieces.
Part = tuple[str, Iterable[bytes]]


def write(path: Path, recipients: Sequence[x25519.Recipient], parts: Iterable[Part]) -> int:
    """Write an archive that the recipients can open, for the owner only, and return its size in bytes.

    The file appears under its name when it is complete and on disk. An error of `parts` is raised as it is.

    Raises:
        EmbeddedError: the file cannot be written.
    """
    import pyrage

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    source = _Source(_tar(parts))
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            sink = _Sink(file)
            try:
                pyrage.encrypt_io(source, sink, recipients)  # type: ignore[arg-type]
            except (pyrage.EncryptError, OSError) as error:
                raise source.error or sink.error or error from None
            finally:
                source.close()
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        files.sync_folder(path.parent)
        return path.stat().st_size
    except (OSError, pyrage.EncryptError) as error:
        reason = state.why(error) if isinstance(error, OSError) else str(error)
        raise EmbeddedError(
            english("The backup %(path)s cannot be written: %(why)s.", path=path, why=reason),
            remedy=english(
                "Free space there, correct its permissions, or set ISABELLA_BACKUP_FOLDER to another folder."
            ),
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, identities: Sequence[x25519.Identity]) -> Generator[tuple[str, bytes], None, None]:
    """Iterate over the parts of an archive: name and content, several times for a part in pieces.

    The content is complete and as it was written only when the iterator has ended.

    Raises:
        BackupRefused: no identity opens it, or it is damaged. The message names the part.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise BackupRefused(
            f"The backup {path} cannot be read: {state.why(error)}.",
            remedy="Check the path; `isabella backup list` shows the backups of this home.",
        ) from None
    with file:
        stream = _Decrypted(file, identities)
        try:
            yield from _verified(path, stream)
        finally:
            stream.close()


def opens(path: Path, identities: Sequence[x25519.Identity]) -> bool:
    """Return whether an identity opens an archive. Any other fault is found when the archive is read."""
    parts = read(path, identities)
    try:
        next(parts, None)
    except NoKeyOpens:
        return False
    except BackupRefused:
        return True
    finally:
        parts.close()
    return True


@dataclass
class _Digest:
    """Size and hash of a part."""

    size: int = 0
    hash: Any = field(default_factory=hashlib.sha256)

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self.hash.update(data)

    def entry(self, name: str) -> dict[str, object]:
        return {"name": name, "bytes": self.size, "sha256": self.hash.hexdigest()}


def _tar(parts: Iterable[Part]) -> Iterator[bytes]:
    digests: dict[str, _Digest] = {}
    for name, chunks in parts:
        digest = digests.setdefault(name, _Digest())
        for number, data in enumerate(chunks, 1):
            digest.add(data)
            yield from _member(f"{name}{number:08}" if name.endswith("/") else name, data)
    manifest = {"format": FORMAT, "parts": [digest.entry(name) for name, digest in digests.items()]}
    yield from _member(MANIFEST, json.dumps(manifest, indent=1).encode())
    yield bytes(2 * _BLOCK)


def _member(name: str, data: bytes) -> Iterator[bytes]:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
    yield member.tobuf(tarfile.USTAR_FORMAT)
    yield data
    yield bytes(-len(data) % _BLOCK)


def _verified(path: Path, stream: _Decrypted) -> Iterator[tuple[str, bytes]]:
    digests: dict[str, _Digest] = {}
    manifest: bytes | None = None
    part = "its beginning"
    try:
        with tarfile.open(fileobj=stream.pipe, mode="r|") as archive:
            for member in archive:
                folder, slash, _ = member.name.partition("/")
                part = f"the part {folder}"
                content = archive.extractfile(member) if member.size <= _LARGEST_MEMBER else None
                if content is None or manifest is not None:
                    raise _damaged(path, part, "it is not a member that Isabella writes")
                data = content.read()
                if member.name == MANIFEST:
                    manifest = data
                    continue
                digests.setdefault(folder + slash, _Digest()).add(data)
                yield folder, data
        part = "its end"
        while stream.pipe.read(_BLOCK):
            pass
    except (tarfile.TarError, OSError, EOFError) as error:
        raise stream.refusal(path, part) or _damaged(path, part, str(error)) from None
    refusal = stream.refusal(path, part)
    if refusal is not None:
        raise refusal
    _compare(path, manifest, digests)


def _compare(path: Path, manifest: bytes | None, digests: dict[str, _Digest]) -> None:
    try:
        document = json.loads(manifest or b"{}")
        listed = {str(entry["name"]): entry for entry in document["parts"]}
    except (ValueError, KeyError, TypeError):
        raise _damaged(path, "the part manifest.json", "it is missing, or not a manifest") from None
    for name in {**listed, **digests}:
        found = digests[name].entry(name) if name in digests else None
        if listed.get(name) != found:
            reason = "it is not the one that the manifest describes" if found else "it is missing"
            raise _damaged(path, f"the part {name.rstrip('/')}", reason)


def _damaged(path: Path, part: str, reason: str) -> BackupRefused:
    return BackupRefused(
        f"The backup {path} is damaged: {part} cannot be used ({reason}).",
        remedy="Use another backup (`isabella backup list`); nothing was changed.",
    )


class _Source:
    """The plaintext, as the file that `pyrage` reads."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            while not self._rest:
                self._rest = memoryview(next(self._chunks))
        except StopIteration:
            return b""
        except Exception as error:
            self.error = error  # `pyrage` raises another one
            raise
        taken = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(taken) :]
        return bytes(taken)

    def close(self) -> None:
        """End the generator, and the programs that it runs."""
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()


class _Sink:
    """The file that `pyrage` writes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: Exception | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


class _Decrypted:
    """The content of a file, decrypted by a thread into a pipe."""

    def __init__(self, file: io.BufferedReader, identities: Sequence[x25519.Identity]) -> None:
        reader, writer = os.pipe()
        self.pipe: IO[bytes] = io.BufferedReader(io.FileIO(reader, "rb"))
        self._error: Exception | None = None
        self._thread = threading.Thread(
            target=self._run, args=(file, writer, identities), name="decrypt", daemon=True
        )
        self._thread.start()

    def _run(self, file: io.BufferedReader, writer: int, identities: Sequence[x25519.Identity]) -> None:
        import pyrage

        try:
            with os.fdopen(writer, "wb") as out:
                pyrage.decrypt_io(file, out, identities)
        except (pyrage.DecryptError, OSError) as error:
            self._error = error

    def refusal(self, path: Path, part: str) -> BackupRefused | None:
        """Wait for the end of the decryption; return why it failed, or None if it did not."""
        import pyrage

        self._thread.join()
        error = self._error
        if error is None:
            return None
        if not isinstance(error, pyrage.DecryptError):
            return _damaged(path, part, "its content was changed, or its end is missing")
        if "No matching keys" in str(error):
            return NoKeyOpens(
                f"No key here opens the backup {path}, or {_HEADER} is damaged.",
                remedy="Pass the file with the key as --identity; docs/backups.md says which one it is.",
            )
        return _damaged(path, _HEADER, str(error).splitlines()[0])

    def close(self) -> None:
        """End the decryption."""
        with suppress(OSError):
            self.pipe.close()
        self._thread.join()
