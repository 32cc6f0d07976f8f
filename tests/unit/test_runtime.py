"""The runtime of a backend whose services are not open yet."""

from __future__ import annotations

import anyio
import httpx2 as httpx
import pytest

from isabella.errors import Interrupted, IsabellaError, LettaBroken, LettaRefused, LettaUnreachable, NotReady
from isabella.server.app import create_app
from isabella.server.runtime import Runtime
from tests.support.made_parts import MadeParts


async def _nothing() -> None:
    """A start that opens nothing."""


def ask(method: str, path: str, **options: object) -> httpx.Response:
    """Return the answer of a backend that has not started."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(Runtime(), _nothing))
        async with httpx.AsyncClient(transport=transport, base_url="http://backend") as client:
            return await client.request(method, path, **options)  # type: ignore[arg-type]

    return anyio.run(send)


@pytest.mark.parametrize("name", ["agents", "turns", "requests", "settings", "connection"])
def test_a_service_that_is_not_open_raises(name: str) -> None:
    """Every property raises the same error, with what to do about it."""
    with pytest.raises(NotReady, match="not ready yet") as error:
        getattr(Runtime(), name)
    assert "GET /ready" in str(error.value.remedy)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/agents", None),
        ("GET", "/api/agents/Isabella/blocks", None),
        ("POST", "/api/agents/Isabella/turns", {"message": "Hello"}),
        ("POST", "/v1/chat/completions", {"model": "Isabella", "messages": [{"role": "user", "content": "Hello"}]}),
    ],
)
def test_routes_answer_503_before_the_start(method: str, path: str, body: object) -> None:
    """A route that needs a service answers 503 `not_ready`, and when to retry."""
    response = ask(method, path, json=body)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "not_ready"
    assert response.headers["retry-after"] == "5"


@pytest.mark.parametrize("page", ["chat", "memory", "chat/agent-00000000-0000-4000-8000-000000000000"])
def test_pages_wait_for_the_start(page: str) -> None:
    """A page shows that Isabella is starting, and reloads; a fragment is a notice on the page that asked for it."""
    response = ask("GET", f"/console/{page}")
    assert response.status_code == 503
    assert "Isabella is starting" in response.text
    assert "data-until-up" in response.text
    notice = ask("GET", f"/console/{page}", headers={"HX-Request": "true"})
    assert notice.headers["hx-retarget"] == "#notice"
    assert "Agents are not ready yet." in notice.text


def test_the_state_is_known_before_the_start() -> None:
    """Health, readiness and the report are there from the beginning."""
    assert ask("GET", "/health").status_code == 200
    ready = ask("GET", "/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "starting")
    assert ask("GET", "/api/providers").json()["providers"] == []
    metrics = ask("GET", "/metrics")
    assert metrics.status_code == 200
    assert 'isabella_status{status="starting"} 1.0' in metrics.text
    assert 'isabella_status{status="ready"} 0.0' in metrics.text


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (LettaUnreachable("nothing listens"), "repeat the request"),
        (LettaUnreachable("it broke off", sent=True), "check whether the request was carried out"),
        (LettaBroken("its database is gone", status=500), "repeat the request"),
        (LettaRefused("no such agent", status=404), None),
    ],
)
def test_an_error_of_a_letta_that_is_being_started_again(error: IsabellaError, remedy: str | None) -> None:
    """It names the part that has ended, and no command: the backend starts it. Letta's own refusals stay."""

    async def explain() -> IsabellaError:
        parts, runtime = MadeParts(), Runtime()
        for part in parts.parts:
            part.may_start.clear()
        async with parts.running() as supervisor:
            runtime.readiness.supervisor = supervisor
            assert await runtime.explain(error) is error
            parts.end("letta")
            explained = await runtime.explain(error)
            for part in parts.parts:
                part.may_start.set()
            return explained

    explained = anyio.run(explain)
    if remedy is None:
        assert explained is error
    else:
        assert isinstance(explained, Interrupted)
        assert explained.what == "letta has ended."
        assert remedy in str(explained.remedy)
