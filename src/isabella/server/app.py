"""The FastAPI application of the backend, and the lifespan for FastAPI applications of other people."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from isabella.agents.embeddings import PREFIX
from isabella.api import ensure_providers
from isabella.config.settings import Settings, load_settings
from isabella.errors import IsabellaError
from isabella.letta.client import Connection
from isabella.server import ROOT, auth
from isabella.server.api import agents, embeddings, memory, openai, status, turns
from isabella.server.errors import handle_errors
from isabella.server.runtime import Runtime
from isabella.server.web import app as web


def create_app(runtime: Runtime, start: Callable[[], Coroutine[Any, Any, None]]) -> FastAPI:
    """Return the backend's application; `start` opens the services of the runtime, in the background."""

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
    console = web.Console(runtime)
    app.add_middleware(
        auth.AuthMiddleware,
        token=runtime.token,
        # Letta sends no token when it requests embeddings; the secret in the path authenticates it.
        open_prefixes=(PREFIX, web.STATIC),
        sign_in_pages={ROOT: console.sign_in, "/": console.sign_in},
    )
    handle_errors(app)
    for module in (status, auth, turns, openai, agents, memory, embeddings):
        app.include_router(module.router)
    app.mount(ROOT, console.application())
    app.add_route("/", web.redirect_to_start, include_in_schema=False)
    return app


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
