"""The charts of the activity page: every number has its mark in the drawing and its row in the table."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from isabella.gateway.limits import Allowance, RateLimits
from isabella.gateway.traffic import VendorTraffic
from isabella.providers.report import Report
from isabella.server.event_log import EventLog, SyncKind, TurnSample
from isabella.server.runtime import Runtime
from isabella.server.web import charts
from isabella.server.web.rendering import Renderer
from isabella.turns.events import Ended, EndReason, ErrorCode, Failover, Usage
from isabella.vendors.model_lists import ListedModel
from isabella.watch.events import SyncCause
from tests.support.sample_reports import IN_SYNC, MENDED, REFUSED

HOUR, NOW = 3600.0, 10_000.0
RENDERER = Renderer(Runtime())
TURN: Any = SimpleNamespace(id="turn-1", agent_ref=SimpleNamespace(id="agent-1", name="Anna"))


def drawn(macro: str, **values: Any) -> str:
    """The HTML of a chart."""
    return RENDERER.part("activity_parts.html", macro, **values)


def percents(html: str, attribute: str) -> list[float]:
    """The places in a drawing, which have to be within it."""
    found = [float(one) for one in re.findall(rf'{attribute}="([\d.]+)%"', html)]
    assert all(0 <= one <= 100 for one in found)
    return found


def rows(html: str) -> list[list[str]]:
    """The cells of the table behind a chart."""
    body = html[html.index("<tbody>") : html.index("</tbody>")]
    return [
        [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    ]


def test_the_times_to_the_first_token() -> None:
    """Vendors share one scale, so that they can be compared; every answer is a dot, and a row of the table."""
    samples = [
        TurnSample(NOW - 3600, "a/one", 0.4),
        TurnSample(NOW - 60, "a/one", None, 503),
        TurnSample(NOW, "a/one", 1.6),
        TurnSample(NOW, "b/two", 4.0),
    ]
    first, second = charts.first_token_charts(samples, NOW, HOUR)
    assert (first.provider, first.ceiling, first.median, first.slowest) == ("a", 5.0, 1.6, 1.6)
    assert (second.ceiling, [dot.y for dot in second.dots]) == (5.0, [0.8])
    html = drawn("first_tokens", charts=[first], most=12)
    assert percents(html, "cx") == [1.0, 99.0]
    assert "a: 2 answers, half of them within 1.6 s, the slowest after 1.6 s" in html
    assert [row[1:] for row in rows(html)] == [["a/one", "1.60"], ["a/one", "0.40"]]


def test_answers_and_refusals() -> None:
    """A status is a refusal, silence is none; the vendor that was asked most fills the chart."""
    samples = [*[TurnSample(NOW, "a/one", 1.0)] * 3, TurnSample(NOW, "a/one", None, 429), TurnSample(NOW, "b/x")]
    first, second = charts.answer_rows(samples)
    assert (first.answered, first.refused, first.failed) == (3, 1, 0)
    assert [(bar.x, bar.width, bar.kind) for bar in first.bars] == [(0, 0.75, "answered"), (0.75, 0.25, "refused")]
    assert [(bar.width, bar.kind) for bar in second.bars] == [(0.25, "failed")]
    html = drawn("answers", rows=[first, second])
    assert percents(html, "width")
    assert rows(html) == [["a", "3", "1", "0"], ["b", "0", "0", "1"]]


def test_tokens_and_their_cost() -> None:
    """Where a vendor lists its prices, the cost is told; where it does not, that it is not known."""
    samples = [
        TurnSample(NOW, "a/one", 1.0, prompt_tokens=1000, completion_tokens=500),
        TurnSample(NOW, "a/one", 1.0, prompt_tokens=1000),
        TurnSample(NOW, "b/two", 1.0, prompt_tokens=200),
        TurnSample(NOW, "b/two", None, 503),
    ]
    listed = {"a": {"one": ListedModel("one", input_price=2.0, output_price=10.0)}, "b": {"two": ListedModel("two")}}
    first, second = charts.token_rows(samples, listed)
    assert (first.handle, first.turns, first.prompt, first.completion) == ("a/one", 2, 2000, 500)
    assert first.cost == pytest.approx(0.009)
    assert (second.turns, second.cost) == (1, None)
    html = drawn("tokens", rows=[first, second])
    assert rows(html) == [["a/one", "2", "2,000", "500", "$0.0090"], ["b/two", "1", "200", "0", "not known"]]
    assert " hidden" in drawn("tokens", rows=[])


def test_the_limits_that_are_left() -> None:
    """Only limits of which both numbers are known; one that is used up is an empty bar."""
    limits = RateLimits(
        tokens_minute=Allowance(8000, 0), requests_day=Allowance(1000, 990), requests_minute=Allowance(9)
    )
    found = charts.limit_rows({"b": VendorTraffic(limits=limits, accepted_at=5.0), "a": VendorTraffic()})
    assert [(row.limit, row.left, row.share) for row in found] == [
        ("requests per day", 990, 0.99),
        ("tokens per minute", 0, 0.0),
    ]
    assert [row[1:4] for row in rows(drawn("limits", rows=found))] == [
        ["requests per day", "990", "1,000"],
        ["tokens per minute", "0", "8,000"],
    ]


def test_rotations_and_heals() -> None:
    """A key that the configuration changed is a rotation, drift that was repaired a heal; looks are neither."""
    log = EventLog()
    causes = {
        "the start": SyncKind.SYNCED,
        SyncCause.CHANGE.value: SyncKind.ROTATED,
        SyncCause.RESYNC.value: SyncKind.HEALED,
        "Sync button": SyncKind.SYNCED,
    }
    for cause in causes:
        log.add_sync(Report("http://letta", "0.16.8", [MENDED]), cause, 0.1)
    log.add_sync(Report("http://letta", "0.16.8", [REFUSED]), SyncCause.CHANGE.value, 0.1)
    log.add_sync(Report("http://letta", "0.16.8", [IN_SYNC]), "the start", 0.1)
    chart = charts.change_chart(log.entries, datetime.now(UTC) + timedelta(seconds=1))
    assert [event.sync for event in reversed(chart.events)] == [*causes.values(), SyncKind.REFUSED]
    html = drawn("changes", chart=chart)
    assert len(percents(html, "cx")) == len(rows(html)) == 5
    assert "1 rotated" in html
    assert "1 healed" in html
    assert "No provider was changed" in drawn("changes", chart=charts.change_chart([], datetime.now(UTC)))


def test_the_samples_of_a_turn() -> None:
    """A refusal keeps its status, an answer its model and its tokens."""
    log = EventLog()
    log.on_turn_event(TURN, Failover("a/one", ErrorCode.RATE_LIMITED, "429: slow", 429))
    log.on_turn_event(TURN, Usage(10, 5, 15, 1))
    log.on_turn_event(TURN, Ended(EndReason.COMPLETED, "b/two", True, 2.0, 0.5))
    first, second = log.samples_of_last(60)
    assert (first.provider, first.status, first.answered) == ("a", 429, False)
    assert (second.handle, second.first_token, second.prompt_tokens, second.completion_tokens) == (
        "b/two",
        0.5,
        10,
        5,
    )
