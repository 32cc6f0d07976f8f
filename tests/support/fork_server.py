"""Real processes that can be killed, without the cost of imports for each.

One process imports everything that the command line needs, and forks for each command. It has no threads and no event
loop, so a fork of it behaves like a fresh start.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.made_tokens import tokens_from, use_tokens

_GO = signal.SIGUSR1
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Child:
    """A started command.

    Attributes:
        pid: its process id.
        output: the file with its standard output.
    """

    pid: int
    output: Path
    _server: ForkServer

    def wait(self) -> int:
        """Wait for its end; return the exit code, or the negative number of the signal that ended it."""
        while (code := self._server.order({"wait": self.pid})["code"]) is None:
            time.sleep(0.005)
        return int(code)

    def go(self) -> None:
        """Let it begin, if it was started with `hold`."""
        os.kill(self.pid, _GO)

    def kill(self) -> None:
        """Kill it with SIGKILL. Its pid stays reserved until `wait`."""
        os.kill(self.pid, signal.SIGKILL)


class ForkServer:
    """A process that forks itself for each command; a context manager."""

    def __enter__(self) -> Self:
        """Start it; returns when everything is imported."""
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.order({}) == {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and kill its remaining children."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: Path,
        *,
        errors: Path | None = None,
        folder: Path | None = None,
        seconds: int = 0,
        hold: bool = False,
        no_files: bool = False,
        tokens: str | None = None,
    ) -> Child:
        """Run `isabella ARGUMENTS`.

        Args:
            arguments: the arguments.
            environment: the whole environment.
            output: the file for standard output.
            errors: the file for standard error; the same as `output` if not given.
            folder: the working folder; that of `output` if not given.
            seconds: the time after which SIGALRM ends it; 0 for no limit.
            hold: whether it waits for `go` before it begins.
            no_files: whether every write to a file fails, as on a full disk; its output is lost.
            tokens: the seed of the keys that it makes up; random if not given.
        """
        made = self.order(
            {
                "arguments": list(arguments),
                "environment": dict(environment),
                "output": str(output),
                "errors": None if errors is None else str(errors),
                "folder": str(folder or output.parent),
                "seconds": seconds,
                "hold": hold,
                "no_files": no_files,
                "tokens": tokens,
            }
        )
        return Child(made["pid"], output, self)

    def order(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer; threads take turns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def _serve() -> None:
    """Serve requests on standard input; this runs in the server process."""
    import click
    import httpcore2
    import psycopg
    import stamina
    import typer.main
    from anyio._backends import _asyncio

    from isabella import api, cli
    from isabella.cli import tables
    from isabella.config import settings
    from isabella.locks import postgres, provider_lock
    from isabella.practice import overlay
    from isabella.system import logging
    from isabella.vendors import client

    del click, httpcore2, psycopg, stamina, _asyncio
    del tables, settings, postgres, provider_lock, api, overlay, logging, client
    # The commands are the same in every child, and to build them takes as long as many a command itself.
    commands = typer.main.get_command(cli.app)
    typer.main.get_command = lambda typer_instance: commands
    # A child that holds must not miss its signal, however early it arrives.
    signal.pthread_sigmask(signal.SIG_BLOCK, {_GO})
    # A collection in a child would examine, and copy, what all of them share.
    gc.freeze()
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
            pid, status = os.waitpid(order["wait"], os.WNOHANG)
            children.discard(pid)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _run(order: dict[str, Any]) -> None:
    """Run a command; this runs in a child and does not return."""
    code = 1
    try:
        output = _open_to_write(os.devnull if order["no_files"] else order["output"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output if order["errors"] is None else _open_to_write(order["errors"]), 2)
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        sys.argv = ["isabella", *order["arguments"]]
        signal.alarm(order["seconds"])
        if order["hold"]:
            signal.sigwait({_GO})
        if order["no_files"]:
            # From here on every write to a file fails, as on a full disk.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        from isabella.cli import main

        with nullcontext() if order["tokens"] is None else use_tokens(tokens_from(order["tokens"])):
            main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    finally:
        os._exit(code)


def _open_to_write(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)


@cache
def shared() -> ForkServer:
    """Return a fork server that runs until this process ends."""
    server = ForkServer()
    server.__enter__()
    atexit.register(server.__exit__, None, None, None)
    return server


if __name__ == "__main__":
    _serve()
