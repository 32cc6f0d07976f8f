"""The results of a benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Spread:
    """The smallest and the largest value of the runs, or of the pairs of runs that were compared; their number."""

    least: float
    most: float
    runs: int

    def __str__(self) -> str:
        return f"{self.least:g} to {self.most:g} ({self.runs})"


@dataclass(frozen=True)
class Measured:
    """One measured figure.

    Attributes:
        value: the figure.
        detail: the measurements behind it, as text.
        spread: None for what was counted, or measured once.
        load: the processors that other programs used meanwhile, 1.0 for a whole one.
    """

    value: float
    detail: str = ""
    spread: Spread | None = None
    load: float = 0.0


@dataclass(frozen=True)
class Series:
    """Measurements of the same things at several sizes: a table of the documentation.

    Attributes:
        size: the name of the sizes.
        columns: the names of the measurements, with their units.
        rows: for each size the measurements, in the order of the columns.
    """

    size: str
    columns: tuple[str, ...]
    rows: Mapping[int, tuple[float, ...]]


@dataclass
class Results:
    """Figures by name, and series by name."""

    figures: dict[str, Measured] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)

    def add(self, name: str, value: float, detail: str = "", runs: Sequence[float] = ()) -> None:
        """Add a figure."""
        spread = Spread(rounded(min(runs)), rounded(max(runs)), len(runs)) if len(runs) > 1 else None
        self.figures[name] = Measured(rounded(value), detail, spread)

    def compare(self, name: str, ours: Sequence[float], others: Sequence[float], detail: str = "") -> None:
        """Add the median ratio of the pairs of two ways that were measured in turns."""
        ratios = [one / other for one, other in zip(ours, others, strict=True)]
        self.add(name, statistics.median(ratios), detail, ratios)

    def include(self, other: Results, *, load: float | None = None) -> None:
        """Add everything of other results, and if given, the load under which they were measured."""
        for name, measured in other.figures.items():
            self.figures[name] = measured if load is None else replace(measured, load=round(load, 2))
        self.series |= other.series


def rounded(value: float) -> float:
    """Return a figure with three or four digits."""
    return round(value, 3 if abs(value) < 10 else 1)
