"""The store over real HTTP: every kind of bad weather is one error that says what, where and what next."""

from __future__ import annotations

import gzip
import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import pytest
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from isabella.errors import LettaBroken, LettaError, LettaRefused, LettaUnauthorized, LettaUnreachable, NotLetta
from isabella.letta import http
from isabella.letta.client import LettaClient
from isabella.letta.http import LettaHttp
from isabella.letta.providers import PAGE_SIZE as PAGE
from isabella.letta.providers import LettaProviders
from isabella.letta.releases import capabilities_of
from isabella.letta.store import StoredProvider
from isabella.system import redaction

Result = TypeVar("Result")

PASSWORD = SecretStr("canary-server-password-0001")
KEY = SecretStr("csk-canary-store-0002")
HEALTH, PROVIDERS = "/v1/health/", "/v1/providers/"


@pytest.fixture(autouse=True)
def _known_secrets() -> None:
    redaction.remember(PASSWORD.get_secret_value(), KEY.get_secret_value())


def ask(
    base_url: str,
    call: Callable[[LettaProviders], Awaitable[Result]],
    *,
    password: SecretStr | None = PASSWORD,
    timeout: float = 10.0,
) -> Result:
    """Call the store of the Letta there."""

    async def scenario() -> Result:
        async with LettaClient(LettaHttp(base_url, password=password, timeout=timeout)) as letta:
            return await call(letta.providers)

    return anyio.run(scenario)


def address(server: HTTPServer) -> str:
    """Where the server is, as LETTA_BASE_URL would have it."""
    return server.url_for("").rstrip("/")


def row(number: int, **fields: Any) -> dict[str, Any]:
    """A provider as Letta 0.16.8 lists it."""
    return {
        "id": f"provider-{number:05}",
        "name": f"vendor-{number}",
        "provider_type": "openai",
        "provider_category": "byok",
        "base_url": "http://a/v1",
        "api_key": None,
        "api_key_enc": "text",
        "last_synced": None,
        **fields,
    }


async def create(store: LettaProviders) -> None:
    """A POST."""
    await store.create(name="a", type="openai", base_url="http://a/v1", key=KEY)


async def update(store: LettaProviders) -> None:
    """A PATCH."""
    await store.update("provider-1", key=KEY, base_url="http://a/v1")


async def delete(store: LettaProviders) -> None:
    """A DELETE."""
    await store.delete("provider-1")


CALLS: dict[str, Callable[[LettaProviders], Awaitable[Any]]] = {
    "abilities": LettaProviders.abilities,
    "all": LettaProviders.all,
    "find": lambda store: store.find("a"),
    "models": lambda store: store.models("a"),
    "create": create,
    "update": update,
    "delete": delete,
}
READS = ("abilities", "all", "find", "models")
WRITES = ("create", "update", "delete")


# --- fair weather -------------------------------------------------------------------------------------------------


def test_health_tells_release_and_abilities(httpserver: HTTPServer) -> None:
    """The release is asked for once, and tells what can be done."""
    httpserver.expect_oneshot_request(HEALTH).respond_with_json({"version": "0.16.8", "status": "ok"})
    abilities = ask(address(httpserver), LettaProviders.abilities)
    assert (abilities.release, abilities.known, abilities.recreates) == ("0.16.8", True, True)


@pytest.mark.parametrize(
    ("release", "known", "recreates"),
    [
        ("0.12.1", True, False),
        ("0.15.1", True, False),
        ("0.16.0", True, False),
        ("0.16.1", True, False),
        ("0.16.2", True, True),
        ("0.16.3", False, False),
        ("0.16.9", False, False),
        ("0.16.8.dev1", False, False),
        ("0.11.9", False, False),
        ("0.17.0", False, False),
        ("1.0.0", False, False),
        ("dev", False, False),
        ("", False, False),
    ],
)
def test_a_release_recreates_only_where_that_was_measured(release: str, known: bool, recreates: bool) -> None:
    """DELETE then POST is for 0.16.2 and later (O1, O2); on a release never measured nothing is deleted."""
    abilities = capabilities_of(release)
    assert (abilities.release, abilities.known, abilities.recreates) == (release, known, recreates)


@pytest.mark.parametrize(
    ("release", "said"),
    [
        ("0.16.1", ["cannot bring back", "does not read a vendor's models"]),
        ("0.16.2", ["does not read a vendor's models"]),
        ("0.16.4", []),
        ("0.16.8", []),
        ("0.16.9", ["not a release that was measured"]),
        ("1.0.0", ["not a release that was measured"]),
    ],
)
def test_what_a_release_cannot_do_is_said(release: str, said: list[str]) -> None:
    """What an operator has to know of a release is one sentence each (O1, O10); of the newest there is nothing."""
    remarks = capabilities_of(release).remarks
    assert len(remarks) == len(said)
    assert all(part in remark for part, remark in zip(said, remarks, strict=True))


def test_rows_are_read_as_letta_writes_them(httpserver: HTTPServer) -> None:
    """Key, type, base URL and sync of a row are read; unknown fields are ignored."""
    rows = [
        row(1, last_synced="2026-01-01T00:00:00Z", something_new={"a": 1}),
        row(2, api_key_enc=None, base_url=None),
        row(3, api_key_enc=None, api_key="plain"),
    ]
    del rows[1]["api_key"]
    bare = row(4)
    del bare["api_key"], bare["api_key_enc"]
    httpserver.expect_request(PROVIDERS).respond_with_json([*rows, bare])
    assert ask(address(httpserver), LettaProviders.all) == [
        StoredProvider("provider-00001", "vendor-1", "openai", "http://a/v1", "text", synced=True),
        StoredProvider("provider-00002", "vendor-2", "openai", None, None),
        StoredProvider("provider-00003", "vendor-3", "openai", "http://a/v1", "plain"),
        StoredProvider("provider-00004", "vendor-4", "openai", "http://a/v1", None, key_shown=False),
    ]


def test_the_password_goes_along_as_bearer(httpserver: HTTPServer) -> None:
    """Every request carries the password; without one there is no such header."""
    httpserver.expect_request(PROVIDERS).respond_with_json([])
    ask(address(httpserver), LettaProviders.all)
    ask(address(httpserver), LettaProviders.all, password=None)
    sent = [request.headers.get("Authorization") for request, _ in httpserver.log]
    assert sent == [f"Bearer {PASSWORD.get_secret_value()}", None]


def pages(rows: list[dict[str, Any]]) -> Callable[[Request], Response]:
    """Letta's paging: so many rows after an id."""

    def answer(request: Request) -> Response:
        after = request.args.get("after")
        start = 0 if after is None else 1 + next(n for n, found in enumerate(rows) if found["id"] == after)
        limit = int(request.args.get("limit", "50"))
        return Response(json.dumps(rows[start : start + limit]), content_type="application/json")

    return answer


@pytest.mark.parametrize("number", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 7])
def test_listing_goes_on_to_the_last_page(httpserver: HTTPServer, number: int) -> None:
    """However many providers there are, none is missed, and none listed twice (P1)."""
    httpserver.expect_request(PROVIDERS).respond_with_handler(pages([row(n) for n in range(number)]))
    found = ask(address(httpserver), LettaProviders.all)
    assert [stored.name for stored in found] == [f"vendor-{n}" for n in range(number)]


def test_a_list_that_repeats_itself_is_an_error(httpserver: HTTPServer) -> None:
    """A server that gives the same full page for ever is not listened to for ever."""
    httpserver.expect_request(PROVIDERS).respond_with_json([row(n) for n in range(PAGE)])
    with pytest.raises(LettaBroken, match="does not end"):
        ask(address(httpserver), LettaProviders.all)
    assert len(httpserver.log) == 2


