"""The console as an ASGI application, which the backend mounts."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from isabella.errors import IsabellaError
from isabella.server import ROOT, START
from isabella.server.auth import Access, read_form
from isabella.server.runtime import Runtime
from isabella.server.static_files import STATIC_FILES
from isabella.server.web import (
    pages_activity,
    pages_agents,
    pages_chat,
    pages_conversations,
    pages_memory,
    pages_providers,
    sign_in,
)
from isabella.server.web.languages import COOKIE, LANGUAGES
from isabella.server.web.rendering import THEME, THEMES, Renderer, status_changes, stream
from isabella.system.english import english

log = structlog.get_logger()

#: The path of style and scripts, which the sign-in page needs without a session.
STATIC = f"{ROOT}/static"

_YEAR = 365 * 24 * 3600


class _ImmutableFiles(StaticFiles):
    """Static files whose URLs change with their content, so that browsers cache them."""

    def file_response(self, *arguments: object, **options: object) -> Response:
        response = super().file_response(*arguments, **options)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = f"public, max-age={_YEAR}, immutable"
        return response


class Console:
    """The console of one backend."""

    def __init__(self, runtime: Runtime, access: Access) -> None:
        self._runtime = runtime
        self._renderer = Renderer(runtime)
        self.sign_in = sign_in.SignIn(access, self._renderer)

    def application(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/", redirect_to_start),
            *sign_in.routes(self._runtime, self._renderer),
            Route("/status/live", self._status),
            Route("/theme", self._set_theme, methods=["POST"]),
            Route("/language", self._set_language, methods=["POST"]),
            *pages_providers.routes(self._runtime, self._renderer),
            *pages_chat.routes(self._runtime, self._renderer),
            *pages_conversations.routes(self._runtime, self._renderer),
            *pages_agents.routes(self._runtime, self._renderer),
            *pages_memory.routes(self._runtime, self._renderer),
            *pages_activity.routes(self._runtime, self._renderer),
            *self._renderer.installable.routes(),
            Mount("/static", _ImmutableFiles(directory=STATIC_FILES)),
        ]
        middleware = [Middleware(GZipMiddleware, minimum_size=1000, compresslevel=6)]
        return Starlette(
            routes=routes,
            middleware=middleware,
            exception_handlers=dict.fromkeys((IsabellaError, HTTPException, Exception), self._failed),
        )

    async def _status(self, _request: Request) -> Response:
        """Stream the status line, for pages that have nothing else to stream."""
        return stream(status_changes(self._runtime, self._renderer))

    async def _set_theme(self, request: Request) -> Response:
        return await self._set(request, THEME, "theme", THEMES)

    async def _set_language(self, request: Request) -> Response:
        return await self._set(request, COOKIE, "language", tuple(LANGUAGES))

    async def _set(self, request: Request, cookie: str, field: str, allowed: Sequence[str]) -> Response:
        """Store a choice in a cookie, the first one if it is none of those allowed; return to the page."""
        fields = await read_form(request, self._runtime.csrf)
        chosen, back = fields.get(field, ""), fields.get("back", START)
        # Redirect only to pages of the console.
        response = RedirectResponse(back if back.startswith(f"{ROOT}/") else START, status_code=303)
        response.set_cookie(
            cookie,
            chosen if chosen in allowed else allowed[0],
            max_age=_YEAR,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
            path=ROOT,
        )
        return response

    async def _failed(self, request: Request, error: Exception) -> Response:
        match error:
            case IsabellaError():
                return self._renderer.error(request, await self._runtime.explain(error))
            case HTTPException():
                missing = error.status_code == 404
                what = english("There is no such page.") if missing else english("This request is not allowed.")
                return self._renderer.error_message(request, error.status_code, what)
        log.error("internal error", path=request.url.path, exc_info=error)
        return self._renderer.error(
            request,
            IsabellaError(
                english("Internal error; the log has the details."),
                remedy=english("Reload the page. If it happens again, report it with the lines of the log."),
            ),
        )


async def redirect_to_start(_request: Request) -> Response:
    """Redirect to the first page of the console."""
    return RedirectResponse(START, status_code=303)
