"""Drive the clients: `python -m tests.clients [--write] [CLIENT …]`.

Each client is installed from its registry into a folder of its own below `.isabella/clients`, once. The backend runs
there, too, with practice vendors. `--write` puts the table into docs/clients.md. The exit code is 1 if a call failed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

HERE, REPOSITORY = Path(__file__).parent, Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "clients.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"
FOLDER = REPOSITORY / ".isabella" / "clients"
TOKEN = "a-token-for-the-clients"
SIGNS: Mapping[str, str] = {"yes": "✓", "no": "**no**", "none": "–"}
#: LiteLLM would fetch prices, LangChain would send traces.
_QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
_START_SECONDS, _CALLS_SECONDS = 600.0, 600.0


@dataclass(frozen=True)
class Client:
    """A client: its packages, the first of which is the one whose version is told."""

    name: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it is installed."""
        return FOLDER / self.name.replace("/", "-")


class PythonClient(Client):
    """A client from PyPI, in a virtual environment."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def install(self) -> None:
        """Install it unless it is there."""
        if not self.python.exists():
            uv = Path(sys.executable).with_name("uv")
            _run(str(uv), "venv", "-q", "--python", sys.executable, str(self.folder))
            _run(str(uv), "pip", "install", "-q", "--python", str(self.python), *self.packages)

    def version(self) -> str:
        """The version that is installed."""
        code = f"import importlib.metadata as m; print(m.version({self.packages[0]!r}))"
        return _run(str(self.python), "-c", code).strip()

    def command(self, base_url: str) -> list[str]:
        """The command that makes the calls."""
        return [str(self.python), str(HERE / "python_calls.py"), self.name, base_url]


class NodeClient(Client):
    """A client from the npm registry."""

    def install(self) -> None:
        """Install it unless it is there."""
        if not (self.folder / "node_modules").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "package.json").write_text('{"private": true}\n')
            options = ("--no-audit", "--no-fund", "--loglevel=error", "--ignore-scripts")
            _run("npm", "install", *options, *self.packages, cwd=self.folder)

    def version(self) -> str:
        """The version that is installed."""
        manifest = self.folder / "node_modules" / self.packages[0] / "package.json"
        return str(json.loads(manifest.read_text())["version"])

    def command(self, base_url: str) -> list[str]:
        """The command that makes the calls."""
        return ["node", str(HERE / "node_calls.mjs"), self.name, base_url, str(self.folder)]


CLIENTS: tuple[PythonClient | NodeClient, ...] = (
    PythonClient("openai", ("openai",)),
    NodeClient("openai-node", ("openai",)),
    PythonClient("langchain-openai", ("langchain-openai",)),
    PythonClient("llama-index-llms-openai-like", ("llama-index-llms-openai-like",)),
    PythonClient("litellm", ("litellm",)),
    NodeClient("@langchain/openai", ("@langchain/openai", "@langchain/core")),
    NodeClient("@ai-sdk/openai", ("@ai-sdk/openai", "ai")),
    NodeClient("@ai-sdk/openai-compatible", ("@ai-sdk/openai-compatible", "ai")),
)


@contextmanager
def backend() -> Iterator[str]:
    """Run a backend with practice vendors, and yield the base URL of its OpenAI format."""
    home = FOLDER / "home"
    home.mkdir(parents=True, exist_ok=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    own = {"ISABELLA_HOME": str(home), "ISABELLA_PORT": str(port), "ISABELLA_TOKEN": TOKEN}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ISABELLA_", "LETTA_"))}
    isabella = Path(sys.executable).with_name("isabella")
    with (home / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [str(isabella), "up", "--practice"], cwd=home, env=inherited | own, stdout=log, stderr=log
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/ready", process)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        _run(str(isabella), "practice", "down", cwd=home, env=inherited | own)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a backend is ready."""
    opener, waited = build_opener(ProxyHandler({})), 0.0
    while waited < _START_SECONDS and process.poll() is None:
        try:
            opener.open(url, timeout=10).close()
        except OSError:
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                waited += 1
        else:
            return
    raise SystemExit(f"The backend did not start: {FOLDER / 'home' / 'up.log'} has its log.")


def calls_of(client: PythonClient | NodeClient, base_url: str) -> dict[str, dict[str, Any]]:
    """Make all calls with a client, and return the results by call."""
    ran = subprocess.run(
        client.command(base_url),
        env={**os.environ, **_QUIET, "TOKEN": TOKEN, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=_CALLS_SECONDS,
        check=False,
    )
    results = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode != 0:
        print(ran.stderr[-2000:], file=sys.stderr)
    return {result["call"]: result for result in results}


def table(versions: Mapping[str, str], results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the table: a row for each call, a column for each client."""
    calls = json.loads((HERE / "calls.json").read_text("utf-8"))
    rows = [
        f"| {number} | {about} | " + " | ".join(_sign(results[client].get(call)) for client in results) + " |"
        for number, (call, about) in enumerate(calls, 1)
    ]
    titles = " | ".join(f"`{client}` {versions[client]}" for client in results)
    return "\n".join([f"| | call | {titles} |", "|---|---|" + "---|" * len(results), *rows]) + "\n"


def _sign(result: Mapping[str, Any] | None) -> str:
    return SIGNS["no"] if result is None else SIGNS[result["outcome"]]


def _run(*command: str, **options: Any) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed ({done.returncode}).")
    return str(done.stdout)


def main() -> int:
    """Install the clients, make the calls, and print the table."""
    wanted = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    clients = [client for client in CLIENTS if not wanted or client.name in wanted]
    for program in ("node", "npm"):
        if any(isinstance(client, NodeClient) for client in clients) and shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed. On Debian: apt-get install nodejs npm")
    for client in clients:
        client.install()
    versions = {client.name: client.version() for client in clients}
    with backend() as base_url:
        results = {client.name: calls_of(client, base_url) for client in clients}
    text = table(versions, results)
    print(text)
    failed = [
        f"{client}: {call}: {result['note'] or 'another answer than expected'}"
        for client, made in results.items()
        for call, result in made.items()
        if result["outcome"] == "no"
    ]
    missing = [client for client, made in results.items() if len(made) != text.count("\n") - 2]
    print("\n".join([*failed, *(f"{client}: it ended before the last call" for client in missing)]))
    if "--write" in sys.argv and not wanted:
        before, _, rest = DOCUMENT.read_text("utf-8").partition(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}", "utf-8")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