def test_a_list_that_never_ends_is_an_error(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that makes up new rows for ever is not listened to for ever."""
    monkeypatch.setattr(http, "_MOST_PAGES", 7)
    given = 0
    template = json.dumps([row(n, id="ID-%") for n in range(PAGE)])

    def answer(_: Request) -> Response:
        nonlocal given
        given += 1
        start, parts = given * PAGE, template.split("ID-%")
        body = "".join(part + (f"ID-{start + n}" if n < PAGE else "") for n, part in enumerate(parts))
        return Response(body, content_type="application/json")

    httpserver.expect_request(PROVIDERS).respond_with_handler(answer)
    with pytest.raises(LettaBroken, match="does not end"):
        ask(address(httpserver), LettaProviders.all)
    assert given == 7


def test_find_asks_by_name_and_takes_only_that_name(httpserver: HTTPServer) -> None:
    """A server that ignores the filter does not hand us another provider."""
    httpserver.expect_request(PROVIDERS).respond_with_json([row(1), row(2)])
    found = ask(address(httpserver), lambda store: store.find("vendor-2"))
    assert found is not None
    assert found.id == "provider-00002"
    assert ask(address(httpserver), lambda store: store.find("vendor-3")) is None
    assert [request.args["name"] for request, _ in httpserver.log] == ["vendor-2", "vendor-3"]


def test_writes_carry_what_letta_takes_and_nothing_more(httpserver: HTTPServer) -> None:
    """The bodies are those of facts P3 and P10: a PATCH with any other field would be refused."""
    httpserver.expect_request(PROVIDERS, method="POST").respond_with_json({})
    httpserver.expect_request(f"{PROVIDERS}provider-1").respond_with_json({})
    for name in WRITES:
        ask(address(httpserver), CALLS[name])
    key = KEY.get_secret_value()
    assert [(request.method, request.path, request.get_json(silent=True)) for request, _ in httpserver.log] == [
        ("POST", PROVIDERS, {"name": "a", "provider_type": "openai", "base_url": "http://a/v1", "api_key": key}),
        ("PATCH", f"{PROVIDERS}provider-1", {"api_key": key, "base_url": "http://a/v1"}),
        ("DELETE", f"{PROVIDERS}provider-1", None),
    ]


# --- bad weather --------------------------------------------------------------------------------------------------


@contextmanager
def port(*, listening: bool) -> Iterator[str]:
    """An address where nothing listens, or where a connection is taken and nothing ever answered."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listening:
            taken.listen()
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("call", CALLS)
def test_nothing_listening_is_unreachable_and_nothing_was_sent(call: str) -> None:
    """Where nothing listens, no write can have happened; the message names address and remedy."""
    with port(listening=False) as base_url, pytest.raises(LettaUnreachable) as error:
        ask(base_url, CALLS[call])
    assert error.value.sent is False
    assert base_url in error.value.what
    assert error.value.remedy
    assert "LETTA_BASE_URL" in error.value.remedy


@pytest.mark.parametrize("call", ["abilities", "all", "update", "delete"])
def test_a_letta_that_hangs_is_unreachable_and_may_have_written(call: str) -> None:
    """Silence is not waited for without end, and a write whose answer is lost may have happened."""
    with port(listening=True) as base_url, pytest.raises(LettaUnreachable, match=r"within 0\.2 s") as error:
        ask(base_url, CALLS[call], timeout=0.2)
    assert error.value.sent is True


def test_a_broken_connection_may_have_written() -> None:
    """A server that closes without an answer may have done what it was asked."""

    async def scenario() -> LettaUnreachable | None:
        async def drop(stream: anyio.abc.SocketStream) -> None:
            await stream.receive()
            await stream.aclose()

        error = None
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, drop)
            local_port = listener.extra(anyio.abc.SocketAttribute.local_port)
            async with LettaClient(LettaHttp(f"http://127.0.0.1:{local_port}")) as letta:
                try:
                    await create(letta.providers)
                except LettaUnreachable as raised:
                    error = raised
            tasks.cancel_scope.cancel()
        return error

    error = anyio.run(scenario)
    assert error is not None
    assert error.sent is True
    assert "broke during POST" in error.what


