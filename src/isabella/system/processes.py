"""Child processes that outlive their parent: started detached, found again, and stopped by identity.

A process is identified by its pid and its start time, so that a pid which the system has given to another process
is never signalled.
"""

from __future__ import annotations

import math
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

from isabella.system import state


@dataclass(frozen=True)
class ChildProcess:
    """A process on this machine: its pid, and its start time in seconds since the epoch, as the system reports it."""

    pid: int
    started: float

    @classmethod
    def in_record(cls, record: Mapping[str, Any]) -> ChildProcess | None:
        """Return the process in the fields `pid` and `started` of a record; None if they do not name one."""
        match record:
            # A bool is an int, too, and a number in JSON may be infinite.
            case {"pid": int(pid), "started": int() | float() as started} if (
                type(pid) is int and 0 < pid < 1 << 31 and 0 < started < math.inf
            ):
                return cls(pid, float(started))
        return None

    @classmethod
    def of(cls, pid: int) -> ChildProcess:
        """Return the process that has this pid now; raises `psutil.NoSuchProcess` if there is none."""
        return cls(pid, psutil.Process(pid).create_time())

    def is_running(self) -> bool:
        """Return whether this process, not a later one with its pid, is alive and no zombie."""
        return self._live() is not None

    def is_stopped(self) -> bool:
        """Return whether this process is alive, and was stopped by a signal."""
        process = self._live()
        try:
            return process is not None and process.status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    def cpu_seconds(self) -> float:
        """Return the processor time that this process has used; 0 if it has ended."""
        process = self._live()
        try:
            times = process.cpu_times() if process is not None else None
        except psutil.NoSuchProcess:
            times = None
        return 0.0 if times is None else float(times.user + times.system)

    def stop(self, *, grace: float = 10.0) -> bool:
        """End the process and its descendants: with SIGTERM, then SIGKILL after `grace` seconds.

        Return whether it was running.
        """
        process = self._live()
        if process is None:
            return False
        family = [process]
        with suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
        with suppress(psutil.NoSuchProcess):
            process.terminate()
        survivors = _wait(family, grace)
        for survivor in survivors:
            with suppress(psutil.NoSuchProcess):
                survivor.kill()
        _wait(survivors, grace)
        return True

    def _live(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            # Start times are compared with a tolerance: some systems derive them from a boot time that is adjusted.
            same = abs(process.create_time() - self.started) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def _wait(family: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Return the processes that have not ended after this many seconds.

    `psutil.wait_procs` alone would also wait for zombies whose parent is another process and does not reap them.
    It is called only for ended processes, to reap our own children.
    """
    deadline = time.monotonic() + seconds
    left = list(family)
    while True:
        ended = [process for process in left if has_ended(process)]
        psutil.wait_procs(ended, timeout=0)
        left = [process for process in left if process not in ended]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


class Reaper:
    """Reaps child processes that have ended and that no code waits for."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def reap(self) -> None:
        """Reap the children that were found ended before, too: the code that waits for one has done so in between."""
        if not _a_child_has_ended():
            self._seen = set()
            return
        ended = {child.pid for child in psutil.Process().children() if has_ended(child)}
        for pid in ended & self._seen:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._seen = ended


def _a_child_has_ended() -> bool:
    """Return whether a child waits to be reaped; true if the system does not tell. A list of all costs more."""
    if not hasattr(os, "waitid"):
        return True
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended. A zombie has."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> ChildProcess:
    """Start a process in a new session, with its output appended to a log that only its owner can read.

    Secrets belong in `env`, not in `argv`, which every user of the machine can see. Raises `OSError`.
    """
    state.make_way(log, log=True)
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
            pass_fds=pass_fds,
        )
    finally:
        os.close(descriptor)
    # A child that has ended already is a zombie until it is reaped, so its start time can be read.
    return ChildProcess.of(child.pid)


def save(path: Path, process: ChildProcess) -> None:
    """Record a process in a file, so that a later command can find it."""
    state.save(path, asdict(process))


def load(path: Path) -> ChildProcess | None:
    """Return the process recorded in a file; None if the file is missing or damaged."""
    record = state.load(path)
    process = ChildProcess.in_record(record)
    if record and process is None:
        state.report_fields(path)
    return process


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, as on Ctrl-C, so that either signal stops what was started."""

    def interrupt(_number: int, _frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
