"""Backups without a database: their names, how many are kept, their keys, and the nightly ones."""

from __future__ import annotations

import os
from datetime import UTC, timedelta
from pathlib import Path

import anyio
import pytest
from pydantic import SecretStr

from isabella.cli import backup as commands
from isabella.cli import restore
from isabella.config.settings import Settings, load_settings
from isabella.embedded import Server, archive, backup_keys
from isabella.embedded.backups import (
    Backup,
    BackupPolicy,
    BackupReason,
    Contents,
    list_backups,
    settings_document,
    surplus,
)
from isabella.errors import BackupRefused, ConfigurationError, EmbeddedError
from isabella.providers.report import Report
from isabella.server.metrics import Metrics
from isabella.server.nightly_backups import NightlyBackups
from isabella.server.readiness import Phase
from isabella.server.runtime import Runtime
from isabella.system import audit
from tests.support.sample_reports import IN_SYNC
from tests.unit.test_schedule import Now

CANARY = "gsk_canary-of-the-backups-0b1e"


def settings(home: Path, **variables: str) -> Settings:
    """Settings of a home, with a key."""
    return load_settings(environment={"GROQ_API_KEY": CANARY, **variables}, home=home)


def touch(folder: Path, day: int, reason: BackupReason, source: str = "0.16.8") -> Path:
    """A file with the name of a backup of that day, and so many bytes."""
    folder.mkdir(exist_ok=True)
    path = folder / f"isabella-{source}-202611{day:02}T030000000000Z-{reason.value}.age"
    path.write_bytes(b"x" * day)
    return path


def test_backups_are_listed_the_newest_first(tmp_path: Path) -> None:
    """By their names; other files, and those of other instances if one is named, are left out."""
    touch(tmp_path, 2, BackupReason.NIGHTLY)
    touch(tmp_path, 5, BackupReason.REKEY, "0.16.8-work")
    touch(tmp_path, 3, BackupReason.MANUAL)
    (tmp_path / "key-something.age").touch()
    (tmp_path / "isabella-0.16.8-20261399T030000000000Z-manual.age").touch()
    assert [(one.at.day, one.reason, one.size) for one in list_backups(tmp_path)] == [
        (5, BackupReason.REKEY, 5),
        (3, BackupReason.MANUAL, 3),
        (2, BackupReason.NIGHTLY, 2),
    ]
    assert [one.at.day for one in list_backups(tmp_path, "0.16.8")] == [3, 2]
    assert list_backups(tmp_path / "missing") == []


def test_the_newest_of_each_automatic_kind_are_kept(tmp_path: Path) -> None:
    """A kind does not push out another one, nor an instance another one, and manual backups are never deleted."""
    for day in range(1, 10):
        for reason in (BackupReason.NIGHTLY, BackupReason.MANUAL):
            touch(tmp_path, day, reason)
    touch(tmp_path, 1, BackupReason.REKEY)
    touch(tmp_path, 1, BackupReason.NIGHTLY, "0.16.8-work")
    gone = surplus(list_backups(tmp_path), 7)
    assert sorted((one.source, one.reason, one.at.day) for one in gone) == [
        ("0.16.8", BackupReason.NIGHTLY, 1),
        ("0.16.8", BackupReason.NIGHTLY, 2),
    ]


def test_settings_are_kept_without_keys(tmp_path: Path) -> None:
    """Values of what is set, but of keys and passwords the names only."""
    given = settings(
        tmp_path,
        LETTA_ENCRYPTION_KEY="ab" * 32,
        ISABELLA_DATABASE_URL="postgresql://a:secret-of-the-url@db/letta",
        ISABELLA_RESYNC="90s",
        GROQ_BASE_URL="http://127.0.0.1:9/v1",
        GROQ_API_KEY_FILE="/run/secrets/groq",
        MISTRAL_API_KEY_COMMAND="a-vault --token secret-of-the-command",
    )
    document = settings_document(given)
    assert document["values"] == {
        "ISABELLA_RESYNC": "90.0",
        "GROQ_BASE_URL": "http://127.0.0.1:9/v1",
        "GROQ_API_KEY_FILE": "/run/secrets/groq",
    }
    assert sorted(document["keys"]) == [
        "GROQ_API_KEY",
        "ISABELLA_DATABASE_URL",
        "LETTA_ENCRYPTION_KEY",
        "MISTRAL_API_KEY_COMMAND",
    ]
    for secret in (CANARY, "secret-of-the-command", "ab" * 32, "secret-of-the-url"):
        assert secret not in repr(document)


