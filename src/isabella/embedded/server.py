"""Postgres and Letta of one instance, brought up, brought down, looked at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex

from filelock import FileLock, Timeout
from pydantic import SecretStr

from isabella.embedded import child_processes, encrypted_columns, install, instance, key_rotation, postgres, program
from isabella.embedded.encrypted_columns import DecryptedValue
from isabella.embedded.instance import (
    DEFAULT_INSTANCE,
    DEFAULT_RELEASE,
    InstancePaths,
    Ports,
    base_url,
    make_home,
    make_private,
)
from isabella.embedded.os_users import postgres_user
from isabella.embedded.postgres import Cluster, Postmaster
from isabella.embedded.program import ServerRun
from isabella.embedded.progress import Progress, Step, no_progress, step
from isabella.errors import EmbeddedError, LockTimeout, StartFailed
from isabella.system.peers import Peer


@dataclass(frozen=True)
class ServiceStatus:
    """One of the two servers.

    Attributes:
        pid: its process; None where it does not run.
        port: where it listens on loopback; None where it does not run.
        healthy: whether it takes requests.
    """

    pid: int | None = None
    port: int | None = None
    healthy: bool = False


@dataclass(frozen=True)
class InstanceStatus:
    """What is there of an instance, and what of it runs.

    Attributes:
        release: Letta's version.
        instance: which instance of that release.
        installed: whether the release is installed completely.
        letta: the server.
        postgres: its database.
        base_url: Letta's address; None where it does not run.
        folder: the data of the instance.
        data: Postgres's data folder; None where there is none yet.
        password_file: where Letta's password is.
        letta_log: what Letta says.
        postgres_log: what Postgres says; None where it never ran.
    """

    release: str
    instance: str
    installed: bool
    letta: ServiceStatus
    postgres: ServiceStatus
    base_url: str | None
    folder: Path
    data: Path | None
    password_file: Path
    letta_log: Path
    postgres_log: Path | None

    @property
    def running(self) -> bool:
        """Whether both run and take requests."""
        return self.letta.healthy and self.postgres.healthy


def look(paths: InstancePaths, *, release: str, instance: str) -> InstanceStatus:
    """Look at what lies there and what runs of it.

    Args:
        paths: where everything of the instance lies.
        release: Letta's version.
        instance: which of several servers of that release.
    """
    run = program.running(paths)
    cluster = postgres.find_cluster(paths)
    postmaster = cluster.running() if cluster is not None else None
    return InstanceStatus(
        release=release,
        instance=instance,
        installed=install.installed(paths) is not None,
        letta=ServiceStatus(run.process.pid, run.port, program.is_healthy(run, release)) if run else ServiceStatus(),
        postgres=ServiceStatus(postmaster.process.pid, postmaster.port, postmaster.ready)
        if postmaster
        else ServiceStatus(),
        base_url=base_url(run.port) if run else None,
        folder=paths.folder,
        data=cluster.data if cluster else None,
        password_file=paths.password_file,
        letta_log=paths.letta_log,
        postgres_log=cluster.log if cluster else None,
    )


_ATTEMPTS = 3
_SECONDS_FOR_LOCK = 30 * 60


@dataclass(frozen=True)
class Letta:
    """A running embedded server.

    Attributes:
        base_url: its address on loopback.
        version: its release.
        password: what it asks of its clients as a bearer (fact R6).
        master_key: the `LETTA_ENCRYPTION_KEY` it runs under; None only where that was asked for.
        database_url: its database, for psycopg.
        started: whether this call started it; False where it ran already.
        peer: by which its process is known before anything is sent there.
    """

    base_url: str
    version: str
    password: SecretStr
    master_key: SecretStr | None
    database_url: SecretStr
    started: bool
    peer: Peer = field(repr=False, compare=False)


@dataclass(frozen=True)
class Server:
    """An instance of Letta on this machine, with a Postgres of its own.

    Attributes:
        home: Isabella's home.
        release: Letta's version.
        instance: which of several servers of that release; they share the program, not the data.
        master_key: the `LETTA_ENCRYPTION_KEY` to run under; one that is made once and kept, if not given.
        seal: False runs Letta without a master key, so that it stores keys in plaintext: for tests.
        extra_env: further variables for Letta's environment: for tests.
    """

    home: Path
    release: str = DEFAULT_RELEASE
    instance: str = DEFAULT_INSTANCE
    master_key: SecretStr | None = None
    seal: bool = True
    extra_env: Mapping[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> InstancePaths:
        """Where everything of it lies."""
        return InstancePaths(self.home.expanduser().absolute(), self.release, self.instance)

    def up(self, progress: Progress = no_progress) -> Letta:
        """Bring it up: install, make and migrate the database, start. What is done already is skipped.

        Raises:
            InstallFailed: the release could not be fetched or installed.
            StartFailed: Postgres or Letta did not come up, or Letta runs under another master key.
            LockTimeout: another process has been at work on this instance for too long.
        """
        with self._locked(self.paths.lock, progress):
            letta = self._up(progress)
            key_rotation.finish(self.paths, letta.master_key, progress, started=letta.started)
            return letta

    def down(self, progress: Progress = no_progress) -> bool:
        """Stop Letta, then Postgres, where this instance's run. Returns whether anything ran."""
        if not self.paths.folder.exists():
            return False
        with self._locked(self.paths.lock, progress):
            stopped = self._stop_letta(progress)
            cluster = postgres.find_cluster(self.paths)
            if cluster is not None and cluster.running() is not None:
                with step(progress, "stop", "Postgres"):
                    stopped = cluster.stop() or stopped
        return stopped

    def restart_letta(
        self,
        progress: Progress = no_progress,
        *,
        master_key: SecretStr | None = None,
        seal: bool = True,
        extra_env: Mapping[str, str] | None = None,
    ) -> Letta:
        """Stop Letta if it runs, and bring it up on the same data under another master key or environment.

        Args:
            progress: told what happens.
            master_key: the key to run under from now on; the kept one if not given.
            seal: False runs it without one.
            extra_env: replaces the `extra_env` of this object, if given.
        """
        changed = replace(
            self, master_key=master_key, seal=seal, extra_env=self.extra_env if extra_env is None else extra_env
        )
        with self._locked(self.paths.lock, progress):
            self._stop_letta(progress)
            return changed._up(progress)

    def sealed(self, former: Sequence[SecretStr] = (), progress: Progress = no_progress) -> list[DecryptedValue]:
        """Everything that Letta has sealed, opened. Postgres is started for it if need be, and stopped again.

        Args:
            former: master keys that it may have run under, besides those that are known.
            progress: told what happens.

        Raises:
            EmbeddedError: there is no such instance, or its database cannot be read.
        """
        with self._locked(self.paths.lock, progress):
            cluster = self._cluster()
            ran = cluster.running() is not None
            postmaster = self._start_postgres(cluster, progress)
            try:
                return encrypted_columns.read_values(self._database(postmaster), self._known_keys(former))
            finally:
                if not ran:
                    cluster.stop()

    def rekey(self, former: Sequence[SecretStr] = (), progress: Progress = no_progress) -> Letta:
        """Have Letta run under another master key, with everything that it has sealed.

        The new key is this object's `master_key`, or one that is made now and kept. Interrupted at any point, it is
        gone on with by the next `up`; that also forgets the former key, once all is well.

        Args:
            former: master keys that it may have run under, besides those that are known.
            progress: told what happens.

        Raises:
            EmbeddedError: there is no such instance, or its database cannot be written.
            StartFailed: Letta did not come up.
            LockTimeout: a sync has been going on for too long.
        """
        paths = self.paths
        with self._locked(paths.lock, progress):
            postmaster = self._start_postgres(self._cluster(), progress)
            known = self._known_keys(former)
            key = self.master_key or SecretStr(token_hex(32))
            with encrypted_columns.hold_sync_lock(self._database(postmaster)):
                key_rotation.begin(paths, key, known, kept=self.master_key is None)
                self._stop_letta(progress)
                return self._up(progress)

    def status(self) -> InstanceStatus:
        """Look, and touch nothing."""
        return look(self.paths, release=self.release, instance=self.instance)

    def know_secrets(self) -> None:
        """Read the secrets of this instance, so that `redaction` takes them out of its logs."""
        paths = self.paths
        for path in (
            paths.master_key_file,
            paths.password_file,
            paths.database_password_file,
            paths.superuser_password_file,
        ):
            instance.load_secret(path)
        key_rotation.known_keys(paths)

    def erase(self, progress: Progress = no_progress) -> None:
        """Stop everything and delete the data of this instance, its secrets and its logs. For good."""
        paths = self.paths
        self.down(progress)
        with self._locked(paths.lock, progress):
            cluster = postgres.find_cluster(paths)
            if cluster is not None and paths.folder not in cluster.data.parents:
                shutil.rmtree(cluster.data.parent)
            shutil.rmtree(paths.folder, ignore_errors=True)
        paths.lock.unlink(missing_ok=True)

    def _up(self, progress: Progress) -> Letta:
        paths = self.paths
        with step(progress, "check"):
            found = self._found()
        if found is not None:
            return found
        complete = self._installed(progress)
        for folder in (paths.folder.parent, paths.folder, paths.logs, paths.server_home):
            make_private(folder)
        cluster = postgres.prepare_cluster(paths)
        postmaster = self._start_postgres(cluster, progress)
        password = instance.load_or_create_secret(paths.database_password_file)
        postgres.prepare_database(
            postmaster.port,
            superuser_password=instance.load_or_create_secret(paths.superuser_password_file),
            password=password,
        )
        self._stop_strays(progress)
        if postgres.current_revision(postmaster.port, password) == complete.migration_head:
            progress(Step("migrate", "skipped", f"the database is at {complete.migration_head}"))
        else:
            with step(progress, "migrate", f"the database to {complete.migration_head}"):
                program.migrate(paths, postgres.database_url(postmaster.port, password))
                if postgres.current_revision(postmaster.port, password) != complete.migration_head:
                    log = child_processes.quote_log(paths.migrations_log)
                    raise StartFailed(f"The database migrations of Letta {self.release} failed. {log}")
        return self._start_letta(postmaster, progress)

    def _found(self) -> Letta | None:
        paths = self.paths
        run = program.running(paths)
        cluster = postgres.find_cluster(paths) if run is not None else None
        postmaster = cluster.running() if cluster is not None else None
        if run is None or postmaster is None:
            return None
        key = self._key(make=False)
        if not instance.matches_fingerprint(key, run.key):
            raise StartFailed(
                f"Letta runs at {base_url(run.port)} already, under another master key than the one given now.",
                remedy="Stop it (isabella letta down) and repeat, or give the key it was started with.",
            )
        if not program.wait_until_healthy(paths, run):
            return None
        return self._letta(run, postmaster.port, key, started=False)

    def _installed(self, progress: Progress) -> install.Installed:
        paths = self.paths
        complete = install.installed(paths)
        if complete is None:
            make_private(paths.releases)
            with self._locked(paths.release_lock, progress):
                complete = install.installed(paths) or install.install(paths, progress)
        else:
            progress(Step("install", "skipped", f"Letta {paths.release} is installed"))
        return complete

    def _start_postgres(self, cluster: Cluster, progress: Progress) -> Postmaster:
        running = cluster.wait()
        if running is not None:
            progress(Step("postgres", "skipped", f"runs on port {running.port}"))
            return running
        with step(progress, "postgres", "database of this instance, on loopback, with a password"):
            if not cluster.exists():
                cluster.make(instance.load_or_create_secret(self.paths.superuser_password_file))
            for attempt in range(1, _ATTEMPTS + 1):
                port = self._choose_ports(progress, keep_postgres=None).postgres
                try:
                    return cluster.start(port)
                except StartFailed as error:
                    if attempt == _ATTEMPTS or not _was_taken(port, error):
                        raise
        raise AssertionError("unreachable")

    def _start_letta(self, postmaster: Postmaster, progress: Progress) -> Letta:
        paths = self.paths
        if self.seal and self.master_key is None:
            key_rotation.store_new_key(paths)
        key = self._key(make=True)
        resealed = key is not None and key_rotation.resume(paths, self._database(postmaster), key, progress)
        last = program.ServerRun.load(paths.run_file)
        if last is not None and not instance.matches_fingerprint(key, last.key) and not resealed:
            progress(
                Step("letta", "note", "another master key than last time: keys stored under that one must be synced")
            )
        with step(progress, "letta", f"Letta {paths.release}"):
            for attempt in range(1, _ATTEMPTS + 1):
                port = self._choose_ports(progress, keep_postgres=postmaster.port).letta
                environ = program.environment(
                    paths,
                    port=port,
                    database=self._database(postmaster),
                    password=instance.load_or_create_secret(paths.password_file),
                    master_key=key,
                    extra=self.extra_env,
                )
                try:
                    run = program.start(paths, port, environ, key)
                except StartFailed as error:
                    if attempt == _ATTEMPTS or not _was_taken(port, error):
                        raise
                else:
                    return self._letta(run, postmaster.port, key, started=True)
        raise AssertionError("unreachable")

    def _stop_letta(self, progress: Progress) -> bool:
        run = program.running(self.paths)
        if run is None:
            return program.stop(self.paths, None)
        with step(progress, "stop", "Letta"):
            return program.stop(self.paths, run)

    def _stop_strays(self, progress: Progress) -> None:
        if program.stop(self.paths, program.running(self.paths)):
            progress(Step("check", "note", "what an interrupted start had left running was stopped"))

    def _choose_ports(self, progress: Progress, *, keep_postgres: int | None) -> Ports:
        paths = self.paths
        with self._locked(paths.ports_lock, progress):
            siblings = [found for path in paths.sibling_ports_files() if (found := instance.load_ports(path))]
            avoid = {port for found in siblings for port in (found.letta, found.postgres)}
            wanted = instance.load_ports(paths.ports_file) or Ports()
            chosen = Ports(
                letta=instance.choose_port(wanted.letta, avoid=avoid),
                postgres=keep_postgres or instance.choose_port(wanted.postgres, avoid=avoid),
            )
            instance.save_ports(paths.ports_file, chosen)
        if chosen.letta != wanted.letta:
            progress(Step("letta", "note", f"port {wanted.letta} is not free: Letta gets {chosen.letta}"))
        if chosen.postgres != wanted.postgres:
            progress(Step("postgres", "note", f"port {wanted.postgres} is not free: Postgres gets {chosen.postgres}"))
        return chosen

    def _cluster(self) -> Cluster:
        cluster = postgres.find_cluster(self.paths)
        if cluster is None:
            raise EmbeddedError(
                f"There is no Letta {self.release} here yet, so it has no master key to change.",
                remedy="`isabella letta up` makes one.",
            )
        return cluster

    def _known_keys(self, former: Sequence[SecretStr]) -> list[SecretStr]:
        keys = key_rotation.known_keys(self.paths, *former, self.master_key)
        last = program.ServerRun.load(self.paths.run_file)
        # Without that key nothing could be carried over, and all of it would be lost to Letta.
        if last is not None and not any(instance.matches_fingerprint(key, last.key) for key in (None, *keys)):
            raise EmbeddedError(
                f"The master key that Letta {self.release} ran under last is not known here.",
                remedy="Put it into a file, and name that with --former-key-file.",
            )
        return keys

    def _database(self, postmaster: Postmaster) -> SecretStr:
        return postgres.database_url(
            postmaster.port, instance.load_or_create_secret(self.paths.database_password_file)
        )

    def _key(self, *, make: bool) -> SecretStr | None:
        if not self.seal:
            return None
        if self.master_key is not None:
            return self.master_key
        path = self.paths.master_key_file
        return instance.load_or_create_secret(path) if make else instance.load_secret(path)

    def _letta(self, run: ServerRun, postgres_port: int, key: SecretStr | None, *, started: bool) -> Letta:
        paths = self.paths
        return Letta(
            base_url=base_url(run.port),
            version=self.release,
            password=instance.load_or_create_secret(paths.password_file),
            master_key=key,
            database_url=postgres.psycopg_url(
                postgres.database_url(postgres_port, instance.load_or_create_secret(paths.database_password_file))
            ),
            started=started,
            # It was seen to listen there just now.
            peer=Peer("Letta", paths.run_file, "Start it with `isabella letta up`.", verified=run.process),
        )

    @contextmanager
    def _locked(self, path: Path, progress: Progress) -> Iterator[None]:
        account = postgres_user()
        make_home(self.paths.home, group=account.gid if account else None)
        make_private(path.parent)
        lock = FileLock(path, mode=0o600)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(Step("wait", "started", "another Isabella is at work here"))
            try:
                lock.acquire(timeout=_SECONDS_FOR_LOCK)
            except Timeout:
                raise LockTimeout(
                    f"Another process has held {path} for half an hour.",
                    remedy="See what it does (isabella letta logs), or end it, and repeat.",
                ) from None
            progress(Step("wait", "done", "the other one is done"))
        try:
            yield
        finally:
            lock.release()


def _was_taken(port: int, error: StartFailed) -> bool:
    """Whether somebody else had the port, who may have let it go again."""
    return "address already in use" in error.what.lower() or not instance.is_port_free(port)
