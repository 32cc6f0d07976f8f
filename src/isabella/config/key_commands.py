"""Keys that another program gives: a command of a password manager or a vault, or the keyring.

The key is kept in the memory of this process, so that reading the configuration is cheap. `renew` runs the programs
again: when a vendor refuses a key, when another key arrives, and regularly. If one fails, its last key stays in
force.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from isabella.system.english import english
from isabella.system.redaction import redact, remember

SECONDS = 20.0  # the time limit of a program
_LARGEST = 64 * 1024
_LONGEST_ERROR = 200


class Failed(Exception):
    """A program could not be run, or has given no key. The reason is the end of a sentence, without a key."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class TimedOut(Failed):
    """A program was ended at its time limit."""


class Source(Protocol):
    """A program that prints a key. Equal sources print the same one."""

    def key(self) -> str:
        """Run the program and return the key; raise `Failed`."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Command:
    """A command that prints the key, run without a shell."""

    line: str

    def key(self) -> str:
        """Return the output of the command, without the newline at the end; raise `Failed`."""
        try:
            words = shlex.split(self.line)
        except ValueError as error:
            raise Failed(english("it cannot be split into words (%(lower)s)", lower=str(error).lower())) from None
        if not words:
            raise Failed(english("it is empty"))
        try:
            text = output(words, name=words[0]).decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise Failed(english("%(name)s has printed something that is not UTF-8 text", name=words[0])) from None
        if not text.strip():
            raise Failed(english("%(name)s has printed nothing", name=words[0]))
        return text


@dataclass(frozen=True)
class Printed:
    """The key that a program has given, and why it failed when it was last run."""

    text: str | None = field(repr=False)  # None if it has not succeeded yet
    failure: str | None  # the end of a sentence; None if it succeeded
    at: float  # when it was last run, in monotonic seconds
    remedy: str | None = None  # of the failure, if it has one of its own


_printed: dict[Source, Printed] = {}
_running = threading.Lock()


def read(source: Source) -> Printed:
    """Return the key of a program; it is run only if it was not run before in this process."""
    found = _printed.get(source)
    if found is not None:
        return found
    with _running:
        found = _printed.get(source)
        if found is None:
            found = _printed[source] = _run(source)
    return found


def read_all(sources: Iterable[Source]) -> None:
    """Run those programs at the same time that were not run before in this process, so that `read` need not wait."""
    wanted = [source for source in dict.fromkeys(sources) if source not in _printed]
    if not wanted:
        return
    with _running, ThreadPoolExecutor() as threads:
        wanted = [source for source in wanted if source not in _printed]
        _printed.update(zip(wanted, threads.map(_run, wanted), strict=True))


def renew(older_than: float = 0.0) -> bool:
    """Run the programs again whose last run is longer ago than this, in seconds; return whether any key has changed.

    A program that fails now leaves its last key in force.
    """
    with _running, ThreadPoolExecutor() as threads:
        now = time.monotonic()
        due = {source: one for source, one in _printed.items() if now - one.at >= older_than}
        fresh = dict(zip(due, threads.map(_run, due), strict=True))
        for source, former in due.items():
            if fresh[source].text is None:
                fresh[source] = replace(fresh[source], text=former.text)
        _printed.update(fresh)
    return any((fresh[name].text, fresh[name].failure) != (one.text, one.failure) for name, one in due.items())


def forget() -> None:
    """Forget all keys, for tests."""
    _printed.clear()


def _run(source: Source) -> Printed:
    try:
        text = source.key()
    except Failed as failed:
        return Printed(None, failed.reason, time.monotonic(), failed.remedy)
    remember(text.strip())
    return Printed(text, None, time.monotonic())


def output(words: list[str], *, name: str, given: bytes = b"", seconds: float | None = None) -> bytes:
    """Run a program without a shell, and return its output.

    Args:
        words: the program and its arguments.
        name: its name in errors.
        given: its standard input.
        seconds: its time limit; `SECONDS` if there is none.

    Raises:
        Failed: it could not be run, has failed, or has printed too much.
        TimedOut: it was ended with all that it had started.
    """
    limit = SECONDS if seconds is None else seconds
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE if given else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Its own process group: a program that it has started ends with it.
            start_new_session=True,
        )
    except OSError as error:
        raise Failed(english("%(name)s cannot be run (%(why)s)", name=name, why=error.strerror or error)) from None
    with process:
        try:
            printed, errors = process.communicate(given or None, timeout=limit)
        except subprocess.TimeoutExpired:
            _end_group(process)
            raise TimedOut(
                english("%(name)s did not end within %(limit)s s", name=name, limit=format(limit, "g"))
            ) from None
    if process.returncode != 0:
        raise Failed(
            english(
                "%(name)s failed with exit code %(returncode)s%(first_line)s",
                name=name,
                returncode=process.returncode,
                first_line=_first_line(errors),
            )
        )
    if len(printed) > _LARGEST:
        raise Failed(english("%(name)s has printed more than %(size)s KiB", name=name, size=_LARGEST // 1024))
    return printed


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a program with its child processes."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _first_line(errors: bytes) -> str:
    lines = [line.strip() for line in redact(errors.decode(errors="replace")).splitlines() if line.strip()]
    return f": {lines[0][:_LONGEST_ERROR]}" if lines else ""
