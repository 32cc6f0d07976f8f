"""Child processes whose parent was killed before it could write down that they exist.

Each child of ours that must not be lost carries a mark in its arguments: an option and a path of this instance.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import psutil

from isabella.processes import Process


def find(option: str, path: Path) -> list[Process]:
    """The processes of this user that have `option` followed by `path` among their arguments."""
    found: list[Process] = []
    ours = psutil.Process().uids().real
    for process in psutil.process_iter():
        try:
            if process.uids().real != ours:
                continue
            arguments = process.cmdline()
            if (option, str(path)) in pairwise(arguments):
                found.append(Process(process.pid, process.create_time()))
        except psutil.Error:
            continue
    return found


def stop(option: str, path: Path) -> int:
    """End what `find` finds; returns how many there were."""
    return sum(process.stop() for process in find(option, path))
