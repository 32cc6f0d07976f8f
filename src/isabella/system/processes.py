"""Child processes that outlive their parent: started detached, found again, stopped by identity.

A process is identified by its pid together with its start time, so that a pid which the system has given to
somebody else is never signalled.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from isabella.system.files import write_private


@dataclass(frozen=True)
class ChildProcess:
    """A process on this machine.

    Attributes:
        pid: the process id.
        started: its start time, seconds since the epoch, as the system tells it.
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ChildProcess:
        """The process that has this pid now.

        Raises:
            psutil.NoSuchProcess: there is none.
        """
        return cls(pid, psutil.Process(pid).create_time())

    def is_running(self) -> bool:
        """Whether this very process, not a later one with its pid, is alive and no zombie."""
        return self._live() is not None

    def stop(self, *, grace: float = 10.0) -> bool:
        """End the process and its descendants: SIGTERM, then SIGKILL to what is left after the grace.

        Args:
            grace: seconds to wait after SIGTERM.

        Returns:
            Whether it was running.
        """
        process = self._live()
        if process is None:
            return False
        family = [process]
        with suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
        with suppress(psutil.NoSuchProcess):
            process.terminate()
        left = _wait(family, grace)
        for survivor in left:
            with suppress(psutil.NoSuchProcess):
                survivor.kill()
        _wait(left, grace)
        return True

    def _live(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            # Start times are compared loosely: some systems derive them from the boot time, which is adjusted.
            same = abs(process.create_time() - self.started) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def _wait(family: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that have not ended after so many seconds.

    `psutil.wait_procs` alone would wait for zombies too: for a child of somebody else who does not ask how it ended.
    A child of ours is asked after it was seen to have ended, so that none of them stays behind as a zombie.
    """
    deadline = time.monotonic() + seconds
    left = list(family)
    while True:
        ended = [one for one in left if has_ended(one)]
        psutil.wait_procs(ended, timeout=0)
        left = [one for one in left if one not in ended]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def has_ended(process: psutil.Process) -> bool:
    """Whether it is over; what only waits for somebody to ask how it ended, is."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def spawn(argv: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path | None = None) -> ChildProcess:
    """Start a process in a session of its own, with its output appended to a log that only we can read.

    Secrets belong in `env`, never in `argv`, which every user of the machine can see.

    Raises:
        OSError: the program or the log cannot be opened.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    # A child that has ended already is still a zombie of ours, so its start time can be read.
    return ChildProcess.of(child.pid)


def save(path: Path, process: ChildProcess) -> None:
    """Write down which process runs, so that a later command finds it again."""
    write_private(path, json.dumps(asdict(process)))


def load(path: Path) -> ChildProcess | None:
    """The process written down at `path`; None where there is none or the file is damaged."""
    try:
        found = json.loads(path.read_text())
        return ChildProcess(pid=int(found["pid"]), started=float(found["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that what was started is stopped whichever comes."""

    def interrupt(_number: int, _frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
