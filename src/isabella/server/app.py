"""The FastAPI application of the backend, and the lifespan for FastAPI applications of other people."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isabella.agents.embeddings import PREFIX, address_secret
from isabella.api import ensure_providers
from isabella.config.settings import Settings, load_settings
from isabella.errors import IsabellaError
from isabella.letta.client import Connection
from isabella.server import ROOT, auth
from isabella.server.api import agents, conversations, embeddings, memory, status, turns
from isabella.server.api.openai import chat, models, paths, responses
from isabella.server.errors import handle_errors
from isabella.server.request_limits import RequestLimits
from isabella.server.runtime import Runtime
from isabella.server.sessions import equal
from isabella.server.web import app as web
from isabella.server.web.languages import LanguageMiddleware
from isabella.system import tracing

#: Requests that come all the time, or never end.
_WITHOUT_SPAN = ("/health", "/ready", "/metrics", "/console/static/")


def create_app(
    runtime: Runtime, start: Callable[[], Coroutine[Any, Any, None]], *, delay: auth.GuessDelay | None = None
) -> FastAPI:
    """Return the backend's application.

    `start` opens the services of the runtime, in the background. `delay` delays the answers to wrong tokens.
    """

    @asynccontextmanager
    async def run(_app: FastAPI) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            runtime.tasks = tasks
            tasks.start_soon(start)
            yield
            runtime.tasks = None
            tasks.cancel_scope.cancel()

    # The pages of the API documentation load nothing from other hosts.
    app = FastAPIOffline(
        title="Isabella",
        summary="Memory agents on Letta, with providers that provably hold the keys you configured.",
        version=version("isabella"),
        lifespan=run,
    )
    app.state.runtime = runtime
    access = _access(runtime, delay or auth.GuessDelay())
    console = web.Console(runtime, access)
    # The last one is the outermost.
    app.add_middleware(RequestLimits, sessions=runtime.sessions)
    app.add_middleware(auth.AuthMiddleware, access=access, page=console.sign_in.refuse)
    if runtime.start_settings is not None and (origins := runtime.start_settings.cors_origins):
        # Without credentials: pages of these origins send the token, and never use the session of a browser.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    app.add_middleware(auth.SecurityHeaders)
    app.add_middleware(LanguageMiddleware)
    app.add_middleware(paths.PlainPaths)
    if tracing.enabled():
        app.add_middleware(_RequestSpans)
    handle_errors(app)
    # `paths` answers for all other paths of the OpenAI format.
    for module in (status, turns, models, chat, responses, paths, agents, conversations, memory, embeddings):
        app.include_router(module.router)
    app.include_router(paths.without_version)
    app.router.routes.append(console.sign_in.route())
    app.mount(ROOT, console.application())
    app.add_route("/", web.redirect_to_start, include_in_schema=False)
    return app


def _access(runtime: Runtime, delay: auth.GuessDelay) -> auth.Access:
    settings = runtime.start_settings

    def is_letta(path: str) -> bool:
        # Letta sends no token when it requests embeddings; the secret in the path authenticates it.
        if not path.startswith(f"{PREFIX}/"):
            return False
        if runtime.up:
            home = runtime.agents.connection.home
        elif settings is not None:
            home = settings.home
        else:
            return False
        start = f"{PREFIX}/{address_secret(home).get_secret_value()}/"
        return equal(path[: len(start)], start)

    return auth.Access(
        runtime.token,
        runtime.sessions,
        frozenset() if settings is None else settings.host_names,
        is_letta,
        f"{web.STATIC}/",
        delay,
    )


def lifespan(
    settings: Settings | None = None, *, connection: Connection | None = None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return a lifespan that syncs the providers before the application takes requests.

    Usage: `app = FastAPI(lifespan=isabella.lifespan())`. The report is then in `app.state.isabella_report`. With
    `ISABELLA_STRICT`, the application does not start unless every provider is proven. The settings are by default the
    environment and `.env`, and the Letta server is the one that they name.
    """

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        effective = settings or load_settings()
        report = await ensure_providers(effective, connection=connection)
        app.state.isabella_report = report
        if effective.strict and not report.all_proven:
            failed = ", ".join(entry.name for entry in report.configured if entry.proof != "proven")
            raise IsabellaError(
                f"Not proven: {failed}.", remedy="Run `isabella providers status`, or unset ISABELLA_STRICT."
            )
        yield

    return run


class _RequestSpans:
    """Records each request as a span, within the trace that its `traceparent` names."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on within a span."""
        if scope["type"] != "http" or scope["path"].startswith(_WITHOUT_SPAN) or scope["path"].endswith("/live"):
            await self._app(scope, receive, send)
            return
        method, parent = scope["method"], Headers(scope=scope).get("traceparent")
        with tracing.span(method, tracing.SpanKind.SERVER, parent=parent, method=method) as span:

            async def send_with_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set(status_code=message["status"])
                await send(message)

            try:
                await self._app(scope, receive, send_with_status)
            finally:
                # The path itself may have the name of an agent, or a secret.
                route = getattr(scope.get("route"), "path", None) or f"/{scope['path'].split('/')[1]}"
                span.rename(f"{method} {route}")
                span.set(route=route)
