"""Embeddings for archival memory: which model makes them, and the URL at which Letta requests them (fact M8).

Letta requests embeddings from this backend, with its own bearer token, which proves nothing. So the URL has a
secret in it, which is kept in a file that only its owner may read. The vendor's key never goes to Letta.
"""

from __future__ import annotations

import re
import secrets as random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import import_module, util
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from isabella.config.settings import Embeddings, Settings
from isabella.errors import ConfigurationError
from isabella.providers.desired import Desired
from isabella.system import state
from isabella.system.english import english

PREFIX = "/embeddings"  # the path below which the backend serves embeddings
VENDOR = "mistral"  # the provider whose key pays for embeddings
MODEL, DIMENSIONS = "wordllama-l2-supercat-256", 256  # the local model, and the length of its vectors

_SECRET_FORM = re.compile(r"[\w-]{32,}", re.ASCII)
_CHUNK = 300  # the text that Letta embeds at once; it calls this a chunk


class VectorSource(StrEnum):
    """The source of an agent's vectors."""

    MISTRAL = "mistral"
    LOCAL = "local"
    TEXT = "text"  # no vectors: Letta's text search


@dataclass(frozen=True)
class SearchMethod:
    """The search method of an agent's archival memory. It never changes: vectors of two models must not be mixed."""

    source: VectorSource  # the source of its vectors
    model: str | None = None
    dimensions: int = 0  # the length of its vectors

    def as_metadata(self) -> dict[str, Any]:
        """Return the form in the agent's metadata."""
        return {"source": self.source.value, "model": self.model, "dimensions": self.dimensions}

    @classmethod
    def from_metadata(cls, mark: Mapping[str, Any] | None) -> SearchMethod | None:
        """Return the method in an agent's metadata; None if there is none, or it cannot be read."""
        if mark is None:
            return None
        try:
            return cls(VectorSource(mark["source"]), mark.get("model"), int(mark["dimensions"]))
        except (KeyError, ValueError, TypeError):
            return None

    def as_config(self, address: SecretStr | None) -> dict[str, Any] | None:
        """Return Letta's `embedding_config`; None without vectors, or without a URL for them."""
        if self.source is VectorSource.TEXT or address is None:
            return None
        return {
            "embedding_endpoint_type": "openai",
            "embedding_endpoint": address.get_secret_value(),
            "embedding_model": self.model,
            "embedding_dim": self.dimensions,
            "embedding_chunk_size": _CHUNK,
        }


@dataclass(frozen=True)
class EmbeddingSetup:
    """The search method of new agents, and where Letta requests embeddings."""

    choice: SearchMethod
    address: SecretStr | None = None  # the URL for Letta; None if no backend serves it


TEXT = SearchMethod(VectorSource.TEXT)
MISTRAL = SearchMethod(VectorSource.MISTRAL, "mistral-embed", 1024)


def choose_search_method(settings: Settings, providers: tuple[Desired, ...]) -> SearchMethod:
    """Return the search method of new agents; `ConfigurationError` if the configured one is not available."""
    configured = settings.embeddings
    if configured in (Embeddings.MISTRAL, Embeddings.AUTO) and mistral_source(providers) is not None:
        return MISTRAL
    if configured is Embeddings.MISTRAL:
        raise ConfigurationError(
            english("ISABELLA_EMBEDDINGS is mistral, but Mistral has no key."),
            remedy=english("Set MISTRAL_API_KEY, or choose another."),
        )
    if configured in (Embeddings.LOCAL, Embeddings.AUTO) and local_model_installed():
        return SearchMethod(VectorSource.LOCAL, MODEL, DIMENSIONS)
    if configured is Embeddings.LOCAL:
        raise ConfigurationError(
            english("ISABELLA_EMBEDDINGS is local, but the local model is not installed."),
            remedy=english("Install it: pip install 'isabella[local-embeddings]'."),
        )
    return TEXT


def mistral_source(providers: tuple[Desired, ...]) -> Desired | None:
    """Return Mistral as it is configured; None if it has no usable key."""
    usable = (one for one in providers if one.vendor.name == VENDOR and one.key is not None and one.problem is None)
    return next(usable, None)


def address_secret(home: Path) -> SecretStr:
    """Return the secret of the URL. It is created once, in a file that only its owner may read."""
    path = home / "embeddings-secret"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret, _ = state.read_or_make_secret(path, _SECRET_FORM, lambda: random.token_urlsafe(32))
    except OSError as error:
        what = f"{path}: cannot be used: {state.why(error)}."
        raise ConfigurationError(what, remedy="Correct ISABELLA_HOME.") from None
    return SecretStr(secret)


def address(base_url: str, secret: SecretStr) -> SecretStr:
    """Return the URL for Letta, which appends `/embeddings`, from the backend's base URL as Letta reaches it."""
    return SecretStr(f"{base_url}{PREFIX}/{secret.get_secret_value()}/v1")


def local_model_installed() -> bool:
    """Return whether the extra `local-embeddings` is installed."""
    return util.find_spec("wordllama") is not None


def embed_locally(texts: Sequence[str]) -> list[list[float]]:
    """Return vectors of length 1 for texts. The first call loads the model, which takes about a second."""
    # A text without a known word needs a direction, too: cosine distance to nothing is not defined.
    vectors = _model().embed([text if text.strip() else "." for text in texts], norm=True)
    return [[float(value) for value in vector] for vector in vectors]


@cache
def _model() -> Any:
    wordllama = import_module("wordllama")
    # The package looks for its tokenizer beside the folder in which it ships it. With its own folder as the cache it
    # finds both, and downloads nothing.
    return wordllama.WordLlama.load(cache_dir=Path(str(wordllama.__file__)).parent, disable_download=True)
