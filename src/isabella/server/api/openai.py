"""The OpenAI format, for other programs: each agent is a model.

Only the last user message of a request is sent: the messages before it are the client's copy of the agent's history.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import ServerSentEvent

from isabella.agents.registry import AgentRecord
from isabella.errors import AgentUnknown, IsabellaError, MessageRefused, QueueFull
from isabella.server.api.turns import TurnResponse
from isabella.server.errors import ERRORS, status_of
from isabella.server.idempotency import RequestRegistry, SharedTurn, TurnRequest
from isabella.server.runtime import Agents, Requests
from isabella.turns.events import AnswerText, Ended, EndReason, ErrorCode, Event, TurnFailed, Usage, VendorAsked
from isabella.turns.service import MAX_MESSAGE_LENGTH, MESSAGE_PATTERN, has_text
from isabella.turns.turn import Turn

router = APIRouter(prefix="/v1", tags=["openai"])

#: The status of a turn that failed before the answer began.
_STATUSES = {
    ErrorCode.AGENT_UNKNOWN: 404,
    ErrorCode.BUSY: 429,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.CONTEXT_FULL: 400,
    ErrorCode.INTERNAL: 500,
}
#: The status that nginx logs in this case.
_CLIENT_CLOSED_REQUEST = 499
_FINISH_REASONS: dict[EndReason, Literal["stop", "length", "tool_calls"]] = {
    EndReason.COMPLETED: "stop",
    EndReason.MAX_STEPS: "length",
    EndReason.LENGTH: "length",
    EndReason.NEEDS_APPROVAL: "tool_calls",
}


class OpenAiError(BaseModel):
    """An error, in OpenAI's form."""

    message: str
    type: str | None = Field(None, description="Null if the request was refused before it was examined.")
    param: str | None = None
    code: str | None = None


class OpenAiErrorBody(BaseModel):
    """The body of an unsuccessful response, in OpenAI's form."""

    error: OpenAiError


class AgentModelCard(BaseModel):
    """An agent, as a model."""

    id: str = Field(description="The agent's name.")
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = Field(description="`isabella`, or `letta` for an agent that Isabella does not manage.")


class ModelList(BaseModel):
    """The agents, as models."""

    object: Literal["list"] = "list"
    data: list[AgentModelCard]


class ContentPart(BaseModel):
    """A part of a message."""

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """A message of the client's conversation."""

    role: str
    content: str | list[ContentPart] | None = None


class StreamOptions(BaseModel):
    """The options of a stream."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request for a chat completion. Other fields of OpenAI's API are accepted and have no effect."""

    model_config = ConfigDict(hide_input_in_errors=True)

    model: str = Field(min_length=1, max_length=200, description="The agent's name.")
    messages: list[ChatMessage] = Field(
        min_length=1,
        description="Only the last user message that contains text is sent to the agent.",
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
    finish_reason: Literal["stop", "length", "tool_calls"]
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


_REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OpenAiErrorBody, "description": "A client error, in OpenAI's form."},
    "5XX": {"model": OpenAiErrorBody, "description": "No vendor answers, in OpenAI's form."},
    # Validation and authentication come before these routes, so their errors have the form of the other API.
    422: ERRORS[422],
    401: ERRORS["4XX"],
}


@router.get("/models", summary="List agents as models", responses=_REFUSALS)
async def models(agent_service: Agents) -> ModelList:
    """List the agents in the OpenAI format, those that Isabella manages first."""
    agents = sorted(await agent_service.registry.all(), key=lambda agent: not agent.managed)
    return ModelList(data=[_model_card(agent) for agent in agents])


@router.get(
    "/models/{model:path}", summary="Show an agent as a model", responses=_REFUSALS, response_model=AgentModelCard
)
async def model(agent_service: Agents, model: Annotated[str, Path(max_length=200)]) -> Response:
    """Show one agent in the OpenAI format."""
    try:
        agent = await agent_service.registry.find(model)
    except AgentUnknown as error:
        return _refusal(error)
    return JSONResponse(_model_card(agent).model_dump())


@router.post(
    "/chat/completions",
    summary="Send a message to an agent in the OpenAI format",
    response_model=ChatCompletion,
    responses=_REFUSALS | {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def chat(body: ChatRequest, http: Request, requests: Requests) -> Response:
    """Send the last user message to the agent, and answer with its reply; with `stream`, as it is generated.

    The turn ends if the client closes the connection. If the client repeats the request, as the official client does
    by itself, the repeat gets the answer of the first request, and the agent gets the message once.
    """
    response: Response = Response(status_code=_CLIENT_CLOSED_REQUEST)
    async with anyio.create_task_group() as tasks:

        async def cancel_at_disconnect() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        request = TurnRequest.of(http.headers, await http.body())
        tasks.start_soon(cancel_at_disconnect)
        response = await _respond(requests, request, body)
        tasks.cancel_scope.cancel()
    return response


async def _respond(requests: RequestRegistry, request: TurnRequest, body: ChatRequest) -> Response:
    shared: SharedTurn | None = None
    response: Response | None = None
    try:
        shared = await requests.join(request, body.model, _last_user_message(body.messages))
        respond = _stream if body.stream else _complete
        response = await respond(shared, body)
    except IsabellaError as error:
        response = _refusal(error)
    finally:
        if shared is not None:
            shared.answered |= response is not None
            if not isinstance(response, TurnResponse):
                shared.leave()
    return response


@dataclass
class _Answer:
    """The events of a turn that make up an answer."""

    text: str = ""
    handle: str | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0, 0))
    failed: TurnFailed | None = None
    end: Ended | None = None

    def add(self, event: Event) -> None:
        match event:
            case AnswerText():
                self.text += event.text
            case VendorAsked():
                self.handle = event.handle
            case Usage():
                self.usage = event
            case TurnFailed():
                self.failed = event
            case Ended():
                self.end = event

    @property
    def finish_reason(self) -> Literal["stop", "length", "tool_calls"] | None:
        return None if self.end is None else _FINISH_REASONS.get(self.end.reason)

    @property
    def tokens(self) -> CompletionUsage:
        return CompletionUsage.model_validate(self.usage, from_attributes=True)


