"""The route of embeddings in the OpenAI format, which Letta calls for archival memory.

Letta cannot be given a token for it: the secret in the path admits its requests.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from isabella.agents.embedder import MODELS, Vector
from isabella.agents.embeddings import PREFIX
from isabella.errors import VectorsRefused, VectorsUnavailable
from isabella.server.errors import Problem, answer
from isabella.server.runtime import Agents

router = APIRouter()


class EmbeddingsRequest(BaseModel):
    """A request for embeddings."""

    model: str
    input: Annotated[list[str], Field(min_length=1, max_length=2048)] | str
    encoding_format: Literal["float", "base64"] = "float"


@router.post(PREFIX + "/{secret}/v1/embeddings", include_in_schema=False)
async def make_embeddings(body: EmbeddingsRequest, agent_service: Agents) -> JSONResponse:
    """Return embeddings, from Mistral or from the local model, depending on the requested model."""
    if body.model not in MODELS:
        raise HTTPException(404, "There is no such model.")
    texts = [body.input] if isinstance(body.input, str) else body.input
    try:
        vectors = await agent_service.embedder.embed(body.model, texts)
    except VectorsUnavailable as error:
        details = {"source": error.source}
        return answer(503, Problem(code="vectors_unavailable", message=error.what, details=details))
    except VectorsRefused as error:
        return _refused(error)
    return _response(vectors, body)


def _refused(refused: VectorsRefused) -> JSONResponse:
    """Translate a vendor's refusal for Letta, which waits after 429, and retries after 503 only."""
    status = {429: 429, 400: 400, 413: 413, 422: 400}.get(refused.status, 503 if refused.status >= 500 else 424)
    headers = {"Retry-After": refused.wait} if refused.wait else {}
    return answer(status, Problem(code="vectors_refused", message=refused.what), headers)


def _response(vectors: Sequence[Vector], body: EmbeddingsRequest) -> JSONResponse:
    data: list[dict[str, Any]] = []
    for index, vector in enumerate(vectors):
        encoded: Any = vector
        if body.encoding_format == "base64":
            encoded = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
        data.append({"object": "embedding", "index": index, "embedding": encoded})
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})
