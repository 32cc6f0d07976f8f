"""Embedding vectors without a model: hashed words and parts of words, so that similar texts lie near each other."""

from __future__ import annotations

import base64
import math
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from isabella.practice.profiles import ListedModel

_WORD = re.compile(r"[^\W_]+")
_COMMON_TEXT = """
a an the and or of to in on at is are was were be it that this for with what which who
"""
_COMMON = frozenset(_COMMON_TEXT.split())
_WHOLE_WORD_WEIGHT = 2.0
_PART_LENGTH = 3


def embed(text: str, dimensions: int) -> list[float]:
    """The vector of a text, of length 1; the same in every run and on every machine."""
    vector = [0.0] * dimensions
    for word in _WORD.findall(text.lower()):
        weight = 0.1 if word in _COMMON else 1.0
        _add(vector, word, weight * _WHOLE_WORD_WEIGHT)
        framed = f"<{word}>"
        for start in range(len(framed) - _PART_LENGTH + 1):
            _add(vector, framed[start : start + _PART_LENGTH], weight)
    norm = math.sqrt(sum(value * value for value in vector))
    if norm == 0.0:
        # An empty text still needs a direction: a zero vector breaks cosine distance.
        vector[0] = norm = 1.0
    return [value / norm for value in vector]


def answer(
    model: ListedModel, called: str, texts: Sequence[str], *, as_base64: bool, identity: str
) -> dict[str, Any]:
    """The body of an embeddings answer."""
    dimensions = model.dimensions or 0
    data = []
    for index, text in enumerate(texts):
        vector: Any = embed(text, dimensions)
        if as_base64:
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode("ascii")
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(max(1, len(text) // 4) for text in texts)
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    return {"id": identity, "object": "list", "data": data, "model": called, "usage": usage}


def _add(vector: list[float], part: str, weight: float) -> None:
    # The sign keeps parts that fall on the same place from adding up to a likeness.
    code = zlib.crc32(part.encode())
    vector[code % len(vector)] += weight if code & 0x8000_0000 else -weight
