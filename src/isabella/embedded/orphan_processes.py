"""Child processes whose parent was killed before it could write down that they exist.

Each child of ours that must not be lost carries a mark in its arguments: an option and a path of this instance.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import psutil

from isabella.system.processes import ChildProcess


def find(option: str, path: Path) -> list[ChildProcess]:
    """The processes that have `option` followed by `path` among their arguments: this user's, for root anybody's."""
    found: list[ChildProcess] = []
    ours = os.geteuid()
    for process in psutil.process_iter():
        try:
            if ours not in (0, process.uids().real):
                continue
            arguments = process.cmdline()
            if (option, str(path)) in pairwise(arguments):
                found.append(ChildProcess(process.pid, process.create_time()))
        except psutil.Error:
            continue
    return found


def stop(option: str, path: Path) -> int:
    """End what `find` finds; returns how many there were."""
    return sum(process.stop() for process in find(option, path))
