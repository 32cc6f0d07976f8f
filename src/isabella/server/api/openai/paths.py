"""Paths as clients put them together: with slashes too many, or of parts of OpenAI's API that agents do not have."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from isabella.server.errors import OPENAI, Problem, openai_answer

router = APIRouter(prefix=OPENAI, tags=["openai"])
#: The routes of clients whose base URL lacks `/v1`.
without_version = APIRouter()

_ROUTES = {"chat/completions": "POST", "responses": "POST", "models": "GET"}
_SLASHES = re.compile(r"//+")
#: What to call instead, by the beginning of a path.
_INSTEAD = {
    "v1": "The base URL ends in `/v1` already: leave one out.",
    "completions": "Call POST /v1/chat/completions, with `messages` in place of `prompt`.",
    "responses": "Responses are not kept. GET /api/agents/NAME/messages has the agent's history.",
    "conversations": "GET /api/agents/NAME/conversations has the agent's conversations; requests name one.",
    "threads": "GET /api/agents/NAME/messages has the agent's history.",
    "assistants": f"GET {OPENAI}/models lists the agents.",
    "embeddings": "Agents give no embeddings; ask a vendor for them.",
    "audio": "Agents take and give text; ask a vendor for speech.",
    "images": "Agents give text; ask a vendor for images.",
    "files": "POST /api/agents/NAME/passages adds text to an agent's archival memory.",
    "vector_stores": "POST /api/agents/NAME/passages adds text to an agent's archival memory.",
}


class PlainPaths:
    """An ASGI middleware that removes slashes too many from the paths of the OpenAI format."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http":
            path = _SLASHES.sub("/", scope["path"]).rstrip("/")
            if path != scope["path"] and (path == OPENAI or path.startswith(f"{OPENAI}/")):
                scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


@without_version.api_route("/chat/completions", methods=["POST"], include_in_schema=False)
@without_version.api_route("/responses", methods=["POST"], include_in_schema=False)
@without_version.api_route("/models", methods=["GET"], include_in_schema=False)
async def unversioned(http: Request) -> Response:
    """Answer that the base URL lacks its end."""
    message = f"The base URL ends in {OPENAI}: call {http.method} {OPENAI}{http.url.path}."
    return openai_answer(404, Problem(code="unknown_url", message=message))


@router.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
async def other(http: Request, path: Annotated[str, Path()]) -> Response:
    """Answer with the routes that exist."""
    if (method := _ROUTES.get(path)) is not None:
        message = f"{OPENAI}/{path} takes {method}, not {http.method}."
        return openai_answer(405, Problem(code="method_not_allowed", message=message), {"Allow": method})
    known = ", ".join(f"{method} {OPENAI}/{known}" for known, method in _ROUTES.items())
    remedy = _INSTEAD.get(path.partition("/")[0], f"There are {known}.")
    message = f"Isabella has no {http.method} {OPENAI}/{path[:100]}."
    return openai_answer(404, Problem(code="unknown_url", message=message, remedy=remedy))
