"""What a subject of the bench brings home."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Results:
    """Figures, and what they were made of.

    Attributes:
        values: the figures by name.
        details: the medians behind them, for people.
    """

    values: dict[str, float] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float, detail: str = "") -> None:
        """Take a figure in."""
        self.values[name] = round(value, 3 if value < 10 else 1)
        if detail:
            self.details[name] = detail

    def include(self, other: Results) -> None:
        """Take all figures of another subject in."""
        self.values |= other.values
        self.details |= other.details
