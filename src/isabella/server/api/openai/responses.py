"""OpenAI's Responses API: text, at once or streamed. Responses are not kept: the history is the agent's."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import ServerSentEvent

from isabella.errors import IsabellaError
from isabella.server.api.openai import asides
from isabella.server.api.openai.answers import Answer, answer_as_turn
from isabella.server.api.openai.errors import REFUSALS, Unsupported, refusal
from isabella.server.api.openai.formats import JsonFormat, Pieces, json_format
from isabella.server.api.openai.messages import (
    ChatMessage,
    ContentPart,
    ConversationParam,
    message_to_agent,
    refuse_forced_tool,
)
from isabella.server.api.turns import TurnResponse
from isabella.server.disconnects import answer_while_connected
from isabella.server.errors import OPENAI
from isabella.server.idempotency import SharedTurn
from isabella.server.runtime import Agents, Requests, Turns
from isabella.turns.agent_cache import AgentRef
from isabella.turns.events import AnswerText, Event

router = APIRouter(prefix=OPENAI, tags=["openai"])

_ID = re.compile(r"resp_[0-9a-f]{24}([0-9a-f]{16})")
#: The roles of items that are not messages.
_ROLES = {"function_call_output": "tool", "custom_tool_call_output": "tool"}


class InputItem(BaseModel):
    """An item of the input: a message, or something else of the client's conversation."""

    model_config = ConfigDict(extra="allow")

    type: str | None = None
    role: str | None = None
    content: str | list[ContentPart] | None = None

    @property
    def as_message(self) -> ChatMessage:
        """The item as a message."""
        role = self.role or _ROLES.get(self.type or "", "assistant")
        return ChatMessage(role=role, content=self.content)


class TextOptions(BaseModel):
    """The options of the text."""

    format: dict[str, Any] | None = None


class ResponseRequest(BaseModel):
    """A request for a response. Other fields of OpenAI's API are accepted and have no effect."""

    model_config = ConfigDict(hide_input_in_errors=True)

    model: str = Field(min_length=1, max_length=200, description="The agent's name.")
    input: str | list[InputItem] = Field(
        description="A text, or items, of which only the last is sent to the agent. It must be the user's message."
    )
    stream: bool | None = False
    previous_response_id: str | None = Field(
        None, description="A response of the same agent. Its history always continues and never goes back."
    )
    text: TextOptions | None = Field(None, description="`format` is `text`, `json_object` or `json_schema`.")
    tool_choice: Any = Field(None, description="A call of a client's tool cannot be forced.")
    conversation: ConversationParam = None
    instructions: str | None = Field(None, description="Only for asides; an agent has its own.")
    metadata: dict[str, Any] | None = None
    max_output_tokens: int | None = Field(None, description="Only for asides.")
    temperature: float | None = Field(None, description="Only for asides.")

    @property
    def messages(self) -> list[ChatMessage]:
        """The input as messages."""
        if isinstance(self.input, str):
            return [ChatMessage(role="user", content=self.input)]
        return [item.as_message for item in self.input if item.type != "reasoning"]


class OutputText(BaseModel):
    """A text of the answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default_factory=list)
    logprobs: list[Any] = Field(default_factory=list)


class OutputMessage(BaseModel):
    """The agent's answer."""

    type: Literal["message"] = "message"
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class ResponseUsage(BaseModel):
    """The tokens used by all steps of the turn."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseObject(BaseModel):
    """An agent's answer as a response."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str = Field(description="The agent's name.")
    output: list[OutputMessage] = Field(default_factory=list)
    usage: ResponseUsage | None = None
    error: dict[str, str] | None = None
    incomplete_details: dict[str, str] | None = None
    previous_response_id: str | None = None
    instructions: None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    parallel_tool_calls: bool = False
    tool_choice: Literal["none"] = "none"
    tools: list[Any] = Field(default_factory=list)
    text: dict[str, Any] = Field(default_factory=lambda: {"format": {"type": "text"}})
    temperature: None = None
    top_p: None = None
    store: Literal[False] = False


