"""The practice vendors as a process of their own: start, find, control and stop it.

Beside the files of a `Daemon`, their folder has `keys.json`, the keys that each vendor accepts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from pydantic import SecretStr, TypeAdapter

from isabella.errors import PracticeError
from isabella.practice.server import HOST, SERVICE, TOKEN_HEADER, listen
from isabella.practice.vendor import Request, VendorFault, load_keys, new_key, save_keys
from isabella.practice.wire import NAMES, profile
from isabella.system import processes, state
from isabella.system.daemon import Daemon
from isabella.system.peers import Peer, hooks
from isabella.system.urls import client_options

DEFAULT_PORT = 8090

_REQUEST_SECONDS = 5.0
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
        return httpx2.Client(
            base_url=self._base_url,
            headers={TOKEN_HEADER: self._token.get_secret_value()},
            timeout=_REQUEST_SECONDS,
            event_hooks=hooks(self._peer),
            **client_options(self._base_url),
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
        return ControlClient(self.address, self.token, _daemon(self.home).peer)

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
    present = status(home)
    if present is not None:
        if port not in (None, present.port):
            raise PracticeError(
                f"The practice vendors run on port {present.port} already.",
                remedy=f"To move them: isabella practice down, then isabella practice up --port {port}",
            )
        progress(f"practice vendors: already running on port {present.port}")
        return present
    try:
        load_keys(keys_file(home))
    except PracticeError:
        state.set_aside(keys_file(home), "it does not hold the keys of the practice vendors")
    # -P: a file in the working directory must not replace a module.
    argv = [sys.executable, "-P", "-m", "isabella.practice", str(home.absolute() / "practice")]
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    daemon = _daemon(home)
    listener = daemon.listen() if port is None else listen(port)
    progress(f"practice vendors: starting on port {listener.getsockname()[1]}")
    with closing(listener):
        running = daemon.start(argv, environment, listener=listener)
    progress(f"practice vendors: running on port {running.port}")
    return Running(home, running.port, running.process, running.token, started=running.listener is not None)


def down(home: Path) -> bool:
    """Stop the practice vendors, if they run; their keys and their port are kept. Return whether they ran.

    Raises:
        LockTimeout: another process has been starting or stopping them for too long.
    """
    return _daemon(home).stop()


def status(home: Path) -> Running | None:
    """Return the practice vendors of this home, if they run and answer."""
    running = _daemon(home).status()
    return None if running is None else Running(home, running.port, running.process, running.token)


def _daemon(home: Path) -> Daemon:
    return Daemon(
        title="the practice vendors",
        folder=home / "practice",
        default_port=DEFAULT_PORT,
        token_header=TOKEN_HEADER,
        health=("/practice/health", SERVICE),
        error=PracticeError,
        remedy=_START_REMEDY,
    )


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
