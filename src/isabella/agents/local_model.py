"""A small model on this machine that makes vectors, where the extra `local-embeddings` is installed.

WordLlama ships its weights (16 MB) in the package and needs no network, no GPU and no deep-learning framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module, util
from pathlib import Path
from typing import Any

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
