"""The answers of a backend that starts: an ASGI application that becomes the whole one as soon as that is imported.

Importing the application takes longer than everything before it. The HTTP server therefore starts with this one. It
needs little beyond the standard library and uvicorn, and keeps its connections when requests are passed on. It
knows no key and no memory, reads no body, and shows to anyone what `GET /ready` shows to anyone.
"""

from __future__ import annotations

import asyncio
import html
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

from uvicorn import Config, Server

from isabella.server.security import NO_STORE, UNKNOWN_HOST, is_host, security_headers
from isabella.server.static_files import STATIC_FILES, static_url
from isabella.system.english import english
from isabella.system.http_server import ConnectionLimits, Headers, http_protocol

#: Of the body of an unknown sender. Of a known one, more is read than a body may have.
_REFUSED_BYTES = 1024 * 1024

#: The message and the remedy of answers that need what is not started yet.
NOT_READY = (
    english("Agents are not ready yet."),
    english("`GET /ready` shows how far the start is; pages of the console reload by themselves."),
)
#: The time for answers under way when the server is stopped.
STOP_SECONDS = 10
#: The step before the first one, and between two of them.
FIRST_STEP = "Isabella is starting."

_PAGE = Path(__file__).parent / "web" / "templates" / "loading.html"
_STYLE, _ICON = "console.css", "icon.svg"
_TYPES = {_STYLE: "text/css; charset=utf-8", _ICON: "image/svg+xml"}
_HTML, _JSON = "text/html; charset=utf-8", "application/json"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class _Answer:
    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self, path: str) -> Headers:
        """Return all headers of the answer to a request for a path."""
        own = {"Content-Type": self.content_type, "Content-Length": str(len(self.body)), "Cache-Control": NO_STORE}
        every = {**own, **security_headers(path), **self.headers}
        return [(name.lower().encode(), value.encode()) for name, value in every.items()]


class StartupApp:
    """The ASGI application of a backend from its first moment.

    Args:
        steps: what is being done, the innermost last. It is read again for each request.
        hosts: the names of this backend, in lower case, beside IP addresses and `localhost`.
        on_failure: is called with the error if the application cannot be loaded or started, to stop the server.
    """

    def __init__(
        self, steps: Sequence[str], hosts: Collection[str], on_failure: Callable[[BaseException], None]
    ) -> None:
        self._steps = steps
        self._hosts = hosts
        self._on_failure = on_failure
        self._app: ASGIApp | None = None
        #: the whole application; set by the thread that loads it
        self.loaded: Future[ASGIApp] = Future()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "http":
            await _send(self._answer(scope), scope["path"], send)

    async def _live(self, scope: Message, receive: Receive, send: Send) -> None:
        """Start at once; then load the application and pass requests on to it, until the server stops."""
        startup = await receive()
        await send({"type": "lifespan.startup.complete"})
        stopping = asyncio.ensure_future(receive())
        loaded = asyncio.wrap_future(self.loaded)
        either: set[asyncio.Future[Any]] = {stopping, loaded}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not loaded.done():
            loaded.cancel()
            await send({"type": "lifespan.shutdown.complete"})
            return
        try:
            await _live_on(loaded.result(), scope, _Replayed(startup, stopping), send, self._pass_on)
        except Exception as error:
            if self._app is not None:
                raise
            # uvicorn would serve on without the application.
            self._on_failure(error)
            await stopping
            await send({"type": "lifespan.shutdown.complete"})

    def _pass_on(self, app: ASGIApp) -> None:
        self._app = app

    def _answer(self, scope: Message) -> _Answer:
        headers = {bytes(name).lower(): bytes(value).decode("latin-1") for name, value in scope["headers"]}
        path, reads = scope["path"], scope["method"] in ("GET", "HEAD")
        if not is_host(headers.get(b"host"), self._hosts):
            return _problem(421, *UNKNOWN_HOST)
        if reads and path == "/health":
            return _json(200, {"status": "ok", "version": version("isabella"), "parts": {}})
        if reads and path == "/ready":
            return _json(503, {"status": "starting", "reasons": (self._steps or [FIRST_STEP])[-1:], "conditions": []})
        for name, content_type in _TYPES.items():
            if reads and path == static_url(name).partition("?")[0]:
                return _Answer(200, content_type, STATIC_FILES.joinpath(name).read_bytes())
        if reads and "text/html" in headers.get(b"accept", ""):
            return _Answer(503, _HTML, _page(self._steps or [FIRST_STEP]).encode(), {"Retry-After": "1"})
        return _problem(503, "not_ready", *NOT_READY, {"Retry-After": "1"})


@dataclass
class _Replayed:
    """The messages of a lifespan for a second application: the first is received already, the next is awaited."""

    first: Message | None
    second: Awaitable[Message]

    async def receive(self) -> Message:
        if self.first is None:
            return await self.second
        message, self.first = self.first, None
        return message


async def _live_on(
    app: ASGIApp, scope: Message, messages: _Replayed, send: Send, on_started: Callable[[ASGIApp], None]
) -> None:
    """Run the lifespan of an application in a server that has already announced its own start."""

    async def send_on(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            on_started(app)
        elif message["type"] == "lifespan.startup.failed":
            raise RuntimeError(message.get("message", ""))
        else:
            await send(message)

    await app(scope, messages.receive, send_on)


async def _send(answer: _Answer, path: str, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.encoded(path)})
    await send({"type": "http.response.body", "body": answer.body})


def _page(steps: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(step)}</li>" for step in steps)
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        steps=items, style=static_url(_STYLE), icon=static_url(_ICON)
    )


def _json(status: int, document: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> _Answer:
    return _Answer(status, _JSON, json.dumps(document).encode(), headers or {})


def _problem(
    status: int, code: str, message: str, remedy: str | None = None, headers: Mapping[str, str] | None = None
) -> _Answer:
    """Return an error in the form of `server.errors`, with the fields of OpenAI's form, for clients of both."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"code": code, "message": message, "remedy": remedy, "type": kind, "param": None}
    return _json(status, {"error": error}, headers)


def http_server(app: Any) -> Server:
    """Return the HTTP server of a backend's application. docs/access.md has its limits."""
    return Server(
        Config(
            app,
            http=http_protocol(ConnectionLimits(refused_bytes=_REFUSED_BYTES), _malformed),
            ws="none",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            # Longer than clients keep one, and short enough for a flood of them.
            timeout_keep_alive=8,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )


def _malformed(what: str) -> tuple[bytes, Headers]:
    body = json.dumps({"error": {"code": "malformed_request", "message": what}}).encode()
    return body, [(b"content-type", _JSON.encode()), (b"content-length", str(len(body)).encode())]
