"""English texts that a page can show in another language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Self

from isabella.system.redaction import redact


class English(str):
    """A text in English, with the pattern and the values that it was made of. Everywhere else it is a string."""

    __slots__ = ("pattern", "values")

    pattern: str
    values: Mapping[str, object]

    def __new__(cls, pattern: str, values: Mapping[str, object]) -> Self:
        """Return the text of a pattern with `%(name)s` for each value."""
        text = super().__new__(cls, _filled(pattern, values, ","))
        text.pattern, text.values = pattern, values
        return text

    def __getnewargs__(self) -> tuple[str, Mapping[str, object]]:  # type: ignore[override]
        """Return the arguments of a copy."""
        return self.pattern, self.values

    def translated(self, translate: Callable[[str], str], thousands: str) -> str:
        """Return the text with its pattern, and those of its values, translated."""
        values = {
            name: value.translated(translate, thousands) if isinstance(value, English) else value
            for name, value in self.values.items()
        }
        return _filled(translate(self.pattern), values, thousands)


def english(pattern: str, /, **values: object) -> str:
    """Return a text that can be translated. The catalogues have the pattern; values are names, numbers and texts."""
    return English(pattern, values)


class Clause(English):
    """A sentence as the rest of another one: without its full stop, and with a small letter at its article."""

    __slots__ = ()

    def __new__(cls, pattern: str, values: Mapping[str, object]) -> Self:
        """Return the clause of a sentence with this pattern."""
        begins_with_article = pattern.startswith(("A ", "No ", "The "))
        first = pattern[0].lower() if begins_with_article else pattern[0]
        clause = super().__new__(cls, first + pattern[1:].rstrip("."), values)
        clause.pattern = pattern
        return clause

    def translated(self, translate: Callable[[str], str], thousands: str) -> str:
        """Return the translated sentence without its full stop."""
        return super().translated(translate, thousands).rstrip(".")


def clause(sentence: str) -> str:
    """Return a sentence as the rest of another one; one that can be translated stays so."""
    pattern, values = (sentence.pattern, sentence.values) if isinstance(sentence, English) else (sentence, {})
    return Clause(pattern, values) if sentence else ""


def joined(texts: Sequence[str], between: str = " ") -> str:
    """Return texts one after the other; those that can be translated stay so."""
    if len(texts) < 2:
        return texts[0] if texts else ""
    pattern = "%(one)s" + between + "%(others)s"
    return English(pattern, {"one": texts[0], "others": joined(texts[1:], between)})


def packed(text: str) -> object:
    """Return a text as JSON for another process, which `unpacked` makes a text again that can be translated."""
    if not isinstance(text, English):
        return text
    return [
        text.pattern,
        {name: packed(value if isinstance(value, str) else str(value)) for name, value in text.values.items()},
    ]


def unpacked(document: object) -> str:
    """Return the text that `packed` was given, with secrets masked in what it quotes."""
    if not isinstance(document, list):
        return redact(str(document))
    pattern, values = document
    return English(pattern, {name: unpacked(value) for name, value in values.items()})


def _filled(pattern: str, values: Mapping[str, object], thousands: str) -> str:
    shown = {
        name: f"{value:,}".replace(",", thousands) if type(value) is int else value for name, value in values.items()
    }
    return pattern % shown if shown else pattern
