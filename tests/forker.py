"""Real processes that can be killed, without a second of imports for each.

One process imports everything that the command line needs, and forks itself for every command. It has no threads and
no event loop, so a fork of it is as good as a fresh start.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_GO = signal.SIGUSR1


@dataclass(frozen=True)
class Child:
    """A command that was started.

    Attributes:
        pid: its process.
        output: the file that it writes to.
    """

    pid: int
    output: Path
    _forker: Forker

    def wait(self) -> int:
        """Wait for its end: the exit code, or the negative number of the signal that ended it."""
        return int(self._forker.order({"wait": self.pid})["code"])

    def go(self) -> None:
        """Let it begin, where it was told to hold."""
        os.kill(self.pid, _GO)

    def kill(self) -> None:
        """End it as a crash would. It stays known until it is waited for, so its pid is nobody else's."""
        os.kill(self.pid, signal.SIGKILL)


class Forker:
    """A context manager: the process that forks itself."""

    def __enter__(self) -> Self:
        """Start it; returns when everything is imported."""
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.order({}) == {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and with it whatever it has left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: Path,
        *,
        hold: bool = False,
        no_files: bool = False,
    ) -> Child:
        """Run `isabella ARGUMENTS`.

        Args:
            arguments: of the command line.
            environment: the whole of it.
            output: the file that it writes to, errors included; its folder is the working folder.
            hold: whether it waits for `go` before it begins.
            no_files: whether it can write nothing to any file, as on a full disk; its output is lost, too.
        """
        made = self.order(
            {
                "arguments": list(arguments),
                "environment": dict(environment),
                "output": str(output),
                "hold": hold,
                "no_files": no_files,
            }
        )
        return Child(made["pid"], output, self)

    def order(self, order: dict[str, Any]) -> dict[str, Any]:
        """Tell it something, and hear what became of that."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def _serve() -> None:
    """What runs in the process itself."""
    import isabella.advisory
    import isabella.assurance
    import isabella.gate
    import isabella.logs
    import isabella.settings
    import isabella.vendors.inquiry
    import psycopg
    import stamina

    import isabella.cli
    import isabella.cli.tables

    del psycopg, stamina, isabella
    # A child that holds must not miss its sign, however early it comes.
    signal.pthread_sigmask(signal.SIG_BLOCK, {_GO})
    children: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        if "arguments" in order:
            pid = os.fork()
            if pid == 0:
                _run(order)
            children.add(pid)
            answer = {"pid": pid}
        elif "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            children.discard(order["wait"])
            answer = {"code": os.waitstatus_to_exitcode(status)}
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _run(order: dict[str, Any]) -> None:
    """What runs in a child, to its end."""
    code = 1
    try:
        output = os.open(
            os.devnull if order["no_files"] else order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600
        )
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(Path(order["output"]).parent)
        sys.argv = ["isabella", *order["arguments"]]
        if order["hold"]:
            signal.sigwait({_GO})
        if order["no_files"]:
            # Every write to a file fails from here on, as where no block is left.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        from isabella.cli import main

        main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