def test_the_key_of_the_home_is_made_once(tmp_path: Path) -> None:
    """For its owner only; a damaged one is refused and left, because backups may depend on it."""
    first, again = backup_keys.own_key_or_new(tmp_path), backup_keys.own_key(tmp_path)
    assert again is not None
    assert str(first) == str(again)
    path = tmp_path / backup_keys.KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("AGE-SECRET-KEY-1BROKEN")
    with pytest.raises(EmbeddedError, match="is damaged"):
        backup_keys.own_key_or_new(tmp_path)
    assert path.read_text() == "AGE-SECRET-KEY-1BROKEN"


def test_the_key_can_be_carried_elsewhere_under_a_passphrase(tmp_path: Path) -> None:
    """Beside the backups, encrypted, it opens them with its passphrase, although that home has a key of its own.

    Where the own key opens it, no passphrase is asked for; another one is refused.
    """
    home, made, elsewhere = tmp_path / "home", tmp_path / "made", tmp_path / "elsewhere"
    made.mkdir()
    backup_keys.own_key_or_new(elsewhere)
    own, file, passphrase = backup_keys.own_key_or_new(home), made / "a.age", tmp_path / "passphrase"
    archive.write(file, [own.to_public()], [("backup.json", [b"{}"])])
    passphrase.write_text("five words of the operator\n")
    path = backup_keys.seal_key(home, made, SecretStr("five words of the operator"))
    assert [one.entry.change for one in audit.records(home)] == ["backup.key_sealed"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(own).encode() not in path.read_bytes()
    (key,) = commands._identities(settings(elsewhere), file, None, passphrase)
    assert str(key) == str(own)
    # A former key has a file of its own, which is kept.
    former = backup_keys.seal_key(elsewhere, made, SecretStr("five words of the operator"))
    assert len(commands._identities(settings(tmp_path / "bare"), file, None, passphrase)) == 2
    former.unlink()
    (key,) = commands._identities(settings(home), file, None, None)
    assert str(key) == str(own)
    with pytest.raises(ConfigurationError, match="passphrase is needed"):
        commands._identities(settings(elsewhere), file, None, None)
    for wrong in (SecretStr("four words of another"), None):
        with pytest.raises(BackupRefused, match="passphrase"):
            backup_keys.load_keys(path, wrong)


def test_backups_are_for_the_configured_recipients_only(tmp_path: Path) -> None:
    """If there are any, the home has no key of its own; without any, it is the only one, and that is said."""
    public = str(backup_keys.own_key_or_new(tmp_path / "other").to_public())
    policy = BackupPolicy.of(settings(tmp_path / "home", ISABELLA_BACKUP_RECIPIENTS=public))
    assert [str(one) for one in policy.recipients()] == [public]
    assert not policy.only_here
    assert not (tmp_path / "home").exists()
    policy = BackupPolicy.of(settings(tmp_path / "home"))
    assert policy.only_here
    policy.folder.mkdir(parents=True)
    (policy.folder / "key-ofanother000.age").touch()
    assert policy.only_here
    own = backup_keys.own_key_or_new(tmp_path / "home").to_public()
    assert [str(one) for one in policy.recipients()] == [str(own)]
    with pytest.raises(ConfigurationError, match="ISABELLA_BACKUP_RECIPIENTS"):
        settings(tmp_path, ISABELLA_BACKUP_RECIPIENTS="ssh-ed25519")
    with pytest.raises(ConfigurationError, match="is not an age public key"):
        backup_keys.parse_recipients([public[:-1] + ("q" if public[-1] != "q" else "p")])


def test_files_that_are_missing_are_those_of_the_backup(tmp_path: Path) -> None:
    """One that is there and differs stays, and is named, and so is what was set where the backup was made."""
    config, agents = tmp_path / "isabella.toml", tmp_path / "agents.toml"
    config.write_text("# another one\n")
    here = settings(tmp_path, ISABELLA_CONFIG_FILE=str(config), ISABELLA_AGENTS_FILE=str(agents))
    document = {"values": {"ISABELLA_RESYNC": "90.0"}, "keys": ["GROQ_API_KEY", "MISTRAL_API_KEY"]}
    files = {"isabella.toml": "# of the backup\n", "agents.toml": "# of the backup, too\n"}
    contents = Contents("0.16.8", "", {}, 0, (), document, files)
    kept, written = restore._put_files(here, contents)
    assert (config.read_text(), agents.read_text()) == ("# another one\n", "# of the backup, too\n")
    assert "differs" in kept
    assert "was missing" in written
    assert list(restore._put_files(here, contents)) == [kept]
    missing, value = restore._missing(here, contents)
    assert "MISTRAL_API_KEY" in missing
    assert "GROQ_API_KEY" not in missing
    assert "ISABELLA_RESYNC was '90.0'" in value


# --- nightly ------------------------------------------------------------------------------------------------------


class Night:
    """A backend of a home whose backups are made by a stand-in."""

    def __init__(self, home: Path, **variables: str) -> None:
        self.now = Now()
        self.home, self.server = home, Server(home)
        self.runtime = Runtime()
        self.runtime.readiness.phase = Phase.READY
        self.runtime.readiness.report = Report("http://letta", "0.16.8", [IN_SYNC])
        self.policy = BackupPolicy.of(settings(home, **variables))
        self.failure: Exception | None = None
        self.made = 0
        data = self.server.paths.folder / "postgres-18"
        data.mkdir(parents=True)
        self.version = data / "PG_VERSION"
        self.version.write_text("18")
        self.age(timedelta())
        self.nightly = self.again()

    def again(self) -> NightlyBackups:
        """As after a start of the backend's services."""
        return NightlyBackups(self.runtime, self.server, self.policy, self.now.clock, self._back_up)

    def age(self, age: timedelta) -> None:
        """Let the database have been created so long ago."""
        at = (self.now.date - age).timestamp()
        os.utime(self.version, (at, at))

    def _back_up(self, _server: Server, policy: BackupPolicy, reason: BackupReason) -> Backup:
        self.made += 1
        if self.failure is not None:
            raise self.failure
        at = self.now.date.astimezone(UTC)
        policy.folder.mkdir(exist_ok=True)
        path = policy.folder / f"isabella-0.16.8-{at:%Y%m%dT%H%M%S%fZ}-{reason.value}.age"
        path.write_bytes(b"12345")
        return Backup(path, "0.16.8", at, reason, 5)

    def metric(self, name: str) -> float:
        metrics = Metrics()
        metrics._render_backups(self.runtime.readiness)
        value = metrics._registry.get_sample_value(f"isabella_backup_{name}")
        assert value is not None
        return value


def test_one_is_made_each_night(tmp_path: Path) -> None:
    """At its time, however late it is looked at; the metrics have time and size of the newest."""
    night = Night(tmp_path, ISABELLA_BACKUP_AT="13:00")
    assert not night.nightly.due()
    assert night.metric("timestamp_seconds") == 0
    night.now.go_on(3600)
    assert night.nightly.due()
    anyio.run(night.nightly.make)
    assert not night.nightly.due()
    assert night.metric("timestamp_seconds") == night.now.date.timestamp()
    assert (night.metric("size_bytes"), night.metric("failed")) == (5, 0)
    night.now.go_on(24 * 3600)
    assert night.nightly.due()


def test_a_missed_one_is_made_at_the_start(tmp_path: Path) -> None:
    """After more than a day without one, but not for a database that is newer than that."""
    night = Night(tmp_path)
    assert not night.nightly.overdue()
    night.age(timedelta(days=2))
    assert night.nightly.overdue()
    anyio.run(night.nightly.make)
    assert not night.nightly.overdue()
    night.now.go_on(27 * 3600)
    assert night.again().overdue()


@pytest.mark.parametrize("error", [EmbeddedError("The disk is full."), RuntimeError("a bug")])
def test_a_failed_one_is_a_reason_and_is_tried_again(tmp_path: Path, error: Exception) -> None:
    """Until one succeeds: the status is degraded, also after the services were opened again."""
    night = Night(tmp_path)
    readiness = night.runtime.readiness
    assert (readiness.status, readiness.reasons) == (Phase.READY, [])
    night.failure = error
    anyio.run(night.nightly.make)
    assert readiness.status is Phase.DEGRADED
    assert readiness.serving
    assert [str(error).split(".")[0] in reason for reason in readiness.reasons] == [True]
    assert night.metric("failed") == 1
    nightly = night.again()
    assert (readiness.status, nightly.due()) == (Phase.DEGRADED, False)
    night.now.go_on(3600)
    assert nightly.due()
    night.failure = None
    anyio.run(nightly.make)
    assert (readiness.status, readiness.reasons, night.metric("failed")) == (Phase.READY, [], 0)
    assert len(night.runtime.event_log.notices(10)) == 1
