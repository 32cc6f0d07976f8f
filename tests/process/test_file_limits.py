"""Files that a user names: directories, devices and sockets are refused, within a memory limit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.unit.test_files import device, directory, listening

_MEMORY = 3 * 1024**3


_ISABELLA = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
sys.argv[:2] = ["isabella"]
from isabella.cli import main
main()
"""


def isabella(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder, with little memory."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "ISABELLA_HOME": str(folder / "home")}
    return subprocess.run(
        [sys.executable, "-c", _ISABELLA, str(_MEMORY), *arguments],
        cwd=folder,
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


NAMED: list[tuple[str, Sequence[str], dict[str, str]]] = [
    (".env", ["settings"], {}),
    ("other.env", ["settings", "--env-file", "other.env"], {}),
    ("isabella.toml", ["settings"], {}),
    ("more.toml", ["settings"], {"ISABELLA_CONFIG_FILE": "more.toml"}),
    ("agent.af", ["agents", "import", "agent.af"], {}),
    ("letta.log", ["doctor", "explain", "--log", "letta.log"], {}),
    ("master.key", ["letta", "rekey", "--former-key-file", "master.key"], {}),
    ("accepted", ["practice", "keys", "groq", "--accept", "accepted"], {}),
]


@pytest.mark.parametrize(("name", "arguments", "variables"), NAMED)
@pytest.mark.parametrize("make", [directory, device, listening])
def test_every_file_that_somebody_names_is_bounded(
    name: str, arguments: Sequence[str], variables: dict[str, str], make: Callable[[Path], None], tmp_path: Path
) -> None:
    """A link to /dev/zero, a directory and a socket end in one message and exit code 1."""
    make(tmp_path / name)
    ended = isabella(tmp_path, *arguments, **variables)
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    if (make, name) == (directory, "agent.af"):
        # A folder may be an export.
        assert "agent.af is not an Isabella export" in ended.stderr
        return
    assert f"isabella: {name}: cannot be read: it is a " in ended.stderr.replace(f"{tmp_path}/", "")
    assert "Name a regular file, or a pipe." in ended.stderr


def test_a_key_file_is_bounded_and_the_other_providers_go_on(tmp_path: Path) -> None:
    """What is no key file is its provider's problem, and names the variable and the file."""
    device(tmp_path / "key")
    ended = isabella(tmp_path, "settings", GROQ_API_KEY_FILE="key", MISTRAL_API_KEY="fake-mistral-key-0001")
    assert ended.returncode == 0, ended.stderr
    assert "GROQ_API_KEY_FILE names key, which cannot be read: it is a device" in " ".join(ended.stdout.split())
