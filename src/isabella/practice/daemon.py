"""The practice vendors as a process of their own: start, find, control and stop it.

    HOME/practice/
    ├── state.json     port and control token
    ├── process.json   the process that serves
    ├── keys.json      the keys that each vendor accepts
    ├── practice.log   errors of the server; never a request
    └── lock

Only the owner may read these files.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from filelock import FileLock, Timeout
from pydantic import SecretStr, TypeAdapter

from isabella.errors import LockTimeout, PracticeError, UnverifiedPeer
from isabella.practice.server import HOST, SERVICE, TOKEN_HEADER, listen
from isabella.practice.vendor import Request, VendorFault, load_keys, new_key, new_keys, save_keys
from isabella.practice.wire import NAMES, profile
from isabella.system import processes
from isabella.system.files import write_private
from isabella.system.peers import Peer, hooks

DEFAULT_PORT = 8090

_LOCK_SECONDS = 60.0
_START_SECONDS = 20.0
_REQUEST_SECONDS = 5.0
_ATTEMPTS = 3
# The environment variables that a Python program needs; above all no keys.
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "SYSTEMROOT", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
_START_REMEDY = "Start them: isabella practice up"
_REQUESTS = TypeAdapter(list[Request])


class ControlClient:
    """A client of the control API of practice vendors in another process, which is verified before each request."""

    def __init__(self, base_url: str, token: SecretStr, peer: Peer) -> None:
        self._base_url = base_url
        self._token = token
        self._peer = peer

    def answers(self) -> bool:
        """Whether these vendors answer: their health route, and the control API with this token."""
        try:
            with self._client() as client:
                health = client.get("/practice/health").json()
                known = isinstance(health, dict) and health.get("service") == SERVICE
                return known and client.get(f"/practice/{NAMES[0]}/keys").status_code == 200
        except (httpx2.HTTPError, ValueError, UnverifiedPeer):
            return False

    def accept(self, vendor: str, keys: Sequence[str | SecretStr]) -> None:
        """Replace the keys that the vendor accepts, also after a restart."""
        plain = [key.get_secret_value() if isinstance(key, SecretStr) else key for key in keys]
        self._request("PUT", vendor, "keys", {"accepted": plain})

    def fault(self, vendor: str, fault: VendorFault) -> None:
        """Switch a fault on, beside those that are on."""
        self._request("POST", vendor, "faults", asdict(fault))

    def faults(self, vendor: str) -> list[dict[str, Any]]:
        """Return the faults that are on, each with the number of times that is left."""
        return list(self._request("GET", vendor, "faults")["faults"])

    def limit(
        self, vendor: str, *, requests: int | None = None, tokens: int | None = None, running: bool = True
    ) -> None:
        """Have the vendor allow so many requests and tokens per minute; what is not given is its usual allowance."""
        self._request("PUT", vendor, "limits", {"requests": requests, "tokens": tokens, "running": running})

    def lift(self, vendor: str) -> None:
        """Switch the limits off."""
        self._request("DELETE", vendor, "limits")

    def limits(self, vendor: str) -> dict[str, Any] | None:
        """Return the allowances per minute and what is left of them; None if the limits are off."""
        state: dict[str, Any] | None = self._request("GET", vendor, "limits")["limits"]
        return state

    def clear(self, vendor: str | None = None) -> None:
        """Switch all faults and limits off, at one vendor or at all."""
        for name in NAMES if vendor is None else (vendor,):
            self._request("DELETE", name, "faults")
            self.lift(name)

    def requests(self, vendor: str) -> list[Request]:
        """Return the requests at the vendor, oldest first."""
        return _REQUESTS.validate_python(self._request("GET", vendor, "requests")["requests"])

    def _client(self) -> httpx2.Client:
        # trust_env: a proxy in the environment must not come between two processes of one machine.
        return httpx2.Client(
            base_url=self._base_url,
            headers={TOKEN_HEADER: self._token.get_secret_value()},
            timeout=_REQUEST_SECONDS,
            trust_env=False,
            event_hooks=hooks(self._peer),
        )

    def _request(self, method: str, vendor: str, resource: str, body: object = None) -> Any:
        try:
            with self._client() as client:
                response = client.request(method, f"/practice/{vendor}/{resource}", json=body)
                answer = response.json() if response.content else {}
        except (httpx2.HTTPError, ValueError) as error:
            raise PracticeError(
                f"The practice vendors at {self._base_url} do not answer ({type(error).__name__}).",
                remedy=_START_REMEDY,
            ) from None
        if response.is_error:
            raise PracticeError(f"The practice vendors refused: {answer.get('error', response.status_code)}")
        return answer


@dataclass(frozen=True)
class Running:
    """Practice vendors that run as a process of their own; `started` says whether this call of `up` started them."""

    home: Path
    port: int
    process: processes.ChildProcess
    token: SecretStr = field(repr=False)
    started: bool = False

    @property
    def address(self) -> str:
        """The URL of their server, without a path."""
        return f"http://{HOST}:{self.port}"

    @property
    def control(self) -> ControlClient:
        """A client of their control API."""
        record = self.home / "practice" / "process.json"
        return ControlClient(self.address, self.token, Peer("the practice vendors", record, _START_REMEDY))

    @property
    def keys_file(self) -> Path:
        """The file with the keys that they accept."""
        return keys_file(self.home)

    def base_url(self, vendor: str) -> str:
        """Return the vendor's base URL, with its `/v1`."""
        return f"{self.address}{profile(vendor).path}"

    def keys(self, vendor: str) -> list[SecretStr]:
        """Return the keys that the vendor accepts."""
        return [SecretStr(key) for key in accepted_keys(self.home)[profile(vendor).name]]

    def key(self, vendor: str) -> SecretStr:
        """Return the first key that the vendor accepts.

        Raises:
            PracticeError: it accepts none.
        """
        keys = self.keys(vendor)
        if not keys:
            raise PracticeError(
                f"No key is on the list of {vendor}.", remedy=f"Make one: isabella practice rotate {vendor}"
            )
        return keys[0]

    def rotate(self, vendor: str, *, keep_old: bool = False) -> SecretStr:
        """Have the vendor accept a new key, alone or before the present ones."""
        return rotate(self.home, vendor, keep_old=keep_old)


