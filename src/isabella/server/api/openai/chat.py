"""Chat completions. Only the last message of a request is sent: those before it are a copy of the agent's history."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import ServerSentEvent

from isabella.errors import IsabellaError
from isabella.server.api.openai import asides
from isabella.server.api.openai.answers import Answer, FinishReason, answer_as_turn
from isabella.server.api.openai.errors import REFUSALS, Unsupported, refusal
from isabella.server.api.openai.formats import JsonFormat, Pieces, json_format
from isabella.server.api.openai.messages import (
    ChatMessage,
    ConversationParam,
    message_to_agent,
    refuse_forced_tool,
)
from isabella.server.api.turns import TurnResponse
from isabella.server.disconnects import answer_while_connected
from isabella.server.errors import OPENAI, openai_error
from isabella.server.idempotency import SharedTurn
from isabella.server.runtime import Agents, Requests, Turns
from isabella.turns.events import AnswerText, Event
from isabella.turns.message import UserMessage
from isabella.turns.service import MAX_MESSAGE_LENGTH, MESSAGE_PATTERN
from isabella.turns.turn import Turn

router = APIRouter(prefix=OPENAI, tags=["openai"])

_MOST_SEQUENCES = 16


class StreamOptions(BaseModel):
    """The options of a stream."""

    include_usage: bool | None = False


class ChatRequest(BaseModel):
    """A request for a chat completion. Other fields of OpenAI's API are accepted and have no effect."""

    model_config = ConfigDict(hide_input_in_errors=True)

    model: str = Field(min_length=1, max_length=200, description="The agent's name.")
    messages: list[ChatMessage] = Field(
        min_length=1,
        description="Only the last message is sent to the agent. It must be the user's.",
        json_schema_extra={
            "contains": {
                "type": "object",
                "properties": {
                    "role": {"const": "user"},
                    "content": {"type": "string", "pattern": MESSAGE_PATTERN, "maxLength": MAX_MESSAGE_LENGTH},
                },
                "required": ["role", "content"],
            }
        },
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = Field(
        None, description="`text`, `json_object` or `json_schema`. The answer is checked before it is sent."
    )
    stop: str | list[str] | None = Field(None, description="Sequences before which the text that is sent ends.")
    n: int | None = Field(None, description="1.")
    tool_choice: Any = Field(None, description="A call of a client's tool cannot be forced.")
    conversation: ConversationParam = None


class CompletionUsage(BaseModel):
    """The tokens used by all steps of the turn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionMessage(BaseModel):
    """The agent's answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The only choice of a completion."""

    index: Literal[0] = 0
    message: CompletionMessage
    finish_reason: FinishReason
    logprobs: None = None


class ChatCompletion(BaseModel):
    """An agent's answer as a chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str = Field(description="The agent's name.")
    system_fingerprint: str | None = Field(None, description="The handle of the model that answered.")
    choices: list[ChatChoice]
    usage: CompletionUsage


@dataclass(frozen=True)
class _Wanted:
    """The parts of a request that concern the agent."""

    message: UserMessage
    stop: tuple[str, ...]
    format: JsonFormat | None

    @classmethod
    def of(cls, body: ChatRequest) -> _Wanted:
        if body.n not in (None, 1):
            raise Unsupported("An agent gives one answer.", param="n", remedy="Leave `n` out.")
        refuse_forced_tool(body.tool_choice)
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        if len(stop) > _MOST_SEQUENCES:
            raise Unsupported(f"`stop` has more than {_MOST_SEQUENCES} sequences.", param="stop")
        format = json_format(body.response_format)
        message = message_to_agent(body.messages, "messages")
        if format is not None:
            message = format.told(message)
        return cls(message, tuple(filter(None, stop)), format)

    def pieces(self) -> Pieces:
        return Pieces(self.stop, self.format)


@router.post(
    "/chat/completions",
    summary="Send a message to an agent in the OpenAI format",
    response_model=ChatCompletion,
    responses=REFUSALS | {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def chat(body: ChatRequest, http: Request, requests: Requests, agents: Agents, turn_service: Turns) -> Response:
    """Send the last message to the agent, and answer with its reply; with `stream`, as it is generated.

    A request that is not a conversation, such as one for a title, and every request to the model `NAME:aside`, is
    answered by the agent's model alone.
    """
    if body.model.endswith(asides.SUFFIX) or asides.is_task(body.messages):
        document = json.loads(await http.body())

        async def answer_aside() -> Response:
            try:
                agent_ref = await turn_service.find(asides.agent_of(body.model))
                return await asides.respond(agents, agent_ref, document)
            except IsabellaError as error:
                return refusal(error)

        return await answer_while_connected(http, answer_aside)
    try:
        wanted = _Wanted.of(body)
    except IsabellaError as error:
        return refusal(error)

    async def respond(shared: SharedTurn) -> Response:
        return await (_stream if body.stream else _complete)(shared, body, wanted.pieces())

    return await answer_as_turn(requests, http, body.model, wanted.message, body.conversation, respond)


async def _complete(shared: SharedTurn, body: ChatRequest, pieces: Pieces) -> Response:
    answer = await Answer().read(shared)
    if answer.end is None or answer.finish_reason is None:
        return answer.failure
    text = pieces.feed(answer.text) + pieces.end()
    completion = ChatCompletion(
        id=_id(shared.turn),
        created=int(time.time()),
        model=body.model,
        system_fingerprint=answer.end.handle or answer.handle,
        choices=[ChatChoice(message=CompletionMessage(content=text), finish_reason=answer.finish_reason)],
        usage=_usage(answer),
    )
    return JSONResponse(completion.model_dump())


async def _stream(shared: SharedTurn, body: ChatRequest, pieces: Pieces) -> Response:
    """Stream the answer once it has begun. A failure before that is answered with its own status."""
    events, answer = shared.events(), Answer()
    text = await answer.begin(events, pieces)
    if text is None:
        return answer.failure
    return TurnResponse(_chunks(events, shared.turn, body, answer, pieces, text), at_end=shared.leave)


async def _chunks(
    events: AsyncGenerator[Event, None], turn: Turn, body: ChatRequest, answer: Answer, pieces: Pieces, text: str
) -> AsyncGenerator[ServerSentEvent, None]:
    """Yield the chunks of an answer of which `text` has arrived."""
    created = int(time.time())
    counted = body.stream_options is not None and bool(body.stream_options.include_usage)

    def chunk(delta: dict[str, Any], finish: str | None = None, **extra: Any) -> ServerSentEvent:
        document = {
            "id": _id(turn),
            "object": "chat.completion.chunk",
            "created": created,
            "model": body.model,
            "system_fingerprint": turn.answered_by,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}],
        }
        if counted:
            document["usage"] = None
        return ServerSentEvent(json.dumps(document | extra, ensure_ascii=False))

    async with aclosing(events):
        yield chunk({"role": "assistant", "content": text})
        whole = answer.end is not None
        async for event in events:
            answer.add(event)
            if isinstance(event, AnswerText) and (text := pieces.feed(event.text)):
                yield chunk({"content": text})
    if answer.finish_reason is None:
        yield ServerSentEvent(json.dumps(openai_error(answer.failure.status_code, answer.problem)))
        return
    if not whole and (text := pieces.end()):
        yield chunk({"content": text})
    yield chunk({}, answer.finish_reason)
    if counted:
        yield chunk({}, choices=[], usage=_usage(answer).model_dump())
    yield ServerSentEvent("[DONE]")


def _usage(answer: Answer) -> CompletionUsage:
    return CompletionUsage.model_validate(answer.usage, from_attributes=True)


def _id(turn: Turn) -> str:
    return f"chatcmpl-{turn.id.removeprefix('turn-')}"
