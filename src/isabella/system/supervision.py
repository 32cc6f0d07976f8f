"""Supervision of servers that Isabella runs in separate processes.

A part that has ended is restarted on its port, no matter what had started it. Parts have an order: one is started
only if all before it work. A part that is alive and does not answer is given time, and then replaced. Starts that
fail, or that soon end again, are repeated after growing pauses; after several failures the supervisor waits for
minutes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol

import anyio
import anyio.to_thread
import structlog

from isabella.errors import IsabellaError
from isabella.system.english import english
from isabella.system.processes import ChildProcess, Reaper
from isabella.system.redaction import unforeseen
from isabella.system.sockets import SHORTAGES

log = structlog.get_logger()


@dataclass(frozen=True)
class Timing:
    """The times of a supervisor, in seconds."""

    look: float = 0.5  #: between two looks at the processes
    fresh: float = 0.1  #: that a look counts as of now
    ask: float = 2.0  #: between two questions whether a part answers
    patience: float = 60.0  #: that a part may be alive without answering
    settled: float = 10.0  #: after which a start counts as a success
    first_pause: float = 0.5  #: after the first failure; it doubles with each further one
    longest_pause: float = 20.0
    attempts: int = 6  #: starts in a row without an answer after which it is given up
    given_up: float = 300.0  #: until a part that was given up is tried again


@dataclass(frozen=True)
class Sight:
    """An observation of a part: its process (None if that has ended), and a sentence on any problem."""

    process: ChildProcess | None
    problem: str | None = None
    #: whether it is to be started; false if it was stopped on purpose
    wanted: bool = True


class Part(Protocol):
    """A server in a separate process. Every method may block."""

    name: str  #: in messages, such as `Letta`
    word: str  #: in metrics and events, such as `letta`

    def look(self) -> Sight:
        """Look at its process, without asking it."""

    def answers(self) -> bool:
        """Ask it, and return within a few seconds."""

    def start(self, silent: ChildProcess | None) -> None:
        """Start it again, on the same port, and return when it answers. Raises `IsabellaError`.

        `silent` is its process if that is alive, and is to be ended if it still does not answer.
        """


class PartState(StrEnum):
    """The state of a part."""

    RUNS = "runs"
    #: It is alive, and does not answer.
    SILENT = "silent"
    #: It has ended, and is being restarted.
    DOWN = "down"
    #: It could not be started several times, and is tried again in some minutes.
    GIVEN_UP = "given_up"
    #: It was stopped on purpose.
    STOPPED = "stopped"


@dataclass(frozen=True)
class PartStatus:
    """The state of a part."""

    name: str
    word: str
    state: PartState = PartState.RUNS
    reason: str = ""  #: one sentence; empty if it runs
    restarts: int = 0
    since: datetime = field(default_factory=lambda: datetime.now(UTC))  #: when the state began

    @property
    def runs(self) -> bool:
        """Whether it works."""
        return self.state is PartState.RUNS


@dataclass
class _Watched:
    """A part, and what the supervisor knows of it."""

    part: Part
    status: PartStatus
    process: ChildProcess | None = None
    answered: ChildProcess | None = None  #: the process that has answered
    asked_in_vain: int = 0
    silent_since: float | None = None
    started: float = float("-inf")
    failures: int = 0  #: starts in a row that failed, or that soon ended again
    failed_starts: int = 0  #: starts in a row that failed
    due: float = 0.0


#: Children that have ended cost nothing but their number, and to find them all processes are looked at.
_LOOKS_PER_REAPING = 20
#: Two unanswered questions in a row count: one may meet a part that is busy.
_IN_VAIN = 2


class Supervisor:
    """Watches parts, in the order in which they are started.

    Args:
        parts: the parts; each needs all before it.
        on_change: is called in the event loop with every new status.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        on_change: Callable[[PartStatus], None] = lambda _status: None,
        timing: Timing | None = None,
    ) -> None:
        self.on_change = on_change
        #: is awaited with the word of a part whose new process answers, before the part counts as working
        self.on_answer: Callable[[str], Awaitable[None]] = _nothing
        self.outages = 0  #: how often a part has stopped to work
        self.last_outage = ""  #: why, the last time
        self._timing = timing or Timing()
        self._watched = [_Watched(part, PartStatus(part.name, part.word)) for part in parts]
        self._reaper = Reaper()
        self._changed = anyio.Event()
        self._looks = 0
        self._looked = float("-inf")  # when the last look ended
        self._nudged = anyio.Event()
        self._running = False

    @property
    def statuses(self) -> tuple[PartStatus, ...]:
        """The status of every part, in order."""
        return tuple(watched.status for watched in self._watched)

    @property
    def down(self) -> tuple[PartStatus, ...]:
        """The parts that do not work."""
        return tuple(status for status in self.statuses if not status.runs)

    async def run(self) -> None:
        """Supervise until cancelled."""
        self._running = True
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._repair)
                for watched in self._watched:
                    tasks.start_soon(self._ask_regularly, watched)
                while True:
                    await self._look()
                    with anyio.move_on_after(self._timing.look):
                        await self._nudged.wait()
                    self._nudged = anyio.Event()
        finally:
            self._running = False
            self._wake()

    async def confirm(self) -> int:
        """Look at all parts now, and return the number of outages so far."""
        seen = self._looks + 2  # The look that is under way may have begun before this call.
        while self._running and self._looks < seen:
            self._nudged.set()
            await self._changed.wait()
        return self.outages

    async def refresh(self) -> None:
        """Look at all parts now, if the last look is not of the last moments.

        It waits for at most a second, so that a look that takes longer delays no answer.
        """
        if self._running and time.monotonic() - self._looked > self._timing.fresh:
            with anyio.move_on_after(1.0):
                await self.confirm()

    async def doubt(self) -> int:
        """Look at all parts and ask them now, because one may have failed; return the number of outages so far.

        A part that does not answer at once counts as silent, until it answers.
        """
        await self.confirm()
        if self._running:
            async with anyio.create_task_group() as tasks:
                for watched in self._watched:
                    if watched.status.runs:
                        tasks.start_soon(self._ask, watched, _IN_VAIN)
        return await self.confirm()

    async def wait(self, seconds: float) -> bool:
        """Wait until every part works, at most this long; return whether all do. One that was given up ends it."""
        with anyio.move_on_after(max(0.0, seconds)):
            while self._running and self.down and not any(one.state is PartState.GIVEN_UP for one in self.down):
                await self._changed.wait()
        return not self.down

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _look(self) -> None:
        try:
            sights = await anyio.to_thread.run_sync(self._sights)
        except OSError as error:
            if error.errno not in SHORTAGES:
                raise
            # Nothing is known of the parts, so nothing is done about them.
            log.warning("parts cannot be watched", error=error.strerror)
            return
        for watched, sight in zip(self._watched, sights, strict=True):
            self._judge(watched, sight)
        self._looks += 1
        self._looked = time.monotonic()
        self._wake()

    def _sights(self) -> list[Sight]:
        if self._looks % _LOOKS_PER_REAPING == 0:
            self._reaper.reap()
        return [_sight(watched.part) for watched in self._watched]

    def _judge(self, watched: _Watched, sight: Sight) -> None:
        """Compare a part with its last known state."""
        if self._looks == 0:
            # The process of this supervisor has started it.
            watched.answered = sight.process
        watched.process = sight.process
        if sight.process is None:
            watched.silent_since = None
            self._judge_ended(watched, sight)
            return
        problem = sight.problem
        if problem is None and sight.process != watched.answered:
            problem = english("%(part)s is starting.", part=watched.part.name)
        elif problem is None and watched.asked_in_vain >= _IN_VAIN:
            problem = english("%(part)s does not answer.", part=watched.part.name)
        if problem is None:
            watched.silent_since = None
            self._set(watched, PartState.RUNS, "")
        else:
            watched.silent_since = watched.silent_since or time.monotonic()
            self._set(watched, PartState.SILENT, problem)

    def _judge_ended(self, watched: _Watched, sight: Sight) -> None:
        problem = sight.problem or english("%(part)s has ended.", part=watched.part.name)
        if not sight.wanted:
            self._set(watched, PartState.STOPPED, problem)
        elif watched.status.state not in (PartState.DOWN, PartState.GIVEN_UP):
            if time.monotonic() - watched.started > self._timing.settled:
                watched.failures = 0
            else:
                self._count_failure(watched)
            self._set(watched, PartState.DOWN, problem)

    async def _ask_regularly(self, watched: _Watched) -> None:
        """Ask a part whether it answers, as long as its process is there."""
        while True:
            await anyio.sleep(self._timing.ask if watched.status.runs else self._timing.look)
            await self._ask(watched)

    async def _ask(self, watched: _Watched, weight: int = 1) -> None:
        """Ask a part; `weight` is how much it counts if it does not answer."""
        process = watched.process
        if process is None:
            return
        answers = await anyio.to_thread.run_sync(_answers, watched.part, abandon_on_cancel=True)
        if process != watched.process:
            return
        watched.asked_in_vain = 0 if answers else watched.asked_in_vain + weight
        if answers and process != watched.answered:
            try:
                await self.on_answer(watched.part.word)
            except Exception as error:  # noqa: BLE001 - no error ends the supervisor
                log.warning("not followed", part=watched.part.name, error=unforeseen(error))
            watched.answered = process
        self._nudged.set()

    async def _repair(self) -> None:
        """Start parts again, one at a time, the first one in the order first."""
        while True:
            await self._changed.wait()
            while (watched := self._next()) is not None:
                await self._start(watched)

    def _next(self) -> _Watched | None:
        """Return the part to be started now. Those behind one that does not work wait for it."""
        watched = next((watched for watched in self._watched if not watched.status.runs), None)
        now = time.monotonic()
        if watched is None or watched.status.state is PartState.STOPPED or now < watched.due:
            return None
        if watched.process is not None:
            silent_since = watched.silent_since or now
            return watched if now - silent_since > self._timing.patience else None
        return watched

    async def _start(self, watched: _Watched) -> None:
        log.info("starting again", part=watched.part.name, reason=watched.status.reason)
        try:
            await anyio.to_thread.run_sync(_start, watched.part, watched.process)
        except IsabellaError as error:
            log.warning("not started again", part=watched.part.name, error=str(error))
            # Reasons are shown without a token, and the further lines quote a log.
            brief = " ".join(filter(None, (error.what.splitlines()[0], error.remedy)))
            await self.confirm()
            self._failed(watched, f"{watched.part.name} could not be started again: {brief}")
        else:
            watched.started, watched.silent_since, watched.failed_starts = time.monotonic(), None, 0
            watched.status = replace(watched.status, restarts=watched.status.restarts + 1)
        await self.confirm()
        await self._ask(watched)
        await self.confirm()

    def _failed(self, watched: _Watched, reason: str) -> None:
        """Judge a start that failed: after several the part is given up for some minutes."""
        timing = self._timing
        if not all(
            earlier.status.runs for earlier in itertools.takewhile(lambda one: one is not watched, self._watched)
        ):
            # Not its own failure: it needs a part that has ended meanwhile.
            self._set(watched, PartState.DOWN, reason)
            return
        self._count_failure(watched)
        watched.failed_starts += 1
        if watched.failed_starts < timing.attempts:
            self._set(watched, PartState.DOWN, reason)
            return
        watched.due = time.monotonic() + timing.given_up
        seconds = f"{timing.given_up:.0f}"
        text = english("%(reason)s Next attempt in %(seconds)s s.", reason=reason, seconds=seconds)
        self._set(watched, PartState.GIVEN_UP, text)

    def _count_failure(self, watched: _Watched) -> None:
        """Count a failure, and set when the next start is due."""
        watched.failures += 1
        pause = self._timing.first_pause * 2 ** (watched.failures - 1)
        watched.due = time.monotonic() + min(pause, self._timing.longest_pause)

    def _set(self, watched: _Watched, state: PartState, reason: str) -> None:
        before = watched.status
        if (before.state, before.reason) == (state, reason):
            return
        since = before.since if before.state is state else datetime.now(UTC)
        watched.status = replace(before, state=state, reason=reason, since=since)
        if before.runs:
            self.outages += 1
            self.last_outage = reason
        self.on_change(watched.status)
        self._wake()


async def _nothing(_word: str) -> None:
    """Do nothing about a part whose new process answers."""


def _sight(part: Part) -> Sight:
    try:
        return part.look()
    except Exception as error:  # noqa: BLE001 - no error ends the supervisor
        return Sight(
            None,
            english("%(name)s cannot be inspected: %(unforeseen)s", name=part.name, unforeseen=unforeseen(error)),
        )


def _answers(part: Part) -> bool:
    try:
        return part.answers()
    except Exception as error:  # noqa: BLE001 - no error ends the supervisor
        log.warning("not asked", part=part.name, error=unforeseen(error))
        return False


def _start(part: Part, silent: ChildProcess | None) -> None:
    try:
        part.start(silent)
    except IsabellaError:
        raise
    except Exception as error:
        # No error ends the supervisor.
        raise IsabellaError(unforeseen(error)) from error
