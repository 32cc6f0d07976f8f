"""What people see on a terminal: tables at 60 columns, and sentences in place of fields."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from typer.core import TyperGroup
from typer.main import get_command

from isabella.agents.reconcile import EnsureOutcome, EnsureResult
from isabella.cli import app, for_command_line, tables
from isabella.providers.health import HealthState, headline
from isabella.providers.plan import Action
from isabella.providers.report import Proof, Receipt, Report
from isabella.system import terminal
from isabella.system.logging import configure_logs
from isabella.system.terminal import LogFormat
from isabella.vendors.client import VendorObservation, VendorState
from tests.support.sample_reports import FOREIGN, IN_SYNC, REFUSED

NARROW = 60
AT = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
GROQ: dict[str, Any] = {"name": "byok-groq", "vendor": "groq", "type": "groq", "key": "gsk_…q3x1"}


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Return the lines that were printed on a terminal of 60 columns."""
    screen = io.StringIO()

    def narrow() -> Any:
        return terminal.console(file=screen, width=NARROW, force_terminal=True, color_system=None)

    monkeypatch.setattr(tables, "console", narrow)
    return lambda: screen.getvalue().splitlines()


def assert_readable(lines: list[str], *names: str) -> None:
    """Each name and each of the words is whole on its line, and no line is cut or too long."""
    assert max(map(len, lines)) <= NARROW
    assert "…" not in "".join(lines).replace("csk-…0001", "").replace("gsk_…q3x1", "")
    for name in names:
        assert any(name in line for line in lines), (name, lines)


def told(lines: list[str]) -> str:
    """What the last column says, joined."""
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("receipt", [None, Receipt.ACCEPTED])
def test_a_sync_at_60_columns_keeps_name_state_and_reason(
    printed: Callable[[], list[str]], receipt: Receipt | None
) -> None:
    """What was stored, whether it is proven, the receipt, and the whole reason."""
    refused = replace(REFUSED, **GROQ, action=Action.REFUSE, proof=Proof.FAILED, receipt=receipt)
    entries = (replace(IN_SYNC, receipt=receipt), refused, replace(FOREIGN, receipt=None))
    tables.show_report(Report("http://127.0.0.1:8283", "0.16.8", entries))
    lines = printed()
    states = ["in sync", "stale", "foreign", "proven", "failed"] + (["accepted"] if receipt else [])
    assert_readable(lines, "cerebras", "byok-groq", "somebody's", *states)


def test_the_status_at_60_columns_keeps_name_state_and_reason(printed: Callable[[], list[str]]) -> None:
    """The condition, and the last answer of the vendor."""
    seen = VendorObservation(VendorState.REFUSES_KEY, "401: Wrong API Key", AT)
    entries = (
        replace(IN_SYNC, condition=HealthState.MISCONFIGURED, since=AT, vendor_status=seen),
        replace(IN_SYNC, **GROQ, condition=HealthState.MISCONFIGURED, since=AT, vendor_status=None),
    )
    tables.show_report(Report("http://127.0.0.1:8283", "0.16.8", entries), conditions=True)
    lines = printed()
    assert_readable(lines, "cerebras", "byok-groq", "Misconfigured", "condition", "vendor", "reason")
    assert "read back and equal" in told(lines)
    # The remedy of the worst finding is under the headline, as in the console's status line, and only there.
    remedy = headline(Report("http://127.0.0.1:8283", "0.16.8", entries)).remedy
    assert remedy
    assert told(lines).count(remedy) == 1
    assert told(lines).index(remedy) < told(lines).index("condition")


def test_a_wide_terminal_has_every_column(printed: Callable[[], list[str]]) -> None:
    """Nothing is left out without need."""
    table = tables.report_table(Report("http://127.0.0.1:8283", "0.16.8", (IN_SYNC,)), 200, conditions=True)
    headings = [column.header for column in table.columns]
    assert headings == [
        "provider", "type", "key", "stored", "action", "proof", "condition", "since", "vendor", "seen", "reason",
    ]  # fmt: skip


