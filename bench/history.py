"""The figures of every published run, one line each, in the order of the runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import machine
from bench.results import Measured, Results, Series, Spread

PROJECT = Path(__file__).resolve().parents[1]
FILE = PROJECT / "bench" / "history.jsonl"


@dataclass(frozen=True)
class Run:
    """One published run.

    Attributes:
        commit: the commit that was measured, with a `+` if files were changed; for runs before this file began, the
            commit that published the figures.
        date: the day.
        machine: a description of it.
        figures: the figures by name.
        series: the tables by name.
    """

    commit: str
    date: str
    machine: str
    figures: Mapping[str, Measured]
    series: Mapping[str, Series] = field(default_factory=dict)

    @classmethod
    def now(cls, results: Results) -> Run:
        """Return the run that has just ended."""
        day = datetime.now(UTC).date().isoformat()
        return cls(_commit(), day, machine.description(), results.figures, results.series)

    def as_line(self) -> str:
        """Return it as a line of the file."""
        figures = {name: _without_defaults(asdict(measured)) for name, measured in self.figures.items()}
        series = {name: asdict(one) for name, one in self.series.items()}
        document = {"commit": self.commit, "date": self.date, "machine": self.machine, "figures": figures}
        return json.dumps(document | ({"series": series} if series else {}), ensure_ascii=False) + "\n"

    @classmethod
    def of_line(cls, line: str) -> Run:
        """Return the run of a line."""
        document = json.loads(line)
        figures = {name: _measured(one) for name, one in document["figures"].items()}
        series = {name: _series(one) for name, one in document.get("series", {}).items()}
        return cls(document["commit"], document["date"], document["machine"], figures, series)


def read(path: Path = FILE) -> list[Run]:
    """Return all runs, the oldest first."""
    return [Run.of_line(line) for line in path.read_text().splitlines()]


def append(run: Run, path: Path = FILE) -> None:
    """Add a run."""
    with path.open("a") as file:
        file.write(run.as_line())


def latest(runs: Sequence[Run], name: str) -> tuple[Run, Measured] | None:
    """Return the last run that measured a figure, and the figure; None if there is none."""
    return next(((run, run.figures[name]) for run in reversed(runs) if name in run.figures), None)


def _without_defaults(measured: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in measured.items() if name == "value" or value}


def _measured(document: Mapping[str, Any]) -> Measured:
    spread = document.get("spread")
    return Measured(
        document["value"],
        document.get("detail", ""),
        None if spread is None else Spread(**spread),
        document.get("load", 0.0),
    )


def _series(document: Mapping[str, Any]) -> Series:
    rows = {int(size): tuple(row) for size, row in document["rows"].items()}
    return Series(document["size"], tuple(document["columns"]), rows)


def _commit() -> str:
    hash = _git("rev-parse", "--short", "HEAD")
    return f"{hash}+" if _git("status", "--porcelain", "--untracked-files=no") else hash


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()
