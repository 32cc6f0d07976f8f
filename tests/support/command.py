"""The command line in a process of its own, with its own folder and environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support import fork_server

ISABELLA = Path(sys.executable).with_name("isabella")
_SECONDS = 120


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        code: its exit code.
        out: its standard output.
        err: its standard error.
    """

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON object on standard output; nothing else may stand there."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True)
class Command:
    """Isabella in a folder, whose `.env` holds these variables.

    Attributes:
        folder: the working folder, with `.env` and isabella.toml.
        environment: variables of the process beside what every process needs.
        forks: whether `run` forks a process that has imported Isabella; False starts an interpreter, as a shell does.
    """

    folder: Path
    environment: dict[str, str]
    forks: bool = True

    def configure(self, **variables: str) -> None:
        """Write `.env`."""
        lines = [f"{name}={value}\n" for name, value in variables.items()]
        (self.folder / ".env").write_text("".join(lines))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it as a process of its own."""
        return subprocess.Popen(
            [str(ISABELLA), *arguments],
            cwd=self.folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> Ended:
        """Run it and wait. It never ends with a traceback."""
        ended = self._run_fork(arguments) if self.forks else self._run_interpreter(arguments)
        assert "Traceback" not in ended.out + ended.err, ended.err
        return ended

    def _run_interpreter(self, arguments: tuple[str, ...]) -> Ended:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=_SECONDS)
        return Ended(process.returncode, out, err)

    def _run_fork(self, arguments: tuple[str, ...]) -> Ended:
        with TemporaryDirectory() as folder:
            output, errors = Path(folder, "output"), Path(folder, "errors")
            child = fork_server.shared().start(
                arguments, self.variables, output, errors=errors, folder=self.folder, seconds=_SECONDS
            )
            code = child.wait()
            return Ended(code, output.read_text(), errors.read_text())

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the process."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8", **self.environment}
