"""What vendors did when they were asked last, as the API, the metrics and the command line tell it of real turns."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from isabella.embedded import Letta
from tests.support.backend_server import TOKEN, Backend, published_backend
from tests.support.command import Command

GROQ, MISTRAL = "byok-groq/openai/gpt-oss-120b", "byok-mistral/mistral-medium-latest"


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with practice vendors of its own, which the command line finds."""
    with published_backend(letta_server, tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def command(served: Backend, tmp_path: Path) -> Command:
    """Another terminal of the same operator."""
    connection = served.connection
    assert connection.password is not None
    assert connection.master_key is not None
    command = Command(tmp_path, {"ISABELLA_HOME": str(connection.home)})
    keys = {
        f"{vendor.upper()}_{what}": value
        for vendor in ("cerebras", "groq", "mistral", "longcat")
        for what, value in (
            ("API_KEY", served.vendors.key(vendor).get_secret_value()),
            ("BASE_URL", served.vendors.base_url(vendor)),
        )
    }
    command.configure(
        ISABELLA_TOKEN=TOKEN,
        LETTA_BASE_URL=connection.base_url,
        LETTA_API_KEY=connection.password.get_secret_value(),
        LETTA_ENCRYPTION_KEY=connection.master_key.get_secret_value(),
        **keys,
    )
    return command


def told(served: Backend, provider: str) -> dict[str, Any]:
    """The provider in `/api/providers`."""
    found = served.client.get("/api/providers").json()
    return next(dict(one) for one in found["providers"] if one["name"] == provider)


def test_a_vendor_that_refuses_leads_although_every_key_is_proven(served: Backend, command: Command) -> None:
    """API, readiness, metrics and the command line in another terminal tell the same, until the vendor answers."""
    assert served.client.get("/ready").json() == {"status": "ready", "reasons": [], "conditions": []}
    assert served.client.get("/api/providers").json()["headline"]["level"] == "ok"
    agent = served.agent("refused-vendor", GROQ, MISTRAL)
    served.vendors.fault("groq", on="chat", status=401)
    assert served.say(agent, "Say good morning").end["handle"] == MISTRAL

    found = told(served, "byok-groq")
    assert (found["condition"], found["proof"]) == ("InSync", "proven")
    assert found["vendor_status"]["state"] == "refuses_key"
    assert "401" in found["vendor_status"]["reason"]
    assert told(served, "byok-mistral")["vendor_status"]["state"] == "answers"
    lead = served.client.get("/api/providers").json()["headline"]
    assert (lead["level"], lead["title"]) == ("problem", "1 of 4 providers is not in order.")
    ready = served.client.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["reasons"] == [f"byok-groq: the vendor refuses the key ({found['vendor_status']['reason']})."]
    metrics = served.client.get("/metrics").text
    assert 'isabella_vendor_status{provider="byok-groq",state="refuses_key"} 1.0' in metrics
    assert 'isabella_stored_key{condition="InSync",provider="byok-groq"} 1.0' in metrics
    assert 'isabella_provider_level{provider="byok-groq"} 3.0' in metrics

    # What is stored is what is configured: the exit code says so, the first line says the rest.
    ended = command.run("providers", "status")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("1 of 4 providers is not in order. byok-groq: the vendor refuses the key (401")
    document = command.run("providers", "status", "--json").document
    (entry,) = [one for one in document["providers"] if one["name"] == "byok-groq"]
    # The remedy names where the key comes from, which differs between the two.
    for field in ("level", "title", "text"):
        assert document["headline"][field] == lead[field]
    seen, same = (datetime.fromisoformat(one["seen"]) for one in (document["headline"], lead))
    assert seen == same
    for field in ("state", "reason"):
        assert entry["vendor_status"][field] == found["vendor_status"][field]
    at, same = (datetime.fromisoformat(one["vendor_status"]["at"]) for one in (entry, found))
    assert at == same

    served.vendors.clear()
    served.call(served.runtime.turns.deps.breaker.forgive, "byok-groq")
    assert served.say(agent, "Say it again").end["handle"] == GROQ
    assert told(served, "byok-groq")["vendor_status"]["state"] == "answers"
    assert served.client.get("/ready").json() == {"status": "ready", "reasons": [], "conditions": []}


def test_without_a_backend_nothing_is_said_of_the_vendors(served: Backend, command: Command, tmp_path: Path) -> None:
    """Nobody is asked for the sake of a status; that nothing is known is told, and never that all is in order."""
    asked = len(served.vendors.requests("groq"))
    alone = Command(command.folder, {"ISABELLA_HOME": str(tmp_path / "another")})
    ended = alone.run("providers", "status")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("All 4 stored keys are proven. It is not known whether these vendors answer: ")
    assert len(served.vendors.requests("groq")) == asked
