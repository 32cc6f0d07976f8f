"""A change of the master key with which Letta encrypts secrets.

First a journal is written, with the new key and the previous ones. Then Letta is stopped, all values are
re-encrypted in one transaction, and Letta is started with the new key. If this is interrupted, the next start finds
the journal and resumes the change. The journal is deleted when Letta runs with the new key, so every key that may
have encrypted a value is stored at all times.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import SecretStr

from isabella.embedded import encrypted_columns, instance
from isabella.embedded.instance import InstancePaths
from isabella.embedded.progress import Progress, Step, step
from isabella.errors import EmbeddedError, FileUnreadable
from isabella.system import redaction, state
from isabella.system.files import sync_folder, write_private


@dataclass(frozen=True)
class RotationJournal:
    """The journal of a change of the master key."""

    key: SecretStr = field(repr=False)  # the new key
    former: tuple[SecretStr, ...] = field(repr=False)  # the keys that may have encrypted a value before
    kept: bool = True  # whether Isabella stores the new key; otherwise it is configured

    def save(self, paths: InstancePaths) -> None:
        """Write the journal durably."""
        document = {
            "key": self.key.get_secret_value(),
            "former": [key.get_secret_value() for key in self.former],
            "kept": self.kept,
        }
        write_private(paths.rekey_file, json.dumps(document))
        sync_folder(paths.folder)

    @classmethod
    def load(cls, paths: InstancePaths) -> RotationJournal | None:
        """Return the journal; None if no change is in progress, and an `EmbeddedError` if it is damaged."""
        try:
            document = state.read(paths.rekey_file)
        except FileUnreadable as error:
            raise _damaged(paths, error.reason) from None
        match document:
            case None:
                return None
            case {"key": str(key), "former": [*former], "kept": bool(kept)} if all(
                isinstance(one, str) and one for one in (key, *former)
            ):
                journal = cls(SecretStr(key), tuple(SecretStr(str(one)) for one in former), kept)
            case _:
                raise _damaged(paths, "it has unexpected fields")
        redaction.remember(*(key.get_secret_value() for key in (journal.key, *journal.former)))
        return journal


def _damaged(paths: InstancePaths, reason: str) -> EmbeddedError:
    return EmbeddedError(
        f"A change of the master key is in progress, and {paths.rekey_file} cannot be read: {reason}.",
        remedy="Restore the file: it holds keys with which Letta's secrets are encrypted.",
    )


def begin(paths: InstancePaths, key: SecretStr, former: Sequence[SecretStr], *, kept: bool) -> None:
    """Write the journal of a change to a new key, before Letta is stopped for it.

    `former` has every key that may have encrypted a value; `kept` is whether Isabella stores the new key.
    """
    redaction.remember(key.get_secret_value())
    RotationJournal(key, tuple(other for other in former if other != key), kept).save(paths)


def store_new_key(paths: InstancePaths) -> None:
    """Replace the stored key by the new one, if a change to a stored key is in progress."""
    journal = RotationJournal.load(paths)
    if journal is not None and journal.kept and instance.load_secret(paths.master_key_file) != journal.key:
        write_private(paths.master_key_file, journal.key.get_secret_value() + "\n")
        sync_folder(paths.folder)


def resume(paths: InstancePaths, address: SecretStr, key: SecretStr, progress: Progress) -> bool:
    """Re-encrypt all values with the key that Letta is about to use, if a change is in progress; return whether.

    Letta must not be running. If the database at `address` cannot be written, the journal stays with every key.
    """
    journal = RotationJournal.load(paths)
    if journal is None:
        return False
    with step(progress, "reencrypt", "Letta's secrets with the new master key"):
        encrypted_columns.reencrypt(address, [journal.key, *journal.former], key)
    return True


def finish(paths: InstancePaths, key: SecretStr | None, progress: Progress, *, started: bool) -> None:
    """Delete the journal: Letta runs, and all values have its key, or the change was interrupted before it began.

    Letta is stopped before values are re-encrypted, and is not restarted before all of them are. `started` is
    whether Letta was started just now; otherwise it was already running.
    """
    journal = RotationJournal.load(paths)
    if journal is None or key is None:
        return
    if not started and key != journal.key:
        if key not in journal.former:
            return
        progress(Step("reencrypt", "note", "a change of the master key that had not begun was dropped: repeat it"))
    elif not journal.kept and key == journal.key:
        # The new key is configured, and the stored one no longer decrypts anything. If the configured key was removed
        # before the change was complete, Letta uses the stored key again, and this branch is not taken.
        paths.master_key_file.unlink(missing_ok=True)
    paths.rekey_file.unlink(missing_ok=True)
    sync_folder(paths.folder)


def known_keys(paths: InstancePaths, *others: SecretStr | None) -> list[SecretStr]:
    """Return the keys that may have encrypted a value: the stored one, those of the journal, and the others given."""
    journal = RotationJournal.load(paths)
    in_journal = () if journal is None else (journal.key, *journal.former)
    keys = (instance.load_secret(paths.master_key_file), *in_journal, *others)
    return list(dict.fromkeys(key for key in keys if key))
