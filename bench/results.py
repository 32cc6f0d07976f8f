"""The results of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Results:
    """Figures and the measurements behind them.

    Attributes:
        values: the figures by name.
        details: the medians behind them, as text.
    """

    values: dict[str, float] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float, detail: str = "") -> None:
        """Add a figure."""
        self.values[name] = round(value, 3 if value < 10 else 1)
        if detail:
            self.details[name] = detail

    def include(self, other: Results) -> None:
        """Add all figures of other results."""
        self.values |= other.values
        self.details |= other.details
