"""The OpenAI format, for people's own programs: each agent is a model.

An agent has a memory and a history of its own, so of a request only the last message of the user is said to it; what
stands before it is the client's copy of what the agent knows already.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import ServerSentEvent

from isabella.errors import AgentUnknown, IsabellaError, MessageRefused, NotReady, QueueFull
from isabella.server.api.turns import TurnResponse
from isabella.server.errors import ERRORS, status_of
from isabella.server.idempotency import RequestRegistry, Subscription, TurnRequest
from isabella.server.runtime import Agents
from isabella.turns.events import Code, Ended, Event, Reason, Said, TurnFailed, Usage, VendorAsked
from isabella.turns.service import LONGEST_MESSAGE, SAYABLE, has_text
from isabella.turns.turn import Turn

router = APIRouter(prefix="/v1", tags=["openai"])

#: The status of a turn that ended before an answer began, for clients that know nothing else.
_STATUSES = {
    Code.AGENT_UNKNOWN: 404,
    Code.BUSY: 429,
    Code.RATE_LIMITED: 429,
    Code.CONTEXT_FULL: 400,
    Code.INTERNAL: 500,
}
#: As nginx writes it into its log.
_CLIENT_CLOSED_REQUEST = 499
_FINISHES = {Reason.COMPLETED: "stop", Reason.MAX_STEPS: "length", Reason.NEEDS_APPROVAL: "tool_calls"}


class OpenAiError(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str | None = Field(None, description="Null where the request was refused before it was looked at.")
    param: str | None = None
    code: str | None = None


class OpenAiErrorBody(BaseModel):
    """The body of an answer that is not a success, in OpenAI's form."""

    error: OpenAiError


class AgentModelCard(BaseModel):
    """An agent, as a model."""

    id: str = Field(description="The agent's name.")
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = Field(description="`isabella`, or `letta` for an agent of somebody else's.")


class ModelList(BaseModel):
    """The agents, as models."""

    object: Literal["list"] = "list"
    data: list[AgentModelCard]


class ContentPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """A message of the conversation as the client has it."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[ContentPart] | None = None


class StreamOptions(BaseModel):
    """What a stream has beside the answer."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request for a chat completion. What OpenAI knows beside these fields is accepted and has no effect."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    model: str = Field(min_length=1, max_length=200, description="The agent's name.")
    messages: list[ChatMessage] = Field(
        min_length=1,
        description="Only the last one of the user that says something is said.",
        json_schema_extra={
            "contains": {
                "type": "object",
                "properties": {
                    "role": {"const": "user"},
                    "content": {"type": "string", "pattern": SAYABLE, "maxLength": LONGEST_MESSAGE},
                },
                "required": ["role", "content"],
            }
        },
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None


class CompletionUsage(BaseModel):
    """What the turn used, in tokens, over all its steps."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionMessage(BaseModel):
    """What the agent said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The only answer there is."""

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
    "4XX": {"model": OpenAiErrorBody, "description": "The client's mistake, in OpenAI's form."},
    "5XX": {"model": OpenAiErrorBody, "description": "Nobody answers, in OpenAI's form."},
    # What is malformed is told before it is known whose form is wanted.
    422: ERRORS[422],
    401: ERRORS["4XX"],
}


@router.get("/models", summary="The agents as models", responses=_REFUSALS)
async def models(agent_service: Agents) -> ModelList:
    """List the agents in the OpenAI format, those that Isabella keeps first."""
    found = sorted(await agent_service.registry.all(), key=lambda record: not record.ours)
    return ModelList(data=[_model(record.name, record.ours) for record in found])


@router.get("/models/{model:path}", summary="An agent as a model", responses=_REFUSALS, response_model=AgentModelCard)
async def model(agent_service: Agents, model: Annotated[str, Path(max_length=200)]) -> Response:
    """Show one agent in the OpenAI format."""
    try:
        found = await agent_service.registry.find(model)
    except AgentUnknown as error:
        return _refused(error)
    return JSONResponse(_model(found.name, found.ours).model_dump())


def repeats(request: Request) -> RequestRegistry:
    """The turns that may be asked for again.

    Raises:
        NotReady: the backend has not come up.
    """
    found = getattr(request.app.state, "repeats", None)
    if not isinstance(found, RequestRegistry):
        raise NotReady("Nobody can be spoken to yet.", remedy="`GET /ready` says how far the start has come.")
    return found


@router.post(
    "/chat/completions",
    summary="Speak to an agent in the OpenAI format",
    response_model=ChatCompletion,
    responses={
        **_REFUSALS,
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    },
)
async def chat(
    request: ChatRequest, http: Request, repeats: Annotated[RequestRegistry, Depends(repeats)]
) -> Response:
    """Say the user's last message to the agent, and answer with what it says; with `stream`, as it says it.

    Where the client closes the connection, the turn ends. A client that repeats its request by itself, as the
    official one does, gets the answer to the first one: the agent hears the message once.
    """
    asked = TurnRequest.of(http.headers, await http.body())
    responses: list[Response] = []

    async def respond() -> None:
        responses.append(await _response(repeats, asked, request))

    await _while_connected(http, respond)
    # Nobody hears the latter.
    return responses[0] if responses else Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _while_connected(http: Request, work: Callable[[], Awaitable[None]]) -> None:
    """Do some work, until the client has gone at most."""
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        await work()
        tasks.cancel_scope.cancel()


async def _response(repeats: RequestRegistry, asked: TurnRequest, request: ChatRequest) -> Response:
    hearing: Subscription | None = None
    response: Response | None = None
    try:
        hearing = await repeats.on_event(asked, request.model, _last_of_user(request.messages))
        respond = _streamed if request.stream else _whole
        response = await respond(hearing, request)
    except IsabellaError as error:
        response = _refused(error)
    finally:
        if hearing is not None:
            hearing.shared.answered |= response is not None
            if not isinstance(response, TurnResponse):
                hearing.leave()
    return response


async def _whole(hearing: Subscription, request: ChatRequest) -> Response:
    text, asked, usage, failed, end = "", None, Usage(0, 0, 0, 0), None, None
    async with aclosing(hearing.events()) as events:
        async for event in events:
            match event:
                case Said():
                    text += event.text
                case VendorAsked():
                    asked = event
                case Usage():
                    usage = event
                case TurnFailed():
                    failed = event
                case Ended():
                    end = event
    if failed is not None or end is None or end.reason not in _FINISHES:
        return _failed(failed, end)
    completion = {
        "id": _id(hearing.turn),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": end.handle or (asked.handle if asked else None),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "finish_reason": _FINISHES[end.reason],
                "logprobs": None,
            }
        ],
        "usage": _usage(usage),
    }
    return JSONResponse(completion)


async def _streamed(hearing: Subscription, request: ChatRequest) -> Response:
    """Wait for the answer to begin, so that a refusal has a status of its own; from then on pass it on."""
    events = hearing.events()
    first: Event | None = None
    failed: TurnFailed | None = None
    async for event in events:
        if isinstance(event, TurnFailed):
            failed = event
        if isinstance(event, Said | Ended):
            first = event
            break
    without_a_word = failed is None and isinstance(first, Ended) and first.reason in _FINISHES
    if isinstance(first, Said) or without_a_word:
        return TurnResponse(_chunks(events, hearing.turn, request, first), at_end=hearing.leave)
    return _failed(failed, first)


async def _chunks(
    events: AsyncGenerator[Event, None], turn: Turn, request: ChatRequest, first: Event | None
) -> AsyncGenerator[ServerSentEvent, None]:
    created = int(time.time())
    failed: TurnFailed | None = None
    usage = Usage(0, 0, 0, 0)

    def chunk(delta: dict[str, Any], finish: str | None = None, **extra: Any) -> ServerSentEvent:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        body = {"id": _id(turn), "object": "chat.completion.chunk", "created": created, "model": request.model}
        return ServerSentEvent(
            json.dumps(
                body | {"system_fingerprint": turn.answered_by, "choices": choices} | extra, ensure_ascii=False
            )
        )

    async with aclosing(events):
        yield chunk({"role": "assistant", "content": first.text if isinstance(first, Said) else ""})
        end = first if isinstance(first, Ended) else None
        async for event in events:
            match event:
                case Said():
                    yield chunk({"content": event.text})
                case Usage():
                    usage = event
                case TurnFailed():
                    failed = event
                case Ended():
                    end = event
    if end is None or end.reason not in _FINISHES:
        yield ServerSentEvent(json.dumps(_error(failed, end), ensure_ascii=False))
        return
    yield chunk({}, _FINISHES[end.reason])
    if request.stream_options is not None and request.stream_options.include_usage:
        yield chunk({}, choices=[], usage=_usage(usage))
    yield ServerSentEvent("[DONE]")


def _last_of_user(messages: list[ChatMessage]) -> str:
    for message in reversed(messages):
        if message.role == "user" and has_text(said := _said(message)):
            return said
    raise MessageRefused(
        "No message of the user that says something is in the request.", remedy="Add one with the role `user`."
    )


def _said(message: ChatMessage) -> str:
    if isinstance(message.content, list):
        return "\n".join(part.text or "" for part in message.content if part.type == "text")
    return message.content or ""


def _model(name: str, ours: bool) -> AgentModelCard:
    return AgentModelCard(id=name, owned_by="isabella" if ours else "letta")


def _id(turn: Turn) -> str:
    return f"chatcmpl-{turn.id.removeprefix('turn-')}"


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _refused(error: IsabellaError) -> Response:
    """A refusal before the turn began."""
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
    body = {"error": {"message": str(error), "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)


def _failed(failed: TurnFailed | None, end: Event | None) -> Response:
    headers = {}
    status = 503
    if failed is not None:
        status = _STATUSES.get(failed.code, 503)
        if failed.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(failed.retry_after)))
    if isinstance(end, Ended) and end.stored:
        # This has been said already.
        status = 502
    if isinstance(end, Ended) and (end.stored or end.reason is Reason.STOPPED):
        # Clients repeat by themselves what was answered with 5xx.
        headers["X-Should-Retry"] = "false"
    return JSONResponse(_error(failed, end), status_code=status, headers=headers)


def _error(failed: TurnFailed | None, end: Event | None) -> dict[str, Any]:
    if failed is None:
        stopped = isinstance(end, Ended) and end.reason is Reason.STOPPED
        said, code = ("The turn was stopped.", "stopped") if stopped else ("The turn has failed.", "failed")
    else:
        said, code = f"{failed.message} {failed.remedy or ''}".strip(), failed.code.value
    return {"error": {"message": said, "type": "server_error", "param": None, "code": code}}