FaultTransport = tuple[Response, type[LettaError], str]
HTML = "<html><body>canary page</body></html>"
WEATHER: dict[str, FaultTransport] = {
    "HTML": (Response(HTML, 200, content_type="text/html; charset=utf-8"), NotLetta, "text/html instead of JSON"),
    "an empty 200": (Response("", 200), NotLetta, "an empty answer instead of JSON"),
    "JSON of another shape": (Response('{"a": 1}', 200, content_type="application/json"), NotLetta, ""),
    "JSON that is a text": (Response('"hello"', 200, content_type="application/json"), NotLetta, ""),
    "JSON that breaks off": (
        Response('[{"id": "p', 200, content_type="application/json"),
        NotLetta,
        "instead of JSON",
    ),
    "no text at all": (Response(b"\xff\xfe\x00", 200, content_type="application/json"), NotLetta, "instead of JSON"),
    "a redirect": (Response("", 302, headers={"Location": "http://127.0.0.1:9/"}), NotLetta, "returns 302"),
    "another 401": (Response(HTML, 401, content_type="text/html"), LettaUnauthorized, "another password"),
    "401": (Response('{"detail":"Unauthorized"}', 401), LettaUnauthorized, "another password"),
    "403 HTML": (Response(HTML, 403, content_type="text/html"), NotLetta, "returns 403"),
    "403": (Response('{"detail":"Forbidden"}', 403), LettaRefused, "Forbidden"),
    "404 HTML": (Response(HTML, 404, content_type="text/html"), NotLetta, "returns 404"),
    "404": (Response('{"detail":"Not Found"}', 404), NotLetta, "returns 404"),
    "405": (Response('{"detail":"Method Not Allowed"}', 405), NotLetta, "returns 405"),
    "429": (Response('{"detail":"slow down"}', 429), LettaRefused, "slow down"),
    "500": (Response('{"detail":"it broke"}', 500), LettaBroken, "500: it broke"),
    "500 HTML": (Response(HTML, 500, content_type="text/html"), LettaBroken, "500, as text/html"),
    "500 empty": (Response("", 500), LettaBroken, "500, as an empty answer"),
    "500 list": (Response("[]", 500, content_type="application/json"), LettaBroken, "500"),
}


@pytest.mark.parametrize("weather", WEATHER)
@pytest.mark.parametrize("call", READS)
def test_a_read_in_bad_weather_is_one_error_with_a_remedy(httpserver: HTTPServer, call: str, weather: str) -> None:
    """Whatever answers a read, it is an error of its own kind that names the address and a remedy; never a list."""
    response, kind, said = WEATHER[weather]
    httpserver.expect_request("/v1/health/").respond_with_response(response)
    httpserver.expect_request("/v1/providers/").respond_with_response(response)
    httpserver.expect_request("/v1/models/").respond_with_response(response)
    with pytest.raises(kind) as error:
        ask(address(httpserver), CALLS[call])
    assert type(error.value) is kind
    assert said in error.value.what
    assert address(httpserver) in error.value.what or isinstance(error.value, LettaRefused)
    assert "canary" not in str(error.value)
    assert "\n" not in error.value.what


@pytest.mark.parametrize(
    ("response", "kind", "status"),
    [
        (Response('{"detail":"Failed to decrypt data"}', 400), LettaRefused, 400),
        (Response('{"detail":"gone"}', 404), LettaRefused, 404),
        (Response('{"detail":"exists"}', 409), LettaRefused, 409),
        (Response('{"error":{"message":"m","detail":"d"}}', 400), LettaRefused, 400),
        (Response(HTML, 400, content_type="text/html"), LettaBroken, 400),
        (Response('{"detail":"it broke"}', 500), LettaBroken, 500),
        (Response(HTML, 502, content_type="text/html"), LettaBroken, 502),
    ],
)
@pytest.mark.parametrize("call", WRITES)
def test_a_refused_write_keeps_its_status(
    httpserver: HTTPServer, call: str, response: Response, kind: type[LettaRefused | LettaBroken], status: int
) -> None:
    """A write that was refused says with which status, for that decides what can be done next; it is sent once."""
    httpserver.expect_request("/v1/providers/").respond_with_response(response)
    httpserver.expect_request("/v1/providers/provider-1").respond_with_response(response)
    with pytest.raises(kind) as error:
        ask(address(httpserver), CALLS[call])
    assert error.value.status == status
    assert len(httpserver.log) == 1


