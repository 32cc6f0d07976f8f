"""Who comes in, and what a page may do: the policy of every answer, and the proof that a form is one of ours."""

from __future__ import annotations

import hmac
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isabella.errors import IsabellaError

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
