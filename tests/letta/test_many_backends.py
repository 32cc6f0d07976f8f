"""Several Isabellas and Lettas on one Postgres of the operator's, in processes of their own, behind HAProxy.

`python -m bench --only replicas` is the long form: 200 turns of 20 clients, every process killed and restarted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2 as httpx
import psycopg
import pytest

from bench import balancer
from bench.backend import TOKEN
from bench.conversation import history, texts_of_user
from bench.own_postgres import OperatorsPostgres
from bench.replicas import LETTAS, Outcome, Replicas, replicas
from isabella.embedded import Server
from isabella.embedded.instance import InstancePaths

PROJECT = Path(__file__).resolve().parents[2]
ISABELLA = PROJECT / ".venv" / "bin" / "isabella"
CLIENTS, TURNS = 8, 48
#: A Letta dies once only: its start takes longer than all the rest.
STRIKES = [
    ("isabella-1", signal.SIGKILL),
    ("letta-1", signal.SIGKILL),
    ("postgres", signal.SIGKILL),
    ("isabella-2", signal.SIGTERM),
]


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that the user of Postgres can enter, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="isabella-many-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class OneMore:
    """The embedded Letta of a further home, on the same Postgres, as its operator sees it."""

    def __init__(self, home: Path, releases: Path, environment: dict[str, str], database: OperatorsPostgres) -> None:
        self.home, self.database = home, database
        self.said = ""
        home.mkdir(mode=0o700)
        (home / "releases").symlink_to(releases.resolve(), target_is_directory=True)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "ISABELLA_HOME": str(home),
            "ISABELLA_POSTGRES_URL": database.url(),
            "LETTA_ENCRYPTION_KEY": environment["LETTA_ENCRYPTION_KEY"],
            "ISABELLA_GATEWAY": "off",
        }

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command, and return what it printed."""
        ended = subprocess.run(
            [ISABELLA, *command], env=self.environment, cwd=self.home, capture_output=True, text=True, check=False
        )
        self.said += ended.stdout + ended.stderr
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout

    def status(self, code: int) -> dict[str, Any]:
        """What `isabella letta status` says."""
        document: dict[str, Any] = json.loads(self.run("letta", "status", "--json", code=code))
        return document


@pytest.mark.skipif(balancer.PROGRAM is None, reason=balancer.WITHOUT)
@pytest.mark.timeout(600)
def test_one_postgres_for_many(embedded: Server, home: Path) -> None:
    """No turn is lost or stored twice, none overlaps with another of its agent, and no key goes to another vendor.

    Then an embedded Letta is started on the same database, which tells the truth about it, and shows no password.
    """
    embedded.install_release()
    releases = embedded.paths.releases

    async def play() -> None:
        async with replicas(releases, home, isabellas=2) as running:
            outcome = await running.run(STRIKES, clients=CLIENTS, turns=TURNS)
            _check(outcome)
            await _leave(running)
            environment = dict(running.lettas[0].environment)
            one_more = OneMore(home / "one-more", releases, environment, running.database)
            await anyio.to_thread.run_sync(_prove_one_more, one_more)

    anyio.run(play)


def _check(outcome: Outcome) -> None:
    assert outcome.strikes == len(STRIKES)
    assert len(outcome.turns) == TURNS
    assert outcome.lost == []
    assert outcome.overlaps == []
    assert outcome.foreign == []
    completed = sum(turn.told == "completed" for turn in outcome.turns)
    assert completed > TURNS / 2, [turn.told for turn in outcome.turns]
    print(f"{TURNS} turns, {completed} completed, {sum(turn.sent > 1 for turn in outcome.turns)} sent again")


async def _leave(running: Replicas) -> None:
    """A client that closes its connection to the balancer in the middle of an answer stops the turn behind it."""
    running.vendors.fault("groq", on="chat", between=1.0)
    isabella, letta = running.isabellas[0].balancer.port, running.lettas[0].balancer.port
    body, path = {"message": "Count to 300"}, "/api/agents/groq/turns"
    async with _client(isabella, TOKEN) as client:
        async with client.stream("POST", path, json=body) as response:
            # The vendor has five minutes to go: the pieces come as they are made.
            async for line in response.aiter_lines():
                if line == "event: text":
                    break
        ended = (await client.post(path, json={"message": "Say that you are back"})).text
    assert '"completed"' in ended
    async with _client(letta, running.lettas[0].environment["LETTA_API_KEY"]) as client:
        rows = await history(client, "groq")
    assert texts_of_user(rows)[-2:] == ["Count to 300", "Say that you are back"]
    assert "[stopped]" in str(rows)


def _client(port: int, secret: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120, trust_env=False)


def _prove_one_more(one: OneMore) -> None:
    """Start it, look at it, make a backup, take its Postgres away, and stop it."""
    paths = InstancePaths(one.home)
    try:
        assert "is up at" in one.run("letta", "up")
        assert not (paths.folder / "postgres-18").exists()
        assert not paths.superuser_password_file.exists()
        own = {"own": f"127.0.0.1:{one.database.port}/letta", "healthy": True}
        status = one.status(code=0)
        assert (status["postgres"], status["running"]) == (own, True)
        assert f"answers, your own, at 127.0.0.1:{one.database.port}/letta" in one.run("letta", "status")
        assert "your own" in _error(one, "letta", "logs", "--postgres")
        one.run("backup", "create", "--to", str(one.home / "backup.age"))
        refused = _error(one, "backup", "restore", str(one.home / "backup.age"), "--yes")
        assert "which Isabella does not replace" in refused
        one.database.cluster.stop()
        gone = one.status(code=3)
        assert gone["postgres"] == own | {"healthy": False}
        assert "does not answer" in _error(one, "providers", "status")
        one.database.start()
        assert one.run("letta", "down").strip() == "Stopped."
        with psycopg.connect(one.database.url()) as connection:
            row = connection.execute("SELECT count(*) FROM agents").fetchone()
        assert row is not None
        assert row[0] >= LETTAS
    finally:
        subprocess.run([ISABELLA, "letta", "down"], env=one.environment, cwd=one.home, check=False)
    secret = one.database.password.get_secret_value()
    assert secret not in one.said
    written = [path for path in one.home.rglob("*") if path.is_file() and "releases" not in path.parts]
    found = [path for path in written if secret in path.read_text(errors="replace")]
    # Letta's own file, in a folder that only its user enters.
    assert found == [paths.server_home / ".letta" / "config"]
    assert (found[0].stat().st_mode & 0o777, paths.folder.stat().st_mode & 0o777) == (0o600, 0o700)


def _error(one: OneMore, *command: str) -> str:
    one.run(*command, code=1)
    return one.said
