"""Access control: who sent a request, from which page, and to which host. docs/access.md has the rules.

Access is decided in a middleware, before routing and before the body of a request is read, so that no route can be
left open by mistake.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

import anyio
from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isabella.errors import IsabellaError
from isabella.server.errors import Problem, answer, is_openai, openai_answer
from isabella.server.security import NO_STORE, UNKNOWN_HOST, is_host, security_headers
from isabella.server.sessions import ID_SHOWN, Session, Sessions, equal
from isabella.system import audit
from isabella.system.english import english
from isabella.system.http_server import address_group, admit

COOKIE = "isabella"
CSRF_HEADER = "x-isabella-csrf"
LOGIN = "/login"

_LARGEST_FORM = 4 * 1024 * 1024

#: Answers that wait at once, and addresses whose failures are known. More answers are not delayed.
_MOST_DELAYED, _MOST_ADDRESSES = 256, 1000

_OPEN = ("/health", "/ready", LOGIN)
#: The key of a request's session in its scope; without one, the token admitted the request.
_SESSION = "isabella.session"


class GuessDelay:
    """Delays the answers to wrong tokens, by address: twice as long with each one, until none came for a while.

    A right token is never delayed, so a stranger cannot lock out the owner.
    """

    def __init__(self, first: float = 0.25, longest: float = 5.0, forget: float = 60.0) -> None:
        self._first, self._longest, self._forget = first, longest, forget
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._waiting = 0

    async def wait(self, address: str) -> None:
        """Count a wrong token, and wait."""
        seconds = self._count(address_group(address) or "loopback")
        if self._waiting >= _MOST_DELAYED:
            return
        self._waiting += 1
        try:
            await anyio.sleep(seconds)
        finally:
            self._waiting -= 1

    def _count(self, address: str) -> float:
        now = time.monotonic()
        failures, last = self._failures.pop(address, (0, now))
        failures = 1 if now - last > self._forget else failures + 1
        self._failures[address] = failures, now
        while len(self._failures) > _MOST_ADDRESSES:
            self._failures.popitem(last=False)
        return min(self._longest, self._first * 2.0 ** min(failures - 1, 30))


@dataclass(frozen=True)
class AccessRefusal:
    """Why a request is not admitted."""

    status: int
    problem: Problem


@dataclass(frozen=True)
class Access:
    """The access control of requests.

    Attributes:
        token: the token; None admits every request, for applications that authenticate by themselves.
        sessions: the sessions of browsers.
        hosts: the names of this backend beside IP addresses and `localhost`.
        is_letta: returns whether a path is one at which Letta requests embeddings, which holds a secret.
        open_prefix: paths below it need no credential.
        delay: delays the answers to wrong tokens.
    """

    token: SecretStr | None
    sessions: Sessions
    hosts: Collection[str]
    is_letta: Callable[[str], bool]
    open_prefix: str
    delay: GuessDelay

    async def decide(self, scope: Scope) -> Session | AccessRefusal | None:
        """Return why a request is refused, or the session that admits it; None if something else admits it."""
        headers, path = Headers(scope=scope), scope["path"]
        if self.token is None:
            return None
        if not is_host(headers.get("host"), self.hosts):
            return _UNKNOWN_HOST
        # Letta's requests carry its own bearer token, which proves nothing.
        if self.is_open(path) or self.is_letta(path):
            return None
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            if is_token(self.token, bearer.strip()):
                return None
            await self.delay.wait(address_of(scope))
            return _UNAUTHORIZED
        session = session_of(headers, self.sessions)
        if session is None:
            return _UNAUTHORIZED
        # `SameSite` is not enough: to a browser, other ports of this machine are the same site.
        return session if is_same_origin(headers) or _is_link(path, scope["method"], headers) else _FOREIGN

    def actor(self, scope: Scope, session: Session | None) -> audit.Actor:
        """Return who sends an admitted request, for the audit log."""
        path, address = scope["path"], address_of(scope)
        # The path of embeddings has a secret.
        via = f"{scope.get('method', '')} {'embeddings' if self.is_letta(path) else path}"
        if session is not None:
            return audit.Actor(audit.ActorKind.SESSION, session.id[:ID_SHOWN], address, via)
        kind = audit.ActorKind.APPLICATION if self.token is None else audit.ActorKind.TOKEN
        return audit.Actor(audit.ActorKind.CLIENT if self.is_open(path) else kind, "", address, via)

    def is_open(self, path: str) -> bool:
        """Return whether a path needs no credential."""
        return path in _OPEN or path.startswith(self.open_prefix)


class AuthMiddleware:
    """An ASGI middleware that passes on admitted requests only. `page` renders refusals for browsers."""

    def __init__(self, app: ASGIApp, access: Access, page: Callable[[Request, AccessRefusal], Response]) -> None:
        self._app = app
        self._access = access
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        decision = _UNAUTHORIZED if scope["type"] == "websocket" else await self._access.decide(scope)
        if isinstance(decision, AccessRefusal):
            await self._answer(decision, scope)(scope, receive, send)
            return
        scope[_SESSION] = decision
        if not self._access.is_open(scope["path"]):
            admit(scope)
        with audit.acting(self._access.actor(scope, decision)):
            await self._app(scope, receive, send)

    def _answer(self, refusal: AccessRefusal, scope: Scope) -> Response:
        request = Request({**scope, "type": "http"})
        if wants_page(request.headers):
            response = self._page(request, refusal)
        else:
            respond = openai_answer if is_openai(scope["path"]) else answer
            response = respond(refusal.status, refusal.problem)
        if refusal.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response


class SecurityHeaders:
    """An ASGI middleware that adds security headers to every response, and forbids storing it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add headers to the response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        added = security_headers(scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in added.items():
                    headers[name] = value
                # Event streams of sse-starlette say `no-store`, too; files with a hash in their URL may be kept.
                if "immutable" not in headers.get("cache-control", ""):
                    headers["Cache-Control"] = NO_STORE
            await send(message)

        await self._app(scope, receive, send_with_headers)


def is_token(token: SecretStr, candidate: str) -> bool:
    """Return whether the candidate is the token, in constant time."""
    return equal(candidate, token.get_secret_value())


def session_of(headers: Headers, sessions: Sessions) -> Session | None:
    """Return the session of the cookie in a request."""
    cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE)
    return None if cookie is None else sessions.find(cookie)


