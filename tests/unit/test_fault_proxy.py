"""The tests' own proxy: it passes on, records, and fails as told; what rests on it is worth no more than it is."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest
from pytest_httpserver import HTTPServer

from tests.support.fault_proxy import Kind, Proxy, When


@pytest.fixture
def proxy(httpserver: HTTPServer) -> Iterator[Proxy]:
    """A proxy before a server that answers everything with the same list."""
    httpserver.expect_request("/v1/things/").respond_with_json([{"name": "a thing", "number": 7}])
    with Proxy(httpserver.url_for("")) as running:
        yield running


def test_it_passes_on_and_remembers(proxy: Proxy, httpserver: HTTPServer) -> None:
    """Method, path, query, headers and body arrive as they were sent, and the answer as it was given."""
    answer = httpx2.post(f"{proxy.url}/v1/things/?after=x", json={"a": 1}, headers={"Authorization": "Bearer b"})
    assert answer.json() == [{"name": "a thing", "number": 7}]
    (request, _) = httpserver.log[0]
    assert (request.method, request.args["after"], request.headers["Authorization"]) == ("POST", "x", "Bearer b")
    assert request.get_json() == {"a": 1}
    (seen,) = proxy.requests
    assert (seen.line, seen.query, seen.status, seen.passed_on) == ("POST /v1/things/", {"after": "x"}, 200, True)
    assert json.loads(seen.body) == {"a": 1}
    assert proxy.writes == ["POST /v1/things/"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["drop", "reset", "hang", "truncate", "html", 500, 409, 429])
def test_it_fails_once_as_told(proxy: Proxy, httpserver: HTTPServer, kind: Kind, when: When) -> None:
    """A fault befalls the request that it is for, so often as was said, before the server has it or after."""
    proxy.fault("POST /v1/things/", kind, when)
    assert httpx2.get(f"{proxy.url}/v1/things/").status_code == 200
    try:
        status = httpx2.post(f"{proxy.url}/v1/things/", timeout=0.5).status_code
    except httpx2.ReadTimeout:
        assert kind == "hang"
    except httpx2.TransportError:
        assert kind in ("drop", "reset", "truncate")
    else:
        assert status == (200 if kind == "html" else kind)
    assert [request.method for request, _ in httpserver.log] == ["GET", "POST"][: 2 if when == "after" else 1]
    assert httpx2.post(f"{proxy.url}/v1/things/").status_code == 200
    assert [seen.passed_on for seen in proxy.requests] == [True, when == "after", True]


def test_a_server_that_is_gone_is_a_bad_gateway() -> None:
    """Where nothing listens behind it, the proxy answers as gateways do."""
    with Proxy("http://127.0.0.1:9") as proxy:
        assert httpx2.get(f"{proxy.url}/").status_code == 502
