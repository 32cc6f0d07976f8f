"""Decide which results of a vector search are relevant: Letta returns the nearest passages at any distance.

A cosine has no absolute meaning: it is about 0.1 between unrelated texts with one model, and 0.7 with another. The
query and each passage are therefore also compared with texts about unrelated things. A passage is near if its cosine
with the query is clearly higher than those.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Awaitable, Callable, Sequence
from operator import mul

import anyio.to_thread

Vector = Sequence[float]
#: Makes a vector for each text with a model.
Embed = Callable[[str, Sequence[str]], Awaitable[Sequence[Vector]]]

#: By how many standard deviations a cosine must exceed the mean of unrelated texts. With the local model, 16 of 23
#: pairs of a query and its passage did (the others shared no word, and were no nearer than unrelated texts), and none
#: of 337 unrelated pairs.
_STANDS_OUT = 2.0
_SMALLEST_DEVIATION = 0.01
_SHORTEST_PART = 3  # a shorter word must match a whole word: it is part of too many others

#: Short texts about unrelated things, in English and German.
_OTHER_THINGS = (
    "The train to the coast leaves at nine in the morning.",
    "Boil the potatoes in salted water for twenty minutes.",
    "The invoice is due at the end of the month.",
    "She plays the violin in a string quartet.",
    "A new bridge is being built across the river.",
    "He has been allergic to nuts since childhood.",
    "The football match ended without a goal.",
    "Please restart the server after the update.",
    "The museum shows paintings of the last century.",
    "Tomatoes need sun and a lot of water.",
    "Their daughter starts school in September.",
    "The flight to Lisbon was cancelled.",
    "The doctor recommends a daily walk.",
    "The meeting was moved to Thursday afternoon.",
    "The cat sleeps on the sofa all day.",
    "The novel is set in a small mining town.",
    "The rent will be raised in spring.",
    "He repairs old bicycles in his garage.",
    "The election was held last weekend.",
    "Gold is heavier than iron.",
    "They got married on a beach in June.",
    "The file could not be opened.",
    "It snowed for three days in the mountains.",
    "The recipe calls for two eggs and some flour.",
    "Der Zug an die Küste fährt um neun Uhr ab.",
    "Die Kartoffeln zwanzig Minuten in Salzwasser kochen.",
    "Die Rechnung ist am Monatsende fällig.",
    "Sie spielt Geige in einem Quartett.",
    "Über den Fluss wird eine neue Brücke gebaut.",
    "Das Spiel endete ohne ein Tor.",
    "Bitte nach der Aktualisierung den Server neu starten.",
    "Tomaten brauchen Sonne und viel Wasser.",
    "Die Tochter kommt im September in die Schule.",
    "Die Ärztin empfiehlt einen täglichen Spaziergang.",
    "Die Besprechung wurde auf Donnerstag verschoben.",
    "Der Roman spielt in einer kleinen Stadt.",
)


class RelevanceFilter:
    """Decides which passages are near to a query, by their vectors and their words."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._others: dict[str, Sequence[Vector]] = {}

    async def relevant(self, model: str, query: str, passages: Sequence[tuple[str, Vector]]) -> list[bool]:
        """Return whether each passage, given as its text and its vector of this model, is near to the query.

        Raises what `embed` raises.
        """
        if model not in self._others:
            self._others[model] = [_normal(vector) for vector in await self._embed(model, _OTHER_THINGS)]
        (vector,) = await self._embed(model, [query])
        found = [(text, _normal(passage)) for text, passage in passages]
        return await anyio.to_thread.run_sync(_decide, query, _normal(vector), found, self._others[model])


def has_words(text: str, query: str) -> bool:
    """Return whether a text contains every word of a query; short words must match whole words."""
    words, found = query.casefold().split(), text.casefold()
    whole = set(re.findall(r"\w+", found))
    return bool(words) and all(
        word in (whole if word.isascii() and len(word) < _SHORTEST_PART else found) for word in words
    )


def _decide(
    query: str, vector: Vector, passages: Sequence[tuple[str, Vector]], others: Sequence[Vector]
) -> list[bool]:
    of_query = _background(vector, others)
    return [
        has_words(text, query) or _stands_out(_cosine(vector, passage), of_query, _background(passage, others))
        for text, passage in passages
    ]


def _stands_out(cosine: float, *backgrounds: tuple[float, float]) -> bool:
    mean = max(mean for mean, _ in backgrounds)
    deviation = max(deviation for _, deviation in backgrounds)
    return cosine >= mean + _STANDS_OUT * max(deviation, _SMALLEST_DEVIATION)


def _background(vector: Vector, others: Sequence[Vector]) -> tuple[float, float]:
    """Return mean and standard deviation of the cosines with the nearer half of the texts: those in its language."""
    cosines = sorted(_cosine(vector, other) for other in others)
    nearer = cosines[len(cosines) // 2 :]
    return statistics.fmean(nearer), statistics.pstdev(nearer)


def _cosine(one: Vector, other: Vector) -> float:
    # Letta pads vectors with zeros.
    return float(sum(map(mul, one, other)))


def _normal(vector: Vector) -> Vector:
    length = math.sqrt(sum(map(mul, vector, vector)))
    return [value / length for value in vector] if length else vector