def session_in(scope: Scope) -> Session | None:
    """Return the session that admitted a request; None if the token did."""
    session: Session | None = scope.get(_SESSION)
    return session


def address_of(scope: Scope) -> str:
    """Return the address of a client; an empty string if it is not known."""
    return str((scope.get("client") or ("",))[0])


def wants_page(headers: Headers) -> bool:
    """Return whether a browser asks for a page, and not a program or a script of a page for data."""
    return "text/html" in headers.get("accept", "")


class FormRefused(IsabellaError):
    """The form was not sent by a page of this backend, or by one that is too old."""


async def read_form(request: Request, csrf: str, *, largest: int = _LARGEST_FORM) -> dict[str, str]:
    """Return the fields of a form; raise `FormRefused` unless a page of this backend, with its `csrf`, sent it."""
    _check_origin(request)
    fields = parse_form(await read_body(request, largest))
    _check_secret(request.headers.get(CSRF_HEADER) or fields.pop("csrf", ""), csrf)
    # Forms end lines with CRLF; memory and messages use LF.
    return {name: value.replace("\r\n", "\n").replace("\r", "\n") for name, value in fields.items()}


async def read_upload(request: Request, csrf: str, largest: int) -> bytes:
    """Return a file that a page of this backend sent as the body; raise `FormRefused` otherwise."""
    _check_origin(request)
    _check_secret(request.headers.get(CSRF_HEADER, ""), csrf)
    return await read_body(request, largest)


def _check_origin(request: Request) -> None:
    if not is_same_origin(request.headers):
        raise FormRefused(english("This form was sent by another site, so nothing was done."))


def _check_secret(secret: str, csrf: str) -> None:
    if not equal(secret, csrf):
        raise FormRefused(
            english("This page was loaded before a restart with another token."), remedy=english("Reload it.")
        )


async def read_body(request: Request, largest: int) -> bytes:
    """Return the body of a form; raise `FormRefused` if it has more than `largest` bytes."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > largest:
            raise FormRefused(english("The form is too large."), remedy=english("Send less at once."))
    return body


def parse_form(body: bytes) -> dict[str, str]:
    """Return the fields of a form; raise `FormRefused` if it is not UTF-8."""
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, encoding="utf-8", errors="strict"))
    except ValueError:
        raise FormRefused(english("The form is not valid UTF-8."), remedy=english("Send it as UTF-8.")) from None


def is_same_origin(headers: Headers) -> bool:
    """Return whether a page of this backend sent the request, as far as the browser says."""
    origin = headers.get("origin")
    own = origin is None or urlsplit(origin).netloc == headers.get("host")
    return own and headers.get("sec-fetch-site") in (None, "same-origin", "none")


def _is_link(path: str, method: str, headers: Headers) -> bool:
    """Return whether the user followed a link to a page.

    The routes of the API have effects that a link must not have, and an export holds back an agent's turns.
    """
    return (
        method in ("GET", "HEAD")
        and "origin" not in headers
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
        and not path.startswith(("/api/", "/v1/", "/metrics"))
        and not path.endswith("/export")
    )


_UNAUTHORIZED = AccessRefusal(
    401,
    Problem(
        code="unauthorized",
        message=english("The token is missing or wrong."),
        remedy=english(
            "Send it as `Authorization: Bearer …`; in a browser, open the link that `isabella login` prints."
        ),
    ),
)
_FOREIGN = AccessRefusal(
    403,
    Problem(
        code="foreign_origin",
        message=english("A page of another origin sent this request with a browser's session."),
        remedy=english("Use the console, or a program that sends the token."),
    ),
)
_CODE, _MESSAGE, _REMEDY = UNKNOWN_HOST
_UNKNOWN_HOST = AccessRefusal(421, Problem(code=_CODE, message=_MESSAGE, remedy=_REMEDY))