def test_an_error_of_a_vendor_is_kept_whole_and_shown_short(httpserver: HTTPServer) -> None:
    """Letta quotes the body of a vendor's answer, of which the type of the error comes last; others are cut."""
    words = f"Error code: 401 - {{'error': {{'message': '{'x' * 400}', 'type': 'isabella-gateway'}}}}"
    for kind, whole in (("llm_authentication", True), ("internal_error", False)):
        httpserver.clear()
        body = {"error": {"type": kind, "message": "m", "detail": words}}
        httpserver.expect_request("/v1/providers/").respond_with_json(body, status=401)
        with pytest.raises(LettaRefused) as error:
            ask(address(httpserver), LettaProviders.all)
        assert (error.value.detail == words) is whole
        assert len(error.value.what) < 400


def test_a_wrong_password_is_told_apart_from_none(httpserver: HTTPServer) -> None:
    """Whether a password was given decides what is said, and the password itself is not."""
    httpserver.expect_request("/v1/providers/").respond_with_json({"detail": "Unauthorized"}, status=401)
    with pytest.raises(LettaUnauthorized, match="another password"):
        ask(address(httpserver), LettaProviders.all)
    with pytest.raises(LettaUnauthorized, match="wants a password"):
        ask(address(httpserver), LettaProviders.all, password=None)


def test_an_answer_that_breaks_off_is_read_again() -> None:
    """A body shorter than announced is not taken for the whole; a second, whole answer is."""
    whole = json.dumps([row(1)]).encode()
    answers = iter([whole[:20], whole[:20], whole])

    async def scenario() -> list[StoredProvider]:
        async def answer(stream: anyio.abc.SocketStream) -> None:
            await stream.receive()
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(whole)}\r\n\r\n"
            await stream.send(head.encode() + next(answers))
            await stream.aclose()

        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, answer)
            local_port = listener.extra(anyio.abc.SocketAttribute.local_port)
            async with LettaClient(LettaHttp(f"http://127.0.0.1:{local_port}")) as letta:
                found = await letta.providers.all()
            tasks.cancel_scope.cancel()
        return found

    assert [stored.name for stored in anyio.run(scenario)] == ["vendor-1"]


def test_a_gateway_that_fails_for_a_moment_is_asked_again(httpserver: HTTPServer) -> None:
    """A reading survives a 502 and a 503 on the way; it is tried three times, not for ever."""
    for status in (502, 503):
        httpserver.expect_ordered_request(PROVIDERS).respond_with_data(HTML, status, content_type="text/html")
    httpserver.expect_ordered_request(PROVIDERS).respond_with_json([row(1)])
    assert len(ask(address(httpserver), LettaProviders.all)) == 1


@pytest.mark.parametrize("call", WRITES)
def test_a_page_in_place_of_an_answer_is_no_success(httpserver: HTTPServer, call: str) -> None:
    """A gateway's page with status 200 to a writing tells nothing about Letta, so it is not believed."""
    httpserver.expect_request(re.compile(".*")).respond_with_data(HTML, 200, content_type="text/html")
    with pytest.raises(LettaBroken, match="text/html instead of JSON"):
        ask(address(httpserver), CALLS[call])


