"""Routes of turns: send a message to an agent and stream the answer, or stop a turn."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from isabella.agents.service import AgentService
from isabella.errors import MemoryUnknown
from isabella.letta.messages import Image
from isabella.server.errors import ERRORS, ErrorBody
from isabella.server.idempotency import SharedTurn, TurnRequest
from isabella.server.runtime import Agents, Requests, Turns
from isabella.turns.events import Event, as_json
from isabella.turns.message import UserMessage
from isabella.turns.service import MAX_MESSAGE_LENGTH, MESSAGE_PATTERN

router = APIRouter(prefix="/api/agents/{name}/turns", tags=["turns"], responses=ERRORS)

#: A client that accepts no data for this long counts as disconnected.
_SEND_SECONDS = 60.0
_PING_SECONDS = 15
#: How long the head of a response waits for its message to be sent.
_HEAD_SECONDS = 0.05

Name = Annotated[
    str, Path(description="The agent's name, the id of its definition, or its id in Letta.", max_length=200)
]


#: Of `default`, and of Letta's ids.
CONVERSATION_PATTERN = r"^(default|conv-[0-9a-f-]{36})$"
#: Of Letta's ids of messages.
MESSAGE_ID_PATTERN = r"^message-[0-9a-f-]{36}$"
CONVERSATION = "The id of one of the agent's conversations; without it, the default one."


class TurnMessage(BaseModel):
    """A message to an agent."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    message: str = Field(
        max_length=MAX_MESSAGE_LENGTH, pattern=MESSAGE_PATTERN, description="The text of the message."
    )
    conversation: str | None = Field(None, pattern=CONVERSATION_PATTERN, description=CONVERSATION)
    replaces: str | None = Field(
        None,
        pattern=MESSAGE_ID_PATTERN,
        description="The id of an earlier message of the user: that message and everything after it leave the "
        "agent's context. They stay in the history.",
    )
    model: str | None = Field(
        None,
        min_length=3,
        max_length=300,
        pattern=r"^[^/\x00]+/[^\x00]+$",
        description="The handle, `provider/model`, of the model that is asked first, in this turn only.",
    )


class TurnResponse(EventSourceResponse):
    """A turn as server-sent events.

    At the end it closes `turn`, the events from which `content` is made, and calls `at_end`; also if the client
    disconnects before the first event is sent.
    """

    def __init__(
        self,
        content: AsyncGenerator[Any, None],
        *,
        turn: AsyncGenerator[Event, None] | None = None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(content, ping=_PING_SECONDS, send_timeout=_SEND_SECONDS, sep="\n")
        self._turn = turn
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._turn is not None:
                await self._turn.aclose()
            self._at_end()


@router.post(
    "",
    summary="Send a message to an agent",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "The turn as server-sent events: `turn` first, exactly one `end` last.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        429: {
            "model": ErrorBody,
            "description": "The agent's queue is full.",
            "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
        },
    },
)
async def send_message(
    name: Name, body: TurnMessage, turn_service: Turns, agents: Agents, requests: Requests, http: Request
) -> TurnResponse:
    """Send a message, and stream the events of the turn as they happen.

    Each agent has one turn at a time; others wait in a queue. The events are `turn`, `queued`, `held`, `vendor`,
    `failover`, `reasoning`, `text`, `tool_call`, `tool_result`, `condensed`, `usage`, `error`, `end`.

    With `replaces`, the message takes the place of an earlier one, which it edits or has answered again; the pictures
    of the earlier one stay with it.

    A request with an `Idempotency-Key` may be repeated: the repeat gets the events of the same turn.
    """
    images = await _images_of(agents, body.replaces)
    message = UserMessage(body.message, images, body.replaces, body.model)
    request = TurnRequest.of(http.headers, name.encode() + b"\0" + await http.body())
    if request.key is not None:
        shared = await requests.join(request, name, message, body.conversation)
        return TurnResponse(await _begun(shared), at_end=shared.leave)
    turn = await turn_service.open(name, message, body.conversation)
    events = turn.events()
    try:
        first = await anext(events)
        # To begin the response takes 3 ms of processor time. Letta gets the message before that.
        with anyio.move_on_after(_HEAD_SECONDS):
            await turn.progressed.wait()
    except BaseException:
        await events.aclose()
        raise
    return TurnResponse(_sent(events, first), turn=events)


@router.delete("/{id}", summary="Stop a turn", status_code=204, response_class=Response)
async def stop(
    name: Name,
    id: Annotated[str, Path(description="The id in the turn's `turn` event.", max_length=100)],
    turn_service: Turns,
) -> Response:
    """Stop a turn, at Letta too, and answer when it has ended. The answer so far stays in the history."""
    await turn_service.stop(name, id)
    return Response(status_code=204)


async def _images_of(agents: AgentService, message_id: str | None) -> tuple[Image, ...]:
    """Return the images of a message; none if there is no such message, which the turn says then."""
    if message_id is None:
        return ()
    try:
        return await agents.history.images(message_id)
    except MemoryUnknown:
        return ()


async def _begun(shared: SharedTurn) -> AsyncGenerator[ServerSentEvent, None]:
    """Return the events of a turn that may have several clients; raise why it could not be opened."""
    events = shared.events()
    try:
        first = await anext(events)
    except BaseException:
        shared.leave()
        raise
    return _sent(events, first)


async def _sent(events: AsyncGenerator[Event, None], first: Event) -> AsyncGenerator[ServerSentEvent, None]:
    async with aclosing(events):
        yield _as_sent(first)
        async for event in events:
            yield _as_sent(event)


def _as_sent(event: Event) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(as_json(event), ensure_ascii=False), event=event.kind)
