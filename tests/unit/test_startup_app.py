"""The answers of a backend before its application is imported, and that no connection is lost when it takes over."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import pytest

from isabella.server.errors import Problem, answer, openai_error
from isabella.server.security import POLICY
from isabella.server.startup_app import StartupApp, http_server
from isabella.server.static_files import static_url
from isabella.system.sockets import listening_socket

PAGE = {"Accept": "text/html"}
SECONDS = 30.0


@dataclass
class Starting:
    """A backend that serves, and whose application is not there yet."""

    app: StartupApp
    client: httpx.Client
    steps: list[str]
    failures: list[BaseException]
    thread: threading.Thread


@contextmanager
def starting(**options: Any) -> Iterator[Starting]:
    """Serve a `StartupApp` in a thread. `options` are those of the client."""
    steps, failures = ["Isabella is starting.", "Install: <Letta> 0.16.8."], list[BaseException]()

    def fail(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = StartupApp(steps, {"isabella.example"}, fail)
    server = http_server(app)
    with closing(listening_socket("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=address, trust_env=False, timeout=SECONDS, **options) as client:
            try:
                yield Starting(app, client, steps, failures, thread)
            finally:
                server.should_exit = True
                thread.join(SECONDS)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def backend() -> Iterator[Starting]:
    """One for the tests that change nothing."""
    with starting() as backend:
        yield backend


def test_the_page_shows_the_steps_as_text(backend: Starting) -> None:
    """Every page is this one: it shows each step as text, and reloads by itself."""
    for path in ("/", "/console", "/console/chat", "/login?code=a-link", "/docs"):
        shown = backend.client.get(path, headers=PAGE)
        assert (shown.status_code, shown.headers["retry-after"]) == (503, "1")
        assert "<li>Isabella is starting.</li><li>Install: &lt;Letta&gt; 0.16.8.</li>" in shown.text
        assert '<meta http-equiv="refresh"' in shown.text
        assert static_url("console.css") in shown.text


def test_its_style_and_icon_are_served_and_no_other_file(backend: Starting) -> None:
    """A page needs these two; a path cannot leave the folder."""
    for name in ("console.css", "icon.svg"):
        file = backend.client.get(static_url(name))
        assert file.is_success
        assert file.content
    assert backend.client.get("/console/static/console.js").status_code == 503
    assert backend.client.get("/console/static/../templates/base.html").status_code == 503


def test_health_and_ready_have_the_form_of_the_application(backend: Starting) -> None:
    """The process is alive, and not ready; the innermost step is the reason."""
    health = backend.client.get("/health")
    assert (health.status_code, health.json()["status"], health.json()["parts"]) == (200, "ok", {})
    ready = backend.client.get("/ready", headers=PAGE)
    assert ready.status_code == 503
    assert ready.json() == {"status": "starting", "reasons": ["Install: <Letta> 0.16.8."], "conditions": []}


def test_everything_else_is_refused_in_both_forms_of_errors(backend: Starting) -> None:
    """The fields are those of the application's own errors, for the clients of either form."""
    problem = Problem(code="not_ready", message="-", remedy="-")
    own = answer(503, problem).body
    assert b'"error"' in bytes(own)
    for method, path in (("GET", "/metrics"), ("POST", "/v1/chat/completions"), ("POST", "/api/agents/a/turns")):
        refused = backend.client.request(method, path)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["type"]) == (503, "not_ready", "server_error")
        assert error.keys() >= problem.model_dump(exclude_none=True).keys()
        assert error.keys() >= openai_error(503, problem)["error"].keys()


@pytest.mark.parametrize("path", ["/console", "/health", "/ready", "/metrics", "/docs"])
@pytest.mark.parametrize("host", [None, "elsewhere.example"])
def test_headers_and_hosts(backend: Starting, path: str, host: str | None) -> None:
    """Another host is refused everywhere; nothing is stored, framed, or loaded from elsewhere."""
    shown = backend.client.get(path, headers={**PAGE, **({} if host is None else {"Host": host})})
    assert (shown.status_code == 421) is (host is not None)
    assert shown.headers["cache-control"] == "no-store"
    assert shown.headers["x-frame-options"] == "DENY"
    assert shown.headers["x-content-type-options"] == "nosniff"
    if path != "/docs":
        assert shown.headers["content-security-policy"] == POLICY


def test_a_configured_host_is_answered(backend: Starting) -> None:
    """In any case, and with a port."""
    assert backend.client.get("/health", headers={"Host": "Isabella.example:8000"}).is_success


def test_no_body_is_waited_for(backend: Starting) -> None:
    """The answer comes while the body is still to come."""
    with socket.create_connection(("127.0.0.1", backend.client.base_url.port or 0), SECONDS) as connection:
        connection.sendall(b"POST /api/agents HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\na part")
        assert connection.recv(100).startswith(b"HTTP/1.1 503 ")


async def whole(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers 204, and says what its lifespan got."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_the_application_takes_over_on_the_same_connection() -> None:
    """A connection that was open before serves on; the lifespan of the application is completed."""
    with starting(limits=httpx.Limits(max_connections=1)) as backend:
        assert backend.client.get("/ready").status_code == 503
        backend.app.loaded.set_result(whole)
        statuses = {503}
        deadline = time.monotonic() + SECONDS
        while 204 not in statuses and time.monotonic() < deadline:
            statuses.add(backend.client.get("/ready").status_code)
        assert statuses == {503, 204}
    assert backend.failures == []


async def unwilling(_scope: Any, _receive: Any, _send: Any) -> None:
    """An application that fails at once."""
    raise RuntimeError("it does not start")


@pytest.mark.parametrize("how", ["import", "startup"])
def test_an_application_that_cannot_be_loaded_stops_the_server(how: str) -> None:
    """It does not show the page of the start for ever."""
    with starting() as backend:
        if how == "import":
            backend.app.loaded.set_exception(ImportError("it is not there"))
        else:
            backend.app.loaded.set_result(unwilling)
        backend.thread.join(SECONDS)
        assert not backend.thread.is_alive()
    assert [type(error) for error in backend.failures] == [ImportError if how == "import" else RuntimeError]


def test_a_backend_that_is_stopped_before_does_not_wait_for_the_application() -> None:
    """The import is told that nobody needs it."""
    with starting() as backend:
        assert backend.client.get("/health").is_success
    assert backend.failures == []
    assert backend.app.loaded.cancelled()
