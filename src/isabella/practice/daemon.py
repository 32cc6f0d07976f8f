"""The practice vendors as a process of their own: started, found again, stopped.

    HOME/practice/
    ├── state.json     port and control token
    ├── process.json   which process serves
    ├── keys.json      the keys that each vendor accepts
    ├── practice.log   what went wrong with the server; never a request
    └── lock

All of it is its owner's alone.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import SecretStr

from isabella.errors import LockTimeout, PracticeError
from isabella.practice import keyring
from isabella.practice.controls import Controls
from isabella.practice.profiles import profile
from isabella.practice.server import HOST, free_port, is_free
from isabella.system import processes
from isabella.system.files import write_private
from isabella.system.peers import Peer

DEFAULT_PORT = 8090

_LOCK_SECONDS = 60.0
_START_SECONDS = 20.0
_ATTEMPTS = 3
# What a Python program needs of the environment; above all no keys.
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "SYSTEMROOT", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Running:
    """Practice vendors that run as a process of their own.

    Attributes:
        home: Isabella's home.
        port: the loopback port.
        process: the process that serves.
        token: what the controls ask for.
        started: whether they were started just now, and did not run before.
    """

    home: Path
    port: int
    process: processes.ChildProcess
    token: SecretStr = field(repr=False)
    started: bool = False

    @property
    def address(self) -> str:
        """Where they are, without a path."""
        return f"http://{HOST}:{self.port}"

    @property
    def control(self) -> Controls:
        """Their controls."""
        record = self.home / "practice" / "process.json"
        return Controls(
            self.address, self.token, Peer("the practice vendors", record, "Start them: isabella practice up")
        )

    @property
    def keys_file(self) -> Path:
        """Where the keys that they accept stand."""
        return keys_file(self.home)

    def base_url(self, vendor: str) -> str:
        """The vendor's base URL, with its `/v1`."""
        return f"{self.address}{profile(vendor).path}"

    def keys(self, vendor: str) -> list[SecretStr]:
        """The keys on the vendor's list."""
        return [SecretStr(key) for key in accepted_keys(self.home)[profile(vendor).name]]

    def key(self, vendor: str) -> SecretStr:
        """A key that is on the vendor's list: the first.

        Raises:
            PracticeError: the list is empty.
        """
        keys = self.keys(vendor)
        if not keys:
            raise PracticeError(
                f"No key is on the list of {vendor}.", remedy=f"Make one: isabella practice rotate {vendor}"
            )
        return keys[0]

    def rotate(self, vendor: str, *, keep_old: bool = False) -> SecretStr:
        """Put a new key on the vendor's list, alone or before those that are on it."""
        accepted = [key.get_secret_value() for key in self.keys(vendor)]
        return self.control.rotate(vendor, accepted, keep_old=keep_old)


def up(home: Path, port: int | None = None, progress: Say | None = None) -> Running:
    """Have practice vendors running; those that run already are kept.

    Args:
        home: Isabella's home.
        port: the loopback port; None for the former one, or another where that is taken.
        progress: told what happens.

    Raises:
        PracticeError: the port is taken, or the process did not come up; the message names its log.
        LockTimeout: another process has been starting or stopping them for too long.
    """
    say = progress or (lambda line: None)
    folder = _folder(home)
    with _locked(folder):
        found = status(home)
        if found is not None:
            if port is not None and port != found.port:
                raise PracticeError(
                    f"The practice vendors run on port {found.port} already.",
                    remedy=f"To move them: isabella practice down, then isabella practice up --port {port}",
                )
            say(f"practice vendors: already running on port {found.port}")
            return found
        _stop_recorded(folder)
        if keyring.load(folder / "keys.json") is None:
            keyring.save(folder / "keys.json", keyring.new_keys())
        for _ in range(_ATTEMPTS):
            chosen = _choose_port(folder, port)
            running = _start(home, chosen, say)
            if running is not None:
                say(f"practice vendors: running on port {chosen}")
                return running
    raise PracticeError("The practice vendors did not come up.", remedy=f"Their log: {folder / 'practice.log'}")