@dataclass
class _Draft:
    """A response that is being made."""

    body: ResponseRequest
    turn_id: str  #: 24 hexadecimal digits
    agent_id: str
    created_at: int = field(default_factory=lambda: int(time.time()))

    @property
    def message_id(self) -> str:
        return f"msg_{self.turn_id}"

    def message(self, status: Literal["in_progress", "completed", "incomplete"], *texts: str) -> OutputMessage:
        return OutputMessage(id=self.message_id, status=status, content=[OutputText(text=text) for text in texts])

    def response(self, status: Literal["in_progress", "completed", "failed"], **fields: Any) -> ResponseObject:
        return ResponseObject(
            id=f"resp_{self.turn_id}{_digest(self.agent_id)}",
            created_at=self.created_at,
            model=self.body.model,
            status=status,
            previous_response_id=self.body.previous_response_id,
            metadata=self.body.metadata or {},
            text={"format": (self.body.text and self.body.text.format) or {"type": "text"}},
            **fields,
        )

    def finished(self, text: str, usage: ResponseUsage, *, cut: bool) -> ResponseObject:
        """Return the whole response; `cut` is whether the answer reached a limit."""
        response = self.response("completed", usage=usage, output=[self.message("completed", text)])
        if cut:
            response.status = response.output[0].status = "incomplete"
            response.incomplete_details = {"reason": "max_output_tokens"}
        return response


