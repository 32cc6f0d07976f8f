"""The practice vendors on a loopback port: each under its own path, and the control API under `/practice/`."""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

import uvicorn
from pydantic import BaseModel, ConfigDict, SecretStr, TypeAdapter, ValidationError

from isabella.errors import PracticeError
from isabella.practice.exchange import (
    ClientDisconnected,
    Receive,
    Scope,
    Send,
    Transports,
    VendorExchange,
    read_body,
    respond,
)
from isabella.practice.vendor import PracticeVendor, Request, VendorFault, fingerprint, new_keys
from isabella.practice.wire import Profile, profiles, to_json
from isabella.system.http_server import KEEP_ALIVE_SECONDS
from isabella.system.redaction import mask
from isabella.system.sockets import listening_socket

HOST = "127.0.0.1"

#: The header that carries the control token.
TOKEN_HEADER = "x-practice-token"  # noqa: S105

#: What the health route answers beside the vendors' names, so that another program on the port is recognised.
SERVICE = "isabella-practice"

_START_SECONDS = 10.0
_STOP_SECONDS = 5.0
_LONGEST_HANG = 600.0
_FAULT = TypeAdapter(VendorFault)


class KeysBody(BaseModel):
    """The body of a change of keys."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    accepted: list[str]


class LimitsBody(BaseModel):
    """The body of a change of limits: allowances per minute (null: the usual), and whether the clock runs."""

    model_config = ConfigDict(extra="forbid")

    requests: int | None = None
    tokens: int | None = None
    running: bool = False


class AdvanceBody(BaseModel):
    """The body of a change of the limits' clock."""

    model_config = ConfigDict(extra="forbid")

    seconds: float


class StrictBody(BaseModel):
    """The body of a change of strictness."""

    model_config = ConfigDict(extra="forbid")

    strict: bool | None


def listen(port: int) -> socket.socket:
    """Return a listening loopback socket; with port 0 the system chooses a port.

    Raises:
        PracticeError: the port is taken.
    """
    try:
        return listening_socket(HOST, port)
    except OSError as error:
        raise PracticeError(
            f"Port {port} is taken ({error.strerror}).", remedy="Choose another port, or none for a free one."
        ) from None