def up(home: Path, port: int | None = None, progress: Callable[[str], None] = lambda line: None) -> Running:
    """Start the practice vendors, unless they run already; `progress` is called with a line for each step.

    Without a port, they get the former one, or another if that is taken.

    Raises:
        PracticeError: the port is taken, or the process did not start; the message names its log.
        LockTimeout: another process has been starting or stopping them for too long.
    """
    folder = _folder(home)
    with _locked(folder):
        running = status(home)
        if running is not None:
            if port is not None and port != running.port:
                raise PracticeError(
                    f"The practice vendors run on port {running.port} already.",
                    remedy=f"To move them: isabella practice down, then isabella practice up --port {port}",
                )
            progress(f"practice vendors: already running on port {running.port}")
            return running
        _stop_recorded(folder)
        if load_keys(keys_file(home)) is None:
            save_keys(keys_file(home), new_keys())
        for _ in range(_ATTEMPTS):
            chosen = _choose_port(folder, port)
            progress(f"practice vendors: starting on port {chosen}")
            running = _start(home, chosen)
            if running is not None:
                progress(f"practice vendors: running on port {chosen}")
                return running
    raise PracticeError("The practice vendors did not start.", remedy=f"Their log: {folder / 'practice.log'}")


def down(home: Path) -> bool:
    """Stop the practice vendors, if they run; their keys and their port are kept. Return whether they ran.

    Raises:
        LockTimeout: another process has been starting or stopping them for too long.
    """
    folder = home / "practice"
    if not folder.is_dir():
        return False
    with _locked(folder):
        return _stop_recorded(folder)


def status(home: Path) -> Running | None:
    """Return the practice vendors of this home, if they run and answer."""
    folder = home / "practice"
    process = processes.load(folder / "process.json")
    state = _state(folder)
    if process is None or state is None or not process.is_running():
        return None
    port, token = state
    running = Running(home=home, port=port, process=process, token=token)
    return running if running.control.answers() else None


def keys_file(home: Path) -> Path:
    """Return the path of the file with the accepted keys."""
    return home / "practice" / "keys.json"


def accepted_keys(home: Path) -> dict[str, list[str]]:
    """Return the keys that the practice vendors of this home accept, by vendor.

    Raises:
        PracticeError: there are none yet, or their file cannot be read.
    """
    accepted = load_keys(keys_file(home))
    if accepted is None:
        raise PracticeError(f"There are no practice vendors in {home}.", remedy=_START_REMEDY)
    return accepted


def accept(home: Path, vendor: str, keys: Sequence[str]) -> None:
    """Replace the keys that the vendor accepts, whether the vendors run or not."""
    running = status(home)
    if running is not None:
        running.control.accept(vendor, keys)
        return
    accepted = accepted_keys(home)
    accepted[profile(vendor).name] = list(keys)
    save_keys(keys_file(home), accepted)


def rotate(home: Path, vendor: str, *, keep_old: bool = False) -> SecretStr:
    """Have the vendor accept a new key, alone or before the present ones, whether the vendors run or not."""
    present = accepted_keys(home)[profile(vendor).name]
    key = new_key(vendor)
    accept(home, vendor, [key, *(present if keep_old else ())])
    return SecretStr(key)


def _start(home: Path, port: int) -> Running | None:
    """Start the process and wait until it answers; None if it ended or did not answer in time."""
    folder = _folder(home)
    token = SecretStr(secrets.token_urlsafe(24))
    write_private(folder / "state.json", json.dumps({"port": port, "token": token.get_secret_value()}))
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # -P: a file in the working directory must not replace a module.
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
        # An interrupt while waiting must not leave a process behind.
        process.stop()
        raise
    process.stop()
    return None


def _choose_port(folder: Path, wanted: int | None) -> int:
    if wanted is not None:
        listen(wanted).close()
        return wanted
    state = _state(folder)
    preferred = DEFAULT_PORT if state is None else state[0]
    with suppress(PracticeError), listen(preferred):
        return preferred
    with listen(0) as listener:
        return int(listener.getsockname()[1])


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
