"""The routes of turns: speak to an agent and hear the answer as it comes, or stop it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from isabella.errors import NotReady
from isabella.server.errors import ERRORS, ErrorBody
from isabella.turns.events import as_json
from isabella.turns.service import LONGEST_MESSAGE, SAYABLE, TurnService
from isabella.turns.turn import Turn

router = APIRouter(prefix="/api/agents/{name}/turns", tags=["turns"], responses=ERRORS)

#: A client that takes nothing for so long is gone, whatever its connection says.
_SEND_SECONDS = 60.0
_PING_SECONDS = 15

Name = Annotated[str, Path(description="The agent's name, definition id, or Letta id.", max_length=200)]


class Message(BaseModel):
    """What is said to an agent."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    message: str = Field(max_length=LONGEST_MESSAGE, pattern=SAYABLE, description="What is said.")


def turn_service(request: Request) -> TurnService:
    """Where turns are taken on.

    Raises:
        NotReady: the backend has not come up.
    """
    found = getattr(request.app.state, "turn_service", None)
    if not isinstance(found, TurnService):
        raise NotReady("Nobody can be spoken to yet.", remedy="`GET /ready` says how far the start has come.")
    return found


TurnDesk = Annotated[TurnService, Depends(turn_service)]


class TurnResponse(EventSourceResponse):
    """A turn as server-sent events. Calls `at_end` even where the client is gone before the first of them."""

    def __init__(self, content: AsyncGenerator[Any, None], *, at_end: Callable[[], None]) -> None:
        super().__init__(content, ping=_PING_SECONDS, send_timeout=_SEND_SECONDS, sep="\n")
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._at_end()


@router.post(
    "",
    summary="Speak to an agent",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "The turn as server-sent events: `turn`, then what happens, and last exactly one `end`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        429: {
            "model": ErrorBody,
            "description": "Too many turns wait for this agent.",
            "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
        },
    },
)
async def speak(name: Name, body: Message, turn_service: TurnDesk) -> TurnResponse:
    """Say something, and get everything that happens as it happens.

    One turn at a time for each agent: a second one waits in order. Its events: `turn`, `queued`, `held`, `vendor`,
    `failover`, `reasoning`, `text`, `tool_call`, `tool_result`, `condensed`, `usage`, `error`, `end`.
    """
    turn = await turn_service.open(name, body.message)
    return TurnResponse(_events(turn_service, turn), at_end=turn.leave)


@router.delete("/{id}", summary="Stop a turn", status_code=204, response_class=Response)
async def stop(
    name: Name,
    id: Annotated[str, Path(description="As its `turn` event says.", max_length=100)],
    turn_service: TurnDesk,
) -> Response:
    """End a turn, at Letta too, and answer when it has ended. What came of the answer is kept in the history."""
    await turn_service.stop(name, id)
    return Response(status_code=204)


async def _events(turn_service: TurnService, turn: Turn) -> AsyncGenerator[ServerSentEvent, None]:
    async with aclosing(turn_service.events(turn)) as events:
        async for event in events:
            yield ServerSentEvent(json.dumps(as_json(event), ensure_ascii=False), event=event.kind)
