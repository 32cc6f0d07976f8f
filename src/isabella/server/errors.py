"""Errors over HTTP: one JSON form for all of them, and the status of each error class."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from isabella import errors
from isabella.errors import IsabellaError
from isabella.system.redaction import redact

log = structlog.get_logger()


class Problem(BaseModel):
    """An error, for programs and for people."""

    code: str = Field(description="An identifier for programs, such as `agent_unknown`.")
    message: str = Field(description="What happened, in one sentence.")
    remedy: str | None = Field(default=None, description="What to do about it, if known.")
    details: dict[str, Any] | None = Field(default=None, description="Data that belongs to the code, as `handles`.")


class ErrorBody(BaseModel):
    """The body of every unsuccessful response."""

    error: Problem


#: The `responses` of routers.
ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"model": ErrorBody, "description": "The request is invalid."},
    "4XX": {"model": ErrorBody, "description": "A client error, with its remedy."},
    "5XX": {"model": ErrorBody, "description": "Isabella, Letta or a vendor cannot answer at present."},
}

#: The status of each error class; a class that is not listed has the status of its nearest ancestor.
_STATUSES: Mapping[type[IsabellaError], int] = {
    errors.AgentUnknown: 404,
    errors.AgentExists: 409,
    errors.ConversationUnknown: 404,
    # Whether a model is available depends on the vendors, not on the form of the request.
    errors.ModelUnknown: 409,
    errors.AgentError: 422,
    errors.MemoryUnknown: 404,
    errors.MemoryChanged: 409,
    errors.QueueFull: 429,
    errors.TurnUnknown: 404,
    errors.TurnError: 422,
    errors.LockTimeout: 503,
    errors.NotReady: 503,
    errors.LettaUnreachable: 503,
    errors.LettaError: 502,
    errors.IsabellaError: 503,
}

#: Statuses of Letta that the client's request caused, and the status that the client gets.
_LETTA_REFUSED = {400: 422, 404: 404, 409: 409, 413: 413, 422: 422}


#: The path below which everything has OpenAI's format.
OPENAI = "/v1"

#: The attributes of errors that programs get as `details`.
_DETAILS = ("handles", "version", "retry_after")


def is_openai(path: str) -> bool:
    """Return whether a path belongs to the OpenAI format."""
    return path == OPENAI or path.startswith(f"{OPENAI}/")


def status_of(error: IsabellaError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, errors.LettaRefused):
        return _LETTA_REFUSED.get(error.status, 502)
    return next(_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES)


def code_of(error: IsabellaError) -> str:
    """Return the `code` of an error: the name of its class in snake case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


def problem_of(error: IsabellaError) -> Problem:
    """Return an error in its JSON form, with secrets masked."""
    details = {name: getattr(error, name) for name in _DETAILS if getattr(error, name, None)}
    return Problem(
        code=code_of(error),
        message=redact(error.what),
        remedy=redact(error.remedy) if error.remedy else None,
        details=details or None,
    )


def answer(status: int, problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the response for a problem."""
    return JSONResponse(
        ErrorBody(error=problem).model_dump(exclude_none=True), status_code=status, headers=dict(headers or {})
    )


def openai_error(status: int, problem: Problem, param: str | None = None) -> dict[str, Any]:
    """Return a problem in OpenAI's form; `param` names the part of the request that it is about."""
    kind = {429: "rate_limit_error"}.get(status, "server_error" if status >= 500 else "invalid_request_error")
    message = f"{problem.message} {problem.remedy or ''}".strip()
    return {"error": {"message": message, "type": kind, "param": param, "code": problem.code}}


def openai_answer(
    status: int, problem: Problem, headers: Mapping[str, str] | None = None, *, param: str | None = None
) -> JSONResponse:
    """Return the response for a problem in OpenAI's form."""
    return JSONResponse(openai_error(status, problem, param), status_code=status, headers=dict(headers or {}))


def _answer_for(
    request: Request, status: int, problem: Problem, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the response for a problem in the form that the clients of this path understand."""
    return (openai_answer if is_openai(request.url.path) else answer)(status, problem, headers)


def headers_for(error: IsabellaError) -> dict[str, str]:
    """Return the headers of the response for an error."""
    if isinstance(error, errors.QueueFull):
        return {"Retry-After": str(max(1, round(error.retry_after)))}
    return {"Retry-After": "5"} if status_of(error) == 503 else {}


def answer_to(error: IsabellaError, *, status: int | None = None) -> JSONResponse:
    """Return the response for an error, by default with its own status."""
    return answer(status or status_of(error), problem_of(error), headers_for(error))


def handle_errors(app: FastAPI) -> None:
    """Register handlers that answer every error of an application in the JSON form."""

    @app.exception_handler(IsabellaError)
    async def expected(request: Request, error: IsabellaError) -> JSONResponse:
        error = await app.state.runtime.explain(error)
        if status_of(error) >= 500:
            log.warning("request failed", code=code_of(error), error=error.what)
        return _answer_for(request, status_of(error), problem_of(error), headers_for(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # The input is not repeated: it may be large, a secret, or text that JSON cannot carry.
        problems = [
            {"where": [_printable(part) for part in entry["loc"]], "what": str(entry["msg"])}
            for entry in error.errors()
        ]
        message = "; ".join(f"{'.'.join(entry['where'])}: {entry['what']}" for entry in problems[:3])
        problem = Problem(code="invalid_request", message=message[:500], details={"problems": problems[:20]})
        # OpenAI answers 400, and its clients raise their own exception for that.
        return _answer_for(request, 400 if is_openai(request.url.path) else 422, problem)

    @app.exception_handler(MemoryError)
    async def out_of_memory(request: Request, error: MemoryError) -> JSONResponse:
        log.error("out of memory", exc_info=error)
        problem = Problem(code="out_of_memory", message="The backend has too little memory for this request now.")
        return _answer_for(request, 503, problem, {"Retry-After": "10"})

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        for raised in filter(None, (error, error.__cause__)):
            # The frames hold what came of the body, and would be freed with the next collection of garbage only.
            traceback.clear_frames(raised.__traceback__)
        if isinstance(error.__cause__, MemoryError):
            # FastAPI takes it for a malformed body.
            return await out_of_memory(request, error.__cause__)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed_methods(request))
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_").replace("-", "_")
        message = error.detail if isinstance(error.detail, str) else phrase
        return _answer_for(request, error.status_code, Problem(code=code, message=redact(message)), headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("internal error", path=redact(request.url.path), exc_info=error)
        problem = Problem(code="internal_error", message="Internal error; the log has the details.")
        return _answer_for(request, 500, problem)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes of a path; Starlette names only those of the first route."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)


def _printable(part: Any) -> str:
    return str(part).encode("utf-8", "replace").decode()[:100]
