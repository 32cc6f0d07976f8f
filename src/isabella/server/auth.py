"""Access control: the token of API clients, the cookie and forms of browsers, and the headers of the console's pages.

Authentication is a middleware, before routing, so that no route can be left open by mistake.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isabella.errors import IsabellaError
from isabella.server import START
from isabella.server.errors import ERRORS, Problem, answer
from isabella.server.runtime import CurrentRuntime

COOKIE = "isabella"
CSRF_HEADER = "x-isabella-csrf"

#: The largest request body in bytes. Agent files may be large.
LARGEST_BODY = 64 * 1024 * 1024
_LARGEST_FORM = 4 * 1024 * 1024

_TOO_LARGE_MESSAGE = f"The request body is larger than {LARGEST_BODY} bytes."

_OPEN = ("/health", "/ready", "/login")
_COOKIE_SECONDS = 90 * 24 * 3600

#: Pages load only what this backend serves, and nothing inline.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

_PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With `no-referrer`, browsers would send `Origin: null` with the console's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

router = APIRouter(tags=["access"], responses=ERRORS)


class AuthMiddleware:
    """An ASGI middleware that requires the token, as a bearer token or as a cookie. It buffers nothing.

    Without a token it admits every request, for applications that authenticate by themselves. Paths below
    `open_prefixes` need no token. Below the paths of `sign_in_pages`, those applications answer in place of the JSON
    error.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: SecretStr | None,
        open_prefixes: Collection[str] = (),
        sign_in_pages: Mapping[str, ASGIApp] | None = None,
    ) -> None:
        self._app = app
        self._token = token
        self._open_prefixes = tuple(prefix.rstrip("/") + "/" for prefix in open_prefixes)
        self._sign_in_pages = dict(sign_in_pages or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket" or not self._admits(scope["path"], scope.get("method", ""), headers):
            await self._refusal(scope["path"])(scope, receive, send)
            return
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > LARGEST_BODY:
            await _TOO_LARGE(scope, receive, send)
            return
        await self._app(scope, _bounded(receive), send)

    def _refusal(self, path: str) -> ASGIApp:
        for prefix, page in self._sign_in_pages.items():
            if path == prefix or (prefix != "/" and path.startswith(prefix + "/")):
                return page
        return _UNAUTHORIZED

    def _admits(self, path: str, method: str, headers: Headers) -> bool:
        if self._token is None or path in _OPEN or path.startswith(self._open_prefixes):
            return True
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and is_token(self._token, bearer.strip()):
            return True
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE)
        if cookie is None or not _equal(cookie, session_cookie(self._token)):
            return False
        # `SameSite` is not enough: to a browser, other ports of this machine are the same site.
        return method in ("GET", "HEAD") or _has_own_origin(headers)


@router.get("/login", summary="Sign in from a browser", status_code=303, response_class=RedirectResponse)
async def login(
    request: Request,
    runtime: CurrentRuntime,
    token: Annotated[str, Query(max_length=1000, description="The token of the login link.")],
) -> Response:
    """Exchange the token for a cookie that scripts and other sites cannot use, and redirect to the start page.

    The redirect removes the token from the address bar.
    """
    if runtime.token is not None and not is_token(runtime.token, token):
        problem = Problem(
            code="unauthorized",
            message="The token is wrong.",
            remedy="`isabella login` prints a link with the right one.",
        )
        return answer(401, problem, {"WWW-Authenticate": "Bearer"})
    response = RedirectResponse(START, status_code=303)
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    if runtime.token is not None:
        response.set_cookie(
            COOKIE,
            session_cookie(runtime.token),
            max_age=_COOKIE_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return response


def is_token(token: SecretStr, candidate: str) -> bool:
    """Return whether the candidate is the token, in constant time."""
    return _equal(candidate, token.get_secret_value())


def session_cookie(token: SecretStr) -> str:
    """Return the value of the session cookie: derived from the token, but not revealing it."""
    return hmac.new(token.get_secret_value().encode(), b"isabella cookie", hashlib.sha256).hexdigest()


class SecurityHeaders:
    """An ASGI middleware that adds the security headers of pages and forbids caching them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add headers to the response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _PAGE_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


class FormRefused(IsabellaError):
    """The form was not sent by a page of this backend, or by one that is too old."""


async def read_form(request: Request, csrf: str) -> dict[str, str]:
    """Return the fields of a form; raise `FormRefused` unless a page of this backend, with its `csrf`, sent it."""
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
        raise FormRefused("The form is not valid UTF-8.", remedy="Send it as UTF-8.") from None
    secret = request.headers.get(CSRF_HEADER) or fields.pop("csrf", "")
    if not hmac.compare_digest(secret.encode(), csrf.encode()):
        raise FormRefused("This page was loaded before a restart with another token.", remedy="Reload it.")
    # Forms end lines with CRLF; memory and messages use LF.
    return {name: value.replace("\r\n", "\n").replace("\r", "\n") for name, value in fields.items()}


def is_same_origin(headers: Headers) -> bool:
    """Return whether a page of this backend sent the request, as far as the browser says."""
    return headers.get("sec-fetch-site") in (None, "same-origin", "none") and _has_own_origin(headers)


def _has_own_origin(headers: Headers) -> bool:
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def _equal(candidate: str, secret: str) -> bool:
    return hmac.compare_digest(candidate.encode("utf-8", "surrogateescape"), secret.encode())


def _bounded(receive: Receive) -> Receive:
    """Limit the size of a request body that announces no length."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > LARGEST_BODY:
            raise HTTPException(413, _TOO_LARGE_MESSAGE)
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
_TOO_LARGE = answer(413, Problem(code="too_large", message=_TOO_LARGE_MESSAGE))
