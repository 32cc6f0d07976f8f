"""The embedded server: Letta and Postgres of one instance, started, stopped, re-keyed, and its status."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex

from pydantic import SecretStr

from isabella.config.choices import LettaLock
from isabella.config.gateway_address import DEFAULT_PORT as GATEWAY_PORT
from isabella.config.gateway_address import saved_port
from isabella.embedded import (
    backups,
    child_processes,
    encrypted_columns,
    file_locks,
    install,
    instance,
    instance_postgres,
    key_rotation,
    letta_process,
    ports,
    postgres,
)
from isabella.embedded.backups import BackupPolicy, BackupReason
from isabella.embedded.databases import DatabaseAccess
from isabella.embedded.encrypted_columns import StoredValue, ValueState
from isabella.embedded.instance import (
    DEFAULT_INSTANCE,
    DEFAULT_RELEASE,
    LOOPBACK,
    InstancePaths,
    base_url,
    make_private,
)
from isabella.embedded.instance_postgres import InstancePostgres, LettaPostgres
from isabella.embedded.letta_process import ServerRun
from isabella.embedded.own_postgres import OwnPostgres
from isabella.embedded.postgres import Postmaster
from isabella.embedded.progress import Progress, Step, no_progress, step
from isabella.errors import EmbeddedError, EndedWhileStarting, StartFailed
from isabella.system import audit, state
from isabella.system.peers import Peer
from isabella.system.processes import ChildProcess

_SECONDS_FOR_SILENT = 3


@dataclass(frozen=True)
class Letta:
    """A running embedded server."""

    base_url: str  # its base URL on loopback
    version: str
    password: SecretStr  # the bearer token that it requires of its clients (fact R6)
    master_key: SecretStr | None  # the `LETTA_ENCRYPTION_KEY` that it uses; None only in tests
    database_url: SecretStr  # the URL of its database for psycopg
    started: bool  # whether this call started it; False if it was already running
    peer: Peer = field(repr=False, compare=False)  # identifies its process before anything is sent to it


@dataclass(frozen=True)
class ServiceStatus:
    """The status of Letta or Postgres: pid and port (None if it is not running), and whether it accepts requests."""

    pid: int | None = None
    port: int | None = None
    healthy: bool = False


@dataclass(frozen=True)
class InstanceStatus:
    """The status of an instance."""

    release: str
    instance: str
    installed: bool
    lock: str | None  # identifies the lock of the installed dependencies; None if the release is not installed
    letta: ServiceStatus
    postgres: ServiceStatus
    base_url: str | None  # None if Letta is not running
    folder: Path
    data: Path | None  # the folder of Postgres; None if it was never started
    password_file: Path
    letta_log: Path
    postgres_log: Path | None
    own_postgres: str | None = None  # where the operator's own Postgres is, if Letta's database is in one

    @property
    def running(self) -> bool:
        """Whether both services accept requests."""
        return self.letta.healthy and self.postgres.healthy


@dataclass(frozen=True)
class Server:
    """An instance of Letta on this machine, with its own Postgres, or in the operator's."""

    home: Path
    release: str = DEFAULT_RELEASE
    #: one of several servers of the release, which share the program, but not the data
    instance: str = DEFAULT_INSTANCE
    #: the `LETTA_ENCRYPTION_KEY` to use; if not given, one that is generated and stored once
    master_key: SecretStr | None = None
    lock: LettaLock = LettaLock.PATCHED  # the lock that Letta's dependencies are installed from
    sandbox: bool = True  # whether tools of agents run in a sandbox, if that is possible here
    encrypt: bool = True  # False starts Letta without a master key, so that it stores keys in plaintext. For tests.
    #: further variables for Letta's environment. For tests.
    extra_env: Mapping[str, str] = field(default_factory=dict)
    #: addresses and ports that Letta keeps for this user while it runs, beside the gateway's
    kept_ports: tuple[tuple[str, int], ...] = ()
    #: how backups are made before migrations and rekey; None: none are made
    backups: BackupPolicy | None = None
    own: OwnPostgres | None = None  # the operator's Postgres with Letta's database; None: this instance has one

    @property
    def paths(self) -> InstancePaths:
        """The paths of the instance."""
        return InstancePaths(self.home.expanduser().absolute(), self.release, self.instance)

    def up(self, progress: Progress = no_progress, *, silent: ChildProcess | None = None) -> Letta:
        """Install, migrate and start the instance, as far as that is necessary.

        `silent` is a process of Letta that has not answered for long; it is ended, unless it answers now.

        Raises `InstallFailed`, `StartFailed` (also if Letta runs with another master key) or `LockTimeout`.
        """
        with self._locked(progress):
            run = letta_process.running(self.paths)
            if silent is not None and run is not None and run.process == silent and not self._is_healthy(run):
                silent.stop(grace=_SECONDS_FOR_SILENT)
            letta = self._up(progress)
            key_rotation.finish(self.paths, letta.master_key, progress, started=letta.started)
            return letta

    def install_release(self, progress: Progress = no_progress) -> str:
        """Install the release, unless it is, and return its last migration. Raises `InstallFailed`."""
        paths = self.paths
        installation = self._installed()
        if installation is None:
            make_private(paths.releases)
            with file_locks.hold(paths.home, paths.release_lock, progress):
                # Another process may have installed it while this one waited for the lock.
                installation = self._installed()
                if installation is None:
                    self._stop_letta(progress)
                    return install.install(paths, progress, self.lock).migration_head
        progress(Step("install", "skipped", f"Letta {paths.release} is installed"))
        return installation.migration_head

    def down(self, progress: Progress = no_progress) -> bool:
        """Stop Letta, then Postgres. Returns whether either was running."""
        if not self.paths.folder.exists():
            return False
        with self._locked(progress):
            # First, so that a backend does not take this for a crash.
            with suppress(OSError):
                state.write(self.paths.stopped_file, "")
            stopped = self._stop_letta(progress)
            return instance_postgres.stop(self.paths, progress) or stopped

    def start_postgres(self, progress: Progress = no_progress, *, silent: ChildProcess | None = None) -> None:
        """Start the database of this instance, unless it runs, and leave Letta as it is.

        `silent` is a process of it that has not answered for long; it is ended, unless it answers now.

        Raises `EmbeddedError`, or `StartFailed` with the fault that its log shows.
        """
        with self._locked(progress):
            cluster, postmaster = instance_postgres.cluster_of(self.paths), self.postmaster()
            if (
                silent is not None
                and postmaster is not None
                and postmaster.process == silent
                and not postmaster.answers(_SECONDS_FOR_SILENT)
            ):
                silent.stop(grace=_SECONDS_FOR_SILENT)
            instance_postgres.start(self.paths, cluster, progress)

    def running(self) -> Letta | None:
        """Return the instance if both servers accept requests. It starts nothing and does not wait.

        Raises `StartFailed` if Letta runs with another master key.
        """
        run, database = self._run_here(), self._running_postgres()
        if run is None or database is None or not database.ready:
            return None
        key = self._key_of(run)
        return self._letta(run, database, key, started=False) if self._is_healthy(run) else None

    def restart_letta(
        self,
        progress: Progress = no_progress,
        *,
        master_key: SecretStr | None = None,
        encrypt: bool = True,
        extra_env: Mapping[str, str] | None = None,
    ) -> Letta:
        """Restart Letta on the same data with another master key (by default the stored one) or environment."""
        changed = replace(
            self, master_key=master_key, encrypt=encrypt, extra_env=self.extra_env if extra_env is None else extra_env
        )
        with self._locked(progress):
            self._stop_letta(progress)
            return changed._up(progress)

    def encrypted_values(
        self, former: Sequence[SecretStr] = (), progress: Progress = no_progress
    ) -> list[StoredValue]:
        """Return the encrypted values of Letta's database. If Postgres is not running, it is started for this.

        `former` are master keys that may have been used, in addition to the known ones.
        """
        with self._locked(progress):
            was_running = self._running_postgres() is not None
            database = self._open_postgres(progress)
            try:
                return encrypted_columns.read_values(database.client_url, self._known_keys(former))
            finally:
                if not was_running:
                    instance_postgres.cluster_of(self.paths).stop()

    def rekey(self, former: Sequence[SecretStr] = (), progress: Progress = no_progress) -> Letta:
        """Re-encrypt Letta's secrets with another master key, and restart Letta with it.

        The new key is the `master_key` of this object, or one that is generated and stored now. If the change is
        interrupted, the next `up` completes it. That call also deletes the previous key, once it is no longer needed.
        `former` are master keys that may have been used, in addition to the known ones.
        """
        paths = self.paths
        with self._locked(progress):
            database = self._open_postgres(progress)
            known = self._known_keys(former)
            key = self.master_key or SecretStr(token_hex(32))
            self._back_up(BackupReason.REKEY, database, known, progress)
            with (
                encrypted_columns.hold_sync_lock(database.client_url),
                audit.change("master_key.changed", paths.folder.name, home=self.home),
            ):
                key_rotation.begin(paths, key, known, kept=self.master_key is None)
                self._stop_letta(progress)
                return self._up(progress)

    @contextmanager
    def database(self, progress: Progress = no_progress, *, create: bool = False) -> Iterator[DatabaseAccess]:
        """Yield access to the database, which is started if it does not run, and stopped again afterwards.

        With `create`, cluster, role and database are created if they are missing, also where one was lost.
        """
        if self.own is not None:
            self.own.prepare()
            yield self.own.access()
            return
        paths = self.paths
        with self._locked(progress):
            if create:
                for folder in (paths.folder.parent, paths.folder, paths.logs):
                    make_private(folder)
            cluster = postgres.prepare_cluster(paths) if create else instance_postgres.cluster_of(paths)
            was_running = cluster.running() is not None
            database = instance_postgres.start(paths, cluster, progress, anew=create)
            access = database.access()
            if create:
                database.prepare()
        try:
            yield access
        finally:
            if not was_running:
                with self._locked(progress):
                    if letta_process.running(paths) is None:
                        cluster.stop()

    def replace_database(self, replace: Callable[[], None], progress: Progress = no_progress) -> Letta:
        """Stop Letta, have its database replaced, and start it, which migrates the new database if necessary.

        If `replace` fails, a Letta that was running is started with the former one.
        """
        with self._locked(progress):
            stopped = self._stop_letta(progress)
            try:
                replace()
            except EmbeddedError:
                if stopped:
                    self._up(progress)
                raise
            return self._up(progress)

    def current_keys(self) -> list[SecretStr]:
        """Return the master keys that may have encrypted a value, the one that Letta uses first."""
        keys = (self._key(), *key_rotation.known_keys(self.paths, self.master_key))
        return list(dict.fromkeys(key for key in keys if key))

    def adopt_master_key(self, key: SecretStr) -> SecretStr:
        """Return the master key that Letta uses; if there is none, the given one is stored as such."""
        current = self._key()
        if current is None:
            with audit.change("master_key.stored", self.paths.folder.name, home=self.home):
                state.write(self.paths.master_key_file, key.get_secret_value() + "\n")
        return current or key

    def status(self) -> InstanceStatus:
        """Return the status of the instance, without changing anything."""
        paths = self.paths
        run = self._run_here()
        cluster, postmaster = None if self.own is not None else postgres.find_cluster(paths), self.postmaster()
        installation = install.installed(paths)
        letta, database = ServiceStatus(), ServiceStatus()
        if run is not None:
            letta = ServiceStatus(run.process.pid, run.port, self._is_healthy(run))
        if postmaster is not None:
            database = ServiceStatus(postmaster.process.pid, postmaster.port, postmaster.ready)
        if self.own is not None:
            database = ServiceStatus(None, self.own.port, self.own.ready)
        return InstanceStatus(
            release=self.release,
            instance=self.instance,
            installed=installation is not None,
            lock=None if installation is None else installation.lock,
            letta=letta,
            postgres=database,
            base_url=base_url(run.port) if run else None,
            folder=paths.folder,
            data=cluster.data if cluster else None,
            password_file=paths.password_file,
            letta_log=paths.letta_log,
            postgres_log=cluster.log if cluster else None,
            own_postgres=None if self.own is None else self.own.where,
        )

    def load_secrets(self) -> None:
        """Read the secrets of this instance, so that they are redacted in its logs."""
        paths = self.paths
        for path in (
            paths.master_key_file,
            paths.password_file,
            paths.database_password_file,
            paths.superuser_password_file,
        ):
            with suppress(EmbeddedError):
                instance.load_secret(path)
        with suppress(EmbeddedError):
            key_rotation.known_keys(paths)

    def erase(self, progress: Progress = no_progress) -> None:
        """Stop everything, and delete the data of this instance with its secrets and logs."""
        paths = self.paths
        self.down(progress)
        with self._locked(progress):
            cluster = postgres.find_cluster(paths)
            if cluster is not None and paths.folder not in cluster.data.parents:
                shutil.rmtree(cluster.data.parent)
            shutil.rmtree(paths.folder, ignore_errors=True)
        paths.lock.unlink(missing_ok=True)

    def _up(self, progress: Progress) -> Letta:
        paths = self.paths
        state.make_way(paths.stopped_file)
        paths.stopped_file.unlink(missing_ok=True)
        with step(progress, "check"):
            running = self._running_letta()
        if running is not None:
            return running
        head = self.install_release(progress)
        for folder in (paths.folder.parent, paths.folder, paths.logs, paths.server_home, paths.server_tmp):
            make_private(folder)
        database = self._open_postgres(progress, create=True)
        # A Letta whose Postgres has ended continues when that is back, on the same port.
        running = self._running_letta()
        if running is not None:
            return running
        if isinstance(database, InstancePostgres):
            database.prepare()
        if letta_process.stop(paths, letta_process.running(paths)):
            progress(Step("check", "note", "stopped a Letta that could not be used"))
        if self.own is not None and instance_postgres.stop(paths, progress):
            progress(Step("postgres", "note", "stopped the Postgres of this home; its data stay"))
        return self._start_letta(database, head, progress)

    def _running_letta(self) -> Letta | None:
        """Return Letta if it runs, waiting for one that is starting; None if it is to be started."""
        run, database = self._run_here(), self._running_postgres()
        if run is None or database is None or not database.stays():
            return None
        key = self._key_of(run)
        installation = self._installed()

        def is_migrated() -> bool:
            return installation is not None and _is_migrated(database, installation.migration_head)

        if not letta_process.wait_until_healthy(self.paths, run, database.stays, is_migrated):
            return None
        if not self._has_passwords():
            return None
        return self._letta(run, database, key, started=False)

    def _run_here(self) -> ServerRun | None:
        """Return the Letta of this instance if its process is alive, and its database is the one of the settings."""
        run = letta_process.running(self.paths)
        where = InstancePostgres.where if self.own is None else self.own.where
        return run if run is not None and run.database == where else None

    def _key_of(self, run: ServerRun) -> SecretStr | None:
        """Return the master key of a Letta that runs. Raises `StartFailed` if it differs from the one here."""
        key = self._key()
        if not instance.matches_fingerprint(key, run.key):
            raise StartFailed(
                f"Letta is already running at {base_url(run.port)}, with a master key other than the one given now.",
                remedy="Stop it (isabella letta down) and repeat, or give the key that it was started with.",
            )
        return key

    def postmaster(self) -> Postmaster | None:
        """Return the running Postgres of the instance; None if it has ended, or the operator's is used."""
        running = None if self.own is not None else instance_postgres.find(self.paths)
        return None if running is None else running.postmaster

    def _running_postgres(self) -> LettaPostgres | None:
        """Return the Postgres of the instance if it runs, or the operator's."""
        return instance_postgres.find(self.paths) if self.own is None else self.own

    def _open_postgres(self, progress: Progress, *, create: bool = False) -> LettaPostgres:
        """Start the Postgres of the instance unless it runs, or verify the operator's.

        With `create`, the first start of an instance creates it.
        """
        if self.own is None:
            cluster = postgres.prepare_cluster(self.paths) if create else instance_postgres.cluster_of(self.paths)
            return instance_postgres.start(self.paths, cluster, progress)
        with step(progress, "postgres", f"your own, at {self.own.where}"):
            self.own.prepare()
        return self.own

    def _is_healthy(self, run: ServerRun) -> bool:
        return letta_process.is_healthy(run, self.release)

    def _installed(self) -> install.Installation | None:
        found = install.installed(self.paths)
        return found if found is not None and found.lock == install.lock_name(self.release, self.lock) else None

    def _start_letta(self, database: LettaPostgres, head: str, progress: Progress) -> Letta:
        paths = self.paths
        if self.encrypt and self.master_key is None:
            key_rotation.store_new_key(paths)
        key = self._key() or (self._new_master_key(database) if self.encrypt else None)
        rekeyed = key is not None and key_rotation.resume(paths, database.client_url, key, progress)
        last = letta_process.ServerRun.load(paths.run_file)
        if last is not None and not instance.matches_fingerprint(key, last.key) and not rekeyed:
            progress(
                Step(
                    "letta",
                    "note",
                    "a different master key from last time: sync the keys stored under the previous one",
                )
            )

        def is_migrated() -> bool:
            return _is_migrated(database, head)

        def start(port: int) -> ServerRun:
            migrate = not is_migrated()
            if migrate:
                self._back_up(BackupReason.MIGRATION, database, self.current_keys(), progress)
            environ = letta_process.environment(
                paths,
                port=port,
                database=database.url,
                socket=database.socket,
                password=instance.load_or_create_secret(paths.password_file),
                master_key=key,
                extra={**self.extra_env, **database.environment},
                sandbox=self.sandbox,
                migrate=migrate,
                tls=database.tls,
            )
            letta_process.clear(paths)
            gateway = (LOOPBACK, saved_port(paths.home) or GATEWAY_PORT)
            run = letta_process.start(paths, port, environ, key, {gateway, *self.kept_ports}, database.where)
            if not migrate:
                progress(Step("migrate", "skipped", f"the database is at {head}"))
            else:
                with step(progress, "migrate", f"the database to {head}, after Letta's imports"):
                    self._wait_until_migrated(run, is_migrated)
            letta_process.wait_until_started(paths, run, database.stays)
            return run

        with step(progress, "letta", f"Letta {paths.release}"):
            known = {"postgres": database.postmaster.port} if isinstance(database, InstancePostgres) else {}
            run = ports.start_on_port(paths, "letta", start, progress, **known)
            return self._letta(run, database, key, started=True)

    def _back_up(
        self, reason: BackupReason, database: LettaPostgres, keys: Sequence[SecretStr], progress: Progress
    ) -> None:
        """Make a backup before a change, unless there is nothing to lose or the settings forbid it."""
        policy, access = self.backups, database.access()
        if policy is None or not policy.before_changes:
            return
        if postgres.current_revision(access.letta) is not None:
            with step(progress, "backup", f"of the database, {reason.value.replace('-', ' ')}"):
                backups.create(self.paths, access, keys, policy, reason)

    def _wait_until_migrated(self, run: ServerRun, is_migrated: Callable[[], bool]) -> None:
        if letta_process.wait_until_migrated(run, is_migrated):
            return
        letta_process.stop(self.paths, run)
        log = child_processes.quote_log(self.paths.letta_log)
        raise EndedWhileStarting(
            f"The database migrations of Letta {self.release} failed. {log}", remedy=letta_process.AFTER_LOG
        )

    def _stop_letta(self, progress: Progress) -> bool:
        run = letta_process.running(self.paths)
        if run is None:
            return letta_process.stop(self.paths, None)
        with step(progress, "stop", "Letta"):
            return letta_process.stop(self.paths, run)

    def _known_keys(self, former: Sequence[SecretStr]) -> list[SecretStr]:
        keys = key_rotation.known_keys(self.paths, *former, self.master_key)
        last = letta_process.ServerRun.load(self.paths.run_file)
        # Without the last key, no value could be re-encrypted, and all of them would be lost to Letta.
        if last is not None and not any(instance.matches_fingerprint(key, last.key) for key in (None, *keys)):
            raise EmbeddedError(
                f"The last master key of Letta {self.release} is not known here.",
                remedy="Write it to a file, and name the file with --former-key-file.",
            )
        return keys

    def _key(self) -> SecretStr | None:
        if not self.encrypt:
            return None
        return self.master_key or instance.load_secret(self.paths.master_key_file)

    def _new_master_key(self, database: LettaPostgres) -> SecretStr:
        """Return a new master key, which is stored first, unless values are encrypted with a lost one."""
        path = self.paths.master_key_file
        values = encrypted_columns.read_values(database.client_url, ())
        lost = [value.place for value in values if value.state is ValueState.UNREADABLE]
        if lost:
            raise StartFailed(
                f"{path} holds no master key, and {len(lost)} values in Letta's database are encrypted with one, "
                f"for instance {lost[0]}.",
                remedy="Restore the file from a backup, or set LETTA_ENCRYPTION_KEY again if the key was configured. "
                f"To give those values up, write a new key to the file: openssl rand -hex 32 > {path}",
            )
        with audit.change("master_key.made", self.paths.folder.name, home=self.home):
            return instance.load_or_create_secret(path)

    def _has_passwords(self) -> bool:
        """Return whether the passwords of Letta and of its database can be read. New ones need a restart of Letta."""
        files = [self.paths.password_file, *([] if self.own is not None else [self.paths.database_password_file])]
        try:
            return all(instance.load_secret(path) is not None for path in files)
        except EmbeddedError:
            return False

    def _letta(self, run: ServerRun, database: LettaPostgres, key: SecretStr | None, *, started: bool) -> Letta:
        paths = self.paths
        return Letta(
            base_url=base_url(run.port),
            version=self.release,
            password=instance.load_or_create_secret(paths.password_file),
            master_key=key,
            database_url=database.client_url,
            started=started,
            # The health check has just verified that this process listens there.
            peer=Peer("Letta", paths.run_file, "Start it with `isabella letta up`.", verified=run.process),
        )

    def _locked(self, progress: Progress) -> AbstractContextManager[None]:
        """Hold the lock of the instance."""
        return file_locks.hold(self.paths.home, self.paths.lock, progress)


def _is_migrated(database: LettaPostgres, head: str) -> bool:
    return postgres.current_revision(database.client_url) == head
