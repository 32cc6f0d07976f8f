"""The gateway's record of its requests, and the file that tells backends of a change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isabella.gateway.limits import RateLimits
from isabella.gateway.traffic import Call, OutcomeMark, Traffic

CALL = Call("cerebras", "agent-1", "gpt-oss-120b")


def test_the_mark_changes_with_each_outcome_and_each_start(tmp_path: Path) -> None:
    """And with nothing else: an answer in full leaves it as it is."""
    path = tmp_path / "outcomes"
    traffic = Traffic(mark=OutcomeMark(path))
    marks = [OutcomeMark.read(path)]
    traffic.accepted("cerebras", 10.0)
    traffic.used("cerebras", 10, 10, RateLimits())
    assert OutcomeMark.read(path) == marks[0] is not None
    traffic.add_outcome(CALL, "cut", "the answer reached the limit of tokens")
    marks.append(OutcomeMark.read(path))
    traffic.add_outcome(CALL, "refused", "no", status=429)
    marks.append(OutcomeMark.read(path))
    Traffic(mark=OutcomeMark(path))
    marks.append(OutcomeMark.read(path))
    assert len(set(marks)) == len(marks)
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_gateways_of_one_home_change_the_same_mark(tmp_path: Path) -> None:
    """One that was started later does not hide the outcomes of the other one."""
    path = tmp_path / "outcomes"
    first, second = Traffic(mark=OutcomeMark(path)), Traffic(mark=OutcomeMark(path))
    marks = [OutcomeMark.read(path)]
    for traffic in (first, second, first):
        traffic.add_outcome(CALL, "cut", "the answer reached the limit of tokens")
        marks.append(OutcomeMark.read(path))
    assert len(set(marks)) == len(marks)


def test_a_mark_that_cannot_be_written_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old one would say that nothing has happened."""

    def fail(_path: Path, _flags: int, _mode: int) -> int:
        raise OSError(5, "Input/output error")

    path = tmp_path / "outcomes"
    traffic = Traffic(mark=OutcomeMark(path))
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", fail)
        traffic.add_outcome(CALL, "cut", "the answer reached the limit of tokens")
    assert OutcomeMark.read(path) is None
    assert len(traffic.outcomes) == 1
