"""The FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic import SecretStr

from isabella.agents.embedding import PREFIX
from isabella.backend import access, agents, doctor, embeddings, memory, metrics, openai, turns
from isabella.backend.errors import handle_errors
from isabella.backend.readiness import Readiness
from isabella.backend.routes import router
from isabella.console import site
from isabella.console.chronicle import EventLog
from isabella.console.pages import ROOT
from isabella.console.premises import ConsoleContext


def create_app(start: Callable[[Readiness], Coroutine[Any, Any, None]], *, token: SecretStr | None) -> FastAPI:
    """The backend.

    Args:
        start: brings everything up while requests are answered already, and tells the readiness how it went.
        token: what is asked of clients; None lets everybody in, for tests and for applications that guard themselves.
    """

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            console.premises.tasks = tasks
            tasks.start_soon(start, app.state.readiness)
            yield
            console.premises.tasks = None
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
    app.state.start_page = site.START
    app.state.chronicle = EventLog()
    app.state.readiness.hear = app.state.chronicle.synced
    app.state.readiness.vendors.changed = app.state.chronicle.bell.ring
    console = site.Console(ConsoleContext(app.state, app.state.chronicle))
    # Letta brings no token to where it gets vectors: that address is a secret of its own.
    app.add_middleware(
        access.AuthMiddleware,
        token=token,
        open_prefixes=(PREFIX, site.OPEN),
        doors={ROOT: console.stranger, "/": console.stranger},
    )
    handle_errors(app)
    app.include_router(router)
    app.include_router(access.router)
    app.include_router(turns.router)
    app.include_router(metrics.router)
    app.include_router(doctor.router)
    app.include_router(openai.router)
    app.include_router(agents.router)
    app.include_router(memory.router)
    app.include_router(embeddings.router)
    app.mount(ROOT, console.application())
    app.add_route("/", site.redirect_to_console, include_in_schema=False)
    return app
