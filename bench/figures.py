"""The figures with their limits, and how they are printed and saved."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: the name in bench.json.
        description: shown in the table.
        least: the lower limit, if any.
        most: the upper limit, if any.
    """

    name: str
    description: str
    least: float | None = None
    most: float | None = None

    def holds(self, value: float) -> bool:
        """Return whether a value is within the limits."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def limit(self) -> str:
        """The limit as text."""
        if self.least is not None and self.least == self.most:
            return f"{self.least:g}"
        if self.least is not None:
            return f"at least {self.least:g}"
        return "-" if self.most is None else f"at most {self.most:g}"


FIGURES = (
    Figure(
        "prompt_tokens_first_turn",
        "tokens of the default agent's first prompt as it reaches a vendor, at 4 characters each",
        most=2200,
    ),
    Figure(
        "start_over_bare",
        "`isabella letta up` on existing data, over `letta server` by hand on a running Postgres",
        most=0.6,
    ),
    Figure(
        "first_start_over_bare",
        "the same without data, over `alembic upgrade head` and `letta server` by hand",
        most=0.65,
    ),
    Figure("serving_seconds", "from `isabella up` to a page that shows the progress, seconds", most=1.5),
    Figure("stack_rss_mb", "memory of all processes after 100 turns, MB"),
    Figure("warm_speedup", "warm start of 4 proven providers, times faster than list-DELETE-POST", least=20),
    Figure("warm_speedup_sealed", "the same with a master key, no proof remembered", least=6),
    Figure("warm_speedup_sealed_again", "the same with a master key, proofs remembered"),
    Figure("warm_requests", "requests for providers in a warm start; no write, none to a vendor", least=1, most=1),
    Figure("cold_over_bare", "cold start of 4 vendors of 500 ms, over four bare POSTs at once", most=1.3),
    Figure("cold_over_loop", "cold start of 4 vendors of 500 ms, over list-DELETE-POST", most=0.45),
    Figure("thousand_over_listing", "1,000 proven providers, over the bare listing of them", most=2.5),
    Figure("ttft_ratio", "time to the first token through Isabella, over Letta asked directly", most=1.1),
    Figure("turns_per_second_ratio", "turns a second of 20 clients on 5 agents, over Letta asked directly"),
    Figure("ttft_over_pooled", "time to the first token, over Letta by hand with pooling and no gateway", most=0.85),
    Figure("turns_per_second_over_pooled", "turns a second of 20 clients on 5 agents, over the same", least=1.15),
    Figure("ttft_over_shipped", "time to the first token, over Letta by hand as shipped, without pooling"),
    Figure("turns_per_second_over_shipped", "turns a second of 20 clients on 5 agents, over the same"),
    Figure("pooled_turn_errors", "turns through Isabella of these that ended without an answer", least=0, most=0),
    Figure("turn_errors", "turns of these that ended without an answer", least=0, most=0),
    Figure("turn_overlaps", "turns of one agent that overlapped", least=0, most=0),
    Figure("rss_growth_mb", "growth of the backend's memory meanwhile, MB"),
    Figure("rotation_failed_turns", "turns that failed while keys were rotated under 4 agents", least=0, most=0),
    Figure(
        "rotation_foreign_keys",
        "requests meanwhile with a key that is not the vendor's own",
        least=0,
        most=0,
    ),
    Figure("loop_failed_turns", "the same turns if list-DELETE-POST rotates the keys"),
    Figure("loop_foreign_keys", "the same requests if list-DELETE-POST rotates the keys"),
    Figure("gateway_ttft_ms", "time that the gateway adds before the first token of a stream, ms", most=3.0),
    Figure(
        "gateway_throughput_ratio", "bytes a second of long streams through the gateway, over direct ones", least=0.98
    ),
    Figure("gateway_unpaced_ratio", "the same for one stream of a vendor without a pace of its own"),
    Figure(
        "gateway_failed_turns",
        "failed turns through Isabella and Letta while keys rotate and another program recreates providers",
        most=0,
    ),
    Figure("gateway_foreign_keys", "requests meanwhile with a key that is not the vendor's own", most=0),
    Figure("direct_failed_turns", "the same turns without the gateway"),
    Figure("direct_foreign_keys", "the same requests without the gateway"),
    Figure(
        "failover_seconds", "from a vendor's refusal to the next vendor's first token, worst kind, seconds", most=1.0
    ),
    Figure(
        "ending_seconds",
        "from the end of a turn to the end of its request at a vendor that generates forever, worst kind, seconds",
        most=1.0,
    ),
    Figure("chaos_deaths", "deaths of Postgres, Letta and the gateway while 4 agents talk"),
    Figure("chaos_lost", "turns of these without an answer or a true event", least=0, most=0),
    Figure("chaos_ready_seconds_max", "until the backend is ready after a death, seconds", most=60),
    Figure("chaos_notice_seconds_max", "until `/ready` tells a death, seconds", most=2),
    Figure("chaos_ports_moved", "ports that changed meanwhile", least=0, most=0),
    Figure(
        "flood_health_seconds_max",
        "slowest `/health` under 5,000 half-open requests, 100 unfinished bodies of 60 MB, 2,000 streams, seconds",
        most=1.0,
    ),
    Figure("flood_growth_mb", "growth of the backend's memory meanwhile, MB", most=100),
    Figure("backup_seconds", "backup of 5 agents, 10,000 messages and 1,000 passages, seconds"),
    Figure("backup_mb", "its size, MB"),
    Figure("backup_verify_seconds", "reading it back, comparing every count, decrypting every secret, seconds"),
    Figure("backup_restore_seconds", "restoring it, until Letta answers, seconds"),
    Figure(
        "console_seconds",
        "until a page is usable, with 10,000 messages in 50 conversations and 200 providers, seconds",
        most=1.0,
    ),
    Figure("console_kb", "compressed size of the largest of these pages, kB", most=150),
    Figure(
        "console_task_ms",
        "longest task of the page's thread while an answer of 20,000 characters arrives, ms",
        most=100,
    ),
    Figure(
        "headline_seconds",
        "until an open page tells a vendor's refusal, a death of Letta or Postgres, or a session's end, seconds",
        most=5.0,
    ),
    Figure("help_seconds", "`isabella --help` in a fresh process, seconds", most=0.3),
    Figure("doctor_seconds", "`isabella doctor --json`, four providers in sync, seconds", most=3.0),
    Figure("doctor_down_seconds", "the same with Letta and all vendors down, seconds", most=10.0),
)

Values = Mapping[str, float]


def table(values: Values, details: Mapping[str, str]) -> str:
    """Return the figures as a text table."""
    rows = [("figure", "value", "limit", "", "what it is")]
    for figure in FIGURES:
        if figure.name in values:
            value = values[figure.name]
            judged = "-" if figure.limit == "-" else ("ok" if figure.holds(value) else "OVER")
            measured = f"  ({details[figure.name]})" if figure.name in details else ""
            rows.append((figure.name, f"{value:g}", figure.limit, judged, figure.description + measured))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)) for row in rows]
    return "\n".join(f"{line}  {row[4]}".rstrip() for line, row in zip(lines, rows, strict=True))


def exceeded(values: Values) -> list[str]:
    """Return the names of the figures that exceed their limits."""
    return [figure.name for figure in FIGURES if figure.name in values and not figure.holds(values[figure.name])]


def machine() -> str:
    """Return a description of the machine that does not identify it."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}"


