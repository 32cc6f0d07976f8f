"""`isabella demo`: the story of the bug, played for real."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from isabella.embedded import Letta

COMMAND = Path(sysconfig.get_path("scripts")) / "isabella"


@pytest.fixture
def home(tmp_path: Path, letta_home: Path, letta_server: Letta) -> Path:
    """A home of the demo's own, with the release that the tests have installed."""
    assert letta_server.base_url
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "releases").symlink_to(letta_home / "releases", target_is_directory=True)
    return home


# Two starts of Letta, on a machine that may have much else to do.
@pytest.mark.timeout(600)
def test_the_story_goes_as_it_is_told(home: Path, tmp_path: Path) -> None:
    """Both acts end with the same agent answering; nothing is left behind, and no key is shown."""
    played = subprocess.run(
        [COMMAND, "demo", "--home", home], cwd=tmp_path, capture_output=True, text=True, timeout=480, check=False
    )

    out = played.stdout
    assert played.returncode == 0, out + played.stderr
    assert "unexpected" not in out
    assert re.search(r"the agent +401  .*Authentication failed", out)
    assert re.search(r"the agent +500  .*Failed to decrypt data", out)
    assert re.search(r"PATCH +400  Failed to decrypt data", out)
    assert re.search(r"plan +update: Letta holds another key", out)
    assert re.search(r"plan +recreate: ", out)
    assert len(re.findall(r"the agent +I remember: My cat is called Minka\.", out)) == 2
    assert len(re.findall(r"proof +\S+ in Letta decrypts to (\S+); \.env has \1$", out, re.MULTILINE)) == 2
    assert len(out.splitlines()) <= 40
    assert "\x1b" not in out
    assert not re.search(r"csk-[A-Za-z0-9-]{10,}", out + played.stderr)
    assert not [*(home / "letta").glob("*demo*")]
