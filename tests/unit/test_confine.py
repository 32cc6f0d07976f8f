"""Programs that Letta starts: without its secrets, without new privileges, and in a sandbox if there is one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isabella.embedded import confine

SECRETS = dict.fromkeys(confine.SECRETS, "a-secret-of-letta")

#: Starts a program in each of the ways that Letta and its libraries use, and prints what each one saw.
_PROGRAM = """
import asyncio, json, os, subprocess, sys

look = [sys.executable, "-c", '''
import json, os
print(json.dumps({
    "environment": dict(os.environ), "folder": os.getcwd(), "other": os.path.exists(os.environ["OTHER"]),
    "privileges": open("/proc/self/status").read().split("NoNewPrivs:")[1].split()[0],
}))
open("made", "w").close()
''']

async def by_asyncio():
    process = await asyncio.create_subprocess_exec(
        *look, env=dict(os.environ), cwd=os.environ["HOME"], stdout=asyncio.subprocess.PIPE
    )
    return (await process.communicate())[0].decode()

answers = [
    asyncio.run(by_asyncio()),
    subprocess.run(look, capture_output=True, text=True, check=True, cwd=os.environ["HOME"]).stdout,
    subprocess.check_output("exec $LOOK", shell=True, text=True, env={**os.environ, "LOOK": "env"}),
]
print(json.dumps({"seen": [json.loads(answer) for answer in answers[:2]], "shell": answers[2], "argv": sys.argv}))
"""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture
def letta(tmp_path: Path) -> Path:
    """A folder with a program, a folder of its own, and a file of another."""
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "other").write_text("master key")
    (tmp_path / "program.py").write_text(_PROGRAM)
    return tmp_path


def run(letta: Path, *, path: str) -> dict[str, object]:
    """Run the program confined, with this PATH, and return what it printed."""
    environ = {"PATH": path, "HOME": str(letta / "home"), "OTHER": str(letta / "other")}
    environ |= {"SSL_CERT_FILE": str(letta / "authorities.pem")}
    finished = subprocess.run(
        [sys.executable, "-P", confine.__file__, letta / "program.py", "--instance", "here"],
        env=environ | SECRETS | {confine.STATE: str(letta / "state")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    document: dict[str, object] = json.loads(finished.stdout.splitlines()[-1])
    return document


def fake_bwrap(letta: Path, script: str) -> str:
    """Put a program in place of bubblewrap, and return the PATH with it."""
    program = letta / "bin" / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{letta / 'bin'}:/usr/bin:/bin"


def check(letta: Path, document: dict[str, object], *, sees_other: bool) -> None:
    """Check that no program got a secret, and that all of them ran where they should."""
    assert document["argv"] == [str(letta / "program.py"), "--instance", "here"]
    assert "a-secret-of-letta" not in json.dumps(document)
    seen = document["seen"]
    assert isinstance(seen, list)
    assert len(seen) == 2
    for one in seen:
        assert (one["folder"], one["other"], one["privileges"]) == (str(letta / "home"), sees_other, "1")
        assert confine.STATE not in one["environment"]
    assert (letta / "home" / "made").exists()
    assert f"HOME={letta / 'home'}" in str(document["shell"])


@linux_only
def test_without_bubblewrap_programs_get_no_secret(letta: Path) -> None:
    """They run as before otherwise; the reason is written for the doctor."""
    empty = letta / "bin"
    for name in ("env", "sh"):
        (empty / name).symlink_to(str(shutil.which(name)))
    check(letta, run(letta, path=str(empty)), sees_other=True)
    assert (letta / "state").read_text() == "bubblewrap is not installed\n"


@linux_only
def test_a_bubblewrap_that_does_not_work_is_not_used(letta: Path) -> None:
    """Such as in a container that allows no namespaces: tools go on working, and the reason is told."""
    path = fake_bwrap(letta, "echo 'bwrap: No permissions to create a new namespace' >&2; exit 1")
    check(letta, run(letta, path=path), sees_other=True)
    assert "No permissions to create a new namespace" in (letta / "state").read_text()


@linux_only
def test_a_bubblewrap_that_works_runs_every_program(letta: Path) -> None:
    """Each program is started through it, in whatever way Letta starts it."""
    path = fake_bwrap(
        letta, f'echo "$*" >> {letta / "calls"}; while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
    )
    check(letta, run(letta, path=path), sees_other=True)
    assert (letta / "state").read_text().strip() == confine.WORKS
    calls = (letta / "calls").read_text().splitlines()
    # The first one is the attempt.
    assert len([call for call in calls if "--unshare-pid" in call]) == 4
    assert all(f"--ro-bind-try {letta / 'authorities.pem'} " in call for call in calls if "--unshare-pid" in call)
    assert all(f"--bind {letta / 'home'} {letta / 'home'}" in call for call in calls if "--unshare-pid" in call)


@linux_only
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_in_the_real_sandbox_nothing_else_is_visible(letta: Path) -> None:
    """Neither the other file nor another process; the folder of its own can be written."""
    document = run(letta, path=os.environ["PATH"])
    if (letta / "state").read_text().strip() != confine.WORKS:
        pytest.skip((letta / "state").read_text())
    check(letta, document, sees_other=False)


def test_only_secrets_of_this_process_are_taken_away() -> None:
    """A variable that an operator set for a tool stays, even under such a name."""
    own = {"LETTA_PG_URI": "postgresql://secret"}
    given = {"LETTA_PG_URI": "postgresql://of-the-tool", "LETTA_SERVER_PASSWORD": "x", "PATH": "/bin"}
    assert confine.without_secrets(given, own) == given
    assert confine.without_secrets(given | own, own) == {"LETTA_SERVER_PASSWORD": "x", "PATH": "/bin"}
