"""What a backend makes of its supervisor: readiness, notices, and a part that has moved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import httpx2 as httpx
import pytest
from pydantic import SecretStr

from isabella.config.settings import load_settings
from isabella.connect import embedded_connection
from isabella.embedded import Letta
from isabella.errors import LettaUnreachable
from isabella.letta.client import LettaClient
from isabella.letta.http import LettaHttp
from isabella.locks.postgres import AdvisoryLocks
from isabella.server.app import create_app
from isabella.server.readiness import Phase
from isabella.server.runtime import Runtime
from isabella.server.supervised import Supervised, repeat_after_outage, run_supervisor
from isabella.system.peers import Peer
from isabella.system.supervision import PartState
from tests.support.made_parts import MadeParts, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the backend runs on."""
    return "asyncio"


LETTA = Letta(
    base_url="http://127.0.0.1:8283",
    version="0.16.8",
    password=SecretStr("password-of-letta"),
    master_key=None,
    database_url=SecretStr("postgresql://127.0.0.1:5433/letta"),
    started=False,
    peer=Peer("Letta", Path("/nowhere"), ""),
)
MOVED = replace(
    LETTA, base_url="http://127.0.0.1:10001", database_url=SecretStr("postgresql://127.0.0.1:10002/letta")
)


async def test_an_outage_is_told_everywhere(tmp_path: Path) -> None:
    """By `/ready` with 503, the reason and the conditions, by `/health`, in the headline and in a notice."""
    parts = MadeParts()
    runtime = Runtime()
    runtime.readiness.phase = Phase.READY
    settings = load_settings(environment={}, home=tmp_path)
    supervised = Supervised(parts.supervisor)
    transport = httpx.ASGITransport(create_app(runtime, lambda: anyio.lowlevel.checkpoint()))
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        run_supervisor(runtime, supervised, settings),
    ):
        await parts.supervisor.confirm()
        assert (await client.get("/ready")).status_code == 200
        parts.parts[1].may_start.clear()
        parts.end("letta")
        await until(lambda: bool(runtime.readiness.down))
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "interrupted")
        assert ready.json()["reasons"][0] == "letta has ended."
        assert [one["state"] for one in ready.json()["conditions"]] == ["runs", "down", "runs"]
        health = await client.get("/health")
        assert (health.status_code, health.json()["parts"]["letta"]) == (200, "down")
        assert "letta has ended." in [notice.text for notice in runtime.event_log.notices(60)]
        report: Any = None
        headline = runtime.readiness.headline(report)
        assert "letta does not work" in headline.title
        parts.parts[1].may_start.set()
        assert await parts.supervisor.wait(10)
        assert (await client.get("/ready")).json()["status"] == "ready"
        assert "letta works again." in [notice.text for notice in runtime.event_log.notices(60)]


async def test_a_letta_on_another_port_is_followed(tmp_path: Path) -> None:
    """Requests, locks and the next turns go to its new address; its providers are synced again."""
    parts = MadeParts()
    settings = load_settings(environment={}, home=tmp_path)
    runtime = Runtime(None, settings, embedded_connection(settings, LETTA))
    asked: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json=[])

    http = LettaHttp(LETTA.base_url, transport=httpx.MockTransport(answer))
    advisory = AdvisoryLocks(LETTA.database_url)
    resynced = anyio.Event()
    watcher: Any = SimpleNamespace(reread=lambda: anyio.lowlevel.checkpoint(), resync=lambda: _set(resynced))
    letta = LettaClient(http, LETTA.database_url)
    agents: Any = SimpleNamespace(letta=letta, connection=runtime.start_connection)
    turns: Any = SimpleNamespace(deps=SimpleNamespace(gate=SimpleNamespace(advisory=advisory)))
    runtime.agent_service, runtime.turn_service, runtime.watcher = agents, turns, watcher
    server: Any = SimpleNamespace(running=lambda: MOVED)
    async with run_supervisor(runtime, Supervised(parts.supervisor, server), settings):
        await until(lambda: parts.supervisor._looks > 1)
        parts.end("letta")
        assert await parts.supervisor.confirm() == 1
        assert await parts.supervisor.wait(10)
        # A turn that waits goes on now, and finds it there.
        assert runtime.start_connection == embedded_connection(settings, MOVED)
        with anyio.fail_after(10):
            await resynced.wait()
    assert letta.conversations.database_url == MOVED.database_url
    await http.get("/v1/agents/")
    assert asked == ["http://127.0.0.1:10001/v1/agents/"]
    assert advisory._session.url == MOVED.database_url
    assert runtime.start_connection == agents.connection == embedded_connection(settings, MOVED)


async def _set(event: anyio.Event) -> None:
    event.set()


@pytest.mark.parametrize("up", [False, True])
async def test_a_start_that_an_outage_has_disturbed_is_repeated(up: bool) -> None:
    """Once it is up, its failure is told; and without an outage, too."""
    parts = MadeParts()
    runs: list[int] = []

    async def start() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            parts.end("postgres")
        if len(runs) < 3:
            raise LettaUnreachable("Letta is away.")

    async with parts.running() as supervisor:
        with pytest.raises(LettaUnreachable):
            await repeat_after_outage(supervisor, start, seconds=10, until=_always(up))
    assert len(runs) == (1 if up else 2)


def _always(value: bool) -> Callable[[], bool]:
    return lambda: value


async def test_a_part_that_was_given_up_is_a_reason(tmp_path: Path) -> None:
    """Nobody waits for it any more, and everybody is told why."""
    parts = MadeParts()
    parts.parts[0].refuses = 1000
    runtime = Runtime()
    runtime.readiness.phase = Phase.READY
    async with run_supervisor(runtime, Supervised(parts.supervisor), load_settings(environment={}, home=tmp_path)):
        parts.end("postgres")
        await until(lambda: parts.supervisor.statuses[0].state is PartState.GIVEN_UP)
        assert "postgres refuses. Wait. Next attempt" in runtime.readiness.reasons[0]
        assert json.dumps([notice.text for notice in runtime.event_log.notices(60)]).count("Next attempt") >= 1
