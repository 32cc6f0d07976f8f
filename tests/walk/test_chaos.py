"""Postgres, Letta and the gateway die, in a backend that supervises them, while four agents talk."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from bench.backend import vendor_variables
from bench.chaos import Chaos, Death, Outcome
from bench.conversation import client_of, defined, first_on
from isabella.config.settings import load_settings
from isabella.embedded import Letta, Server
from isabella.gateway.process import GatewayPart
from isabella.practice import NAMES, PracticeVendors
from isabella.server.supervised import Supervised
from tests.support.backend_server import TOKEN, Backend, connection_to, serve
from tests.support.letta_admin import open_admin

KILL, STOP = signal.SIGKILL, signal.SIGSTOP
#: Letta dies once only: its start takes longer than all the rest.
DEATHS = [
    Death("gateway", KILL),
    Death("postgres", KILL),
    Death("letta", STOP),
    Death("session", KILL),
    Death("gateway", STOP),
    Death("letta", KILL),
]


@pytest.fixture
def served(
    letta_server: Letta, embedded: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    """A backend with the session's Letta and a gateway in a process of its own, all of which it supervises."""
    monkeypatch.setattr("bench.conversation.TOKEN", TOKEN)
    agents = tmp_path / "agents.toml"
    agents.write_text("\n".join(defined(name, first_on(name)) for name in NAMES))
    empty = tmp_path / "empty.env"
    empty.touch()
    assert letta_server.master_key is not None
    with PracticeVendors() as vendors, open_admin(letta_server) as admin:
        admin.delete_everything()
        environment = {
            **vendor_variables(vendors),
            "LETTA_BASE_URL": letta_server.base_url,
            "LETTA_API_KEY": letta_server.password.get_secret_value(),
            "LETTA_ENCRYPTION_KEY": letta_server.master_key.get_secret_value(),
            "ISABELLA_HOME": str(tmp_path),
            "ISABELLA_TOKEN": TOKEN,
            "ISABELLA_GATEWAY": "on",
            "ISABELLA_EMBEDDINGS": "off",
            "ISABELLA_AGENTS_FILE": str(agents),
            "ISABELLA_TURN_WAIT": "180",
        }
        settings = load_settings(empty, environment=environment)
        gateway = GatewayPart(settings)
        gateway.start()
        try:
            supervised = Supervised.of(embedded, gateway)
            with serve(letta_server, vendors, settings, connection_to(letta_server, tmp_path), supervised) as running:
                yield running
        finally:
            gateway.stop()


@pytest.mark.timeout(400)
def test_everything_dies_and_comes_back(served: Backend, embedded: Server, tmp_path: Path) -> None:
    """Every turn ends in an answer or in an event that is true; no port is lost; no vendor is blamed."""

    async def chaos() -> Outcome:
        async with client_of(served.url) as backend:
            return await Chaos(embedded, served.vendors, tmp_path, stopped=3.0).run(backend, DEATHS)

    began = time.monotonic()
    outcome = anyio.run(chaos)
    print(f"{len(outcome.turns)} turns, {time.monotonic() - began:.0f} s")
    assert outcome.deaths == len(DEATHS)
    assert outcome.untold == []
    assert outcome.missing == []
    assert outcome.denied == []
    assert outcome.blamed == []
    assert outcome.moved == []
    assert any(turn.told == "completed" for turn in outcome.turns)
    assert max(seconds for seconds, _ in outcome.noticed) < 2
    metrics = served.client.get("/metrics").text
    for part in ("postgres", "letta", "gateway"):
        assert f'isabella_part_up{{part="{part}"}} 1.0' in metrics
        assert f'isabella_part_restarts_total{{part="{part}"}} 1.0' in metrics
    ready = served.client.get("/ready").json()
    assert [(one["name"], one["state"]) for one in ready["conditions"]] == [
        ("postgres", "runs"),
        ("letta", "runs"),
        ("gateway", "runs"),
    ]
    assert set(served.client.get("/health").json()["parts"].values()) == {"runs"}
