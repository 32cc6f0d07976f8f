"""The client of a backend that is still starting."""

from __future__ import annotations

import socket

import pytest
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from isabella.chat import client
from isabella.chat.client import BackendClient
from isabella.errors import IsabellaError


def backend(httpserver: HTTPServer, *answers: tuple[str, str]) -> BackendClient:
    """Return the client of a backend whose `/ready` gives these answers, a status and a reason each."""
    left = list(answers)

    def ready(_request: Request) -> Response:
        status, reason = left.pop(0) if len(left) > 1 else left[0]
        code = 200 if status == "ready" else 503
        body = f'{{"status": "{status}", "reasons": ["{reason}"]}}'
        return Response(body, code, content_type="application/json")

    httpserver.expect_request("/ready").respond_with_handler(ready)
    return BackendClient(httpserver.url_for("").rstrip("/"), SecretStr("token"), "Isabella")


def test_it_waits_and_says_each_reason_once(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the backend starts, or starts Letta again."""
    monkeypatch.setattr(client, "_LOOK_SECONDS", 0.0)
    answers = [("starting", "Letta."), ("starting", "Letta."), ("interrupted", "Postgres has ended."), ("ready", "")]
    said: list[str] = []
    with backend(httpserver, *answers) as waiting:
        waiting.wait_until_ready(30, said.append)
    assert said == ["Waiting: Letta.", "Waiting: Postgres has ended."]


@pytest.mark.parametrize("status", ["degraded", "failed"])
def test_it_does_not_wait_for_another_status(status: str, httpserver: HTTPServer) -> None:
    """Agents can be asked then, or never."""
    with backend(httpserver, (status, "groq: refused.")) as waiting:
        waiting.wait_until_ready(30, pytest.fail)


def test_the_wait_ends(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason that stays the same is not waited for beyond the limit; the next request shows the error."""
    monkeypatch.setattr(client, "_LOOK_SECONDS", 0.0)
    said: list[str] = []
    with backend(httpserver, ("interrupted", "Letta has ended.")) as waiting:
        waiting.wait_until_ready(0.01, said.append)
    assert said == ["Waiting: Letta has ended."]


def test_a_backend_that_is_gone() -> None:
    """It is an error at once."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    waiting = BackendClient(address, SecretStr("token"), "Isabella")
    with waiting, pytest.raises(IsabellaError, match="does not answer"):
        waiting.wait_until_ready(30, pytest.fail)
