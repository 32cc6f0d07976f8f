"""The FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic import SecretStr

from isabella.agents.embeddings import PREFIX
from isabella.config.settings import Settings, load_settings
from isabella.errors import IsabellaError
from isabella.letta.connection import Connection
from isabella.providers.api import ensure_providers
from isabella.server import auth, metrics
from isabella.server.api import agents, doctor, embeddings, memory, openai, turns
from isabella.server.api.status import router
from isabella.server.errors import handle_errors
from isabella.server.event_log import EventLog
from isabella.server.readiness import Readiness
from isabella.server.web import app as web
from isabella.server.web.context import ConsoleContext
from isabella.server.web.rendering import ROOT


def create_app(start: Callable[[Readiness], Coroutine[Any, Any, None]], *, token: SecretStr | None) -> FastAPI:
    """The backend.

    Args:
        start: brings everything up while requests are answered already, and tells the readiness how it went.
        token: what is asked of clients; None lets everybody in, for tests and for applications that guard themselves.
    """

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            console.context.tasks = tasks
            tasks.start_soon(start, app.state.readiness)
            yield
            console.context.tasks = None
            tasks.cancel_scope.cancel()

    # The pages of the API documentation load nothing from other hosts.
    app = FastAPIOffline(
        title="Isabella",
        summary="Memory agents on Letta, whose providers provably hold the keys you configured.",
        version=version("isabella"),
        lifespan=run,
    )
    app.state.readiness = Readiness()
    app.state.token = token
    app.state.start_page = web.START
    app.state.event_log = EventLog()
    app.state.readiness.on_event = app.state.event_log.synced
    app.state.readiness.vendors.changed = app.state.event_log.notifier.ring
    console = web.Console(ConsoleContext(app.state, app.state.event_log))
    # Letta brings no token to where it gets vectors: that address is a secret of its own.
    app.add_middleware(
        auth.AuthMiddleware,
        token=token,
        open_prefixes=(PREFIX, web.OPEN),
        doors={ROOT: console.stranger, "/": console.stranger},
    )
    handle_errors(app)
    app.include_router(router)
    app.include_router(auth.router)
    app.include_router(turns.router)
    app.include_router(metrics.router)
    app.include_router(doctor.router)
    app.include_router(openai.router)
    app.include_router(agents.router)
    app.include_router(memory.router)
    app.include_router(embeddings.router)
    app.mount(ROOT, console.application())
    app.add_route("/", web.redirect_to_console, include_in_schema=False)
    return app


def lifespan(
    settings: Settings | None = None, *, connection: Connection | None = None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """A lifespan that brings the providers in line before the application takes requests.

    The report stands in `app.state.isabella_report` afterwards. With `ISABELLA_STRICT`, the application does not
    start when a provider is not proven.

    Args:
        settings: where everything comes from; by default the environment and `.env`, read at the start.
        connection: another Letta than the one that the settings name.
    """

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        effective = settings or load_settings()
        report = await ensure_providers(effective, connection=connection)
        app.state.isabella_report = report
        if effective.strict and not report.all_proven:
            failed = ", ".join(entry.name for entry in report.ours if entry.proof != "proven")
            raise IsabellaError(
                f"Not proven: {failed}.", remedy="Run `isabella providers status`, or unset ISABELLA_STRICT."
            )
        yield

    return run
