"""The supervisor, on parts whose processes are made up: what is started when, and what is told of it."""

from __future__ import annotations

import os
import subprocess
import sys

import anyio
import psutil
import pytest

from isabella.system.processes import ChildProcess, Reaper
from isabella.system.supervision import PartState, Sight, Timing
from tests.support.made_parts import MadeParts, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the backend runs on."""
    return "asyncio"


@pytest.fixture
def stage() -> MadeParts:
    """One for each test."""
    return MadeParts()


async def test_all_come_back_in_their_order(stage: MadeParts) -> None:
    """Each is started when those before it work, however they have ended."""
    async with stage.running() as supervisor:
        stage.end("gateway", "letta", "postgres")
        assert await supervisor.confirm() == 3
        assert await supervisor.wait(10)
        assert stage.starts == ["postgres", "letta", "gateway"]
        assert [status.restarts for status in supervisor.statuses] == [1, 1, 1]


async def test_a_death_is_known_before_the_next_regular_look() -> None:
    """Whoever asks for the state as of now does not wait for that look, which is a minute away here."""
    stage = MadeParts(timing=Timing(look=60.0, ask=60.0, fresh=0.0))
    stage.parts[1].may_start.clear()
    async with stage.running() as supervisor:
        stage.end("letta")
        await supervisor.refresh()
        assert [status.word for status in supervisor.down] == ["letta"]
        stage.parts[1].may_start.set()


async def test_one_that_ends_while_another_starts_comes_first(stage: MadeParts) -> None:
    """Letta's start fails without Postgres, which is then started before it."""
    letta = stage.parts[1]
    letta.may_start.clear()
    async with stage.running() as supervisor:
        stage.end("letta")
        await until(lambda: bool(supervisor.down))
        stage.end("postgres")
        letta.refuses = 1
        letta.may_start.set()
        assert await supervisor.wait(10)
    assert stage.starts == ["letta", "postgres", "letta"]


async def test_one_that_cannot_be_started_is_given_up_and_tried_again_later(stage: MadeParts) -> None:
    """The reason is told; whoever waits for it is not kept waiting; and in the end it works."""
    stage.parts[0].refuses = 7
    async with stage.running() as supervisor:
        stage.end("postgres")
        await until(lambda: any(status.state is PartState.GIVEN_UP for status in stage.told))
        given_up = next(status for status in stage.told if status.state is PartState.GIVEN_UP)
        assert "postgres refuses. Wait." in given_up.reason
        assert "its log" not in given_up.reason
        assert "Next attempt in" in given_up.reason
        assert stage.starts == ["postgres"] * 6
        await until(lambda: supervisor.statuses[0].runs)
        assert stage.starts == ["postgres"] * 8


async def test_whoever_waits_for_a_part_that_was_given_up_is_told_at_once() -> None:
    """Minutes would pass until it is tried again."""
    stage = MadeParts(timing=Timing(look=0.01, first_pause=0.001, longest_pause=0.001))
    stage.parts[2].refuses = 100
    async with stage.running() as supervisor:
        stage.end("gateway")
        await supervisor.confirm()
        assert not await supervisor.wait(60)
        assert supervisor.down[0].state is PartState.GIVEN_UP


async def test_one_that_ends_soon_after_each_start_is_started_after_growing_pauses() -> None:
    """Each start succeeds, and none lasts: it is never given up, because it answers in between."""
    timing = Timing(look=0.01, ask=0.01, settled=60.0, first_pause=0.001, longest_pause=0.004)
    stage = MadeParts(timing=timing)

    async with stage.running() as supervisor:
        for _ in range(2 * timing.attempts):
            stage.end("letta")
            await supervisor.confirm()
            assert await supervisor.wait(10)
    assert stage.starts == ["letta"] * 2 * timing.attempts
    assert PartState.GIVEN_UP not in {status.state for status in stage.told}