def test_agents_at_60_columns(printed: Callable[[], list[str]]) -> None:
    """The name, and the whole problem."""
    agent = {"name": "Isabella", "ours": True, "handle": "cerebras/gpt-oss-120b", "window": 65536}
    problem = "the provider cerebras is gone, so Letta sends no key of yours"
    tables.show_agents([{**agent, "problem": problem}, {**agent, "name": "Reflection of Isabella", "problem": None}])
    lines = printed()
    assert_readable(lines, "Isabella", "Reflection of Isabella", "problem")
    assert all(word in told(lines) for word in problem.split())


def test_outcomes_at_60_columns(printed: Callable[[], list[str]]) -> None:
    """The name, what was done, and why."""
    result = EnsureResult(
        "isabella",
        "Isabella",
        EnsureOutcome.FAILED,
        reason="none of its models can be used",
        remedy="Put a key into .env.",
    )
    tables.show_ensured([result.as_json()])
    lines = printed()
    assert_readable(lines, "Isabella", "failed", "outcome")
    assert all(word in told(lines) for word in ("none", "models", "used"))


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (
            EnsureResult("isabella", "Isabella", EnsureOutcome.CREATED, handle="cerebras/gpt-oss-120b"),
            "Isabella: created on cerebras/gpt-oss-120b",
        ),
        (
            EnsureResult("isabella", "Isabella", EnsureOutcome.KEPT, handle="cerebras/gpt-oss-120b"),
            "Isabella: unchanged on cerebras/gpt-oss-120b",
        ),
        (
            EnsureResult(
                "isabella", "Isabella", EnsureOutcome.CHANGED, changes=("persona", "tool x added"), handle="a/b"
            ),
            "Isabella: changed on a/b: persona; tool x added",
        ),
        (
            EnsureResult("isabella", "Isabella", EnsureOutcome.FAILED, reason="no key", remedy="Set GROQ_API_KEY."),
            "Isabella: failed: no key Set GROQ_API_KEY.",
        ),
    ],
)
def test_agents_are_reported_in_sentences(result: EnsureResult, sentence: str) -> None:
    """For people; the fields are for machines."""
    assert result.sentence == sentence


@pytest.mark.parametrize("format", [LogFormat.TEXT, LogFormat.JSON])
def test_a_line_with_a_sentence(monkeypatch: pytest.MonkeyPatch, format: LogFormat) -> None:
    """As text it is the sentence alone; as JSON it keeps its name and fields."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs(format)
    structlog.get_logger().warning("agent", name="Isabella", handle=None, sentence="Isabella: created on a/b")
    line = stream.getvalue().strip()
    if format is LogFormat.JSON:
        document = json.loads(line)
        assert (document["event"], document["name"], document["handle"]) == ("agent", "Isabella", None)
        return
    assert line.endswith("Isabella: created on a/b")
    assert "warning" in line
    assert "handle" not in line


def groups(command: object) -> dict[str, TyperGroup]:
    """The groups of a command line, by name."""
    assert isinstance(command, TyperGroup)
    return {name: one for name, one in command.commands.items() if isinstance(one, TyperGroup)}


def test_a_command_line_builds_the_commands_of_the_group_that_it_names() -> None:
    """Help of the whole has every group, and each group has all of its commands when it is named."""
    full = groups(get_command(app))
    assert len(full) > 5
    for named in (*full, "up", "--help"):
        lean = groups(get_command(for_command_line(["--version", named] if named == "up" else [named])))
        assert {name: one.help for name, one in lean.items()} == {name: one.help for name, one in full.items()}
        for name, one in lean.items():
            assert [*one.commands] == ([*full[name].commands] if name == named else [])
            assert [option.name for option in one.params] == [option.name for option in full[name].params]
