"""A vendor's list of its models: windows, prices and ends of life, in the formats of vendors and local servers.

One table names the fields of all formats, because no two vendors mean different things by one field name. A field
that is missing, or of an unexpected type, says nothing: a list is never refused because of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

#: The field of each fact, by its path; the first one that a model has counts. The window with which a local server
#: runs a model comes before the largest one that the model knows.
_WINDOW = (
    "loaded_context_length",  # LM Studio
    "meta.n_ctx",  # llama.cpp
    "max_model_len",  # vLLM
    "top_provider.context_length",  # OpenRouter: of the vendor that it asks first
    "context_window",  # Groq
    "max_context_length",  # Mistral, LM Studio
    "context_length",  # OpenRouter, Together, Fireworks, Cerebras with format=openrouter
    "limits.max_context_length",  # Cerebras, public list
    "inputTokenLimit",  # Gemini
)
_OUTPUT = (
    "max_completion_tokens",  # Groq
    "top_provider.max_completion_tokens",
    "max_output_length",  # Cerebras
    "limits.max_completion_tokens",
    "outputTokenLimit",
)
_END = (
    "deprecation",  # Mistral
    "shutdown_date",  # OpenAI
    "expiration_date",  # OpenRouter
    "deprecation_date",
)
_REPLACEMENT = ("deprecation_replacement_model", "replacement_model")
_CREATED = ("created",)
#: US dollars for a million tokens, or for one token.
_PRICES = (
    ("pricing.input", "pricing.output", 1),  # Together
    ("pricing.prompt", "pricing.completion", 1_000_000),  # OpenRouter, Cerebras
)
_NO_CHAT_KINDS = frozenset(
    ("embedding", "embeddings", "image", "audio", "video", "moderation", "rerank", "transcribe", "speech")
)
#: Ids of models for something else than conversations, of vendors that do not say so.
_NO_CHAT_ID = re.compile(
    r"(?:^|[-_/.:])(?:embed(?:ding)?s?|whisper|tts|dall-e|moderation|rerank(?:er)?|realtime|transcribe|image|images"
    r"|sora|imagen|veo|lyria|aqa|guard|safeguard|davinci|babbage|audio|live|instruct-0914|ocr|asr)(?:$|[-_/.:\d])"
)
_ID_PREFIX = "models/"  # Gemini puts it before each id, and accepts ids without it


@dataclass(frozen=True)
class ListedModel:
    """A model as its vendor lists it; None for values that the vendor does not state.

    Attributes:
        window: the context window in tokens.
        max_output: the largest number of output tokens.
        input_price, output_price: US dollars per million tokens.
        end: the day on which the vendor retires it.
        deprecated: whether the vendor says that it will be retired.
        replacement: the id of the model that the vendor names in its place.
        converses: whether it holds conversations, by the list or by its id.
        tools: whether it calls tools.
        active: whether it can be used now.
        created: the time of its publication, in seconds since the epoch.
        owner: who owns it: for a local server, often the name of its program.
    """

    id: str
    window: int | None = None
    max_output: int | None = None
    input_price: float | None = None
    output_price: float | None = None
    end: date | None = None
    deprecated: bool = False
    replacement: str | None = None
    converses: bool = True
    tools: bool | None = None
    active: bool = True
    created: float | None = None
    owner: str | None = None

    @property
    def ending(self) -> bool:
        """Whether its vendor has announced its end."""
        return self.deprecated or self.end is not None


def parse_models(document: Any) -> dict[str, ListedModel] | None:
    """Return the models of a list by id, in its order; None if this is not a list of models.

    It is an object with `data`, as OpenAI's is, or a bare array, as Together's is.
    """
    items = document.get("data") if isinstance(document, dict) else document
    if not isinstance(items, list) or not all(_is_model(item) for item in items):
        return None
    models = (_model(item) for item in items)
    return {model.id: model for model in models}


def llama_cpp_window(props: Any) -> int | None:
    """Return the window that `GET /props` of a llama.cpp server reports: the one of each of its slots."""
    return _first_number(props, ("default_generation_settings.n_ctx", "n_ctx"))


def ollama_model(id: str, shown: Any) -> ListedModel:
    """Return a model as `POST /api/show` of Ollama describes it.

    Its window is the parameter `num_ctx`, which Ollama runs it with. The largest one that the model knows says
    nothing about that: without the parameter, the server's own setting counts.
    """
    parameters = _at(shown, "parameters")
    found = re.search(r"^num_ctx\s+(\d+)", parameters, re.MULTILINE) if isinstance(parameters, str) else None
    abilities = _at(shown, "capabilities")
    known = isinstance(abilities, list)
    return ListedModel(
        id,
        window=int(found[1]) if found else None,
        converses="completion" in abilities if known else True,
        tools="tools" in abilities if known else None,
    )


def ollama_loaded(running: Any) -> dict[str, int]:
    """Return the windows of the loaded models by id, as `GET /api/ps` of Ollama reports them."""
    items = _at(running, "models")
    loaded = {}
    for item in items if isinstance(items, list) else ():
        id, window = _at(item, "name") or _at(item, "model"), _first_number(item, ("context_length",))
        if isinstance(id, str) and window is not None:
            loaded[id] = window
    return loaded


def _is_model(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("id"), str)


def _model(item: Mapping[str, Any]) -> ListedModel:
    input_price, output_price = _prices(item)
    owner = item.get("owned_by")
    replacement = next((value for value in _values(item, _REPLACEMENT) if isinstance(value, str)), None)
    return ListedModel(
        id=item["id"].removeprefix(_ID_PREFIX),
        window=_first_number(item, _WINDOW),
        max_output=_first_number(item, _OUTPUT),
        input_price=input_price,
        output_price=output_price,
        end=next((day for value in _values(item, _END) if (day := _day(value)) is not None), None),
        deprecated=item.get("deprecated") is True,
        replacement=replacement or None,
        converses=_converses(item),
        tools=_tools(item),
        active=item.get("active") is not False,
        created=_first_number(item, _CREATED),
        owner=owner if isinstance(owner, str) else None,
    )


def _converses(item: Mapping[str, Any]) -> bool:
    stated = (_at(item, "capabilities.completion_chat"), item.get("supports_chat"))
    if False in stated or str(item.get("type")).lower() in _NO_CHAT_KINDS:
        return False
    outputs = _at(item, "architecture.output_modalities") or item.get("output_modalities")
    if isinstance(outputs, list) and "text" not in outputs:
        return False
    return True in stated or _NO_CHAT_ID.search(item["id"].lower()) is None


def _tools(item: Mapping[str, Any]) -> bool | None:
    for value in _values(item, ("capabilities.function_calling", "supports_tools", "capabilities.tools")):
        if isinstance(value, bool):
            return value
    for value in _values(item, ("supported_parameters", "supported_features")):
        if isinstance(value, list):
            return "tools" in value
    # LM Studio leaves the list out, or `tool_use` out of it, for a model that was not trained for tools.
    abilities = item.get("capabilities")
    return "tool_use" in abilities if isinstance(abilities, list) else None


def _prices(item: Mapping[str, Any]) -> tuple[float | None, float | None]:
    for input_path, output_path, tokens in _PRICES:
        prices = [_price(_at(item, path), tokens) for path in (input_path, output_path)]
        if any(price is not None for price in prices):
            return prices[0], prices[1]
    return None, None


def _price(value: Any, tokens: int) -> float | None:
    """Return a price for a million tokens. OpenRouter says -1 for a price that depends on the request."""
    with suppress(TypeError, ValueError, OverflowError):
        price = round(float(value) * tokens, 6)
        return price if 0 <= price < math.inf else None
    return None


def _day(value: Any) -> date | None:
    """Return the day of a date, a time or a number of seconds since the epoch."""
    with suppress(ValueError, OverflowError, OSError):
        if isinstance(value, str):
            return datetime.fromisoformat(value).date()
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return datetime.fromtimestamp(value, UTC).date()
    return None


def _first_number(item: Any, paths: tuple[str, ...]) -> int | None:
    numbers = (value for value in _values(item, paths) if isinstance(value, int) and not isinstance(value, bool))
    return next((number for number in numbers if number > 0), None)


def _values(item: Any, paths: tuple[str, ...]) -> Iterator[Any]:
    return (_at(item, path) for path in paths)


def _at(item: Any, path: str) -> Any:
    """Return the value at a path of keys; None if there is none."""
    for key in path.split("."):
        item = item.get(key) if isinstance(item, dict) else None
    return item