async def test_a_start_that_fails_because_of_another_part_does_not_count(stage: MadeParts) -> None:
    """Postgres ends in every start of Letta: that is no reason to give Letta up."""
    letta = stage.parts[1]
    letta.refuses = 8
    letta.on_start = lambda: stage.end("postgres") if letta.refuses else None
    async with stage.running() as supervisor:
        stage.end("letta")
        await supervisor.confirm()
        assert await supervisor.wait(10)
    assert stage.starts == ["letta", "postgres"] * 8 + ["letta"]
    assert PartState.GIVEN_UP not in {status.state for status in stage.told}


async def test_one_that_is_silent_is_waited_for_and_then_replaced(stage: MadeParts) -> None:
    """Silence is told; after its patience the process is ended, and another one started."""
    async with stage.running() as supervisor:
        stage.parts[1].healthy = False
        await until(lambda: bool(supervisor.down))
        assert supervisor.down[0].state is PartState.SILENT
        assert stage.starts == []
        assert await supervisor.wait(10)
        assert stage.starts == ["letta anew"]


async def test_one_that_answers_again_is_left_alone() -> None:
    """It was only busy, or stopped for a while."""
    stage = MadeParts(timing=Timing(look=0.01, ask=0.01))
    async with stage.running() as supervisor:
        stage.parts[1].healthy = False
        await until(lambda: bool(supervisor.down))
        stage.parts[1].healthy = True
        assert await supervisor.wait(10)
        assert stage.starts == []
        assert supervisor.outages == 1


async def test_one_that_another_program_starts_works_when_it_answers(stage: MadeParts) -> None:
    """A process alone is not enough: it may take long to start."""
    async with stage.running() as supervisor:
        letta = stage.parts[1]
        letta.healthy, letta.process = False, ChildProcess(77, 0.0)
        await supervisor.confirm()
        assert "starting" in supervisor.down[0].reason
        letta.healthy = True
        assert await supervisor.wait(10)
        assert (supervisor.outages, stage.starts) == (1, [])


async def test_one_that_was_stopped_on_purpose_is_not_started(stage: MadeParts) -> None:
    """Until another program starts it."""
    async with stage.running() as supervisor:
        stage.parts[1].wanted = False
        stage.end("letta", "gateway")
        await until(lambda: len(supervisor.down) == 2)
        assert supervisor.down[0].state is PartState.STOPPED
        assert not await supervisor.wait(0.05)
        assert stage.starts == []
        stage.parts[1].process = ChildProcess(9, 0.0)
        assert await supervisor.wait(10)
        assert stage.starts == ["gateway"]


async def test_errors_of_a_part_end_nothing(stage: MadeParts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a look nor a question nor a start that fails in an unforeseen way."""

    def fail(*_arguments: object) -> Sight:
        raise OSError("the disk is on fire")

    async with stage.running() as supervisor:
        with monkeypatch.context() as patch:
            patch.setattr(stage.parts[0], "look", fail)
            patch.setattr(stage.parts[0], "start", fail)
            await until(lambda: any("on fire" in status.reason for status in stage.told))
        assert await supervisor.wait(10)


async def test_a_supervisor_that_has_ended_keeps_nobody_waiting(stage: MadeParts) -> None:
    """A turn that waits for Letta while the backend ends."""
    stage.parts[0].may_start.set()
    stage.parts[0].refuses = 1000
    async with anyio.create_task_group() as waiting:
        async with stage.running() as supervisor:
            stage.end("postgres")
            await until(lambda: bool(supervisor.down))
            waiting.start_soon(supervisor.wait, 3600.0)
        await supervisor.confirm()


def test_children_that_have_ended_are_reaped() -> None:
    """By the second look, so that those for whom somebody waits are left to them."""
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)
    waited_for = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    reaper = Reaper()
    reaper.reap()
    assert psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert waited_for.wait() == 3
    reaper.reap()
    assert not psutil.pid_exists(child)