@pytest.mark.parametrize("status", [409, 429])
def test_a_busy_letta_is_asked_again(httpserver: HTTPServer, status: int) -> None:
    """A reading survives that Letta has too much to do for a moment; where it goes on, the error says what next."""
    busy = {"detail": "too much to do"}
    httpserver.expect_ordered_request(PROVIDERS).respond_with_json(busy, status=status)
    httpserver.expect_ordered_request(PROVIDERS).respond_with_json([row(1)])
    assert len(ask(address(httpserver), LettaProviders.all)) == 1
    httpserver.expect_request(PROVIDERS).respond_with_json(busy, status=status)
    with pytest.raises(LettaRefused) as caught:
        ask(address(httpserver), LettaProviders.all)
    assert caught.value.remedy == "Run this again when Letta is less busy."


@pytest.mark.parametrize("status", [500, 504, 400, 401, 404])
def test_what_will_not_pass_is_not_asked_again(httpserver: HTTPServer, status: int) -> None:
    """An answer that a repetition would not change is believed at once."""
    httpserver.expect_request(PROVIDERS).respond_with_json({"detail": "no"}, status=status)
    with pytest.raises(LettaError):
        ask(address(httpserver), LettaProviders.all)
    assert len(httpserver.log) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"detail": [{"loc": ["body", "api_key"], "msg": "wrong: KEY", "input": {"api_key": "KEY"}}]},
        {"detail": "body was {'api_key': 'KEY'}"},
        {"error": {"message": "KEY", "detail": "KEY"}},
        {"message": "KEY " + "x" * 2000},
        {"detail": {"api_key": "KEY"}},
    ],
)
@pytest.mark.parametrize("status", [422, 500])
def test_a_refusal_that_repeats_the_key_is_redacted(
    httpserver: HTTPServer, body: dict[str, Any], status: int
) -> None:
    """Letta's 422 quotes whole requests: neither message nor detail lets the key through, nor grows without end."""
    text = json.dumps(body).replace("KEY", KEY.get_secret_value())
    httpserver.expect_request(PROVIDERS).respond_with_data(text, status, content_type="application/json")
    with pytest.raises((LettaRefused, LettaBroken)) as error:
        ask(address(httpserver), create)
    said = f"{error.value} {error.value!r} {getattr(error.value, 'detail', '')}"
    assert "canary" not in said
    assert len(error.value.what) < 500


def test_an_error_carries_nothing_of_the_request(httpserver: HTTPServer) -> None:
    """Neither the error nor what caused it holds key or password: tracebacks print causes, too."""
    httpserver.expect_request(PROVIDERS).respond_with_data("", 500)
    with pytest.raises(LettaBroken) as error:
        ask(address(httpserver), create)
    assert error.value.__cause__ is None
    with port(listening=False) as base_url, pytest.raises(LettaUnreachable) as unreachable:
        ask(base_url, create)
    assert unreachable.value.__cause__ is None
    assert unreachable.value.__suppress_context__


def test_a_compressed_answer_is_read(httpserver: HTTPServer) -> None:
    """A proxy may compress what Letta says."""
    body = gzip.compress(json.dumps([row(1)]).encode())
    httpserver.expect_request(PROVIDERS).respond_with_data(body, 200, headers={"Content-Encoding": "gzip"})
    assert len(ask(address(httpserver), LettaProviders.all)) == 1


def test_an_answer_that_cannot_be_decoded_is_an_error(httpserver: HTTPServer) -> None:
    """What calls itself compressed and is not is told, not thrown."""
    httpserver.expect_request(PROVIDERS).respond_with_data(b"no gzip", 200, headers={"Content-Encoding": "gzip"})
    with pytest.raises(LettaUnreachable, match="DecodingError"):
        ask(address(httpserver), LettaProviders.all)


def test_a_path_in_front_of_letta_is_kept(httpserver: HTTPServer) -> None:
    """A Letta behind a proxy may live below a path."""
    httpserver.expect_request("/letta/v1/providers/").respond_with_json([row(1)])
    assert len(ask(httpserver.url_for("/letta"), LettaProviders.all)) == 1
