"""Errors of the OpenAI format."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from isabella.errors import AgentUnknown, ImagesRefused, IsabellaError, MessageRefused, QueueFull
from isabella.server.errors import Problem, headers_for, openai_answer, problem_of, status_of

#: Without this header, clients repeat a request after a 5xx by themselves.
NO_RETRY = {"X-Should-Retry": "false"}


class OpenAiError(BaseModel):
    """An error, in OpenAI's form."""

    message: str
    type: str | None = Field(None, description="Null if the request was refused before it was examined.")
    param: str | None = None
    code: str | None = None


class OpenAiErrorBody(BaseModel):
    """The body of an unsuccessful response, in OpenAI's form."""

    error: OpenAiError


#: The `responses` of routes.
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OpenAiErrorBody, "description": "A client error, in OpenAI's form."},
    "5XX": {"model": OpenAiErrorBody, "description": "No vendor answers, in OpenAI's form."},
}


class Unsupported(IsabellaError):
    """An agent cannot do what a request asks for. `param` is the part of the request that asks for it."""

    def __init__(self, what: str, *, param: str, code: str = "unsupported_value", remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.param = param
        self.code = code


class VendorRefused(IsabellaError):
    """No vendor answers a request that no agent has a part in. `status` is that of the response."""

    def __init__(self, what: str, *, status: int, code: str, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.status = status
        self.code = code


class FormatNotMet(IsabellaError):
    """The agent's answer does not have the requested format. It is in the history anyway."""


def refusal(error: IsabellaError) -> JSONResponse:
    """Return the response for an error that is not one of a turn."""
    status, headers, param = status_of(error), headers_for(error), None
    problem = problem_of(error)
    match error:
        case AgentUnknown():
            code, param = "model_not_found", "model"
        case ImagesRefused():
            status, code, param = 400, "image_not_supported", "messages"
        case MessageRefused():
            status, code, param = 400, "invalid_request", "messages"
        case Unsupported():
            status, code, param, headers = 400, error.code, error.param, {}
        case VendorRefused():
            status, code, headers = error.status, error.code, {}
        case FormatNotMet():
            status, code, headers = 502, "format_not_met", NO_RETRY
        case QueueFull():
            code = "rate_limit_exceeded"
        case _:
            code = "service_unavailable" if status >= 500 else "invalid_request"
    return openai_answer(status, problem.model_copy(update={"code": code}), headers, param=param)


def problem(code: str, message: str, remedy: str | None = None) -> Problem:
    """Return a problem of a turn."""
    return Problem(code=code, message=message, remedy=remedy)
