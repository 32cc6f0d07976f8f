"""Changing the master key under which Letta seals secrets.

First a journal is written, with the new key and those before it. Then Letta is stopped, everything is sealed anew in
one transaction of the database, and Letta is started under the new key. Whatever happens in between, the next start
finds the journal and goes on from there; it is removed when Letta runs under the new key. So there is no moment at
which a key that something is sealed under is written down nowhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import SecretStr

from isabella.embedded import encrypted_columns, instance
from isabella.embedded.instance import InstancePaths
from isabella.embedded.progress import Progress, Step, step
from isabella.errors import EmbeddedError
from isabella.system import redaction
from isabella.system.files import write_private


@dataclass(frozen=True)
class RotationJournal:
    """A change of the master key that is under way.

    Attributes:
        key: the new key.
        former: the keys that something may still be sealed under.
        kept: whether the new key is Isabella's own to keep; otherwise the configuration has it.
    """

    key: SecretStr = field(repr=False)
    former: tuple[SecretStr, ...] = field(repr=False)
    kept: bool = True

    def save(self, paths: InstancePaths) -> None:
        """Write it down, so that not even a power cut takes it away."""
        document = {
            "key": self.key.get_secret_value(),
            "former": [key.get_secret_value() for key in self.former],
            "kept": self.kept,
        }
        write_private(paths.rekey_file, json.dumps(document))
        _sync_folder(paths)

    @classmethod
    def load(cls, paths: InstancePaths) -> RotationJournal | None:
        """What is under way; None where nothing is.

        Raises:
            EmbeddedError: the journal is damaged, and must not be passed over.
        """
        try:
            found = json.loads(paths.rekey_file.read_text())
            journal = cls(SecretStr(str(found["key"])), tuple(SecretStr(str(one)) for one in found["former"]))
            kept = bool(found["kept"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EmbeddedError(
                f"A change of the master key is under way, and {paths.rekey_file} cannot be read "
                f"({type(error).__name__}).",
                remedy="Put the file back as it was: it holds keys that Letta's secrets are sealed under.",
            ) from None
        redaction.remember(*(key.get_secret_value() for key in (journal.key, *journal.former)))
        return cls(journal.key, journal.former, kept)


def begin(paths: InstancePaths, key: SecretStr, former: Sequence[SecretStr], *, kept: bool) -> None:
    """Write down that the key is to be changed. Only now may Letta be stopped for it.

    Args:
        paths: the instance.
        key: the new key.
        former: every key that something may be sealed under.
        kept: whether the new key is Isabella's own to keep.
    """
    redaction.remember(key.get_secret_value())
    RotationJournal(key, tuple(one for one in former if one != key), kept).save(paths)


def store_new_key(paths: InstancePaths) -> None:
    """Make the new key the kept one, where a change to it is under way. Those before it stand in the journal."""
    journal = RotationJournal.load(paths)
    if journal is not None and journal.kept and instance.load_secret(paths.master_key_file) != journal.key:
        write_private(paths.master_key_file, journal.key.get_secret_value() + "\n")
        _sync_folder(paths)


def resume(paths: InstancePaths, address: SecretStr, key: SecretStr, progress: Progress) -> bool:
    """Seal everything under the key that Letta is about to run under, where a change of it is under way.

    Args:
        paths: the instance, whose Letta does not run.
        address: its database.
        key: what Letta is about to run under.
        progress: told what happens.

    Returns:
        Whether one was.

    Raises:
        EmbeddedError: the database cannot be written; the journal stays, and with it every key.
    """
    journal = RotationJournal.load(paths)
    if journal is None:
        return False
    with step(progress, "reseal", "what Letta has sealed, under the new master key"):
        encrypted_columns.reencrypt(address, [journal.key, *journal.former], key)
    return True


def finish(paths: InstancePaths, key: SecretStr | None, progress: Progress, *, started: bool) -> None:
    """Put the journal away: Letta runs, and everything is under its key, or nothing was begun.

    Letta is stopped before anything is sealed anew, and is not started again before all of it is.

    Args:
        paths: the instance.
        key: what Letta runs under.
        progress: told what happens.
        started: whether Letta was started just now; otherwise it ran already.
    """
    journal = RotationJournal.load(paths)
    if journal is None or key is None:
        return
    if not started and key != journal.key:
        if key not in journal.former:
            return
        progress(Step("reseal", "note", "a change of the master key that had not begun was dropped: repeat it"))
    elif not journal.kept and key == journal.key:
        # The configuration has the key now, and the one that was kept here opens nothing any more. Where it was taken
        # out of the configuration before all of this was done, Letta runs under the kept one again.
        paths.master_key_file.unlink(missing_ok=True)
    paths.rekey_file.unlink(missing_ok=True)
    _sync_folder(paths)


def known_keys(paths: InstancePaths, *others: SecretStr | None) -> list[SecretStr]:
    """The master keys that something may be sealed under: the kept one, those of a change under way, and others."""
    journal = RotationJournal.load(paths)
    under_way = () if journal is None else (journal.key, *journal.former)
    return list(
        dict.fromkeys(key for key in (instance.load_secret(paths.master_key_file), *under_way, *others) if key)
    )


def _sync_folder(paths: InstancePaths) -> None:
    folder = os.open(paths.folder, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
