"""The figures: what each one says, what it may be at most or must be at least, and how it is shown and kept."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: under which it is kept.
        says: what it is, for people.
        least: it must not be below this, if given.
        most: it must not be above this, if given.
    """

    name: str
    says: str
    least: float | None = None
    most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a value is within the limit."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def limit(self) -> str:
        """The limit, for people."""
        if self.least is not None and self.least == self.most:
            return f"{self.least:g}"
        if self.least is not None:
            return f"at least {self.least:g}"
        return "-" if self.most is None else f"at most {self.most:g}"


FIGURES = (
    Figure("warm_speedup", "warm start of 4 proven providers, times faster than list-DELETE-POST", least=20),
    Figure("warm_speedup_sealed", "the same with a master key, every proof derived anew", least=6),
    Figure("warm_speedup_sealed_again", "the same with a master key, proofs remembered"),
    Figure("warm_requests", "requests for providers in a warm start; no write, none to a vendor", least=1, most=1),
    Figure("cold_over_bare", "cold start of 4 vendors of 500 ms, over four bare POSTs at once", most=1.3),
    Figure("cold_over_loop", "cold start of 4 vendors of 500 ms, over list-DELETE-POST", most=0.45),
    Figure("thousand_over_listing", "1,000 proven providers, over the bare listing of them", most=1.3),
    Figure("thousand_over_listing_sealed", "the same with a master key, proofs remembered", most=1.3),
    Figure("thousand_rotation_over_listing", "the key of one of them changed under watch, until proven", most=2.0),
    Figure("thousand_rotation_over_listing_sealed", "the same with a master key", most=2.0),
    Figure("thousand_rotated_start_over_listing", "a start that finds the key of one of them changed"),
    Figure("thousand_rotated_start_over_listing_sealed", "the same with a master key"),
    Figure("thousand_rss_mb", "memory of a process that proves 1,000 providers, MB"),
    Figure("ttft_ratio", "time to the first token through Isabella, over Letta asked directly", most=1.1),
    Figure("turns_per_second_ratio", "turns a second of 20 clients on 5 agents, over Letta asked directly"),
    Figure("turn_errors", "turns of these that did not end in an answer", least=0, most=0),
    Figure("turn_overlaps", "turns of one agent that began before the one before had ended", least=0, most=0),
    Figure("rss_growth_mb", "memory that the backend gained meanwhile, MB"),
    Figure("rotation_failed_turns", "turns that failed while keys were rotated under 4 agents", least=0, most=0),
    Figure("rotation_foreign_keys", "requests meanwhile at any vendor with a key not its own", least=0, most=0),
    Figure("loop_failed_turns", "the same turns where list-DELETE-POST rotates the keys"),
    Figure("loop_foreign_keys", "the same requests where list-DELETE-POST rotates the keys"),
    Figure("console_seconds", "until a page works: 10,000 messages, 200 providers, seconds", most=1.0),
    Figure("console_kb", "what the heaviest of these pages loads, compressed, kB", most=150),
    Figure("help_seconds", "`isabella --help` in a fresh process, seconds", most=0.3),
    Figure("doctor_seconds", "`isabella doctor --json`, four providers in order, seconds", most=3.0),
    Figure("doctor_down_seconds", "the same where Letta and all vendors are down, seconds", most=10.0),
)

Values = Mapping[str, float]


def table(values: Values, details: Mapping[str, str]) -> str:
    """The figures as people read them, a line each."""
    rows = [("figure", "value", "limit", "", "what it is")]
    for figure in FIGURES:
        if figure.name in values:
            value = values[figure.name]
            judged = "-" if figure.limit == "-" else ("ok" if figure.holds(value) else "OVER")
            measured = f"  ({details[figure.name]})" if figure.name in details else ""
            rows.append((figure.name, f"{value:g}", figure.limit, judged, figure.says + measured))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)) for row in rows]
    return "\n".join(f"{line}  {row[4]}".rstrip() for line, row in zip(lines, rows, strict=True))


def beyond(values: Values) -> list[str]:
    """The names of those that are not within their limits."""
    return [figure.name for figure in FIGURES if figure.name in values and not figure.holds(values[figure.name])]


def machine() -> str:
    """What it was measured on: nothing that would tell one machine from another of its kind."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}"


def keep(values: Values, path: Path) -> None:
    """Write the figures down, as flat JSON; those of earlier runs that were not measured now are left out."""
    path.write_text(json.dumps(dict(values), indent=2) + "\n")


def publish(values: Values, details: Mapping[str, str], path: Path) -> None:
    """Write the page with the published figures."""
    rows = [
        f"| `{figure.name}` | {values[figure.name]:g} | {figure.limit} | {figure.says} "
        f"| {details.get(figure.name, '')} |"
        for figure in FIGURES
        if figure.name in values
    ]
    path.write_text(
        "# What was measured\n\n"
        "Written by `python -m bench --publish`; `make bench` measures it again. Ratios compare medians of runs\n"
        "that alternate in one process, against the same embedded Letta 0.16.8 and the same practice vendors.\n\n"
        f"Measured on {machine()}.\n\n"
        "| figure | value | limit | what it is | medians |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )
