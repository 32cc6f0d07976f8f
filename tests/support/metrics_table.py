"""Every metric of a backend that has something of everything: the table of docs/monitoring.md.

`python -m tests.support.metrics_table` writes it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from isabella.gateway.client import GatewayProvider, GatewayTraffic
from isabella.gateway.limits import Allowance, RateLimits
from isabella.gateway.traffic import VendorTraffic
from isabella.providers.report import GatewayState, GatewayStatus, Report
from isabella.server.metrics import Metrics
from isabella.server.readiness import BackupStatus, Readiness
from isabella.system.supervision import PartStatus
from isabella.turns.circuit_breaker import CircuitState
from isabella.turns.events import Ended, EndReason, ErrorCode, Failover, Usage
from isabella.vendors.client import VendorObservation, VendorState
from isabella.watch.events import SyncCause, Synced, WatchFailed
from tests.support.sample_reports import IN_SYNC, MENDED, REFUSED

DOCUMENT = Path(__file__).parents[2] / "docs" / "monitoring.md"
BEGIN, END = "<!-- metrics -->\n", "<!-- end of the metrics -->\n"
_NOW = datetime(2026, 11, 27, tzinfo=UTC)


class _Supervisor:
    statuses = tuple(PartStatus(word.capitalize(), word, restarts=2) for word in ("postgres", "letta", "gateway"))
    down = ()


def exposition() -> str:
    """Return the text of `/metrics` of a backend in which everything has happened once."""
    metrics, readiness = Metrics(), Readiness()
    answered = VendorObservation(VendorState.ANSWERS, "it began an answer", _NOW)
    entries = [
        replace(IN_SYNC, vendor_status=answered),
        replace(REFUSED, name="groq"),
        replace(MENDED, name="mistral"),
    ]
    report = Report("http://letta.test", "0.16.8", entries)
    readiness.on_sync.append(metrics.record_sync)
    readiness.record(report, quiet=True)
    readiness.record_gateway(GatewayStatus("http://127.0.0.1:8284", GatewayState.RUNS))
    readiness.backups = BackupStatus(_NOW, 5_000_000, None)
    readiness.supervisor = _Supervisor()  # type: ignore[assignment]
    metrics.record_watch_event(Synced(report, report, SyncCause.RESYNC, 0.1))
    metrics.record_watch_event(WatchFailed("Letta is gone.", SyncCause.RETRY))
    metrics.record(Failover("groq/m", ErrorCode.RATE_LIMITED, "busy", 429))
    metrics.record(Usage(100, 20, 120, 1))
    metrics.record(Ended(EndReason.COMPLETED, "cerebras/m", stored=True, seconds=2.0, first_token=0.3))
    limits = RateLimits(tokens_minute=Allowance(limit=8000, remaining=10))
    vendor = VendorTraffic(answers=1, prompt_tokens=100, completion_tokens=20, first_byte_ms=200.0, limits=limits)
    traffic = GatewayTraffic(
        number=1,
        open=1,
        providers={"cerebras": GatewayProvider(upstream="https://api.example/v1")},
        vendors={"cerebras": vendor},
    )
    breaker = SimpleNamespace(states=lambda: {"cerebras": CircuitState.CLOSED})
    turns: Any = SimpleNamespace(under_way=2, queue=SimpleNamespace(waiting=1), deps=SimpleNamespace(breaker=breaker))
    return metrics.render(turns, readiness, traffic).decode()


def families() -> list[Metric]:
    """Return the metrics, sorted by name, without the usual ones of every process."""
    found = text_string_to_metric_families(exposition())
    return sorted((one for one in found if one.name.startswith("isabella_")), key=lambda one: one.name)


def names() -> set[str]:
    """Return the name of every series, with those of each process."""
    return {sample.name for one in text_string_to_metric_families(exposition()) for sample in one.samples}


def table() -> str:
    """Return the table."""
    lines = ["| metric | type | labels | |", "|---|---|---|---|"]
    for one in families():
        if one.name.endswith("_created"):
            continue  # when a counter began, beside each of them
        name = f"{one.name}_total" if one.type == "counter" else one.name
        labels = dict.fromkeys(label for sample in one.samples for label in sample.labels if label != "le")
        shown = ", ".join(f"`{label}`" for label in labels)
        lines.append(f"| `{name}` | {one.type} | {shown} | {one.documentation} |")
    return "\n".join(lines) + "\n"


def current() -> str:
    """Return the table in the document."""
    return DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    """Write the table into the document."""
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(text.partition(BEGIN)[0] + BEGIN + table() + END + text.partition(END)[2])


if __name__ == "__main__":
    main()
