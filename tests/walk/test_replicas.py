"""Several backends start at once on one Letta: one of them writes, the others wait for it and prove what it did."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from isabella.embedded import Letta
from isabella.locks.sync_lock import ADVISORY_KEY
from tests.support.fault_injection import WalkEnv, open_walk_env
from tests.support.fault_proxy import Proxy
from tests.support.fork_server import Child, ForkServer

EIGHT = 8
SITUATION = "everything at once"


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    """Where the processes come from."""
    with ForkServer() as running:
        yield running


@pytest.fixture
def env(letta_server: Letta, tmp_path: Path) -> Iterator[WalkEnv]:
    """One for each test: what one lock has left behind is not there for the other."""
    with open_walk_env(letta_server, tmp_path / "replicas") as opened:
        yield opened


@pytest.fixture(params=["by file", "by advisory lock"])
def lock(request: pytest.FixtureRequest, letta_server: Letta) -> dict[str, str]:
    """The variables that make it the one lock or the other."""
    if request.param == "by file":
        return {}
    return {"ISABELLA_DATABASE_URL": letta_server.database_url.get_secret_value()}


def start(
    env: WalkEnv,
    fork_server: ForkServer,
    base_url: str,
    number: int,
    variables: dict[str, str],
    situation: str = SITUATION,
) -> Child:
    """A backend's sync, which waits for its sign to begin."""
    environment = {"PATH": os.environ["PATH"], **env.configuration(situation, base_url, **variables)}
    return fork_server.start(
        ("providers", "sync", "--json"), environment, env.home / f"replica-{number}.json", hold=True
    )


def of_providers(writes: Sequence[str]) -> list[str]:
    """Those to providers. An agent that other tests left at another address is changed by whoever comes first."""
    return [line for line in writes if "/v1/providers" in line]


def of_methods(writes: Sequence[str]) -> list[str]:
    """How often each kind of writing was sent."""
    return sorted(line.split()[0] for line in writes)


def test_of_eight_that_start_at_once_one_writes(
    env: WalkEnv, fork_server: ForkServer, lock: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    """All eight end with everything proven, and together they have written as much as one alone would have."""
    env.plant(SITUATION)
    with Proxy(env.admin.letta.base_url) as proxy:
        alone = start(env, fork_server, proxy.url, 0, lock)
        alone.go()
        assert alone.wait() == 0
        of_one = of_providers(proxy.writes)
    env.plant(SITUATION)
    with Proxy(env.admin.letta.base_url) as proxy:
        replicas = [start(env, fork_server, proxy.url, number, lock) for number in range(EIGHT)]
        for replica in replicas:
            replica.go()
        assert [replica.wait() for replica in replicas] == [0] * EIGHT
        of_eight = of_providers(proxy.writes)
    assert of_methods(of_eight) == of_methods(of_one)
    reports = [json.loads(replica.output.read_text()) for replica in replicas]
    assert all(entry["proof"] == "proven" for report in reports for entry in report["providers"] if entry["key"])
    for name in env.names(SITUATION):
        assert env.state(name) == ("openai", env.base_url(), env.key)
    record_property("walked", f"replicas: {EIGHT} at once: {len(of_eight)} writes, as one alone: {len(of_one)}")


def test_the_lock_goes_away_with_its_holder(env: WalkEnv, fork_server: ForkServer, lock: dict[str, str]) -> None:
    """A backend is killed in the middle of its writing: the one that waited goes on, and proves everything."""
    env.plant("stale")
    with Proxy(env.admin.letta.base_url) as proxy, ExitStack() as ended:
        proxy.fault("PATCH ", "hang")
        holder = start(env, fork_server, proxy.url, 1, lock, "stale")
        ended.callback(holder.wait)
        ended.callback(holder.kill)
        holder.go()
        proxy.wait_for("PATCH ")
        waiting = start(env, fork_server, proxy.url, 2, lock, "stale")
        waiting.go()
        # Its release and its list are read before the lock is asked for, and nothing after that.
        proxy.wait_for("GET /v1/health/", times=2)
        proxy.wait_for("GET /v1/providers/", times=3)
        assert len(proxy.writes) == 1
        holder.kill()
        assert waiting.wait() == 0
        assert len(proxy.writes) == 2
    assert env.state("walk-one") == ("openai", env.base_url(), env.key)


def test_a_lock_that_is_lost_in_the_middle_costs_no_proof(
    env: WalkEnv, fork_server: ForkServer, letta_server: Letta
) -> None:
    """Postgres ends the session that holds the lock: what is written is read back, and the sync ends well."""
    url = letta_server.database_url.get_secret_value()
    env.plant("stale")
    with Proxy(env.admin.letta.base_url) as proxy:
        proxy.fault(lambda line, body: line.startswith("PATCH ") and _end_lock_holders(url), 429)
        holder = start(env, fork_server, proxy.url, 1, {"ISABELLA_DATABASE_URL": url}, "stale")
        holder.go()
        code = holder.wait()
    assert (code, env.state("walk-one")) == (0, ("openai", env.base_url(), env.key)), holder.output.read_text()


def test_a_session_that_ends_while_it_waits_is_opened_again(
    env: WalkEnv, fork_server: ForkServer, letta_server: Letta
) -> None:
    """Postgres ends the sessions of one that writes and one that waits: the waiting one waits on, and both prove."""
    url = letta_server.database_url.get_secret_value()
    variables = {"ISABELLA_DATABASE_URL": url}
    env.plant("stale")
    with psycopg.connect(url, autocommit=True) as first, Proxy(env.admin.letta.base_url) as proxy:
        first.execute("SELECT pg_advisory_lock(%s)", (ADVISORY_KEY,))
        waiting = start(env, fork_server, proxy.url, 1, variables, "stale")
        waiting.go()
        proxy.wait_for("GET /v1/providers/")
        # It waits as soon as its session has asked for the lock.
        while not _end_askers(first):
            pass
        assert proxy.writes == []
        first.execute("SELECT pg_advisory_unlock(%s)", (ADVISORY_KEY,))
        assert waiting.wait() == 0, waiting.output.read_text()
    assert env.state("walk-one") == ("openai", env.base_url(), env.key)


def _end_askers(database: psycopg.Connection[Any]) -> bool:
    """End the session that has asked for the lock in vain; whether there was one."""
    return bool(
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE 'SELECT pg_try_advisory_lock(%' AND state = 'idle' AND pid <> pg_backend_pid()"
        ).fetchall()
    )


def _end_lock_holders(url: str) -> bool:
    """End every session that holds an advisory lock in this database; whether there was one."""
    with psycopg.connect(url, autocommit=True) as database:
        ended = database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchall()
    return bool(ended)
