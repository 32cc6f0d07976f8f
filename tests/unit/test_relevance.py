"""Which passages are near to a query: by vectors that stand out from unrelated ones, or by words."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

import anyio
import pytest

from isabella.agents.relevance import RelevanceFilter, has_words

DIMENSIONS = 64


def noise(text: str) -> list[float]:
    """A vector of about length 1 for each text, unrelated to those of others."""
    source = random.Random(zlib.crc32(text.encode()))
    return [source.gauss(0, DIMENSIONS**-0.5) for _ in range(DIMENSIONS)]


def axis(number: int) -> list[float]:
    """A direction."""
    return [1.0 if index == number else 0.0 for index in range(DIMENSIONS)]


class Model:
    """A model whose vectors all share a direction, as those of real models do; texts about dogs share another."""

    def __init__(self, common: float) -> None:
        self.common = common
        self.asked: list[Sequence[str]] = []

    def vector(self, text: str) -> list[float]:
        """The vector of a text."""
        own = noise(text)
        if "dog" in text or "Rex" in text:
            own = [0.7 * topic + 0.3 * each for topic, each in zip(axis(1), own, strict=True)]
        return [self.common * base + (1 - self.common) * each for base, each in zip(axis(0), own, strict=True)]

    async def embed(self, _model: str, texts: Sequence[str]) -> list[list[float]]:
        """The vectors of texts."""
        self.asked.append(texts)
        return [self.vector(text) for text in texts]


@pytest.mark.parametrize("common", [0.0, 0.3, 0.5])
def test_what_stands_out_is_near_whatever_the_model(common: float) -> None:
    """Of two passages only the related one is near, also if all texts of the model are alike."""
    model = Model(common)
    passages = [(text, model.vector(text)) for text in ("Rex likes the beach.", "The boiler was repaired.")]
    near = anyio.run(RelevanceFilter(model.embed).relevant, "m", "my dog", passages)
    assert near == [True, False]


def test_a_passage_with_the_words_is_near() -> None:
    """Even if its vector says nothing."""
    model = Model(0.3)
    passages = [("The boiler was repaired in May.", [0.0] * DIMENSIONS)]
    assert anyio.run(RelevanceFilter(model.embed).relevant, "m", "BOILER may", passages) == [True]


def test_the_texts_to_compare_with_are_embedded_once() -> None:
    """A second search asks for the vector of its query only, and vectors that Letta padded are understood."""
    model = Model(0.3)
    relevance = RelevanceFilter(model.embed)
    passage = ("Rex likes the beach.", [*model.vector("Rex"), *[0.0] * 100])
    for query in ("my dog", "a dog"):
        assert anyio.run(relevance.relevant, "m", query, [passage]) == [True]
    assert [len(texts) for texts in model.asked] == [36, 1, 1]


@pytest.mark.parametrize(
    ("text", "query", "found"),
    [
        ("The boiler was repaired.", "boil", True),
        ("The boiler was repaired.", "boiler rent", False),
        ("A cat.", "a", True),
        ("The cat.", "a", False),
        ("東京に住んでいる", "東京", True),
        ("Anything.", " ", False),
    ],
)
def test_words(text: str, query: str, found: bool) -> None:
    """Every word has to be there; a short one as a whole word."""
    assert has_words(text, query) is found
