"""The route of embeddings in the OpenAI format, which Letta calls for archival memory.

Letta cannot be given a token for it: the secret in the path admits its requests.
"""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Any, Literal

import anyio.to_thread
import httpx2 as httpx
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from isabella.agents import embeddings
from isabella.agents.embeddings import MISTRAL, PREFIX, mistral_source
from isabella.providers.desired import Desired
from isabella.server.errors import Problem, answer
from isabella.server.runtime import Agents
from isabella.system.redaction import redact
from isabella.system.urls import client_options

router = APIRouter()

#: Texts per request to Mistral.
_BATCH = 64
_LONGEST_DETAIL = 200


class EmbeddingsRequest(BaseModel):
    """A request for embeddings."""

    model: str
    input: Annotated[list[str], Field(min_length=1, max_length=2048)] | str
    encoding_format: Literal["float", "base64"] = "float"


@router.post(PREFIX + "/{secret}/v1/embeddings", include_in_schema=False)
async def make_embeddings(body: EmbeddingsRequest, agent_service: Agents) -> JSONResponse:
    """Return embeddings, from Mistral or from the local model, depending on the requested model."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    match body.model:
        case MISTRAL.model:
            provider = mistral_source(agent_service.models.providers)
            if provider is None:
                return _unavailable("mistral", "Mistral has no key any more; this agent's embeddings are Mistral's.")
            return await _from_mistral(provider, texts, body, agent_service.settings.timeout)
        case embeddings.MODEL:
            if not embeddings.local_model_installed():
                return _unavailable("local", "The local model is not installed any more: isabella[local-embeddings].")
            vectors = await anyio.to_thread.run_sync(embeddings.embed_locally, texts)
            return _response(vectors, body)
        case _:
            raise HTTPException(404, "There is no such model.")


async def _from_mistral(provider: Desired, texts: list[str], body: EmbeddingsRequest, timeout: float) -> JSONResponse:
    if provider.key is None:
        return _unavailable("mistral", "Mistral has no key.")
    headers = {"Authorization": f"Bearer {provider.key.get_secret_value()}"}
    vectors: list[list[float]] = []
    async with httpx.AsyncClient(timeout=timeout, **client_options(provider.upstream)) as client:
        for start in range(0, len(texts), _BATCH):
            batch = {"model": MISTRAL.model, "input": texts[start : start + _BATCH]}
            try:
                response = await client.post(f"{provider.upstream}/embeddings", json=batch, headers=headers)
            except httpx.RequestError as error:
                return _unavailable("mistral", f"Mistral cannot be reached: {redact(str(error)) or 'no answer'}.")
            if response.status_code != 200:
                return _refused(response)
            try:
                rows = sorted(response.json()["data"], key=lambda row: row["index"])
                vectors += [[float(value) for value in row["embedding"]] for row in rows]
            except (ValueError, KeyError, TypeError):
                return _unavailable("mistral", "Mistral's answer contains no embeddings.")
    if len(vectors) != len(texts) or any(len(vector) != MISTRAL.dimensions for vector in vectors):
        return _unavailable("mistral", "Mistral answered with embeddings of another number or length.")
    return _response(vectors, body)


def _refused(response: httpx.Response) -> JSONResponse:
    """Translate Mistral's refusal for Letta, which waits after 429, and retries after 503 only."""
    message = f"Mistral refused ({response.status_code}): {redact(response.text)[:_LONGEST_DETAIL]}"
    wait = response.headers.get("retry-after")
    status = {429: 429, 400: 400, 413: 413, 422: 400}.get(
        response.status_code, 503 if response.is_server_error else 424
    )
    return answer(status, Problem(code="vectors_refused", message=message), {"Retry-After": wait} if wait else {})


def _unavailable(source: str, message: str) -> JSONResponse:
    return answer(503, Problem(code="vectors_unavailable", message=message, details={"source": source}))


def _response(vectors: list[list[float]], body: EmbeddingsRequest) -> JSONResponse:
    data: list[dict[str, Any]] = []
    for index, vector in enumerate(vectors):
        encoded: Any = vector
        if body.encoding_format == "base64":
            encoded = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
        data.append({"object": "embedding", "index": index, "embedding": encoded})
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})
