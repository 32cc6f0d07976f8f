"""What an operator's monitoring uses: the metrics in the document, alert rules and dashboard, and that they agree."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from isabella.providers.report import ProviderReport, Report
from isabella.server.metrics import Metrics
from isabella.watch.events import SyncCause, Synced
from tests.support import metrics_table
from tests.support.sample_reports import DRIFTED, IN_SYNC, MENDED, REFUSED

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "isabella.json"
_NAME = re.compile(r"\b(?:isabella|process)_\w+")

promtool = shutil.which("promtool") or shutil.which("promtool", path=str(ROOT / ".tools" / "usr" / "bin"))
needs_promtool = pytest.mark.skipif(
    promtool is None, reason="there is no promtool: `make alerts` fetches it (Debian, Ubuntu)"
)


def test_the_table_is_current() -> None:
    """The document has the metrics of this code."""
    assert metrics_table.table() == metrics_table.current(), "run: python -m tests.support.metrics_table"


def test_names_follow_the_conventions_of_prometheus() -> None:
    """Counters end with `_total`; times and sizes have their unit."""
    for line in metrics_table.table().splitlines()[2:]:
        name, kind = re.findall(r"\| `(\w+)` \| (\w+)", line)[0]
        assert name.endswith("_total") == (kind == "counter"), name
        assert kind != "histogram" or name.endswith("_seconds"), name
        assert not re.search(r"_(ms|minutes|kb|mb|time|timestamp)$", name), name


def test_rules_and_dashboard_name_existing_metrics_only() -> None:
    """A renamed metric would make an alert silent."""
    names = metrics_table.names()
    rules, charts = (ALERTS / "alerts.yml").read_text(), json.loads(DASHBOARD.read_text())
    used = {name for line in rules.splitlines() for name in _NAME.findall(line)}
    assert len(used) >= 15
    assert used - names == set()
    queries = [target["expr"] for panel in charts["panels"] for target in panel["targets"]]
    shown = {name for query in queries for name in _NAME.findall(query)}
    assert len(shown) >= 15
    assert shown - names == set()
    assert len({panel["id"] for panel in charts["panels"]}) == len(charts["panels"])


def test_labels_in_rules_and_dashboard_exist() -> None:
    """Every label that a query selects or groups by is one of its metrics'."""
    labels = {label for one in metrics_table.families() for sample in one.samples for label in sample.labels}
    text = (ALERTS / "alerts.yml").read_text() + DASHBOARD.read_text().replace('\\"', '"')
    used = set(re.findall(r"\$labels\.(\w+)|\{\{(\w+)\}\}", text))
    selected = {label for found in re.findall(r"isabella_\w+\{([^}]*)\}", text) for label in _labels(found)}
    assert {one for pair in used for one in pair if one} - labels <= {"instance"}
    assert selected
    assert selected - labels == set()


def _labels(selector: str) -> Iterator[str]:
    yield from re.findall(r'(\w+)\s*(?:=|!=|=~|!~)"', selector)


def test_every_alert_has_a_test() -> None:
    """One that is raised, with its texts, and the one of a healthy backend."""
    alerts = re.findall(r"- alert: (\w+)", (ALERTS / "alerts.yml").read_text())
    tested = (ALERTS / "alerts_test.yml").read_text()
    assert len(alerts) == len(set(alerts)) >= 20
    for alert in alerts:
        cases = re.findall(rf"- alertname: {alert}\n(?: +\w+: .*\n)*? +exp_alerts:(.*)", tested)
        assert cases.count("") == 1, alert
        assert " []" in cases, alert


def _promtool(*arguments: str, folder: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    assert promtool is not None
    return subprocess.run(
        [promtool, *arguments], cwd=folder, input=text, capture_output=True, text=True, check=False, timeout=120
    )


@needs_promtool
def test_the_alerts_fire_when_they_should() -> None:
    """`promtool` raises each alert from series of its condition, and none for a healthy backend."""
    checked = _promtool("check", "rules", "alerts.yml", folder=ALERTS)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = _promtool("test", "rules", "alerts_test.yml", folder=ALERTS)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
def test_a_broken_rule_does_not_pass(tmp_path: Path) -> None:
    """The tests of the rules can fail: with each threshold turned around, alerts are missing or too many."""
    for name in ("alerts.yml", "alerts_test.yml"):
        shutil.copy(ALERTS / name, tmp_path / name)
    rules = (tmp_path / "alerts.yml").read_text()
    for former, other in (("== 0", "== 2"), ("> 0.2", "> 0.9"), ("100800", "990000")):
        (tmp_path / "alerts.yml").write_text(rules.replace(former, other))
        assert _promtool("test", "rules", "alerts_test.yml", folder=tmp_path).returncode == 1, former


@needs_promtool
def test_promtool_has_nothing_to_say_about_the_metrics() -> None:
    """Its lint of names, types and help texts."""
    linted = _promtool("check", "metrics", folder=ROOT, text=metrics_table.exposition())
    said = [line for line in (linted.stdout + linted.stderr).splitlines() if line.startswith("isabella")]
    assert [line for line in said if "_created" not in line] == []


# --- counting -------------------------------------------------------------------------------------------------------


def _report(*entries: ProviderReport) -> Report:
    return Report("http://letta.test", "0.16.8", entries)


def test_syncs_are_counted_by_their_outcome() -> None:
    """And drift only if the watcher found it and the correction is proven."""
    metrics = Metrics()
    for entry in (IN_SYNC, IN_SYNC, MENDED, REFUSED, DRIFTED):
        metrics.record_sync(_report(entry))
    value = metrics._registry.get_sample_value
    outcomes = {
        outcome: value("isabella_provider_syncs_total", {"provider": "cerebras", "outcome": outcome})
        for outcome in ("unchanged", "changed", "refused", "unproven")
    }
    assert outcomes == {"unchanged": 2, "changed": 1, "refused": 1, "unproven": 1}
    for cause, entry in ((SyncCause.RESYNC, MENDED), (SyncCause.CHANGE, MENDED), (SyncCause.RESYNC, DRIFTED)):
        metrics.record_watch_event(Synced(_report(entry), _report(entry), cause, 0.1))
    assert value("isabella_drift_corrected_total", {"provider": "cerebras"}) == 1


def test_restarts_are_counted_once() -> None:
    """However often the metrics are read."""
    text = metrics_table.exposition()
    assert 'isabella_part_restarts_total{part="letta"} 2.0' in text
