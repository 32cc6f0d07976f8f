"""`isabella chat` as a process: piped, on a terminal, with a backend and without."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from isabella.config.vendors import usual_vendors
from isabella.embedded import Letta
from tests.support.backend_server import TOKEN, Backend, published_backend

PROGRAM = str(Path(sys.executable).with_name("isabella"))
GROQ, MISTRAL = "byok-groq/openai/gpt-oss-120b", "byok-mistral/mistral-medium-latest"


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend that programs of the same home find."""
    with published_backend(letta_server, tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def environment(served: Backend, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What the chat's process needs to know: the home, the Letta, and the vendors."""
    assert served.connection.password is not None
    variables = {
        "ISABELLA_HOME": str(served.settings.home),
        "ISABELLA_TOKEN": TOKEN,
        "LETTA_BASE_URL": served.connection.base_url,
        "LETTA_API_KEY": served.connection.password.get_secret_value(),
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONUTF8": "1",
    }
    for vendor in usual_vendors():
        variables[vendor.api_key_env] = served.vendors.key(vendor.name).get_secret_value()
        if vendor.base_url_env:
            variables[vendor.base_url_env] = served.vendors.base_url(vendor.name)
    yield variables
    served.vendors.clear()


def piped(environment: dict[str, str], lines: str, *options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The chat, with these lines as its input."""
    return subprocess.run(
        [PROGRAM, "chat", *options],
        input=lines,
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_piped(served: Backend, environment: dict[str, str], tmp_path: Path) -> None:
    """Lines in, answers out, nothing else on standard output; commands work, and what the agent does is beside it."""
    agent = served.agent("piped", GROQ)
    chat = piped(
        environment,
        "Please remember that my cat is called Minka.\nWhat is my cat called?\n/memory\n"
        f"/model {MISTRAL}\nWhat is my cat called?\n/remember The key is below the stone.\n/search stone\n/export\n",
        "--agent",
        agent,
        folder=tmp_path,
    )
    assert chat.returncode == 0, chat.stderr
    assert chat.stdout.splitlines() == [
        "I will remember that.",
        "I remember: My cat is called Minka.",
        "human:",
        "  My cat is called Minka.",
        "persona:",
        "  I am Isabella.",
        f"The agent now uses {MISTRAL}.",
        "I remember: My cat is called Minka.",
        "Added to archival memory.",
        "archive: The key is below the stone.",
        "Wrote piped.af",
    ]
    assert "memory_insert" in chat.stderr
    assert "1 tool call made through other vendors left the agent's context" in chat.stderr
    exported = (tmp_path / "piped.af").read_text()
    assert "Minka" in exported
    assert not any(served.vendors.key(vendor.name).get_secret_value() in exported for vendor in usual_vendors())


def test_a_conversation(served: Backend, environment: dict[str, str], tmp_path: Path) -> None:
    """A new conversation is begun, listed, and found again by its name; the default one has nothing of it."""
    agent = served.agent("conversing", GROQ)
    options = ("--agent", agent, "--conversation")
    begun = piped(environment, "Say hello there\n/conversation\n", *options, "new", folder=tmp_path)
    assert begun.returncode == 0, begun.stderr
    answer, default, new = begun.stdout.splitlines()
    assert (answer, default) == ("hello there", "  Default conversation  default")
    assert new.startswith("* Say hello there  conv-")
    again = piped(
        environment,
        "/search hello\n/conversation default\n/search hello\n",
        *options,
        "say HELLO there",
        folder=tmp_path,
    )
    assert again.stdout.splitlines() == [
        "assistant: hello there",
        "user: Say hello there",
        "Now in: Default conversation",
        "Nothing was found.",
    ]
    unknown = piped(environment, "Hello\n", *options, "nothing of the kind", folder=tmp_path)
    assert unknown.returncode == 1
    assert "no conversation 'nothing of the kind'" in unknown.stderr


def test_what_fails_is_told(served: Backend, environment: dict[str, str], tmp_path: Path) -> None:
    """An unknown command, an unknown agent and a vendor that refuses end in a message and exit code 1."""
    agent = served.agent("failing", GROQ)
    served.vendors.fault("groq", on="chat", status=401)
    chat = piped(environment, "Say hello\n/nonsense\n", "--agent", agent, folder=tmp_path)
    assert chat.returncode == 1
    assert "Invalid API Key" in chat.stderr
    assert "/nonsense" in chat.stderr
    unknown = piped(environment, "Hello\n", "--agent", "no such agent", folder=tmp_path)
    assert unknown.returncode == 1
    assert "There is no agent 'no such agent'" in unknown.stderr


def test_without_a_backend(served: Backend, environment: dict[str, str], tmp_path: Path) -> None:
    """Where no backend runs, the chat speaks to Letta through an engine of its own."""
    agent = served.agent("direct", GROQ)
    environment |= {"ISABELLA_HOME": str(tmp_path / "elsewhere")}
    chat = piped(environment, "Say good morning\n", "--agent", agent, folder=tmp_path)
    assert chat.returncode == 0, chat.stderr
    assert chat.stdout == "good morning\n"


class Terminal:
    """The chat on a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.shown = ""

    def type(self, text: str) -> None:
        """Somebody types."""
        os.write(self._descriptor, text.encode())

    def until(self, text: str, *, seconds: float = 60.0) -> None:
        """Wait until this is on the screen; what is above it is not looked at again."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not appear: {self.shown!r}"
            self.shown += os.read(self._descriptor, 65536).decode(errors="replace")
        self.shown = self.shown.partition(text)[2]


@contextmanager
def on_a_terminal(environment: dict[str, str], *options: str, folder: Path) -> Iterator[Terminal]:
    """The chat with a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, "chat", *options],
        env=environment | {"TERM": "xterm"},
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_controlling_terminal,
    )
    os.close(theirs)
    try:
        yield Terminal(ours)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _controlling_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_ctrl_c_stops_the_answer(served: Backend, environment: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C stops the answer and not the program; reasoning and tools are dimmed; Ctrl-D leaves."""
    agent = served.agent("interrupted", GROQ)
    served.vendors.fault("groq", on="chat", between=0.3)
    with on_a_terminal(environment, "--agent", agent, folder=tmp_path) as terminal:
        terminal.until("> ")
        terminal.type("Count to 60\n")
        terminal.until("1 2")
        terminal.type("\x03")
        terminal.until("stopped")
        served.vendors.clear()
        terminal.until("> ")
        terminal.type("Say that you are fine\n")
        terminal.until("\x1b[2mI")
        terminal.until("you are fine")
        terminal.until("> ")
        terminal.type("\x04")
    assert served.said_to(agent) == ["Count to 60", "Say that you are fine"]