class PracticeApp:
    """The practice vendors and their control API as an ASGI application.

    Every control route but health needs the token, so that a stray process on the machine cannot change what the
    vendors accept. Keys go in and never come out: they are shown masked, with their fingerprints.

    `accepted` are the accepted keys of each vendor; `on_keys` is called with them after a change. `vendors` are the
    vendors by name, if they are others than the usual four.
    """

    def __init__(
        self,
        accepted: Mapping[str, Sequence[str]],
        token: str,
        on_keys: Callable[[Mapping[str, Sequence[str]]], None] | None = None,
        vendors: Mapping[str, Profile] | None = None,
    ) -> None:
        known = profiles() if vendors is None else vendors
        self.vendors = {name: PracticeVendor(known[name], keys) for name, keys in accepted.items()}
        self._transports = Transports()
        self._token = token.encode()
        self._on_keys = on_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        name = scope["path"].lstrip("/").partition("/")[0]
        try:
            if name in self.vendors:
                await VendorExchange(self.vendors[name], self._transports, scope, receive, send).answer()
            elif name == "practice":
                status, answer = self._control(scope, await read_body(receive))
                await respond(send, status, b"" if answer is None else to_json(answer))
            else:
                await respond(send, 404, b'{"detail":"Not Found"}')
        except ClientDisconnected:
            self._transports.reset(scope)

    def server(self) -> uvicorn.Server:
        """Return a uvicorn server for the vendors; it logs only errors of the server itself."""
        application: Any = self
        config = uvicorn.Config(
            application,
            http=self._transports.protocol(),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
        return _Server(config, self._transports)

    def _control(self, scope: Scope, body: bytes) -> tuple[int, object]:
        """Return the status and the answer to a request of the control API."""
        if scope["path"] == "/practice/health":
            return 200, {"status": "ok", "service": SERVICE, "vendors": list(self.vendors)}
        if not hmac.compare_digest(dict(scope["headers"]).get(TOKEN_HEADER.encode(), b""), self._token):
            return 401, {"error": f"The control token is missing or wrong ({TOKEN_HEADER})."}
        name, _, resource = str(scope["path"]).removeprefix("/practice/").partition("/")
        if name not in self.vendors:
            return 404, {"error": f"There is no such vendor; there are {', '.join(self.vendors)}."}
        try:
            return self._change(self.vendors[name], scope["method"], resource, scope["query_string"].decode(), body)
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
            return 422, {"error": "; ".join(problems)}
        except PracticeError as error:
            return 422, {"error": str(error)}

    def _change(
        self, vendor: PracticeVendor, method: str, resource: str, query: str, body: bytes
    ) -> tuple[int, object]:
        if resource not in ("keys", "strict", "faults", "limits", "requests"):
            return 404, {"error": "There is no such resource; there are keys, strict, faults, limits and requests."}
        match resource, method:
            case "keys", "PUT":
                vendor.accept(KeysBody.model_validate_json(body).accepted)
                if self._on_keys is not None:
                    self._on_keys({name: each.keys for name, each in self.vendors.items()})
            case "strict", "PUT":
                vendor.strict = StrictBody.model_validate_json(body).strict
            case "faults", "POST" | "PUT":
                fault = _FAULT.validate_json(body)
                if method == "PUT":
                    vendor.faults.clear()
                vendor.faults.add(fault)
            case "faults", "DELETE":
                vendor.faults.clear()
                return 204, None
            case "limits", "PUT":
                vendor.limits.limit(**LimitsBody.model_validate_json(body).model_dump())
            case "limits", "POST":
                vendor.limits.advance(AdvanceBody.model_validate_json(body).seconds)
            case "limits", "DELETE":
                vendor.limits.lift()
                return 204, None
            case "requests", "DELETE":
                vendor.log.clear()
                return 204, None
            case _ if method != "GET":
                return 405, {"error": "There is no such operation."}
        if resource == "keys":
            return 200, {"accepted": [{"masked": mask(key), "sha256": fingerprint(key)} for key in vendor.keys]}
        if resource == "strict":
            return 200, {"strict": vendor.strict}
        if resource == "limits":
            return 200, {"limits": vendor.limits.state()}
        if resource == "faults":
            return 200, {"faults": [asdict(fault) | {"left": left} for fault, left in vendor.faults.active()]}
        after = parse_qs(query).get("after", ["0"])[0]
        if not after.isdecimal():
            return 422, {"error": "after: a number is needed"}
        return 200, {"requests": [asdict(entry) for entry in vendor.log.entries(after=int(after))]}


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

    Without a port, they get a free one; without keys, new ones; without vendors, they are the usual four.
    """

    def __init__(
        self,
        port: int = 0,
        keys: Mapping[str, Sequence[str]] | None = None,
        vendors: Mapping[str, Profile] | None = None,
    ) -> None:
        self.port = port
        accepted = {**new_keys(vendors), **(keys or {})}
        self._app = PracticeApp(accepted, secrets.token_urlsafe(24), vendors=vendors)
        self._server = self._app.server()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start serving; return when requests are answered.

        Raises:
            PracticeError: the port is taken, or the server did not start.
        """
        listener = listen(self.port)
        self.port = int(listener.getsockname()[1])
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
        """Stop serving; requests in progress are aborted."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    @property
    def keys_file(self) -> None:
        """These vendors keep their keys in memory only."""

    def base_url(self, vendor: str) -> str:
        """Return the vendor's base URL, with its `/v1`."""
        return f"http://{HOST}:{self.port}{self._vendor(vendor).profile.path}"

    def key(self, vendor: str) -> SecretStr:
        """Return the first key that the vendor accepts.

        Raises:
            PracticeError: it accepts none.
        """
        keys = self._vendor(vendor).keys
        if not keys:
            raise PracticeError(f"No key is on the list of {vendor}.")
        return SecretStr(keys[0])

    def accept(self, vendor: str, keys: Sequence[str | SecretStr]) -> None:
        """Replace the keys that the vendor accepts."""
        plain = [key.get_secret_value() if isinstance(key, SecretStr) else key for key in keys]
        self._vendor(vendor).accept(plain)

    def rotate(self, vendor: str, *, keep_old: bool = False) -> SecretStr:
        """Have the vendor accept a new key, alone or before the present ones."""
        key = self._vendor(vendor).profile.new_key()
        self.accept(vendor, [key, *(self._vendor(vendor).keys if keep_old else ())])
        return SecretStr(key)

    def fault(self, vendor: str, **fields: Any) -> None:
        """Switch a fault on at a vendor, beside those that are on.

        The fields are those of `VendorFault`; `hang=True` hangs for ten minutes at most, `reset=True` resets at once.
        """
        if fields.get("hang") is True:
            fields["hang"] = _LONGEST_HANG
        if fields.get("reset") is True:
            fields["reset"] = "at_once"
        self._vendor(vendor).faults.add(VendorFault(**fields))

    def strict(self, vendor: str, strict: bool | None = True) -> None:
        """Have the vendor refuse what the real one is known to refuse (see `strictness`); None: what is certain."""
        self._vendor(vendor).strict = strict

    def limit(
        self, vendor: str, *, requests: int | None = None, tokens: int | None = None, running: bool = False
    ) -> None:
        """Have the vendor allow so many requests and tokens per minute; what is not given is its usual allowance.

        Used allowance comes back with `advance`, and as time passes if `running`.
        """
        self._vendor(vendor).limits.limit(requests=requests, tokens=tokens, running=running)

    def advance(self, vendor: str, seconds: float) -> None:
        """Advance the clock of the vendor's limits."""
        self._vendor(vendor).limits.advance(seconds)

    def clear(self, vendor: str | None = None) -> None:
        """Switch all faults and limits off, at one vendor or at all."""
        for name in self._app.vendors if vendor is None else (vendor,):
            self._vendor(name).faults.clear()
            self._vendor(name).limits.lift()

    def requests(self, vendor: str, *, after: int = 0) -> list[Request]:
        """Return the requests at the vendor, oldest first; only those after the request of that number."""
        return self._vendor(vendor).log.entries(after=after)

    def forget(self) -> None:
        """Clear the request logs of all vendors."""
        for vendor in self._app.vendors.values():
            vendor.log.clear()

    def _vendor(self, name: str) -> PracticeVendor:
        if name not in self._app.vendors:
            raise PracticeError(
                f"There is no practice vendor {name!r}.", remedy=f"There are {', '.join(self._app.vendors)}."
            )
        return self._app.vendors[name]
