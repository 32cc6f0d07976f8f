"""A turn as the answer to a request in the OpenAI format."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from fastapi import Request, Response

from isabella.errors import IsabellaError
from isabella.server.api.openai.errors import NO_RETRY, problem, refusal
from isabella.server.api.openai.formats import Pieces
from isabella.server.api.turns import TurnResponse
from isabella.server.disconnects import answer_while_connected
from isabella.server.errors import Problem, openai_answer
from isabella.server.idempotency import RequestRegistry, SharedTurn, TurnRequest
from isabella.turns.events import AnswerText, Ended, EndReason, ErrorCode, Event, TurnFailed, Usage, VendorAsked
from isabella.turns.message import UserMessage

FinishReason = Literal["stop", "length", "tool_calls"]

#: The status of a turn that failed before the answer began.
_STATUSES = {
    ErrorCode.AGENT_UNKNOWN: 404,
    ErrorCode.CONVERSATION_UNKNOWN: 404,
    ErrorCode.BUSY: 429,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.CONTEXT_FULL: 400,
    ErrorCode.INTERNAL: 500,
}
_FINISH_REASONS: dict[EndReason, FinishReason] = {
    EndReason.COMPLETED: "stop",
    EndReason.MAX_STEPS: "length",
    EndReason.LENGTH: "length",
    EndReason.NEEDS_APPROVAL: "tool_calls",
}


@dataclass
class Answer:
    """The events of a turn that make up an answer."""

    text: str = ""
    handle: str | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0, 0))
    failed: TurnFailed | None = None
    end: Ended | None = None

    def add(self, event: Event) -> None:
        """Take the next event of the turn."""
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

    async def read(self, shared: SharedTurn) -> Answer:
        """Read the whole turn."""
        async with aclosing(shared.events()) as events:
            async for event in events:
                self.add(event)
        return self

    async def begin(self, events: AsyncIterator[Event], pieces: Pieces) -> str | None:
        """Read events until a client can be sent text, and return it; None if the turn fails before that."""
        async for event in events:
            self.add(event)
            if isinstance(event, AnswerText) and (text := pieces.feed(event.text)):
                return text
            if isinstance(event, Ended):
                break
        if self.end is None:
            return ""
        return None if self.finish_reason is None else pieces.end()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None if it is not whole."""
        whole = self.failed is None and self.end is not None
        return _FINISH_REASONS.get(self.end.reason) if whole and self.end is not None else None

    @property
    def problem(self) -> Problem:
        """Why it is not whole."""
        if self.failed is not None:
            return problem(self.failed.code.value, self.failed.message, self.failed.remedy)
        if self.end is not None and self.end.reason is EndReason.STOPPED:
            return problem("stopped", "The turn was stopped.")
        return problem("failed", "The turn failed.")

    @property
    def failure(self) -> Response:
        """The response for an answer that is not whole."""
        failed, end, headers = self.failed, self.end, {}
        status = 503 if failed is None else _STATUSES.get(failed.code, 503)
        if failed is not None and failed.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(failed.retry_after)))
        if end is not None and end.stored is not False:
            # The message is in the history already, or may be.
            status = 502
        if end is not None and (end.stored is not False or end.reason is EndReason.STOPPED):
            headers |= NO_RETRY
        return openai_answer(status, self.problem, headers)


async def answer_as_turn(
    requests: RequestRegistry,
    http: Request,
    agent: str,
    message: UserMessage,
    conversation: str | None,
    respond: Callable[[SharedTurn], Awaitable[Response]],
) -> Response:
    """Send a message to an agent, in one of its conversations, and return the response that is made of the turn.

    The turn ends if the client closes the connection. If the client repeats the request, as the official client does
    by itself, the repeat gets the answer of the first request, and the agent gets the message once.
    """
    request = TurnRequest.of(http.headers, await http.body())

    async def run() -> Response:
        shared: SharedTurn | None = None
        response: Response | None = None
        try:
            shared = await requests.join(request, agent, message, conversation)
            response = await respond(shared)
        except IsabellaError as error:
            response = refusal(error)
        finally:
            if shared is not None:
                shared.answered |= response is not None
                if not isinstance(response, TurnResponse):
                    shared.leave()
        return response

    return await answer_while_connected(http, run)
