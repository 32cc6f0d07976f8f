"""The figures with their limits, and how they are printed and saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.machine import BUSY
from bench.results import Measured


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: the name in bench.json.
        description: shown in the table.
        least: the lower limit, if any.
        most: the upper limit, if any.
        exact: whether it is a count or a size, which the speed of a machine does not change.
    """

    name: str
    description: str
    least: float | None = None
    most: float | None = None
    exact: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a value is within the limits."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def limited(self) -> bool:
        """Whether it has a limit."""
        return self.least is not None or self.most is not None

    @property
    def limit(self) -> str:
        """The limit as text."""
        if self.most is not None and (self.least == self.most or (self.exact and self.most == 0)):
            return f"{self.most:g}"
        if self.least is not None:
            return f"at least {self.least:g}"
        return "-" if self.most is None else f"at most {self.most:g}"

    def judged(self, measured: Measured) -> bool:
        """Return whether the limit can be judged: a busy machine says nothing about time."""
        return self.limited and (self.exact or measured.load <= BUSY)

    def exceeded(self, measured: Measured) -> bool:
        """Return whether the limit is judged, and exceeded."""
        return self.judged(measured) and not self.holds(measured.value)


FIGURES = (
    Figure(
        "prompt_tokens_first_turn",
        "tokens of the default agent's first prompt as it reaches a vendor, at 4 characters each",
        most=2200,
        exact=True,
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
    Figure("warm_speedup", "warm start of 4 proven providers, times faster than list-DELETE-POST"),
    Figure(
        "warm_over_listing", "the same warm start, over one bare listing of them: the limit of any proof", most=2.0
    ),
    Figure(
        # Letta encrypts in a third of the time since its launcher has a faster PBKDF2, so the baseline is faster.
        "warm_speedup_sealed",
        "warm start of the same with a master key, no proof remembered",
        least=3,
    ),
    Figure("warm_speedup_sealed_again", "the same with a master key, proofs remembered"),
    Figure(
        "warm_requests",
        "requests for providers in a warm start; no write, none to a vendor",
        least=1,
        most=1,
        exact=True,
    ),
    Figure(
        # Each vendor answers Isabella first, so that Letta never holds a key that is refused, and then Letta.
        "cold_over_bare",
        "cold start of 4 vendors of 500 ms, each asked about its key first, over four bare POSTs at once",
        most=2.4,
    ),
    Figure("cold_over_loop", "the same, over list-DELETE-POST, which stores the keys without asking", most=0.8),
    Figure("thousand_over_listing", "1,000 proven providers, over the bare listing of them", most=2.5),
    Figure(
        "ttft_ratio", "time to the first token through Isabella, over the same Letta and gateway without it", most=1.1
    ),
    Figure(
        "commit_off_over_on",
        "a whole turn while Postgres does not wait for the disk (`synchronous_commit` off), over one while it does",
    ),
    Figure("turns_per_second_ratio", "turns a second of 20 clients on 5 agents, over the same Letta and gateway"),
    Figure("ttft_over_pooled", "time to the first token, over Letta by hand with pooling and no gateway", most=0.85),
    Figure("turns_per_second_over_pooled", "turns a second of 20 clients on 5 agents, over the same", least=1.15),
    Figure("ttft_over_shipped", "time to the first token, over Letta by hand as shipped, without pooling"),
    Figure("turns_per_second_over_shipped", "turns a second of 20 clients on 5 agents, over the same"),
    Figure("pooled_turn_errors", "turns through Isabella of these without an answer in time", most=0, exact=True),
    Figure("by_hand_turn_errors", "the same at Letta by hand with pooling"),
    Figure("shipped_turn_errors", "the same at Letta by hand as shipped"),
    Figure("turn_errors", "turns of these that ended without an answer", most=0, exact=True),
    Figure("turn_overlaps", "turns of one agent that overlapped", most=0, exact=True),
    Figure("rss_growth_mb", "growth of the backend's memory meanwhile, MB"),
    Figure("rotation_failed_turns", "turns that failed while keys were rotated under 4 agents", most=0, exact=True),
    Figure(
        "rotation_foreign_keys",
        "requests meanwhile with a key that is not the vendor's own",
        most=0,
        exact=True,
    ),
    Figure("loop_failed_turns", "the same turns if list-DELETE-POST rotates the keys"),
    Figure("loop_foreign_keys", "the same requests if list-DELETE-POST rotates the keys"),
    Figure(
        "gateway_ttft_over_direct",
        "time to the first token of a stream through the gateway, over a direct one",
        most=2.5,
    ),
    Figure("gateway_ttft_ms", "time that the gateway adds before the first token of a stream, ms"),
    Figure(
        "gateway_throughput_ratio", "bytes a second of long streams through the gateway, over direct ones", least=0.98
    ),
    Figure("gateway_unpaced_ratio", "the same for one stream of a vendor without a pace of its own"),
    Figure(
        "gateway_failed_turns",
        "failed turns through Isabella and Letta while keys rotate and another program recreates providers",
        most=0,
        exact=True,
    ),
    Figure("gateway_foreign_keys", "requests meanwhile with a key that is not the vendor's own", most=0, exact=True),
    Figure("direct_failed_turns", "the same turns without the gateway"),
    Figure("direct_foreign_keys", "the same requests without the gateway"),
    Figure(
        "failover_over_turn",
        "from a vendor's refusal to the next vendor's first token, worst kind, over the first token of a usual turn",
        most=6.0,
    ),
    Figure("failover_seconds", "from a vendor's refusal to the next vendor's first token, worst kind, seconds"),
    Figure(
        "ending_over_turn",
        "from the end of a turn to the end of its request at a vendor, worst kind, over the same",
        most=5.0,
    ),
    Figure(
        "ending_seconds",
        "from the end of a turn to the end of its request at a vendor that generates forever, seconds",
    ),
    Figure("chaos_deaths", "deaths of Postgres, Letta and the gateway while 4 agents talk"),
    Figure("chaos_lost", "turns of these without an answer or a true event", most=0, exact=True),
    Figure("chaos_ready_seconds_max", "until the backend is ready after a death, seconds", most=60),
    Figure("chaos_notice_seconds_max", "until `/ready` tells a death, seconds", most=2),
    Figure("chaos_ports_moved", "ports that changed meanwhile", most=0, exact=True),
    Figure(
        "replicas_turns",
        "turns of 20 clients while three Isabellas, two Lettas, Postgres and the gateway are killed and restarted",
    ),
    Figure("replicas_turns_per_second", "turns a second of the same processes while none is killed"),
    Figure(
        "replicas_lost_turns", "turns of these without an answer or a true event, or stored twice", least=0, most=0
    ),
    Figure("replicas_overlaps", "turns of one agent that overlapped", least=0, most=0),
    Figure("replicas_foreign_keys", "requests with a key that is not the vendor's own", least=0, most=0),
    Figure(
        "flood_health_seconds_max",
        "slowest `/health` under 5,000 half-open requests, 100 unfinished bodies of 60 MB, 2,000 streams, seconds",
        most=1.0,
    ),
    Figure("flood_growth_mb", "growth of the backend's memory meanwhile, MB", most=100),
    Figure("turn_at_1000_agents_over_10", "a turn with 1,000 agents in Letta, over one with 10", most=1.1),
    Figure("turn_cpu_at_1000_agents_over_10", "the processor time of these turns, of all processes", most=1.1),
    Figure("backup_seconds", "backup of 5 agents, 10,000 messages and 1,000 passages, seconds"),
    Figure("backup_mb", "its size, MB"),
    Figure("backup_verify_seconds", "reading it back, comparing every count, decrypting every secret, seconds"),
    Figure("backup_restore_seconds", "restoring it, until Letta answers, seconds"),
    Figure(
        "console_seconds",
        "until a page is usable, with 10,000 messages in 50 conversations and 200 providers, seconds",
        most=1.0,
    ),
    Figure("console_kb", "compressed size of the largest of these pages, kB", most=150, exact=True),
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
    Figure("help_over_bare", "`isabella --help` in a fresh process, over a bare interpreter", most=8.0),
    Figure(
        "doctor_over_bare", "`isabella doctor --json`, four providers in sync, over a bare interpreter", most=120.0
    ),
    Figure("doctor_down_seconds", "the same with Letta and all vendors down, with its own time limits, seconds"),
)

Figures = Mapping[str, Measured]


def table(figures: Figures) -> str:
    """Return the figures as a text table."""
    rows = [("figure", "value", "spread", "limit", "", "what it is")]
    for figure in FIGURES:
        if (measured := figures.get(figure.name)) is not None:
            detail = f"  ({measured.detail})" if measured.detail else ""
            cells = (
                figure.name,
                f"{measured.value:g}",
                str(measured.spread or ""),
                figure.limit,
                _verdict(figure, measured),
            )
            rows.append((*cells, figure.description + detail))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True)) for row in rows]
    return "\n".join(f"{line}  {row[5]}".rstrip() for line, row in zip(lines, rows, strict=True))


