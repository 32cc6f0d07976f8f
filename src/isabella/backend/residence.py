"""The agents for as long as the backend lives: opened after the sync, brought in line, and handed to the routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import structlog
from fastapi import Depends, FastAPI, Request

from isabella.agents.agency import AgentService, open_agent_service
from isabella.agents.tending import EnsureOutcome
from isabella.connection import Connection
from isabella.errors import NotReady
from isabella.settings import Settings

log = structlog.get_logger()


@asynccontextmanager
async def open_agents(
    app: FastAPI, settings: Settings, connection: Connection, address: str | None
) -> AsyncIterator[AgentService]:
    """Open the agents, bring them in line, and let the routes have them.

    Args:
        app: the application whose routes need them.
        settings: where everything comes from.
        connection: which Letta.
        address: the backend's own address, as Letta reaches it; None where it does not.

    Raises:
        ConfigurationError: the agents' file is malformed, or the settings ask for vectors that are not to be had.
        LettaError: Letta cannot be read.
    """
    async with open_agent_service(settings, connection, backend=address) as agency:
        agency.models.hear = app.state.readiness.heard
        for ensured in await agency.ensure():
            failed = ensured.done is EnsureOutcome.FAILED
            (log.warning if failed else log.info)(
                "agent",
                name=ensured.name,
                done=ensured.done.value,
                handle=ensured.handle,
                changes=list(ensured.changes),
                reason=ensured.reason,
                remedy=ensured.remedy,
            )
        app.state.agency = agency
        try:
            yield agency
        finally:
            app.state.agency = None


def agency(request: Request) -> AgentService:
    """The agents, for routes.

    Raises:
        NotReady: the backend has not come up.
    """
    found = getattr(request.app.state, "agency", None)
    if not isinstance(found, AgentService):
        raise NotReady("The agents are not there yet.", remedy="`GET /ready` says how far the start has come.")
    return found


Agents = Annotated[AgentService, Depends(agency)]
