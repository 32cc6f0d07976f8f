"""One line for people with a FastAPI backend of their own: `FastAPI(lifespan=isabella.lifespan())`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

from isabella.api import ensure_providers
from isabella.config.settings import Settings, load_settings
from isabella.errors import IsabellaError
from isabella.letta.connection import Connection


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
