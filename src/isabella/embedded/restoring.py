"""Verification and restoring of backups: a backup is read into a database beside Letta's, and may take its place.

If either is interrupted, Letta's database is as it was. What is left beside it is dropped by the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from isabella.embedded import backups, databases, encrypted_columns, file_locks, postgres
from isabella.embedded.backups import Backup, BackupPolicy, BackupReason, Contents
from isabella.embedded.databases import DatabaseAccess
from isabella.embedded.encrypted_columns import StoredValue
from isabella.embedded.progress import Progress, no_progress, step
from isabella.embedded.server import Letta, Server
from isabella.errors import BackupRefused, EmbeddedError, LockTimeout
from isabella.system import audit

if TYPE_CHECKING:
    from pyrage import x25519

_SECONDS_FOR_LOCK = 10 * 60


@dataclass(frozen=True)
class Verified:
    """The result of reading a backup back."""

    contents: Contents
    values: Mapping[str, int]  # how many encrypted values there are, by `ValueState`


@dataclass(frozen=True)
class Restored:
    """The result of a restore."""

    verified: Verified
    letta: Letta
    reencrypted: bool  # whether the values have another master key now than in the backup
    before: Backup | None = None  # the backup of the data that were there before


def back_up(
    server: Server,
    policy: BackupPolicy,
    reason: BackupReason,
    progress: Progress = no_progress,
    *,
    to: Path | None = None,
) -> Backup:
    """Make a backup of an instance, whose Postgres is started for this if it does not run.

    Raises `EmbeddedError` if there is no database, or the backup cannot be made.
    """
    with server.database(progress) as access, step(progress, "backup", "of the database"):
        with suppress(LockTimeout), _alone(server, seconds=0), databases.alone(access, seconds=0):
            databases.drop_leftovers(access)
        return backups.create(server.paths, access, server.current_keys(), policy, reason, to=to)


def verify(
    server: Server, path: Path, identities: Sequence[x25519.Identity], progress: Progress = no_progress
) -> Verified:
    """Read a backup into a separate database, compare its rows, and decrypt every encrypted value in it.

    Raises:
        BackupRefused: it cannot be opened, is damaged or incomplete, or its master key does not fit.
    """
    with (
        _alone(server),
        server.database(progress, create=True) as access,
        databases.alone(access, _SECONDS_FOR_LOCK),
        databases.scratch_database(access) as name,
    ):
        return _read(server, access, name, path, identities, progress)[0]


def restore(
    server: Server, path: Path, identities: Sequence[x25519.Identity], progress: Progress = no_progress
) -> Restored:
    """Replace the data of an instance by those of a backup, and start Letta with them.

    The values are encrypted with the master key of this instance; the one of the backup is used if there is none.

    Raises:
        BackupRefused: as `verify` does. Nothing was changed.
        EmbeddedError: the data that are there could not be saved first. Nothing was changed.
    """
    if server.own is not None:
        raise EmbeddedError(
            f"Letta's database is in your own Postgres, at {server.own.where}, which Isabella does not replace.",
            remedy="Stop every Letta on it, and restore the dump in the backup with pg_restore: docs/backups.md says "
            "how. Or restore into a home without ISABELLA_POSTGRES_URL.",
        )
    with _alone(server), server.database(progress, create=True) as access:
        with databases.scratch_database(access) as name:
            verified, values = _read(server, access, name, path, identities, progress)
            keys = verified.contents.keys
            key = server.adopt_master_key(keys[0])
            reencrypted = any(value.key not in (None, key) for value in values)
            if reencrypted:
                with step(progress, "reencrypt", "its secrets with the master key of this home"):
                    encrypted_columns.reencrypt(access.url(name), keys, key)
            databases.analyze(access.url(name))
            before: list[Backup] = []

            def replace() -> None:
                # Letta is stopped: nothing is written between the backup and the exchange.
                before.extend(_save_former(server, access, progress))
                databases.take_place(access, name)

            with audit.change("backup.restored", server.paths.folder.name, home=server.home, file=str(path)):
                letta = server.replace_database(replace, progress)
        databases.drop_leftovers(access)
    return Restored(verified, letta, reencrypted, *before)


def _read(
    server: Server,
    access: DatabaseAccess,
    name: str,
    path: Path,
    identities: Sequence[x25519.Identity],
    progress: Progress,
) -> tuple[Verified, list[StoredValue]]:
    with step(progress, "restore", f"{path.name} into a database beside Letta's"):
        contents = backups.read_into(access, name, path, identities, server.release)
        if not contents.keys:
            raise BackupRefused(f"The backup {path} has no master key.", remedy="Use another backup.")
        values = backups.opened_values(access, name, path, contents)
        return Verified(contents, Counter(value.state.value for value in values)), values


def _save_former(server: Server, access: DatabaseAccess, progress: Progress) -> Iterator[Backup]:
    """Back up the existing data, if any, unless the settings forbid it."""
    policy = server.backups
    if policy is None or not policy.before_changes:
        return
    if postgres.current_revision(access.letta) is not None:
        with step(progress, "backup", "of the database before it is replaced"):
            yield backups.create(server.paths, access, server.current_keys(), policy, BackupReason.RESTORE)


@contextmanager
def _alone(server: Server, seconds: float = _SECONDS_FOR_LOCK) -> Iterator[None]:
    """Hold the lock of the databases beside Letta's. It is taken before the lock of the instance."""
    paths = server.paths
    with file_locks.file_lock(paths.home, paths.lock.with_name(f"{paths.folder.name}-backup.lock")) as lock:
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            raise LockTimeout(
                "Another backup of this home is being verified or restored.",
                remedy="Wait until it is done, then repeat the command.",
            ) from None
        yield