def _verdict(figure: Figure, measured: Measured) -> str:
    if not figure.limited:
        return "-"
    if not figure.judged(measured):
        return "not judged"
    return "OVER" if figure.exceeded(measured) else "ok"


def verdict(figures: Figures) -> tuple[str, bool]:
    """Return what became of the limits, for people, and whether one is exceeded."""
    known = [(figure, figures[figure.name]) for figure in FIGURES if figure.name in figures]
    exceeded = [figure.name for figure, measured in known if figure.exceeded(measured)]
    unjudged = [
        (figure.name, measured.load) for figure, measured in known if figure.limited and not figure.judged(measured)
    ]
    said = []
    if unjudged:
        said.append(
            f"The machine was busy: other programs used up to {max(load for _, load in unjudged):.1f} processors. "
            f"These limits were not judged: {', '.join(name for name, _ in unjudged)}. "
            "Measure again when it is quiet."
        )
    said.append(
        f"Limits exceeded: {', '.join(exceeded)}" if exceeded else "All judged figures are within their limits."
    )
    return "\n".join(said), bool(exceeded)


def keep(figures: Figures, path: Path) -> None:
    """Write the figures as flat JSON. Figures of earlier runs are not kept."""
    path.write_text(json.dumps({name: measured.value for name, measured in figures.items()}, indent=2) + "\n")
