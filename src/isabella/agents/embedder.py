"""The embeddings of archival memory: from Mistral, or from the local model. The last ones are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import anyio.to_thread
import httpx2 as httpx

from isabella.agents import embeddings
from isabella.agents.embeddings import MISTRAL, mistral_source
from isabella.agents.model_catalog import ModelCatalog
from isabella.errors import VectorsRefused, VectorsUnavailable
from isabella.providers.desired import Desired
from isabella.system.english import english
from isabella.system.redaction import redact
from isabella.system.urls import client_options

#: The models that it knows.
MODELS = frozenset({str(MISTRAL.model), embeddings.MODEL})

_BATCH = 64  # texts per request to Mistral
_LONGEST_DETAIL = 200
_KEPT, _LONGEST_KEPT = 128, 1000  # how many vectors are kept, and of how long texts at most

_NEEDS_KEY = english("Put one into MISTRAL_API_KEY.")
_LATER = english("Try again later; `isabella doctor` checks the vendor.")

Vector = Sequence[float]


class Embedder:
    """Makes embeddings. Letta asks for the one of a query; when the distances are computed, it is still here."""

    def __init__(self, models: ModelCatalog, timeout: float) -> None:
        self._models = models
        self._timeout = timeout
        self._kept: OrderedDict[tuple[str, str], Vector] = OrderedDict()

    async def embed(self, model: str, texts: Sequence[str]) -> list[Vector]:
        """Return a vector for each text, from one of `MODELS`. Raises `VectorsUnavailable` or `VectorsRefused`."""
        new = [text for text in dict.fromkeys(texts) if (model, text) not in self._kept]
        made = dict(zip(new, await self._make(model, new), strict=True)) if new else {}
        found = [made[text] if text in made else self._kept[model, text] for text in texts]
        for text, vector in zip(texts, found, strict=True):
            self._keep(model, text, vector)
        return found

    def _keep(self, model: str, text: str, vector: Vector) -> None:
        if len(text) > _LONGEST_KEPT:
            return
        self._kept[model, text] = vector
        self._kept.move_to_end((model, text))
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    async def _make(self, model: str, texts: list[str]) -> Sequence[Vector]:
        if model == embeddings.MODEL:
            if not embeddings.local_model_installed():
                raise VectorsUnavailable(
                    english("The local model is no longer installed."),
                    source="local",
                    remedy=english("Install isabella[local-embeddings], and restart the backend."),
                )
            return await anyio.to_thread.run_sync(embeddings.embed_locally, texts)
        provider = mistral_source(self._models.providers)
        if provider is None:
            raise _unavailable(
                english("Mistral no longer has a key, and this agent's embeddings come from Mistral."), _NEEDS_KEY
            )
        return await self._from_mistral(provider, texts)

    async def _from_mistral(self, provider: Desired, texts: list[str]) -> list[Vector]:
        if provider.key is None:
            raise _unavailable(english("Mistral has no key."), _NEEDS_KEY)
        headers = {"Authorization": f"Bearer {provider.key.get_secret_value()}"}
        vectors: list[Vector] = []
        async with httpx.AsyncClient(timeout=self._timeout, **client_options(provider.reached_at)) as client:
            for start in range(0, len(texts), _BATCH):
                batch = {"model": MISTRAL.model, "input": texts[start : start + _BATCH]}
                try:
                    response = await client.post(f"{provider.reached_at}/embeddings", json=batch, headers=headers)
                except httpx.RequestError as error:
                    raise _unavailable(
                        english("Mistral cannot be reached: %(why)s.", why=redact(str(error)) or "no answer")
                    ) from None
                if response.status_code != 200:
                    raise _refused(response)
                try:
                    rows = sorted(response.json()["data"], key=lambda row: row["index"])
                    vectors += [[float(value) for value in row["embedding"]] for row in rows]
                except (ValueError, KeyError, TypeError):
                    raise _unavailable(english("Mistral's answer contains no embeddings.")) from None
        if len(vectors) != len(texts) or any(len(vector) != MISTRAL.dimensions for vector in vectors):
            raise _unavailable(english("Mistral answered with embeddings of another number or length."))
        return vectors


def _unavailable(what: str, remedy: str = _LATER) -> VectorsUnavailable:
    return VectorsUnavailable(what, source="mistral", remedy=remedy)


def _refused(response: httpx.Response) -> VectorsRefused:
    what = english(
        "Mistral refused (%(status)s): %(why)s",
        status=response.status_code,
        why=redact(response.text)[:_LONGEST_DETAIL],
    )
    return VectorsRefused(
        what, status=response.status_code, retry_after=response.headers.get("retry-after"), remedy=_LATER
    )
