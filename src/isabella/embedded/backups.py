"""Backups of an instance: what they contain, where they are, how many are kept, and making and reading them.

A backup contains Letta's database, the master keys that decrypt its values, the settings without any key, the former
texts of memory blocks, and the files that declare vendors and define agents. Its name says of which instance it is,
when it was made, and why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import SecretStr

from isabella.config.api_keys import is_master_key
from isabella.config.settings import Settings, variable
from isabella.config.vendors import known_vendors
from isabella.embedded import archive, backup_keys, databases, encrypted_columns, postgres
from isabella.embedded.databases import DatabaseAccess
from isabella.embedded.encrypted_columns import StoredValue, ValueState
from isabella.embedded.instance import InstancePaths, histories_folder, make_private
from isabella.errors import BackupRefused, EmbeddedError, FileUnreadable, IsabellaError
from isabella.system import audit, files, redaction, state
from isabella.system.english import english

if TYPE_CHECKING:
    from pyrage import x25519

_ABOUT, _KEYS, _SETTINGS, _DATABASE = "backup.json", "master-keys", "settings.json", "database"
_BLOCKS = "blocks.json"
_STAMP = "%Y%m%dT%H%M%S%fZ"
#: The tables that are reported, in words of Isabella; all tables are compared.
COUNTED = {
    "agents": ("agents",),
    "blocks": ("block",),
    "passages": ("archival_passages", "source_passages"),
    "messages": ("messages",),
}


class BackupReason(StrEnum):
    """Why a backup was made."""

    MANUAL = "manual"
    NIGHTLY = "nightly"
    MIGRATION = "before-migration"
    REKEY = "before-rekey"
    RESTORE = "before-restore"


_HISTORY = re.compile(r"[0-9a-z-]{1,80}")  # another name could lead out of the folder
_NAME = re.compile(rf"isabella-(?P<source>.+)-(?P<at>\d{{8}}T\d{{12}}Z)-(?P<reason>{'|'.join(BackupReason)})\.age")


@dataclass(frozen=True)
class Backup:
    """A backup file, as far as its name and size show."""

    path: Path
    source: str  # release and instance, as in the name of its folder
    at: datetime
    reason: BackupReason
    size: int  # in bytes


@dataclass(frozen=True)
class BackupPolicy:
    """The folder of backups, their recipients, and the parts of the configuration that they contain."""

    settings: Settings = field(repr=False)
    folder: Path
    keep: int  # how many of each automatic kind are kept
    before_changes: bool  # whether one is made before migrations, rekey and restore

    @classmethod
    def of(cls, settings: Settings) -> BackupPolicy:
        """Return the policy of these settings."""
        folder = settings.backup_folder or settings.home / "backups"
        return cls(settings, folder.absolute(), settings.backup_keep, settings.backup_before_changes)

    def recipients(self) -> list[x25519.Recipient]:
        """Return the public keys of those who can open a backup; the home's own key is made if it is the only one."""
        configured = backup_keys.parse_recipients(self.settings.backup_recipients)
        return configured or [backup_keys.own_key_or_new(self.settings.home.absolute()).to_public()]

    @property
    def only_here(self) -> bool:
        """Whether the key that opens the backups is in this home only."""
        if self.settings.backup_recipients:
            return False
        own = backup_keys.own_key(self.settings.home.absolute())
        return own is None or not backup_keys.sealed_key(self.folder, own).exists()