@router.post(
    "/responses",
    summary="Send a message to an agent in the format of OpenAI's Responses API",
    response_model=ResponseObject,
    responses=REFUSALS | {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def create(
    body: ResponseRequest, http: Request, requests: Requests, agents: Agents, turn_service: Turns
) -> Response:
    """Send the last item to the agent, and answer with its reply; with `stream`, as it is generated.

    As with chat completions, a request that is not a conversation is answered by the agent's model alone.
    """
    try:
        agent_ref = await turn_service.find(asides.agent_of(body.model))
        if body.previous_response_id is not None:
            _check_previous(body.previous_response_id, agent_ref)
        if body.model.endswith(asides.SUFFIX) or asides.is_task(body.messages):
            return await answer_while_connected(http, lambda: _answer_aside(body, agents, agent_ref))
        refuse_forced_tool(body.tool_choice)
        format = json_format(None if body.text is None else body.text.format, "text.format")
        message = message_to_agent(body.messages, "input")
    except IsabellaError as error:
        return refusal(error)
    if format is not None:
        message = format.told(message)

    async def respond(shared: SharedTurn) -> Response:
        return await (_stream if body.stream else _complete)(shared, body, format)

    return await answer_as_turn(requests, http, body.model, message, body.conversation, respond)


def _check_previous(id: str, agent_ref: AgentRef) -> None:
    """Raise `Unsupported` unless a response of this agent has the id."""
    match = _ID.fullmatch(id)
    if match is None or match[1] != _digest(agent_ref.id):
        raise Unsupported(
            f"{id[:80]!r} is not a response of {agent_ref.name}.",
            param="previous_response_id",
            code="previous_response_not_found",
            remedy="Leave it out: the agent continues its history in any case.",
        )


def _digest(agent_id: str) -> str:
    return hashlib.sha256(agent_id.encode()).hexdigest()[:16]


# --- asides ---------------------------------------------------------------------------------------------------------


async def _answer_aside(body: ResponseRequest, agents: Agents, agent_ref: AgentRef) -> Response:
    """Answer by the agent's model alone. A stream has the whole text in one piece."""
    notes = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    given = [{"role": message.role, "content": message.text} for message in body.messages]
    document: dict[str, Any] = {
        "messages": [*notes, *given],
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
    }
    try:
        completion = await asides.complete(agents, agent_ref, document)
    except IsabellaError as error:
        return refusal(error)
    choice, counted = completion["choices"][0], completion.get("usage") or {}
    prompt, answer = (int(counted.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    usage = _usage(prompt, answer, prompt + answer)
    draft = _Draft(body, secrets.token_hex(12), agent_ref.id)
    text, cut = str(choice["message"].get("content") or ""), choice.get("finish_reason") == "length"
    if not body.stream:
        return JSONResponse(draft.finished(text, usage, cut=cut).model_dump())

    async def events() -> AsyncGenerator[ServerSentEvent, None]:
        stream = _Events(draft)
        for event in [*stream.begin(), stream.delta(text), *stream.end(usage, cut=cut)]:
            yield event

    return TurnResponse(events())


# --- turns ----------------------------------------------------------------------------------------------------------


async def _complete(shared: SharedTurn, body: ResponseRequest, format: JsonFormat | None) -> Response:
    answer = await Answer().read(shared)
    if answer.finish_reason is None:
        return answer.failure
    text = answer.text if format is None else format.extract(answer.text)
    response = _draft(shared, body).finished(text, _usage_of(answer), cut=answer.finish_reason == "length")
    return JSONResponse(response.model_dump())


async def _stream(shared: SharedTurn, body: ResponseRequest, format: JsonFormat | None) -> Response:
    """Stream the answer once it has begun. A failure before that is answered with its own status."""
    events, answer, pieces = shared.events(), Answer(), Pieces(format=format)
    text = await answer.begin(events, pieces)
    if text is None:
        return answer.failure
    return TurnResponse(_sent(events, _Events(_draft(shared, body)), answer, text), at_end=shared.leave)


async def _sent(
    events: AsyncGenerator[Event, None], stream: _Events, answer: Answer, text: str
) -> AsyncGenerator[ServerSentEvent, None]:
    """Yield the events of an answer of which `text` has arrived. What follows it has no format to be checked."""
    async with aclosing(events):
        for event in (*stream.begin(), stream.delta(text)):
            yield event
        async for piece in events:
            answer.add(piece)
            if isinstance(piece, AnswerText):
                yield stream.delta(piece.text)
    if answer.finish_reason is None:
        yield stream.failed(answer)
        return
    for event in stream.end(_usage_of(answer), cut=answer.finish_reason == "length"):
        yield event


class _Events:
    """The events of a streamed response, in order."""

    def __init__(self, draft: _Draft) -> None:
        self._draft = draft
        self._number = -1
        self._text = ""

    def begin(self) -> list[ServerSentEvent]:
        response = {"response": self._draft.response("in_progress").model_dump()}
        return [
            self._event("response.created", **response),
            self._event("response.in_progress", **response),
            self._item("response.output_item.added", item=self._draft.message("in_progress").model_dump()),
            self._part("response.content_part.added", part=OutputText(text="").model_dump()),
        ]

    def delta(self, text: str) -> ServerSentEvent:
        self._text += text
        return self._part("response.output_text.delta", delta=text, logprobs=[])

    def end(self, usage: ResponseUsage, *, cut: bool) -> list[ServerSentEvent]:
        response = self._draft.finished(self._text, usage, cut=cut)
        return [
            self._part("response.output_text.done", text=self._text, logprobs=[]),
            self._part("response.content_part.done", part=OutputText(text=self._text).model_dump()),
            self._item("response.output_item.done", item=response.output[0].model_dump()),
            self._event(f"response.{response.status}", response=response.model_dump()),
        ]

    def failed(self, answer: Answer) -> ServerSentEvent:
        problem = answer.problem
        error = {"code": problem.code, "message": f"{problem.message} {problem.remedy or ''}".strip()}
        output = [self._draft.message("incomplete", self._text)]
        response = self._draft.response("failed", error=error, output=output)
        return self._event("response.failed", response=response.model_dump())

    def _part(self, type: str, **fields: Any) -> ServerSentEvent:
        return self._item(type, item_id=self._draft.message_id, content_index=0, **fields)

    def _item(self, type: str, **fields: Any) -> ServerSentEvent:
        return self._event(type, output_index=0, **fields)

    def _event(self, type: str, **fields: Any) -> ServerSentEvent:
        self._number += 1
        document = {"type": type, "sequence_number": self._number, **fields}
        return ServerSentEvent(json.dumps(document, ensure_ascii=False), event=type)


def _draft(shared: SharedTurn, body: ResponseRequest) -> _Draft:
    return _Draft(body, shared.turn.id.removeprefix("turn-"), shared.turn.agent_ref.id)


def _usage_of(answer: Answer) -> ResponseUsage:
    usage = answer.usage
    return _usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        cached=usage.cached_tokens or 0,
        reasoning=usage.reasoning_tokens or 0,
    )


def _usage(prompt: int, answer: int, total: int, cached: int = 0, reasoning: int = 0) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=prompt,
        input_tokens_details={"cached_tokens": cached},
        output_tokens=answer,
        output_tokens_details={"reasoning_tokens": reasoning},
        total_tokens=total,
    )
