"""`isabella` as a process of its own: its start, and what bash completes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx2 as httpx
import pytest

from isabella.system.sockets import listening_socket

PAGE = {"Accept": "text/html"}
SECONDS = 30.0


def test_from_the_first_answer_no_request_is_refused_or_lost(tmp_path: Path) -> None:
    """`isabella up` answers before its application is there, and every request after that is answered."""
    with closing(listening_socket("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "ISABELLA_HOME": str(tmp_path / "home"),
        "ISABELLA_PORT": str(port),
        "LETTA_BASE_URL": "http://127.0.0.1:9",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", "from isabella.cli import main; main()", "up", "--no-practice"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        pages = _pages(process, port)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
    assert pages[0] == "Isabella is starting"
    assert pages[-1] == "Sign in", pages
    assert set(pages) == {"Isabella is starting", "Sign in"}
    assert process.returncode == 0, said
    assert "Starting: " in said


def _pages(process: subprocess.Popen[str], port: int) -> list[str]:
    """Return the headings of the pages from the first answer to the application's own; each on a new connection."""
    pages: list[str] = []
    deadline = time.monotonic() + 4 * SECONDS
    while "Sign in" not in pages and time.monotonic() < deadline:
        try:
            shown = httpx.get(f"http://127.0.0.1:{port}/console", headers=PAGE, trust_env=False, timeout=SECONDS)
        except httpx.ConnectError:
            assert not pages, "a connection was refused after the first answer"
            assert process.poll() is None
            continue
        pages.append(shown.text.partition("<h1>")[2].partition("</h1>")[0])
    return pages


COMPLETED = [
    ("isabella pro", ["providers"]),
    ("isabella providers st", ["status"]),
    ("isabella providers sync --only gr", ["groq"]),
    ("isabella providers sync --only byok-g", ["byok-groq"]),
    ("isabella providers sync --strategy re", ["recreate"]),
    ("isabella agents show Is", ["Isabella"]),
    ("isabella agents switch Isabella byok-groq/openai/gpt-oss-1", ["byok-groq/openai/gpt-oss-120b"]),
    ("isabella doctor --prov", ["--provider"]),
    ("isabella doctor --agent Is", ["Isabella"]),
]

#: What bash does when Tab is pressed at the end of a line.
PRESS_TAB = """
eval "$(isabella --show-completion bash)"
while IFS= read -r line; do
  read -ra COMP_WORDS <<< "$line"
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
  COMPREPLY=()
  "$(complete -p isabella | sed 's/.*-F \\([^ ]*\\) .*/\\1/')" isabella
  (IFS='|'; echo "${COMPREPLY[*]}")
done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_in_bash(tmp_path: Path) -> None:
    """Commands, options, values, and the names of providers, agents and models, without a running Letta."""
    (tmp_path / ".env").write_text("GROQ_API_KEY=gsk_not-a-key-only-for-this-test\n")
    program = Path(sys.executable).parent
    environment = {
        "PATH": f"{program}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "ISABELLA_HOME": str(tmp_path / "home"),
        "SHELL": shutil.which("bash") or "bash",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", PRESS_TAB],
        input="".join(f"{line}\n" for line, _ in COMPLETED),
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split("|") for line in done.stdout.splitlines()] == [names for _, names in COMPLETED], done.stderr
