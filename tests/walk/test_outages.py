"""What a sync rests on goes away in the middle of it: Letta, Postgres, the disk, the time of day."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from isabella.api import ensure_providers
from isabella.config.settings import load_settings
from isabella.embedded import Letta, Server, postgres
from isabella.practice import PracticeVendors
from tests.support.fault_injection import WalkEnv
from tests.support.fault_proxy import Proxy
from tests.support.fork_server import ForkServer
from tests.support.letta_admin import open_admin


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    """Where processes come from."""
    with ForkServer() as running:
        yield running


@pytest.fixture(scope="module")
def vendors() -> Iterator[PracticeVendors]:
    """Vendors for the whole file."""
    with PracticeVendors() as running:
        yield running


@pytest.fixture
def env(letta_server: Letta, vendors: PracticeVendors, tmp_path: Path) -> Iterator[WalkEnv]:
    """The real Letta, and the providers that are synced."""
    with open_admin(letta_server) as opened:
        found = WalkEnv(opened, vendors, tmp_path / "home")
        found.clear()
        yield found
    # Whatever went away took the connections with it.
    with open_admin(letta_server) as opened:
        replace(found, admin=opened).clear()


class Outage(Proxy):
    """A proxy behind which something happens as soon as Letta has answered the first DELETE."""

    def __init__(self, target: str, happens: Callable[[], None]) -> None:
        super().__init__(target)
        self._happens: Callable[[], None] | None = happens

    async def _pass_on(self, start: str, headers: list[list[str]], body: bytes) -> bytes:
        answer = await super()._pass_on(start, headers, body)
        if start.startswith("DELETE ") and self._happens is not None:
            happens, self._happens = self._happens, None
            # Only when it is over does the sync hear of its DELETE: its POST meets what is left.
            await asyncio.to_thread(happens)
        return answer


@pytest.mark.parametrize(
    ("what", "lock"),
    [("Letta and Postgres", "by advisory lock"), ("Postgres", "by advisory lock"), ("Postgres", "by file")],
)
def test_a_restart_between_delete_and_post_is_waited_for(
    env: WalkEnv, letta_server: Letta, embedded: Server, what: str, lock: str
) -> None:
    """The provider is deleted when they go; when they are back it is made again, and proven, in the same sync."""
    ids = env.plant("another type")
    comes_back = threading.Thread(target=embedded.up)

    def all_of_it() -> None:
        embedded.down()
        comes_back.start()

    def postgres_alone() -> None:
        cluster = postgres.find_cluster(embedded.paths)
        assert cluster is not None
        running = cluster.running()
        assert running is not None
        cluster.stop()
        cluster.start(running.port)

    with Outage(letta_server.base_url, postgres_alone if what == "Postgres" else all_of_it) as proxy:
        variables = {"ISABELLA_TIMEOUT": "240"}
        if lock == "by advisory lock":
            variables["ISABELLA_DATABASE_URL"] = letta_server.database_url.get_secret_value()
        report = asyncio.run(ensure_providers(env.settings("another type", proxy.url, **variables)))
    if what != "Postgres":
        comes_back.join()
    assert report.all_proven, [entry.reason for entry in report.configured]
    with open_admin(letta_server) as opened:
        after = WalkEnv(opened, env.vendors, env.home)
        assert after.state("walk-one") == ("openai", env.base_url(), env.key)
        row = after.row("walk-one")
        assert row is not None
        assert row["id"] == ids["walk-one"]


@pytest.mark.parametrize("situation", ["stale", "sealed elsewhere", "plaintext"])
def test_a_full_disk_costs_no_proof(env: WalkEnv, fork_server: ForkServer, situation: str) -> None:
    """Where ISABELLA_HOME takes no byte more, everything is written in Letta and proven all the same, twice."""
    env.plant(situation)
    environment = {
        "PATH": os.environ["PATH"],
        **env.configuration(situation, env.admin.letta.base_url),
    }
    for _ in range(2):
        child = fork_server.start(("providers", "sync"), environment, env.home / "output.txt", no_files=True)
        assert child.wait() == 0
    assert env.state("walk-one") == ("openai", env.base_url(), env.key)
    kept = [path for path in env.home.rglob("*") if path.is_file() and path.name != "isabella.toml"]
    assert [path for path in kept if path.stat().st_size] == []


def test_a_home_that_cannot_be_used_is_said(env: WalkEnv, fork_server: ForkServer, tmp_path: Path) -> None:
    """Without a place for the lock file nothing is written, and the error names the folder and the setting."""
    env.plant("stale")
    occupied = tmp_path / "occupied"
    occupied.touch()
    environment = {
        "PATH": os.environ["PATH"],
        **env.configuration("stale", env.admin.letta.base_url),
        "ISABELLA_HOME": str(occupied / "home"),
    }
    with_file = fork_server.start(("providers", "sync"), environment, env.home / "output.txt")
    assert with_file.wait() == 1
    said = with_file.output.read_text()
    assert str(occupied) in said
    assert "ISABELLA_HOME" in said
    assert env.state("walk-one") != ("openai", env.base_url(), env.key)
    # With the lock in Postgres, a home is a convenience and nothing more.
    environment["ISABELLA_DATABASE_URL"] = env.admin.letta.database_url.get_secret_value()
    assert fork_server.start(("providers", "sync"), environment, env.home / "output.txt").wait() == 0
    assert env.state("walk-one") == ("openai", env.base_url(), env.key)


@pytest.mark.parametrize("situation", ["stale", "another type", "everything at once"])
def test_jumps_of_the_clock_change_nothing(env: WalkEnv, situation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day jumps ten years back and forth at every look, while Letta fails: written and proven."""
    env.plant(situation)
    real, jumps = time.time, itertools.cycle([0, 315_360_000, -315_360_000])
    with Proxy(env.admin.letta.base_url) as proxy:
        proxy.fault("POST /v1/providers/", 500, "after")
        proxy.fault("PATCH ", 503)
        settings = load_settings(environment=env.configuration(situation, proxy.url))
        monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
        report = asyncio.run(ensure_providers(settings))
    assert report.all_proven, [entry.reason for entry in report.configured]
