"""The table in `docs/compatibility.md`. A run over some releases keeps the columns of the others."""

from __future__ import annotations

import re

from compat import ROOT
from compat.cases import OPEN, SEALING

PATH = ROOT / "docs" / "compatibility.md"
FAILED = "FAILED"
_BEGIN, _END = "<!-- table: written by make compat -->\n", "<!-- end of table -->\n"

Results = dict[str, dict[str, str]]


def read() -> Results:
    """Return the results in the table, by release and case."""
    lines = [_cells(line) for line in _table(PATH.read_text()).splitlines() if line.startswith("|")]
    if len(lines) < 2:
        return {}
    releases = lines[0][1:]
    return {
        release: {row[0]: row[column] for row in lines[2:] if row[column]}
        for column, release in enumerate(releases, start=1)
    }


def write(results: Results) -> None:
    """Replace the table by these results."""
    releases = sorted(results, key=lambda release: [int(part) for part in release.split(".")])
    rows = [["Letta holds", *releases], ["---"] * (len(releases) + 1)]
    rows += [[title, *(results[release].get(title, "") for release in releases)] for title in (*SEALING, *OPEN)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    text = PATH.read_text()
    PATH.write_text(text.replace(_BEGIN + _table(text) + _END, _BEGIN + table + _END))


def _table(text: str) -> str:
    found = re.search(re.escape(_BEGIN) + r"(.*?)" + re.escape(_END), text, re.DOTALL)
    if found is None:
        raise ValueError(f"{PATH} has no place for the table")
    return found[1]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