def down(home: Path) -> bool:
    """Stop the practice vendors of this home, if they run; their keys and their port are kept.

    Returns:
        Whether they ran.

    Raises:
        LockTimeout: another process has been starting or stopping them for too long.
    """
    folder = home / "practice"
    if not folder.is_dir():
        return False
    with _locked(folder):
        return _stop_recorded(folder)


def status(home: Path) -> Running | None:
    """The practice vendors of this home, if they run and answer."""
    folder = home / "practice"
    process = processes.load(folder / "process.json")
    state = _state(folder)
    if process is None or state is None or not process.is_running():
        return None
    port, token = state
    running = Running(home=home, port=port, process=process, token=token)
    return running if running.control.answers() else None


def keys_file(home: Path) -> Path:
    """Where the accepted keys of this home stand."""
    return home / "practice" / "keys.json"


def accepted_keys(home: Path) -> dict[str, list[str]]:
    """The keys that the practice vendors of this home accept, by vendor.

    Raises:
        PracticeError: there are none yet.
    """
    accepted = keyring.load(keys_file(home))
    if accepted is None:
        raise PracticeError(f"There are no practice vendors in {home}.", remedy="Start them: isabella practice up")
    return accepted


def accept(home: Path, vendor: str, keys: Sequence[str]) -> None:
    """Replace the vendor's list of accepted keys, whether the vendors run or not."""
    running = status(home)
    if running is not None:
        running.control.accept(vendor, keys)
        return
    accepted = accepted_keys(home)
    accepted[profile(vendor).name] = list(keys)
    keyring.save(keys_file(home), accepted)


def _start(home: Path, port: int, say: Say) -> Running | None:
    """Start the process and wait until it answers; None where it ended."""
    folder = _folder(home)
    token = SecretStr(secrets.token_urlsafe(24))
    write_private(folder / "state.json", json.dumps({"port": port, "token": token.get_secret_value()}))
    say(f"practice vendors: starting on port {port}")
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # -P: the working directory must not be able to stand in for a module.
    argv = [sys.executable, "-P", "-m", "isabella.practice", str(folder)]
    try:
        process = processes.spawn(argv, env=environment, log=folder / "practice.log", cwd=folder)
    except OSError as error:
        raise PracticeError(f"The practice vendors cannot be started: {error.strerror}.") from None
    processes.save(folder / "process.json", process)
    running = Running(home=home, port=port, process=process, token=token, started=True)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if running.control.answers():
                return running
            if not process.is_running():
                return None
            time.sleep(0.05)
    except BaseException:
        # Interrupted while waiting: nobody would know of the process.
        process.stop()
        raise
    process.stop()
    return None


def _choose_port(folder: Path, wanted: int | None) -> int:
    if wanted is not None:
        if not is_free(wanted):
            raise PracticeError(f"Port {wanted} is taken.", remedy="Choose another port, or none for a free one.")
        return wanted
    state = _state(folder)
    preferred = DEFAULT_PORT if state is None else state[0]
    return preferred if is_free(preferred) else free_port()


def _state(folder: Path) -> tuple[int, SecretStr] | None:
    try:
        data = json.loads((folder / "state.json").read_text())
        return int(data["port"]), SecretStr(str(data["token"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stop_recorded(folder: Path) -> bool:
    record = folder / "process.json"
    process = processes.load(record)
    stopped = process is not None and process.stop()
    record.unlink(missing_ok=True)
    return stopped


def _folder(home: Path) -> Path:
    folder = home / "practice"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PracticeError(f"{folder} cannot be made: {error.strerror}.", remedy="Correct ISABELLA_HOME.") from None
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / "lock", timeout=_LOCK_SECONDS, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise LockTimeout(
            f"Another process has been starting or stopping the practice vendors for {_LOCK_SECONDS:g} s.",
            remedy="Wait for it, or look for a process that hangs.",
        ) from None
    try:
        yield
    finally:
        lock.release()
