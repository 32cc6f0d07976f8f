"""Model servers whose OpenAI-compatible list leaves out the window: their own routes are asked as well."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import httpx2 as httpx

from isabella.system.tasks import gather
from isabella.vendors.model_lists import (
    ListedModel,
    llama_cpp_window,
    ollama_loaded,
    ollama_model,
    parse_models,
)

Models = dict[str, ListedModel]

_SECONDS = 3.0
_MOST_SHOWN = 64  # a person may have many models in Ollama, and each is one request
_AT_ONCE = 4
#: The owner that OpenAI-compatible lists of these servers name.
_LLAMA_CPP, _LM_STUDIO, _OLLAMA = "llamacpp", "organization_owner", "library"


async def completed(client: httpx.AsyncClient, base_url: str, listed: Mapping[str, ListedModel]) -> Models:
    """Return the models with the values of the server's other routes. Without an answer they stay as they are."""
    models = dict(listed)
    if base_url.endswith("/v1") and any(model.window is None for model in models.values()):
        root = base_url.removesuffix("/v1")
        with anyio.move_on_after(_SECONDS):
            for ask in _asked(models):
                models = await ask(client, root, models)
    return models


def _asked(models: Models) -> list[Callable[[httpx.AsyncClient, str, Models], Awaitable[Models]]]:
    owners = {model.owner for model in models.values()}
    # Every id in Ollama has a tag; a model from elsewhere has another owner.
    ollama = _OLLAMA in owners or all(":" in id for id in models)
    known = ((_LLAMA_CPP in owners, _llama_cpp), (_LM_STUDIO in owners, _lm_studio), (ollama, _ollama))
    return [ask for asked, ask in known if asked]


async def _llama_cpp(client: httpx.AsyncClient, root: str, models: Models) -> Models:
    window = llama_cpp_window(await _json(client, "GET", f"{root}/props"))
    return {id: model if model.window else replace(model, window=window) for id, model in models.items()}


async def _lm_studio(client: httpx.AsyncClient, root: str, models: Models) -> Models:
    own = parse_models(await _json(client, "GET", f"{root}/api/v0/models")) or {}
    return {id: own.get(id, model) for id, model in models.items()}


async def _ollama(client: httpx.AsyncClient, root: str, models: Models) -> Models:
    loaded = ollama_loaded(await _json(client, "GET", f"{root}/api/ps"))

    async def described(model: ListedModel) -> ListedModel:
        own = ollama_model(model.id, await _json(client, "POST", f"{root}/api/show", {"model": model.id}))
        return replace(
            model,
            window=loaded.get(model.id) or own.window,
            converses=model.converses and own.converses,
            tools=own.tools,
        )

    asked = [*models.values()][:_MOST_SHOWN]
    shown = await gather([partial(described, model) for model in asked], at_once=_AT_ONCE)
    return models | {model.id: model for model in shown}


async def _json(client: httpx.AsyncClient, method: str, url: str, body: Any = None) -> Any:
    """Return the JSON that a route answers with; None for anything else."""
    try:
        response = await client.request(method, url, json=body)
        return response.json() if response.is_success else None
    except (httpx.RequestError, ValueError):
        return None
