"""What is known of answers outlives the process that saw them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isabella.server.answer_log import AnswerLog, AnswerRecord
from isabella.server.event_log import EventLog
from isabella.turns.events import AnswerText, Ended, EndReason, ErrorCode, Failover, ToolCalled, Usage

AGENT = "agent-00000000-0000-4000-8000-000000000000"
TURN: Any = SimpleNamespace(id="turn-1", agent_ref=SimpleNamespace(id=AGENT, name="Anna"))
FAILOVER = Failover("byok-groq/m", ErrorCode.RATE_LIMITED, "429: slow down", 429, 2.0)
USAGE = Usage(3170, 44, 3214, 2)
ENDED = Ended(EndReason.COMPLETED, "cerebras/m", True, 1.4, 0.4)


def log_in(folder: Path) -> EventLog:
    """A log with its file in a folder."""
    log = EventLog()
    log.answers = AnswerLog(folder)
    return log


def test_another_process_knows_the_same_of_an_answer(tmp_path: Path) -> None:
    """Model, times, tokens, tool calls and failovers of every message of the answer."""
    log = log_in(tmp_path)
    events = (FAILOVER, AnswerText("a", "m1"), ToolCalled("c", "f", "{}"), AnswerText("b", "m2"), USAGE, ENDED)
    for event in events:
        log.on_turn_event(TURN, event)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o077 == 0
    other = AnswerLog(tmp_path)
    expected = AnswerRecord((FAILOVER,), USAGE, 1, ENDED, "m1", "m2")
    assert other.find(AGENT, "m1") == expected
    assert other.find(AGENT, "m2") is other.find(AGENT, "m1")
    assert other.find(AGENT, "m3") is None


def test_an_answer_under_way_is_not_in_the_file(tmp_path: Path) -> None:
    """What has not ended is known in this process only."""
    answers = AnswerLog(tmp_path)
    answers.add(AGENT, "m1", AnswerRecord())
    answers.save(AGENT)
    assert answers.find(AGENT, "m1") is not None
    assert AnswerLog(tmp_path).find(AGENT, "m1") is None


def test_the_newest_are_kept_and_a_deleted_agent_leaves_nothing(tmp_path: Path) -> None:
    """Each agent has a limit; agents whose records left the memory are read again."""
    answers = AnswerLog(tmp_path)
    for number in range(510):
        answers.add(AGENT, f"m{number}", AnswerRecord(ended=ENDED))
    answers.save(AGENT)
    for number in range(60):
        answers.find(f"agent-{number:08d}-0000-4000-8000-000000000000", "m")
    assert answers.find(AGENT, "m509") is not None
    assert answers.find(AGENT, "m9") is None
    answers.forget(AGENT)
    assert list(tmp_path.iterdir()) == []
    assert answers.find(AGENT, "m509") is None


@pytest.mark.parametrize("damage", ["", "[]", '{"answers": 3}', '{"answers": [{"messages": ["m1"], "record": 5}]}'])
def test_a_damaged_file_loses_only_itself(tmp_path: Path, damage: str) -> None:
    """Nothing is known then, and the next answer is kept."""
    (tmp_path / f"{AGENT}.json").write_text(damage)
    answers = AnswerLog(tmp_path)
    assert answers.find(AGENT, "m1") is None
    answers.add(AGENT, "m1", AnswerRecord(ended=ENDED))
    answers.save(AGENT)
    assert AnswerLog(tmp_path).find(AGENT, "m1") == AnswerRecord(ended=ENDED)
    assert json.loads((tmp_path / f"{AGENT}.json").read_text())["answers"][0]["messages"] == ["m1"]


def test_an_id_that_is_none_has_no_file(tmp_path: Path) -> None:
    """No id leads out of the folder."""
    answers = AnswerLog(tmp_path / "answers")
    answers.add("../agent", "m1", AnswerRecord(ended=ENDED))
    answers.save("../agent")
    assert list(tmp_path.iterdir()) == []
