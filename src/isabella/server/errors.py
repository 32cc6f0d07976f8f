"""The one form of errors over HTTP, and which of ours is which status. A client's mistake is never a 500."""

from __future__ import annotations

import re
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
    """What went wrong, for programs and for people."""

    code: str = Field(description="A word that programs can act on, such as `agent_unknown`.")
    message: str = Field(description="One sentence: what happened.")
    remedy: str | None = Field(default=None, description="What can be done about it, where that is known.")
    details: dict[str, Any] | None = Field(default=None, description="What belongs to this code, such as `handles`.")


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: Problem


#: For `responses=` of routes: every refusal has the same form.
ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"model": ErrorBody, "description": "The request cannot be carried out as it is."},
    "4XX": {"model": ErrorBody, "description": "The client's mistake, with what to do about it."},
    "5XX": {"model": ErrorBody, "description": "Isabella, Letta or a vendor cannot serve it now."},
}

#: The status of each kind of error; that of the nearest ancestor counts.
_STATUSES: Mapping[type[IsabellaError], int] = {
    errors.AgentUnknown: 404,
    errors.AgentExists: 409,
    # Whether a model would work is a matter of the vendors' state, not of the request's form.
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

#: What Letta refuses because of what the client sent, and what that is here.
_LETTA_REFUSED = {400: 422, 404: 404, 409: 409, 413: 413, 422: 422}


def status_of(error: IsabellaError) -> int:
    """The HTTP status that an error of ours is answered with."""
    if isinstance(error, errors.LettaRefused):
        return _LETTA_REFUSED.get(error.status, 502)
    return next(_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES)


def code_of(error: IsabellaError) -> str:
    """The word for an error of ours: its class in snake case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


def problem_of(error: IsabellaError) -> Problem:
    """An error of ours in the form that goes over the wire, with secrets masked."""
    details: dict[str, Any] | None = None
    match error:
        case errors.ModelUnknown(handles=handles) if handles:
            details = {"handles": list(handles)}
        case errors.MemoryChanged(version=version):
            details = {"version": version}
        case errors.QueueFull(retry_after=seconds):
            details = {"retry_after": seconds}
    return Problem(
        code=code_of(error),
        message=redact(error.what),
        remedy=redact(error.remedy) if error.remedy else None,
        details=details,
    )


def answer(status: int, problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as an HTTP answer."""
    return JSONResponse(
        ErrorBody(error=problem).model_dump(exclude_none=True), status_code=status, headers=dict(headers or {})
    )


def answer_to(error: IsabellaError, *, status: int | None = None) -> JSONResponse:
    """The answer that an error of ours gets."""
    headers = {}
    if isinstance(error, errors.QueueFull):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    elif status_of(error) == 503:
        headers["Retry-After"] = "5"
    return answer(status or status_of(error), problem_of(error), headers)


def handle_errors(app: FastAPI) -> None:
    """Answer every failure of an application in the one form."""

    @app.exception_handler(IsabellaError)
    async def ours(_request: Request, error: IsabellaError) -> JSONResponse:
        if status_of(error) >= 500:
            log.warning("request failed", code=code_of(error), error=error.what)
        return answer_to(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        # The input itself is not repeated: it may be large, a secret, or no text that JSON could carry.
        found = [{"where": [_word(part) for part in one["loc"]], "what": str(one["msg"])} for one in error.errors()]
        said = "; ".join(f"{'.'.join(one['where'])}: {one['what']}" for one in found[:3])
        return answer(422, Problem(code="invalid_request", message=said[:500], details={"problems": found[:20]}))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed(request))
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_").replace("-", "_")
        message = error.detail if isinstance(error.detail, str) else phrase
        return answer(error.status_code, Problem(code=code, message=redact(message)), headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        log.error("internal error", path=redact(request.url.path), exc_info=error)
        return answer(500, Problem(code="internal_error", message="Isabella failed; her log says more."))


def _allowed(request: Request) -> list[str]:
    """The methods that a path has over all its routes; Starlette names those of the first one only."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)


def _word(part: Any) -> str:
    return str(part).encode("utf-8", "replace").decode()[:100]