async def _complete(shared: SharedTurn, body: ChatRequest) -> Response:
    answer = _Answer()
    async with aclosing(shared.events()) as events:
        async for event in events:
            answer.add(event)
    if answer.failed is not None or answer.end is None or answer.finish_reason is None:
        return _failure(answer)
    completion = ChatCompletion(
        id=_id(shared.turn),
        created=int(time.time()),
        model=body.model,
        system_fingerprint=answer.end.handle or answer.handle,
        choices=[ChatChoice(message=CompletionMessage(content=answer.text), finish_reason=answer.finish_reason)],
        usage=answer.tokens,
    )
    return JSONResponse(completion.model_dump())


async def _stream(shared: SharedTurn, body: ChatRequest) -> Response:
    """Stream the answer once it has begun. A failure before that is answered with its own status."""
    events, answer, begun = shared.events(), _Answer(), False
    async for event in events:
        answer.add(event)
        if isinstance(event, AnswerText | Ended):
            begun = isinstance(event, AnswerText)
            break
    if begun or (answer.failed is None and answer.finish_reason is not None):
        return TurnResponse(_chunks(events, shared.turn, body, answer), at_end=shared.leave)
    return _failure(answer)


async def _chunks(
    events: AsyncGenerator[Event, None], turn: Turn, body: ChatRequest, answer: _Answer
) -> AsyncGenerator[ServerSentEvent, None]:
    created = int(time.time())

    def chunk(delta: dict[str, Any], finish: str | None = None, **extra: Any) -> ServerSentEvent:
        document = {
            "id": _id(turn),
            "object": "chat.completion.chunk",
            "created": created,
            "model": body.model,
            "system_fingerprint": turn.answered_by,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}],
        }
        return ServerSentEvent(json.dumps(document | extra, ensure_ascii=False))

    async with aclosing(events):
        yield chunk({"role": "assistant", "content": answer.text})
        async for event in events:
            answer.add(event)
            if isinstance(event, AnswerText):
                yield chunk({"content": event.text})
    if answer.finish_reason is None:
        yield ServerSentEvent(json.dumps(_error(answer), ensure_ascii=False))
        return
    yield chunk({}, answer.finish_reason)
    if body.stream_options is not None and body.stream_options.include_usage:
        yield chunk({}, choices=[], usage=answer.tokens.model_dump())
    yield ServerSentEvent("[DONE]")


def _last_user_message(messages: list[ChatMessage]) -> str:
    for message in reversed(messages):
        if message.role == "user" and has_text(text := _text(message)):
            return text
    raise MessageRefused(
        "The request contains no user message with text.", remedy="Add a message with the role `user`."
    )


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, list):
        return "\n".join(part.text or "" for part in message.content if part.type == "text")
    return message.content or ""


def _model_card(agent: AgentRecord) -> AgentModelCard:
    return AgentModelCard(id=agent.name, owned_by="isabella" if agent.managed else "letta")


def _id(turn: Turn) -> str:
    return f"chatcmpl-{turn.id.removeprefix('turn-')}"


def _problem(message: str, code: str, kind: str = "server_error", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _refusal(error: IsabellaError) -> Response:
    """Return the response for an error before the turn began."""
    status = status_of(error)
    headers = {}
    code, kind, param = "invalid_request", "invalid_request_error", None
    match error:
        case AgentUnknown():
            code, param = "model_not_found", "model"
        case MessageRefused():
            param = "messages"
        case QueueFull(retry_after=seconds):
            code, kind = "rate_limit_exceeded", "rate_limit_error"
            headers["Retry-After"] = str(max(1, round(seconds)))
        case _ if status >= 500:
            code, kind = "service_unavailable", "server_error"
    return JSONResponse(_problem(str(error), code, kind, param), status_code=status, headers=headers)


def _failure(answer: _Answer) -> Response:
    failed, end, headers = answer.failed, answer.end, {}
    status = 503 if failed is None else _STATUSES.get(failed.code, 503)
    if failed is not None and failed.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(failed.retry_after)))
    if end is not None and end.stored:
        # The message is in the history already.
        status = 502
    if end is not None and (end.stored or end.reason is EndReason.STOPPED):
        # Without this header, clients retry after a 5xx by themselves.
        headers["X-Should-Retry"] = "false"
    return JSONResponse(_error(answer), status_code=status, headers=headers)


def _error(answer: _Answer) -> dict[str, Any]:
    if answer.failed is not None:
        return _problem(f"{answer.failed.message} {answer.failed.remedy or ''}".strip(), answer.failed.code.value)
    if answer.end is not None and answer.end.reason is EndReason.STOPPED:
        return _problem("The turn was stopped.", "stopped")
    return _problem("The turn failed.", "failed")
