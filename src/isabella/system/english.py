"""English texts that a page can show in another language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


class English(str):
    """A text in English, with the pattern and the values that it was made of. Everywhere else it is a string."""

    __slots__ = ("pattern", "values")

    pattern: str
    values: Mapping[str, object]

    def __new__(cls, pattern: str, values: Mapping[str, object]) -> English:
        """Return the text of a pattern with `%(name)s` for each value."""
        text = super().__new__(cls, _filled(pattern, values, ","))
        text.pattern, text.values = pattern, values
        return text

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


def joined(texts: Sequence[str], between: str = " ") -> str:
    """Return texts one after the other; those that can be translated stay so."""
    if len(texts) < 2:
        return texts[0] if texts else ""
    pattern = "%(one)s" + between + "%(others)s"
    return English(pattern, {"one": texts[0], "others": joined(texts[1:], between)})


def _filled(pattern: str, values: Mapping[str, object], thousands: str) -> str:
    shown = {
        name: f"{value:,}".replace(",", thousands) if type(value) is int else value for name, value in values.items()
    }
    return pattern % shown if shown else pattern
