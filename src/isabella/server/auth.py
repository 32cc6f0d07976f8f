"""Who may use the backend: whoever brings the token, as a bearer or, from a browser, as a cookie.

Every route asks for it, those of later modules included, because it is asked for before any route is looked for.
What is open to everybody is named here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isabella.errors import IsabellaError
from isabella.server.errors import ERRORS, Problem, answer

COOKIE = "isabella"

#: The largest request that is read, in bytes. An agent's file may be large.
LARGEST_BODY = 64 * 1024 * 1024

_TOO_LARGE_SAID = f"More than {LARGEST_BODY} bytes are not read."

_OPEN = ("/health", "/ready", "/login")
_COOKIE_SECONDS = 90 * 24 * 3600

router = APIRouter(tags=["access"], responses=ERRORS)


class AuthMiddleware:
    """Lets in who brings the token. An ASGI middleware that buffers nothing.

    Args:
        app: what is behind it.
        token: the token; None lets everybody in, for applications that guard themselves.
        open_prefixes: paths below which routes guard themselves.
        doors: what answers, in place of the usual refusal, below a path that people open in a browser.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: SecretStr | None,
        open_prefixes: Collection[str] = (),
        doors: Mapping[str, ASGIApp] | None = None,
    ) -> None:
        self._app = app
        self._token = token
        self._open_prefixes = tuple(prefix.rstrip("/") + "/" for prefix in open_prefixes)
        self._doors = dict(doors or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket" or not self._admits(scope["path"], scope.get("method", ""), headers):
            await self._door(scope["path"])(scope, receive, send)
            return
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > LARGEST_BODY:
            await _TOO_LARGE(scope, receive, send)
            return
        await self._app(scope, _bounded(receive), send)

    def _door(self, path: str) -> ASGIApp:
        for prefix, door in self._doors.items():
            if path == prefix or (prefix != "/" and path.startswith(prefix + "/")):
                return door
        return _UNAUTHORIZED

    def _admits(self, path: str, method: str, headers: Headers) -> bool:
        if self._token is None or path in _OPEN or path.startswith(self._open_prefixes):
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and is_token(self._token, given.strip()):
            return True
        cookie = _cookie(headers)
        if cookie is None or not _same(cookie, session_cookie(self._token)):
            return False
        # A browser sends the cookie to this machine's other ports as well, `SameSite` or not.
        return method in ("GET", "HEAD") or _of_our_own(headers)


@router.get("/login", summary="Enter from a browser", status_code=303, response_class=RedirectResponse)
async def login(
    request: Request, token: Annotated[str, Query(max_length=1000, description="As the login link has it.")]
) -> Response:
    """Exchange the token for a cookie that scripts cannot read and other sites cannot use, and go to the start page.

    So the token does not stay in the address bar.
    """
    own = request.app.state.token
    if isinstance(own, SecretStr) and not is_token(own, token):
        return answer(
            401,
            Problem(
                code="unauthorized",
                message="That is not the token.",
                remedy="`isabella login` prints a link with the right one.",
            ),
            {"WWW-Authenticate": "Bearer"},
        )
    response = RedirectResponse(request.app.state.start_page, status_code=303)
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    if isinstance(own, SecretStr):
        response.set_cookie(
            COOKIE,
            session_cookie(own),
            max_age=_COOKIE_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return response


def is_token(own: SecretStr, given: str) -> bool:
    """Whether this is the token. Takes as long for a wrong one as for the right one."""
    return _same(given, own.get_secret_value())


def session_cookie(token: SecretStr) -> str:
    """What a browser keeps in place of the token. It opens the backend, but does not tell the token."""
    return hmac.new(token.get_secret_value().encode(), b"isabella cookie", hashlib.sha256).hexdigest()


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())


def _of_our_own(headers: Headers) -> bool:
    """Whether a page of this backend itself asks, as far as the browser says whose page it is."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def _cookie(headers: Headers) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return None if found is None else found.value


def _bounded(receive: Receive) -> Receive:
    """The same request, but not without end."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > LARGEST_BODY:
            raise HTTPException(413, _TOO_LARGE_SAID)
        return message

    return bounded


_UNAUTHORIZED = answer(
    401,
    Problem(
        code="unauthorized",
        message="The token is missing or wrong.",
        remedy="Send it as `Authorization: Bearer …`; in a browser, open the link that `isabella login` prints.",
    ),
    {"WWW-Authenticate": "Bearer"},
)
_TOO_LARGE = answer(413, Problem(code="too_large", message=_TOO_LARGE_SAID))

CSRF_HEADER = "x-isabella-csrf"

#: Nothing but what this backend serves, and nothing inline.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: with that, browsers say `Origin: null` of our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

_LARGEST_FORM = 4 * 1024 * 1024


class FormRefused(IsabellaError):
    """This form does not come from a page of this backend, or from one that is too old."""


class SecurityHeaders:
    """Gives every answer its headers; pages are kept by nobody.

    Args:
        app: what is behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, sending)


async def read_form(request: Request, csrf: str) -> dict[str, str]:
    """The fields of a form that one of our own pages has sent.

    Args:
        request: the request.
        csrf: what the page has to know.

    Raises:
        FormRefused: another page has sent it, or it cannot be read.
    """
    if not is_same_origin(request.headers):
        raise FormRefused("This form was sent by another site, so nothing was done.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_FORM:
            raise FormRefused("The form is too large.", remedy="Send less at once.")
    try:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, encoding="utf-8", errors="strict"))
    except ValueError:
        raise FormRefused("The form holds what is no text.", remedy="Send it as UTF-8.") from None
    given = request.headers.get(CSRF_HEADER) or fields.pop("csrf", "")
    if not hmac.compare_digest(given.encode(), csrf.encode()):
        raise FormRefused("This page is from before a restart with another token.", remedy="Load it again.")
    # Forms bring lines in the way of letters; texts here have them in the way of files.
    return {name: value.replace("\r\n", "\n").replace("\r", "\n") for name, value in fields.items()}


def is_same_origin(headers: Headers) -> bool:
    """Whether a request comes from a page of this backend itself, as far as the browser says."""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    # Other ports of a machine are the same site to a browser, so `SameSite` alone would let them pass.
    return origin is None or urlsplit(origin).netloc == headers.get("host")