@dataclass(frozen=True)
class Contents:
    """The description in a backup. Its keys are those that decrypt Letta's values, the current one first."""

    release: str
    at: str
    counts: Mapping[str, int]
    unreadable: int  # how many encrypted values none of the keys decrypted when it was made
    keys: tuple[SecretStr, ...] = field(repr=False)
    settings: Mapping[str, Any]
    files: Mapping[str, str] = field(repr=False)
    #: The former texts of memory blocks, by the names of their files.
    histories: Mapping[str, Mapping[str, Any]] = field(repr=False, default_factory=dict)

    def counted(self, counts: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return the numbers of agents, blocks, passages and messages."""
        rows = self.counts if counts is None else counts
        return {word: sum(rows.get(table, 0) for table in tables) for word, tables in COUNTED.items()}


def list_backups(folder: Path, source: str | None = None) -> list[Backup]:
    """Return the backups in a folder, of all instances or of one, the newest first."""
    found = []
    for path in folder.glob("isabella-*.age"):
        match = _NAME.fullmatch(path.name)
        with suppress(OSError, ValueError):
            if match is not None and source in (None, match["source"]):
                at = datetime.strptime(match["at"], _STAMP).replace(tzinfo=UTC)
                found.append(Backup(path, match["source"], at, BackupReason(match["reason"]), path.stat().st_size))
    return sorted(found, key=lambda one: (one.at, one.path.name), reverse=True)


def surplus(backups: Sequence[Backup], keep: int) -> list[Backup]:
    """Return the automatic backups that are not among the newest of their instance and kind. Manual ones are kept."""
    kept: dict[tuple[str, BackupReason], int] = {}
    found = []
    for one in sorted(backups, key=lambda one: one.at, reverse=True):
        kind = (one.source, one.reason)
        kept[kind] = kept.get(kind, 0) + 1
        if one.reason is not BackupReason.MANUAL and kept[kind] > keep:
            found.append(one)
    return found


def create(
    paths: InstancePaths,
    access: DatabaseAccess,
    keys: Sequence[SecretStr],
    policy: BackupPolicy,
    reason: BackupReason,
    *,
    to: Path | None = None,
) -> Backup:
    """Make a backup of a database that is running, and delete surplus ones of its kind.

    `keys` are the master keys that decrypt its values, the current one first. `to` replaces the usual file.

    Raises `EmbeddedError` if the database cannot be read, or the file cannot be written.
    """
    at = datetime.now(UTC)
    path = to or policy.folder / f"isabella-{paths.folder.name}-{at.strftime(_STAMP)}-{reason.value}.age"
    if path.exists():
        raise EmbeddedError(f"{path} exists already.", remedy="Name another file; backups replace no file.")
    try:
        make_private(path.parent) if to is None else path.parent.mkdir(parents=True, exist_ok=True)
        _clear_unfinished(path.parent)
        recipients = policy.recipients()
    except OSError as error:
        raise EmbeddedError(
            english(
                "The backup %(path)s cannot be made: %(where)s: %(why)s.",
                path=path,
                where=error.filename or path.parent,
                why=state.why(error),
            ),
            remedy=english(
                "Free space there, correct its permissions, or set ISABELLA_BACKUP_FOLDER to another folder."
            ),
        ) from error
    with databases.snapshot(access.letta) as snapshot:
        values = encrypted_columns.read_values_in(snapshot.connection, keys)
        about = {
            "format": archive.FORMAT,
            "isabella": version("isabella"),
            "letta": paths.release,
            "instance": paths.instance,
            "revision": postgres.revision_in(snapshot.connection),
            "made_at": at.isoformat(timespec="seconds"),
            "reason": reason.value,
            "rows": snapshot.counts(),
            "unreadable_values": sum(value.state is ValueState.UNREADABLE for value in values),
        }

        def parts() -> Iterator[archive.Part]:
            yield _ABOUT, [json.dumps(about, indent=1).encode()]
            yield _KEYS, ["".join(f"{key.get_secret_value()}\n" for key in keys).encode()]
            yield _SETTINGS, [json.dumps(settings_document(policy.settings), indent=1).encode()]
            for name, file in _files(policy.settings).items():
                yield name, [file]
            if histories := _histories(policy.settings.home):
                yield _BLOCKS, [json.dumps(histories).encode()]
            yield f"{_DATABASE}/", snapshot.dump()

        with audit.change("backup.made", paths.folder.name, home=paths.home, reason=reason.value, file=str(path)):
            size = archive.write(path, recipients, parts())
    if to is None:
        for one in surplus(list_backups(policy.folder), policy.keep):
            one.path.unlink(missing_ok=True)
    return Backup(path, paths.folder.name, at, reason, size)


def read_into(
    access: DatabaseAccess, name: str, path: Path, identities: Sequence[x25519.Identity], release: str
) -> Contents:
    """Fill an empty database from a backup, and compare its rows with those that were counted.

    Raises:
        BackupRefused: the backup cannot be opened, is damaged, incomplete, or of a later release.
    """
    texts: dict[str, str] = {}
    parts = archive.read(path, identities)

    def dump() -> Iterator[bytes]:
        for part, data in parts:
            if part == _DATABASE:
                _check(path, texts, release)
                yield data
            else:
                texts[part] = data.decode()

    databases.restore(access.url(name), dump())
    contents = _check(path, texts, release)
    with postgres.connect(access.url(name)) as connection:
        found = databases.count_rows(connection)
    different = [table for table in {**contents.counts, **found} if contents.counts.get(table) != found.get(table)]
    if different:
        table = different[0]
        raise BackupRefused(
            f"The backup {path} is incomplete: the table {table} has {found.get(table, 0)} rows, and had "
            f"{contents.counts.get(table, 0)}.",
            remedy="Use another backup (`isabella backup list`).",
        )
    return contents


def opened_values(access: DatabaseAccess, name: str, path: Path, contents: Contents) -> list[StoredValue]:
    """Decrypt every encrypted value with the master keys of the backup.

    Raises:
        BackupRefused: there are more that none of them decrypts than there were.
    """
    values = encrypted_columns.read_values(access.url(name), contents.keys)
    lost = [value.place for value in values if value.state is ValueState.UNREADABLE]
    if len(lost) > contents.unreadable:
        raise BackupRefused(
            f"The master key in the backup {path} does not decrypt {len(lost)} values, for instance {lost[0]}.",
            remedy="Use another backup (`isabella backup list`).",
        )
    return values


def settings_document(settings: Settings) -> dict[str, Any]:
    """Return the settings that are set, without secrets, and the names of the variables that keys come from."""
    values, keys = {}, []
    for name in type(settings).model_fields:
        if name == "sources" or settings.sources.get(variable(name)) is None:
            continue
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            keys.append(variable(name))
        elif value is not None:
            values[variable(name)] = ", ".join(value) if isinstance(value, tuple) else str(value)
    for vendor in _vendors(settings):
        for name in vendor.variables:
            found = settings.sources.get(name)
            if found is not None and name in (vendor.api_key_env, vendor.api_key_command_env):
                keys.append(name)
            elif found is not None:
                values[name] = found.text.strip()
    return {"values": {name: redaction.redact(text) for name, text in values.items()}, "keys": keys}


def _vendors(settings: Settings) -> Sequence[Any]:
    from isabella.config.custom_vendors import all_vendors

    # A file that is damaged now does not prevent a backup.
    with suppress(IsabellaError):
        return all_vendors(settings.config_file)
    return known_vendors()


def _files(settings: Settings) -> dict[str, bytes]:
    """Return the files that declare vendors and define agents, as far as there are any."""
    found = {}
    for name, path in (("isabella.toml", settings.config_file), ("agents.toml", settings.agents_file)):
        with suppress(FileUnreadable):
            if path is not None:
                found[name] = files.read(path).data
    return found


def _histories(home: Path) -> dict[str, Mapping[str, Any]]:
    paths = sorted(histories_folder(home).glob("*.json"))
    return {path.stem: document for path in paths if _HISTORY.fullmatch(path.stem) and (document := state.load(path))}


def _check(path: Path, texts: Mapping[str, str], release: str) -> Contents:
    try:
        about = json.loads(texts[_ABOUT])
        settings = json.loads(texts[_SETTINGS])
        keys = tuple(line for line in texts[_KEYS].split() if is_master_key(line))
        contents = Contents(
            release=str(about["letta"]),
            at=str(about["made_at"]),
            counts={str(table): int(rows) for table, rows in about["rows"].items()},
            unreadable=int(about["unreadable_values"]),
            keys=tuple(map(SecretStr, keys)),
            settings=settings,
            files={name: text for name, text in texts.items() if name.endswith(".toml")},
            histories={
                name: dict(history)
                for name, history in json.loads(texts.get(_BLOCKS, "{}")).items()
                if _HISTORY.fullmatch(name)
            },
        )
        made_in = int(about["format"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise BackupRefused(
            f"{path} is not an Isabella backup, or was made by a later version ({error}).",
            remedy="Use a backup made by `isabella backup create`.",
        ) from None
    redaction.remember(*keys)
    if made_in > archive.FORMAT or _numbers(contents.release) > _numbers(release):
        raise BackupRefused(
            f"The backup {path} is from Letta {contents.release} (format {made_in}), and this is Letta {release}.",
            remedy=f"Restore it with a later Isabella, or with --version {contents.release}.",
        )
    return contents


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in release.split("."))


def _clear_unfinished(folder: Path) -> None:
    """Delete what processes that were killed have left. It is encrypted, but incomplete."""
    for path in folder.glob(".isabella-*.age.*"):
        pid = path.name.rpartition(".")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            path.unlink(missing_ok=True)
