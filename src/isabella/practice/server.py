"""The practice vendors in this process: a uvicorn in a thread, on a loopback port."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import uvicorn
from pydantic import SecretStr

from isabella.errors import PracticeError
from isabella.practice import keyring
from isabella.practice.control import Control
from isabella.practice.faults import Reset, Route, VendorFault
from isabella.practice.profiles import NAMES, profile
from isabella.practice.program import Program
from isabella.practice.requests import Request
from isabella.practice.transports import Transports
from isabella.practice.vendor import PracticeVendor

HOST = "127.0.0.1"

_START_SECONDS = 10.0
_STOP_SECONDS = 5.0
_LONGEST_HANG = 600.0


def listen(port: int) -> socket.socket:
    """A listening loopback socket; port 0 lets the system choose.

    Raises:
        PracticeError: the port is taken.
    """
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it, each answer waits 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        # A port that is only bound is still open to whoever listens first.
        listener.listen()
    except OSError as error:
        listener.close()
        raise PracticeError(
            f"Port {port} is taken ({error.strerror}).", remedy="Choose another port, or none for a free one."
        ) from None
    return listener


def is_free(port: int) -> bool:
    """Whether the vendors could listen on this port right now."""
    try:
        listen(port).close()
    except PracticeError:
        return False
    return True


def free_port() -> int:
    """A port that is free right now."""
    with listen(0) as listener:
        return int(listener.getsockname()[1])


class Practice:
    """The vendors, their controls and their connections, ready to be served.

    Args:
        accepted: the accepted keys of each vendor.
        token: the control token.
        on_keys: called with the accepted keys after a change through the controls.
    """

    def __init__(
        self,
        accepted: Mapping[str, Sequence[str]],
        token: str,
        on_keys: Callable[[Mapping[str, Sequence[str]]], None] | None = None,
    ) -> None:
        self.vendors = {name: PracticeVendor(profile(name), accepted[name]) for name in NAMES}
        self.transports = Transports()

        def changed() -> None:
            if on_keys is not None:
                on_keys({name: vendor.keys for name, vendor in self.vendors.items()})

        control = Control(self.vendors, token, changed)
        self.program = Program(self.vendors, self.transports, control.application)

    def server(self) -> uvicorn.Server:
        """A uvicorn server for the vendors; it logs only what is wrong with the server itself."""
        application: Any = self.program
        config = uvicorn.Config(
            application,
            http=self.transports.protocol(),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
        )
        return _Server(config, self.transports)


class _Server(uvicorn.Server):
    """A server that does not wait for answers which a fault holds back."""

    def __init__(self, config: uvicorn.Config, transports: Transports) -> None:
        super().__init__(config)
        self._transports = transports

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._transports.abort_all()
        await super().shutdown(sockets)


class PracticeVendors:
    """Practice vendors for tests and benchmarks: a context manager that serves them from a thread.

    Args:
        port: the loopback port; 0 for a free one.
        keys: the accepted keys of each vendor; made up where absent.
    """

    def __init__(self, port: int = 0, keys: Mapping[str, Sequence[str]] | None = None) -> None:
        self._wanted_port = port
        self._token = secrets.token_urlsafe(24)
        self._practice = Practice({**keyring.new_keys(), **(keys or {})}, self._token)
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    def __enter__(self) -> Self:
        """Start serving; returns when requests are answered.

        Raises:
            PracticeError: the port is taken, or the server did not start.
        """
        listener = listen(self._wanted_port)
        self._port = int(listener.getsockname()[1])
        self._server = self._practice.server()
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="practice-vendors", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise PracticeError("The practice vendors did not start.")
            time.sleep(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving; requests under way are cut off."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(_STOP_SECONDS)

    @property
    def port(self) -> int:
        """The port that it serves on."""
        return self._port

    @property
    def keys_file(self) -> None:
        """They stand in no file."""

    @property
    def control_url(self) -> str:
        """Where its controls are."""
        return f"http://{HOST}:{self._port}/practice"

    @property
    def control_token(self) -> SecretStr:
        """What its controls ask for, in the header `x-practice-token`."""
        return SecretStr(self._token)

    def base_url(self, vendor: str) -> str:
        """The vendor's base URL, with its `/v1`."""
        return f"http://{HOST}:{self._port}{self._vendor(vendor).profile.path}"

    def key(self, vendor: str) -> SecretStr:
        """A key that is on the vendor's list: the first.

        Raises:
            PracticeError: the list is empty.
        """
        keys = self._vendor(vendor).keys
        if not keys:
            raise PracticeError(f"No key is on the list of {vendor}.")
        return SecretStr(keys[0])

    def accept(self, vendor: str, keys: Sequence[str | SecretStr]) -> None:
        """Replace the vendor's list of accepted keys."""
        plain = [key.get_secret_value() if isinstance(key, SecretStr) else key for key in keys]
        self._vendor(vendor).accept(plain)

    def rotate(self, vendor: str, *, keep_old: bool = False) -> SecretStr:
        """Put a new key on the vendor's list, alone or before those that are on it."""
        key = keyring.new_key(vendor)
        self._vendor(vendor).accept([key, *(self._vendor(vendor).keys if keep_old else ())])
        return SecretStr(key)

    def fault(
        self,
        vendor: str,
        *,
        on: Route | None = None,
        times: int | None = None,
        share: float = 1.0,
        latency: float = 0.0,
        between: float = 0.0,
        status: int | None = None,
        retry_after: float | None = None,
        body: str | None = None,
        hang: float | bool | None = None,
        reset: Reset | bool | None = None,
        truncated: bool = False,
        html: int | None = None,
        malformed: bool = False,
    ) -> None:
        """Switch a fault on at a vendor, beside those that are on; see `Fault` for what each means.

        `hang=True` hangs for ten minutes at most; `reset=True` resets at once.
        """
        self._vendor(vendor).faults.add(
            VendorFault(
                on=on,
                times=times,
                share=share,
                latency=latency,
                between=between,
                status=status,
                retry_after=retry_after,
                body=body,
                hang=_LONGEST_HANG if hang is True else (None if hang is False else hang),
                reset="at_once" if reset is True else (None if reset is False else reset),
                truncated=truncated,
                html=html,
                malformed=malformed,
            )
        )

    def strict(self, vendor: str, strict: bool | None = True) -> None:
        """Have the vendor refuse what the real one is known to refuse (see `strictness`); None: what is certain."""
        self._vendor(vendor).strict = strict

    def clear(self, vendor: str | None = None) -> None:
        """Switch all faults off, at one vendor or at all."""
        for name in NAMES if vendor is None else (vendor,):
            self._vendor(name).faults.clear()

    def requests(self, vendor: str, *, after: int = 0) -> list[Request]:
        """What has arrived at the vendor, oldest first; only what came after the request of that number."""
        return self._vendor(vendor).log.entries(after=after)

    def forget(self) -> None:
        """Clear the request logs of all vendors."""
        for vendor in self._practice.vendors.values():
            vendor.log.forget()

    def _vendor(self, name: str) -> PracticeVendor:
        return self._practice.vendors[profile(name).name]
