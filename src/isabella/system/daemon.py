"""An Isabella server on loopback, as a separate process: started, found again, and stopped.

    FOLDER/
    ├── state.json     port, control token, and the process that restarts the server whenever it ends
    ├── process.json   the process that serves
    ├── NAME.log       its output
    └── lock

Only the owner may read these files. The port stays the same as long as it is free.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
from filelock import FileLock, Timeout
from pydantic import SecretStr

from isabella.errors import IsabellaError, LockTimeout, UnverifiedPeer
from isabella.system import processes, state
from isabella.system.peers import Peer, hooks
from isabella.system.processes import ChildProcess
from isabella.system.sockets import listening_socket, stable_ports
from isabella.system.urls import client_options

HOST = "127.0.0.1"

_LOCK_SECONDS = 60.0
_START_SECONDS = 30.0
_REQUEST_SECONDS = 5.0


@dataclass(frozen=True)
class RunningDaemon:
    """A running server: its port, process and control token.

    `listener` is its listening socket if this call started it: as long as the caller keeps that open, no other
    process can take the port while the server is restarted.
    """

    port: int
    process: ChildProcess
    token: SecretStr = field(repr=False)
    listener: socket.socket | None = field(default=None, repr=False, compare=False)

    @property
    def address(self) -> str:
        """Its URL, without a path."""
        return f"http://{HOST}:{self.port}"


@dataclass(frozen=True)
class Daemon:
    """A server in a separate process.

    Attributes:
        title: its name in messages, for instance `the gateway`.
        folder: the folder with its files; the last part is also the name of its log.
        default_port: its port if that is free at the first start.
        token_header: the header of its control token.
        health: the path of its health route, and the value of `service` in the answer.
        error: the class of its errors.
        remedy: how it is started.
    """

    title: str
    folder: Path
    default_port: int
    token_header: str
    health: tuple[str, str]
    error: type[IsabellaError]
    remedy: str

    @property
    def log(self) -> Path:
        """Its log."""
        return self.folder / f"{self.folder.name}.log"

    @property
    def peer(self) -> Peer:
        """Verifies its process before anything is sent to it."""
        return Peer(self.title, self.folder / "process.json", self.remedy)

    def status(self) -> RunningDaemon | None:
        """Return the running server; None if it does not run or does not answer."""
        running = self.recorded()
        return running if running is not None and self.answers(running) else None

    def recorded(self) -> RunningDaemon | None:
        """Return the server whose process is alive, whether it answers or not."""
        process, record = processes.load(self.folder / "process.json"), self._state()
        if process is None or not process.is_running() or not {"port", "token"} <= record.keys():
            return None
        return RunningDaemon(record["port"], process, SecretStr(record["token"]))

    def answers(self, running: RunningDaemon) -> bool:
        """Return whether it answers its health check."""
        path, service = self.health
        try:
            with self.client(running) as client:
                document = client.get(path).json()
        except (httpx.HTTPError, ValueError, UnverifiedPeer):
            return False
        return isinstance(document, dict) and document.get("service") == service

    def client(self, running: RunningDaemon) -> httpx.Client:
        """Return a client of its control API, which verifies the process before each connection."""
        return httpx.Client(
            base_url=running.address,
            headers={self.token_header: running.token.get_secret_value()},
            timeout=_REQUEST_SECONDS,
            event_hooks=hooks(self.peer),
            **client_options(running.address),
        )

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        identity: str = "",
        listener: socket.socket | None = None,
        supervised: bool = False,
    ) -> RunningDaemon:
        """Start the server, unless it runs with this identity, or another process supervises it.

        Args:
            argv: the command; the file descriptor of the listening socket follows as its last argument.
            env: its environment.
            identity: stands for its configuration; a server with another one is replaced.
            listener: the listening socket of a server that has ended. It stays open if the start fails.
            supervised: whether this process keeps the listening socket and restarts the server when it ends.

        Raises:
            LockTimeout: another process has been starting or stopping it for too long.
        """
        with self.locked():
            running, supervisor = self.status(), self._supervisor()
            if running is not None and (supervisor is not None or self._state().get("identity") == identity):
                return running
            if supervisor is not None:
                # It holds the port, so that another server would listen where no client looks for it.
                raise self.error(
                    f"Process {supervisor.pid} is about to start {self.title} again.", remedy="Try again in a moment."
                )
            self._stop()
            listening = listener or self.listen()
            try:
                return self._start(argv, env, identity, listening, supervised=supervised)
            except BaseException:
                if listener is None:
                    listening.close()
                raise

    def stop(self) -> bool:
        """Stop the server and keep its port. Return whether it ran."""
        if not self.folder.is_dir():
            return False
        with self.locked():
            return self._stop()

    def listen(self) -> socket.socket:
        """Return a listening socket on its port, or on another one if that is not free."""
        for port in (self._state().get("port", self.default_port), *stable_ports()):
            with suppress(OSError):
                return listening_socket(HOST, port)
        return listening_socket(HOST, 0)

    def hold(self) -> socket.socket | None:
        """Listen on the port of a server that has ended, so that no other program can, until it is restarted.

        Return None if it runs, if another process is starting it or supervises it, or if the port is taken.
        """
        with suppress(IsabellaError), self.locked(seconds=0.0):
            record = self._state()
            if self.recorded() is None and self._supervisor() is None and "port" in record:
                with suppress(OSError):
                    listener = listening_socket(HOST, record["port"])
                    record["supervisor"] = asdict(ChildProcess.of(os.getpid()))
                    state.save(self.folder / "state.json", record)
                    return listener
        return None

    @contextmanager
    def locked(self, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
        """Hold the lock of the folder, which is created if it does not exist; wait for it at most this long.

        Raises:
            IsabellaError: the folder or one of its files cannot be used, then of the class `error`; or a LockTimeout.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self.error(
                f"{self.folder} cannot be created: {state.why(error)}.", remedy="Correct ISABELLA_HOME."
            ) from None
        lock = FileLock(self.folder / "lock", timeout=seconds, mode=0o600)
        try:
            state.make_way(self.folder / "lock")
            lock.acquire()
        except Timeout:
            raise LockTimeout(
                f"Another process has been starting or stopping {self.title} for {seconds:g} s.",
                remedy="Wait for it, or look for a process that hangs.",
            ) from None
        except OSError as error:
            raise self._unusable(error) from None
        try:
            yield
        except OSError as error:
            raise self._unusable(error) from None
        finally:
            lock.release()

    def _unusable(self, error: OSError) -> IsabellaError:
        at = error.filename2 or error.filename or self.folder
        return self.error(
            f"{self.title.capitalize()} cannot be started or stopped: {at}: {state.why(error)}.",
            remedy=f"Delete {at}, or correct its permissions.",
        )

    def _start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        identity: str,
        listener: socket.socket,
        *,
        supervised: bool,
    ) -> RunningDaemon:
        port, token = int(listener.getsockname()[1]), SecretStr(secrets.token_urlsafe(24))
        record: dict[str, Any] = {"port": port, "token": token.get_secret_value(), "identity": identity}
        if supervised:
            record["supervisor"] = asdict(ChildProcess.of(os.getpid()))
        state.save(self.folder / "state.json", record)
        descriptor = listener.fileno()
        process = processes.spawn([*argv, str(descriptor)], env=env, log=self.log, pass_fds=(descriptor,))
        processes.save(self.folder / "process.json", process)
        running = RunningDaemon(port, process, token, listener)
        answered = False
        try:
            deadline = time.monotonic() + _START_SECONDS
            while process.is_running() and time.monotonic() < deadline and not answered:
                time.sleep(0.05)
                answered = self.answers(running)
        finally:
            # An interrupt while waiting must not leave a process behind.
            if not answered:
                process.stop()
        if not answered:
            raise self.error(f"{self.title.capitalize()} did not start.", remedy=f"Its log: {self.log}")
        return running

    def _stop(self) -> bool:
        record = self.folder / "process.json"
        process = processes.load(record)
        stopped = process is not None and process.stop()
        state.make_way(record)
        record.unlink(missing_ok=True)
        return stopped

    def is_supervised_here(self) -> bool:
        """Return whether this process is the one that supervises the server."""
        return self._recorded_supervisor() == ChildProcess.of(os.getpid())

    def _supervisor(self) -> ChildProcess | None:
        """Return the other process that supervises the server, if there is one and it is alive."""
        supervisor = self._recorded_supervisor()
        if supervisor is None or supervisor.pid == os.getpid() or not supervisor.is_running():
            return None
        return supervisor

    def _recorded_supervisor(self) -> ChildProcess | None:
        recorded = self._state().get("supervisor")
        return ChildProcess.in_record(recorded) if isinstance(recorded, dict) else None

    def _state(self) -> dict[str, Any]:
        record = state.load(self.folder / "state.json")
        usable = {"port": state.port_in(record, "port") is not None, "token": _is_token(record.get("token"))}
        damaged = [name for name, is_usable in usable.items() if name in record and not is_usable]
        if damaged:
            state.report_fields(self.folder / "state.json")
        return {name: value for name, value in record.items() if name not in damaged}


def _is_token(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable() and bool(value)
