"""Keys that a command prints: the program of a password manager or of a vault, run without a shell.

What a command has printed is kept in the memory of this process, so that reading the configuration is cheap. `renew`
runs the commands again: when a vendor refuses a key, when another key arrives, and regularly. If a command fails,
its last key stays in force.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

from isabella.system.redaction import redact, remember

SECONDS = 20.0  # the time limit of a command
_LARGEST = 64 * 1024
_LONGEST_ERROR = 200


@dataclass(frozen=True)
class Printed:
    """What a command has printed, and why it failed when it was last run."""

    text: str | None = field(repr=False)  # None if it has not succeeded yet
    failure: str | None  # the end of a sentence; None if it succeeded
    at: float  # when it was last run, in monotonic seconds


_printed: dict[str, Printed] = {}
_running = threading.Lock()


def read(command: str) -> Printed:
    """Return what a command prints; it is run only if it was not run before in this process."""
    found = _printed.get(command)
    if found is not None:
        return found
    with _running:
        found = _printed.get(command)
        if found is None:
            found = _printed[command] = _run(command)
    return found


def renew(older_than: float = 0.0) -> bool:
    """Run the commands again whose last run is longer ago than this, in seconds; return whether any key has changed.

    A command that fails now leaves its last key in force.
    """
    with _running, ThreadPoolExecutor() as threads:
        now = time.monotonic()
        due = {command: one for command, one in _printed.items() if now - one.at >= older_than}
        fresh = dict(zip(due, threads.map(_run, due), strict=True))
        for command, former in due.items():
            if fresh[command].text is None:
                fresh[command] = replace(fresh[command], text=former.text)
        _printed.update(fresh)
    return any((fresh[name].text, fresh[name].failure) != (one.text, one.failure) for name, one in due.items())


def forget() -> None:
    """Forget what was printed, for tests."""
    _printed.clear()


def _run(command: str) -> Printed:
    try:
        text, failure = _output(shlex.split(command)), None
    except _Failed as failed:
        text, failure = None, str(failed)
    except ValueError as error:
        text, failure = None, f"it cannot be split into words ({str(error).lower()})"
    return Printed(text, failure, time.monotonic())


class _Failed(Exception):
    """A command could not be run, or has printed no key. The message is the end of a sentence."""


def _output(words: list[str]) -> str:
    if not words:
        raise _Failed("it is empty")
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A group of its own: a program that it has started ends with it.
            start_new_session=True,
        )
    except OSError as error:
        raise _Failed(f"{words[0]} cannot be run ({error.strerror or error})") from None
    with process:
        try:
            output, errors = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            _end_group(process)
            raise _Failed(f"{words[0]} has not ended within {SECONDS:g} s") from None
    if process.returncode != 0:
        raise _Failed(f"{words[0]} failed with exit code {process.returncode}{_first_line(errors)}")
    if len(output) > _LARGEST:
        raise _Failed(f"{words[0]} has printed more than {_LARGEST // 1024} KiB")
    try:
        text = output.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise _Failed(f"{words[0]} has printed something that is not UTF-8 text") from None
    if not text.strip():
        raise _Failed(f"{words[0]} has printed nothing")
    remember(text.strip())
    return text


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command with what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _first_line(errors: bytes) -> str:
    lines = [line.strip() for line in redact(errors.decode(errors="replace")).splitlines() if line.strip()]
    return f": {lines[0][:_LONGEST_ERROR]}" if lines else ""
