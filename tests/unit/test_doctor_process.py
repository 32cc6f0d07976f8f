"""The doctor inspects the process that listens at Letta's address only if that process is a Letta server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from isabella.doctor.collect.letta import find_process, is_letta_server

KEY = "0" * 64
LISTENER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def listener(script: Path, *arguments: str) -> Iterator[tuple[int, int]]:
    """A process with this command line that listens on loopback: its pid and its port."""
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(LISTENER)
    environment = {"LETTA_ENCRYPTION_KEY": KEY, "GROQ_API_KEY": "gsk_x"}
    command = [sys.executable, str(script), *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        try:
            assert child.stdout is not None
            yield child.pid, int(child.stdout.readline())
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("command", "letta"),
    [
        ("python3 /opt/venv/bin/letta server --port 8283", True),
        ("letta server", True),
        ("python3 -m letta.main server", True),
        ("python3 -m letta server", True),
        ("python3 /app/letta/main.py server", True),
        ("python3 /opt/venv/bin/uvicorn letta.server.rest_api.app:app --port 8283", True),
        ("python3 -P /x/isabella/embedded/launch.py --instance /home/ada/.isabella/letta/0.16.8 server", True),
        ("python3 -P /x/isabella/embedded/launch.py --instance /home/ada/.isabella/letta/0.16.8 migrate", False),
        ("python3 -m pytest tests/letta/test_compat.py", False),
        ("python3 /home/ada/letta/tools/proxy.py", False),
        ("postgres -D /home/ada/.isabella/letta/0.16.8/postgres-18", False),
        ("letta run", False),
        ("python3 /opt/venv/bin/isabella letta up", False),
        ("", False),
    ],
)
def test_a_letta_server_is_told_by_its_command_line(command: str, letta: bool) -> None:
    """A path with "letta" in it is not enough."""
    assert is_letta_server(command.split()) is letta


def test_the_environment_of_a_letta_server_is_read(tmp_path: Path) -> None:
    """The master key is compared, and the vendors' keys are named."""
    with listener(tmp_path / "bin" / "letta", "server") as (pid, port):
        found = find_process(f"http://127.0.0.1:{port}", SecretStr(KEY))
    assert found is not None
    assert (found.pid, found.listens, found.same_master_key) == (pid, ("127.0.0.1",), True)
    assert found.base_keys == ("GROQ_API_KEY",)


def test_another_process_at_lettas_address_is_not_inspected(tmp_path: Path) -> None:
    """Its environment says nothing about Letta."""
    with listener(tmp_path / "letta" / "proxy.py", "tests/letta/test_compat.py") as (_, port):
        assert find_process(f"http://127.0.0.1:{port}", None) is None


def test_a_letta_on_another_machine_is_not_looked_for() -> None:
    """Nothing of this machine is taken for it."""
    assert find_process("http://192.0.2.1:8283", None) is None
