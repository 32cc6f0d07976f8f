"""Where the vectors of archival memory come from, and the address at which Letta asks for them (fact M8).

Letta is given an address of this backend. It sends a bearer of its own there, which proves nothing; so the address
itself has a secret in it, kept in a file that only its owner may read. The vendor's key never goes to Letta.
"""

from __future__ import annotations

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
from isabella.system import redaction
from isabella.system.files import write_private

#: The path below which the backend serves vectors.
PREFIX = "/embeddings"
#: The provider whose key pays for vectors.
VENDOR = "mistral"

#: Text that Letta hands over at once; what it calls a chunk.
_CHUNK = 300


class VectorSource(StrEnum):
    """Where an agent's vectors come from."""

    MISTRAL = "mistral"
    LOCAL = "local"
    #: No vectors: text search as Letta does it.
    TEXT = "text"


@dataclass(frozen=True)
class SearchMethod:
    """How an agent's archival memory is searched. It stays with the agent: vectors of two models must not mix.

    Attributes:
        source: where its vectors come from.
        model: the model that makes them.
        dimensions: how long they are.
    """

    source: VectorSource
    model: str | None = None
    dimensions: int = 0

    def as_mark(self) -> dict[str, Any]:
        """The form in which the agent's metadata keeps it."""
        return {"source": self.source.value, "model": self.model, "dimensions": self.dimensions}

    @classmethod
    def of_mark(cls, mark: Mapping[str, Any] | None) -> SearchMethod | None:
        """The choice that an agent's metadata keeps; None where none was made."""
        try:
            return (
                None
                if mark is None
                else cls(VectorSource(mark["source"]), mark.get("model"), int(mark["dimensions"]))
            )
        except (KeyError, ValueError, TypeError):
            return None

    def as_config(self, address: SecretStr | None) -> dict[str, Any] | None:
        """Letta's `embedding_config`; None where there are no vectors, or no address for them."""
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
    """How new agents are searched, and where Letta asks for the vectors of all.

    Attributes:
        choice: what a new agent gets.
        address: where Letta asks; None where no backend serves it.
    """

    choice: SearchMethod
    address: SecretStr | None = None


TEXT = SearchMethod(VectorSource.TEXT)
MISTRAL = SearchMethod(VectorSource.MISTRAL, "mistral-embed", 1024)


def choose_search_method(settings: Settings, providers: tuple[Desired, ...]) -> SearchMethod:
    """What a new agent gets.

    Raises:
        ConfigurationError: the settings ask for what is not there.
    """
    wish = settings.embeddings
    key = mistral_source(providers) is not None
    if wish is Embeddings.MISTRAL and not key:
        raise ConfigurationError(
            "ISABELLA_EMBEDDINGS is mistral, but Mistral has no key.",
            remedy="Set MISTRAL_API_KEY, or choose another.",
        )
    if wish is Embeddings.LOCAL and not local_model_installed():
        raise ConfigurationError(
            "ISABELLA_EMBEDDINGS is local, but the local model is not installed.",
            remedy="Install it: pip install 'isabella[local-embeddings]'.",
        )
    if wish is Embeddings.MISTRAL or (wish is Embeddings.AUTO and key):
        return MISTRAL
    if wish is Embeddings.LOCAL or (wish is Embeddings.AUTO and local_model_installed()):
        return SearchMethod(VectorSource.LOCAL, MODEL, DIMENSIONS)
    return TEXT


def mistral_source(providers: tuple[Desired, ...]) -> Desired | None:
    """Mistral as it is configured; None where it has no key that could be used."""
    return next(
        (p for p in providers if p.vendor.name == VENDOR and p.key is not None and p.problem is None),
        None,
    )


def address_secret(home: Path) -> SecretStr:
    """The secret in the address; made once, in a file that only its owner may read.

    Raises:
        ConfigurationError: the file cannot be read or written.
    """
    path = home / "embeddings-secret"
    try:
        found = path.read_text("utf-8").strip() if path.exists() else ""
        if not found:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = random.token_urlsafe(32)
            write_private(path, found + "\n")
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be used: {error.strerror}.", remedy="Correct ISABELLA_HOME."
        ) from None
    redaction.remember(found)
    return SecretStr(found)


def address(base_url: str, secret: SecretStr) -> SecretStr:
    """Where Letta asks for vectors; it adds `/embeddings` itself.

    Args:
        base_url: the backend's own address, as Letta reaches it.
        secret: the secret in it.
    """
    return SecretStr(f"{base_url}{PREFIX}/{secret.get_secret_value()}/v1")


MODEL = "wordllama-l2-supercat-256"
DIMENSIONS = 256


def local_model_installed() -> bool:
    """Whether the extra is there."""
    return util.find_spec("wordllama") is not None


def embed_locally(texts: Sequence[str]) -> list[list[float]]:
    """The vectors of texts, each of length 1. The first call loads the model, which takes about a second.

    Raises:
        ImportError: the extra is not installed.
    """
    # A text without a single known word still needs a direction: cosine distance to nothing is no number.
    vectors = _model().embed([text if text.strip() else "." for text in texts], norm=True)
    return [[float(value) for value in vector] for vector in vectors]


@cache
def _model() -> Any:
    wordllama = import_module("wordllama")
    # The package looks for its tokenizer in a folder beside the one that it ships it in. Named as the cache, the
    # package's own folder is where it finds both, and nothing is ever downloaded.
    return wordllama.WordLlama.load(cache_dir=Path(str(wordllama.__file__)).parent, disable_download=True)
