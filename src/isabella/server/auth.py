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
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
