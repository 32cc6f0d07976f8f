"""The console as an application of its own, mounted into the backend."""

from __future__ import annotations

from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from isabella.errors import IsabellaError
from isabella.server.auth import SecurityHeaders, read_form
from isabella.server.web import pages_activity, pages_chat, pages_memory, pages_providers
from isabella.server.web.context import ConsoleContext
from isabella.server.web.conversations import Conversations
from isabella.server.web.jobs import JobRunner, ProviderMonitor
from isabella.server.web.rendering import ROOT, THEME, THEMES, Renderer

log = structlog.get_logger()

START = f"{ROOT}/providers"
#: What may be read by who has not come in: the style of the page that says so.
OPEN = f"{ROOT}/static"

_YEAR = 365 * 24 * 3600


class _Static(StaticFiles):
    """Files whose addresses change with their content, so that a browser asks once."""

    def file_response(self, *arguments: object, **options: object) -> Response:
        response = super().file_response(*arguments, **options)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = f"public, max-age={_YEAR}, immutable"
        return response


class Console:
    """The console of one backend.

    Args:
        context: what it stands on.
    """

    def __init__(self, context: ConsoleContext) -> None:
        self.context = context
        self.renderer = Renderer(context)
        self.monitor = ProviderMonitor(context)
        self.jobs = JobRunner(context, self.monitor)
        self.conversations = Conversations(context)

    def application(self) -> Starlette:
        """What is mounted into the backend."""
        routes = [
            Route("/", _start),
            Route("/session", _session),
            Route("/theme", self._theme, methods=["POST"]),
            *pages_providers.routes(self.context, self.renderer, self.monitor, self.jobs),
            *pages_chat.routes(self.context, self.renderer, self.conversations),
            *pages_memory.routes(self.context, self.renderer),
            *pages_activity.routes(self.context, self.renderer),
            Mount("/static", _Static(directory=Path(__file__).parent / "static")),
        ]
        middleware = [Middleware(SecurityHeaders), Middleware(GZipMiddleware, minimum_size=1000, compresslevel=6)]
        return Starlette(
            routes=routes,
            middleware=middleware,
            exception_handlers={IsabellaError: self._ours, HTTPException: self._refused, Exception: self._broken},
        )

    async def stranger(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What somebody gets who has not come in, or has no valid cookie any more."""
        request = Request(scope)
        response = self.renderer.page(request, "stranger.html", status=401, here="")
        response.headers["WWW-Authenticate"] = "Bearer"
        await SecurityHeaders(response)(scope, receive, send)

    async def _theme(self, request: Request) -> Response:
        fields = await read_form(request, self.context.csrf)
        theme = fields.get("theme", "auto")
        back = fields.get("back", START)
        # Only a page of ours, whatever the form says.
        response = RedirectResponse(back if back.startswith(f"{ROOT}/") else START, status_code=303)
        response.set_cookie(
            THEME,
            theme if theme in THEMES else "auto",
            max_age=_YEAR,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
            path=ROOT,
        )
        return response

    async def _ours(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, IsabellaError)  # noqa: S101 - it is registered for these
        return self.renderer.failure(request, error)

    async def _refused(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        what = "There is no such page." if status == 404 else "This cannot be done so."
        return self.renderer.refusal(request, status, what)

    async def _broken(self, request: Request, error: Exception) -> Response:
        log.error("internal error", path=request.url.path, exc_info=error)
        return self.renderer.failure(request, IsabellaError("Isabella failed; her log says more."))


async def redirect_to_console(_request: Request) -> Response:
    """From the bare address to the console."""
    return RedirectResponse(START, status_code=303)


async def _start(_request: Request) -> Response:
    return RedirectResponse(START, status_code=303)


async def _session(_request: Request) -> Response:
    """Whether the cookie is valid: whoever comes here has one."""
    return Response(status_code=204)
