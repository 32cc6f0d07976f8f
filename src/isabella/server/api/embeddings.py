"""Vectors for archival memory, in the OpenAI format, at an address that only Letta knows.

Letta sends a bearer of its own, which proves nothing; the secret in the path does. The vendor's key is added here.
"""

from __future__ import annotations

import base64
import hmac
import struct
from typing import Annotated, Any, Literal

import anyio.to_thread
import httpx2 as httpx
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from isabella.agents import embeddings
from isabella.agents.embeddings import MISTRAL, PREFIX, address_secret, mistral_source
from isabella.providers.desired import Desired
from isabella.server.errors import Problem, answer
from isabella.server.runtime import Agents
from isabella.system.redaction import redact
from isabella.system.urls import client_options

router = APIRouter()

#: Texts that Mistral is given at once.
_BATCH = 64
_SAID_LIMIT = 200


class Wanted(BaseModel):
    """A request for vectors."""

    model_config = ConfigDict(extra="ignore")

    model: str
    input: Annotated[list[str], Field(min_length=1, max_length=2048)] | str
    encoding_format: Literal["float", "base64"] = "float"


@router.post(PREFIX + "/{secret}/v1/embeddings", include_in_schema=False)
async def make_embeddings(secret: str, wanted: Wanted, agent_service: Agents) -> JSONResponse:
    """Make vectors, by Mistral or by the local model, as the agent was made with."""
    own = address_secret(agent_service.connection.home).get_secret_value()
    if not hmac.compare_digest(secret.encode(), own.encode()):
        # Not 401: whoever does not know the address is not told that there is one.
        raise HTTPException(404, "Not Found")
    texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    match wanted.model:
        case MISTRAL.model:
            provider = mistral_source(agent_service.models.providers)
            if provider is None:
                return _unavailable("mistral", "Mistral has no key any more; this agent's vectors are Mistral's.")
            return await _of_mistral(provider, texts, wanted, agent_service.settings.timeout)
        case embeddings.MODEL:
            if not embeddings.local_model_installed():
                return _unavailable("local", "The local model is not installed any more: isabella[local-embeddings].")
            vectors = await anyio.to_thread.run_sync(embeddings.embed_locally, texts)
            return _answer(vectors, wanted)
        case _:
            raise HTTPException(404, "There is no such model.")


async def _of_mistral(provider: Desired, texts: list[str], wanted: Wanted, timeout: float) -> JSONResponse:
    key = provider.key
    if key is None:
        return _unavailable("mistral", "Mistral has no key.")
    vectors: list[list[float]] = []
    async with httpx.AsyncClient(timeout=timeout, **client_options(provider.base_url)) as client:
        for start in range(0, len(texts), _BATCH):
            body = {"model": MISTRAL.model, "input": texts[start : start + _BATCH]}
            headers = {"Authorization": f"Bearer {key.get_secret_value()}"}
            try:
                response = await client.post(f"{provider.base_url}/embeddings", json=body, headers=headers)
            except httpx.RequestError as error:
                return _unavailable("mistral", f"Mistral cannot be reached: {redact(str(error)) or 'no answer'}.")
            if response.status_code != 200:
                return _refused(response)
            try:
                rows = sorted(response.json()["data"], key=lambda row: row["index"])
                vectors += [[float(value) for value in row["embedding"]] for row in rows]
            except (ValueError, KeyError, TypeError):
                return _unavailable("mistral", "What Mistral answered are no vectors.")
    if len(vectors) != len(texts) or any(len(vector) != MISTRAL.dimensions for vector in vectors):
        return _unavailable("mistral", "Mistral answered with vectors of another number or length.")
    return _answer(vectors, wanted)


def _refused(response: httpx.Response) -> JSONResponse:
    """What Mistral refused, as Letta can act on it: it waits after 429 and tries again after 503, nothing else."""
    said = f"Mistral refused ({response.status_code}): {redact(response.text)[:_SAID_LIMIT]}"
    wait = response.headers.get("retry-after")
    headers = {"Retry-After": wait} if wait else {}
    status = {429: 429, 400: 400, 413: 413, 422: 400}.get(
        response.status_code, 503 if response.is_server_error else 424
    )
    return answer(status, Problem(code="vectors_refused", message=said), headers)


def _unavailable(source: str, message: str) -> JSONResponse:
    return answer(503, Problem(code="vectors_unavailable", message=message, details={"source": source}))


def _answer(vectors: list[list[float]], wanted: Wanted) -> JSONResponse:
    data: list[dict[str, Any]] = []
    for index, vector in enumerate(vectors):
        shown: Any = vector
        if wanted.encoding_format == "base64":
            shown = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
        data.append({"object": "embedding", "index": index, "embedding": shown})
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return JSONResponse({"object": "list", "data": data, "model": wanted.model, "usage": usage})