def keep(values: Values, path: Path) -> None:
    """Write the figures as flat JSON. Figures of earlier runs are not kept."""
    path.write_text(json.dumps(dict(values), indent=2) + "\n")


def publish(values: Values, details: Mapping[str, str], path: Path) -> None:
    """Write docs/benchmarks.md; the rows of figures that were not measured now stay."""
    former = path.read_text().splitlines() if path.exists() else []
    rows = {name: line for line in former if (name := _named(line)) is not None}
    rows |= {
        figure.name: f"| `{figure.name}` | {values[figure.name]:g} | {figure.limit} | {figure.description} "
        f"| {details.get(figure.name, '')} |"
        for figure in FIGURES
        if figure.name in values
    }
    table = [rows[figure.name] for figure in FIGURES if figure.name in rows]
    path.write_text(
        "# Benchmarks\n\n"
        "Written by `python -m bench --publish`; `make bench` measures again. Ratios compare medians of runs\n"
        "that alternate in one process, against the same embedded Letta 0.16.8 and the same practice vendors.\n\n"
        f"Measured on {machine()}. A figure that a run does not measure keeps its former value.\n\n"
        "| figure | value | limit | what it is | medians |\n|---|---|---|---|---|\n" + "\n".join(table) + "\n"
    )


def _named(line: str) -> str | None:
    """Return the name of the figure in a row of the table."""
    match = re.match(r"\| `(\w+)` \|", line)
    return None if match is None else match[1]
