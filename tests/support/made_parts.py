"""Parts for a supervisor whose processes are made up."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from isabella.errors import IsabellaError
from isabella.system.processes import ChildProcess
from isabella.system.supervision import PartStatus, Sight, Supervisor, Timing

QUICK = Timing(look=0.01, ask=0.01, patience=0.2, settled=0.0, first_pause=0.001, longest_pause=0.002, given_up=0.05)


@dataclass
class MadePart:
    """A part whose process is a number."""

    name: str
    starts: list[str]
    word: str = ""
    process: ChildProcess | None = field(default_factory=lambda: ChildProcess(1, 0.0))
    healthy: bool = True
    wanted: bool = True
    refuses: int = 0  #: how many starts fail
    may_start: threading.Event = field(default_factory=threading.Event)
    on_start: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.word = self.name
        self.may_start.set()

    def look(self) -> Sight:
        """As it was made."""
        return Sight(self.process, wanted=self.wanted)

    def answers(self) -> bool:
        """As it was made."""
        return self.healthy

    def start(self, silent: ChildProcess | None) -> None:
        """Start, after it may."""
        self.may_start.wait(10)
        self.on_start()
        self.starts.append(self.name if silent is None else f"{self.name} anew")
        if self.refuses:
            self.refuses -= 1
            raise IsabellaError(f"{self.name} refuses.\n  its log", remedy="Wait.")
        pid = 1 if self.process is None else self.process.pid
        self.process, self.healthy = ChildProcess(pid + 1, 0.0), True


@dataclass
class MadeParts:
    """Three parts, and what is told of them."""

    starts: list[str] = field(default_factory=list)
    told: list[PartStatus] = field(default_factory=list)
    timing: Timing = QUICK

    def __post_init__(self) -> None:
        self.parts = [MadePart(name, self.starts) for name in ("postgres", "letta", "gateway")]
        self.supervisor = Supervisor(self.parts, self.told.append, self.timing)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Supervisor]:
        """The supervisor, which runs meanwhile."""
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.supervisor.run)
                await until(lambda: self.supervisor._running)
                await self.supervisor.confirm()
                yield self.supervisor
                tasks.cancel_scope.cancel()

    def end(self, *names: str) -> None:
        """The processes of these parts end."""
        for part in self.parts:
            if part.name in names:
                part.process = None


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    while not condition():  # noqa: ASYNC110 - the condition has no event
        await anyio.sleep(0.001)
