"""Vendors' errors without the parts of a request that they quote, so that no prompt is kept with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

#: The longest error that is looked at, and that is kept, in characters.
LONGEST = 500
#: The shortest quoted part in characters, as texts that are equal by chance are shorter; and a whole message.
_SHORTEST_PART = 24
_SHORTEST_WHOLE = 6
#: Of a part of the shortest length, this many characters lie between two multiples of the same number.
_WINDOW = _SHORTEST_PART // 2
_OMITTED = "[…]"


def without_quotes(words: str, request: Mapping[str, Any] | None) -> str:
    """Return the start of an error without what it quotes from the messages or inputs of a request."""
    words = words[:LONGEST]
    texts = list(_texts(request or {}))
    for text in {text.strip() for text in texts}:
        if _SHORTEST_WHOLE <= len(text) < _SHORTEST_PART:
            words = words.replace(text, _OMITTED)
    return _without_parts(words, "\n".join(texts))


def _without_parts(words: str, text: str) -> str:
    kept, done, at = "", 0, 0
    while at + _WINDOW <= len(words):
        start, end = _part(words, text, done, at)
        if end - start < _SHORTEST_PART:
            at += _WINDOW
        else:
            kept += words[done:start] + _OMITTED
            done = at = end
    return kept + words[done:]


def _part(words: str, text: str, first: int, at: int) -> tuple[int, int]:
    """Return the longest part around a window of the words that is in the text, from a first index on; or nothing."""
    if words[at : at + _WINDOW] not in text:
        return at, at
    start = at - _longest(at - first, lambda length: words[at - length : at + _WINDOW] in text)
    end = start + _longest(len(words) - start, lambda length: words[start : start + length] in text)
    return start, end


def _longest(most: int, fits: Callable[[int], bool]) -> int:
    """Return the greatest length that fits, if every shorter one does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _texts(request: Mapping[str, Any]) -> Iterator[str]:
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            yield from _strings([message.get("content"), message.get("tool_calls"), message.get("reasoning_content")])
    yield from _strings([request.get("input"), request.get("prompt")])


def _strings(value: object) -> Iterator[str]:
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                yield text
            case list() as items:
                waiting += items
            case dict() as fields:
                waiting += fields.values()
