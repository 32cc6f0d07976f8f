"""The gateway under malformed, huge, slow and half-sent requests and answers, without a Letta."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import queue
import random
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from anyio.from_thread import start_blocking_portal
from structlog.testing import capture_logs

from isabella.config.gateway_address import saved_port, state_file
from isabella.config.settings import Settings, load_settings
from isabella.errors import GatewayError
from isabella.gateway import app, keys, process
from isabella.gateway.app import GatewayLimits
from isabella.gateway.process import GatewayPart
from isabella.letta.client import Connection
from isabella.practice import PracticeVendors
from isabella.practice.overlay import with_practice_vendors
from isabella.system.daemon import Daemon, RunningDaemon
from isabella.system.processes import has_ended
from isabella.system.supervision import Supervisor
from isabella.system.urls import AS_SENT_HEADER
from tests.support.gateway_client import RawClient, Reply, Served, head, served_gateway, wait_until
from tests.support.raw_vendor import (
    RawRequest,
    RawVendor,
    Script,
    sends,
    sends_and_resets,
    sends_and_waits,
    sends_for_ever,
)

_MIB = 1024 * 1024
#: Short, so that the tests are; large enough for the slowest machine.
LIMITS = GatewayLimits(head_seconds=1.0, body_seconds=2.0, largest=_MIB)
RAW_KEY = "raw-key-of-the-tests-0123456789"
CHAT, RAW_CHAT = "/isabella-gateway/byok-groq/v1/chat/completions", "/isabella-gateway/raw/v1/chat/completions"
BODY = json.dumps(
    {"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": "Say hello"}], "stream": True}
).encode()
STREAMED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"hello"},"finish_reason":null}]}\n\n'


@dataclass
class Setup:
    """A gateway between practice vendors and a raw one."""

    served: Served
    vendors: PracticeVendors
    raw: RawVendor
    groq_key: str

    @property
    def port(self) -> int:
        """The port of the gateway."""
        return self.served.port

    def connections(self) -> int:
        """How many connections of clients the gateway has open."""
        return sum(
            one.laddr.port == self.port and one.status != psutil.CONN_LISTEN and one.status != psutil.CONN_TIME_WAIT
            for one in psutil.Process().net_connections(kind="tcp4")
            if one.laddr
        )

    def settled(self) -> None:
        """Wait until no connection of a client, and none to the raw vendor, is open."""
        wait_until(lambda: self.connections() == 0, "a connection of a client stays open")
        self.raw.wait_until_closed()
        assert self.served.server.traffic.calls == set()

    def last_outcome(self) -> dict[str, Any]:
        """How the last request ended that was not answered in full."""
        return dict(self.served.traffic()["outcomes"][-1])


def settings_for(home: Path, raw: RawVendor, **options: Any) -> Settings:
    """Settings with the raw vendor, and one without a key, beside the catalog's."""
    declared = home / "isabella.toml"
    declared.write_text(
        f'[[providers]]\nname = "raw"\nbase_url = "{raw.url}"\napi_key_env = "RAW_API_KEY"\n'
        f'[[providers]]\nname = "keyless"\nbase_url = "{raw.url}"\napi_key_env = "KEYLESS_API_KEY"\n'
        f'[[providers]]\nname = "unnumbered"\nbase_url = "{raw.url}"\napi_key_env = "RAW_API_KEY"\n'
        "quirks = { unnumbered_calls = true }\n"
    )
    environment = {"RAW_API_KEY": RAW_KEY}
    return load_settings(environment=environment, home=home, config_file=declared, gateway="on", **options)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """A gateway with short limits in a thread."""
    home = tmp_path_factory.mktemp("home")
    with ExitStack() as stack:
        vendors = stack.enter_context(PracticeVendors())
        raw = stack.enter_context(RawVendor())
        settings = with_practice_vendors(settings_for(home, raw), vendors)
        served = stack.enter_context(served_gateway(settings, limits=LIMITS))
        yield Setup(served, vendors, raw, vendors.key("groq").get_secret_value())


@pytest.fixture(autouse=True)
def _nothing_left_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test no connection of a client is open, and no request is under way."""
    yield
    if "setup" in request.fixturenames:
        setup: Setup = request.getfixturevalue("setup")
        setup.settled()
        setup.vendors.clear()
        setup.vendors.forget()


def is_refused(reply: Reply, status: int, code: str) -> bool:
    """Whether this is a refusal of the gateway itself, in OpenAI's shape."""
    assert (reply.status, reply.error["code"]) == (status, code), reply
    assert reply.error.keys() == {"message", "type", "param", "code"}
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["content-type"] == "application/json"
    return True


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages": [',
        b"[]",
        b"null",
        b"1e999",
        b'{"model": NaN}',
        b'{"messages": "\\ud800"}',
        b'{"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [null, 1, {"role": ["user"]}, {"tool_calls": [[]]}]}',
        b'{"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": 1}]}]}',
        b"\xff\xfe{}",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b"9" * 10_000,
    ],
    ids=range(15),
)
def test_malformed_json_is_refused_by_the_vendor(setup: Setup, body: bytes) -> None:
    """The gateway passes on a body that it does not understand, and the vendor's refusal is final."""
    reply = setup.served.ask(CHAT, setup.groq_key, body)
    assert 400 <= reply.status < 500 or reply.status == 200, reply
    assert len(setup.vendors.requests("groq")) == 1
    if reply.status != 200:
        assert reply.headers["x-should-retry"] == "false"
        assert reply.error["message"]


def test_deep_json_at_every_depth(setup: Setup) -> None:
    """Whatever depth the parser still reads, the request is answered and never fails in the gateway."""
    for depth in (*range(930, 1000, 5), 20_000):
        body = b'{"model": "m", "x": ' + b"[" * depth + b"]" * depth + b"}"
        assert setup.served.ask(CHAT, setup.groq_key, body).status in (400, 404, 422)


@pytest.mark.parametrize("length", [2 * _MIB, 40 * _MIB])
def test_a_body_that_is_too_large(setup: Setup, length: int) -> None:
    """It is refused with a status that Letta does not take for a full context; nothing reaches the vendor."""
    assert is_refused(setup.served.ask(CHAT, setup.groq_key, b" " * length), 400, "request_too_large")
    assert setup.vendors.requests("groq") == []


def test_chunks_without_an_end(setup: Setup) -> None:
    """A body in chunks is refused at the limit, and the connection closed although chunks go on coming."""
    with RawClient(setup.port) as client:
        client.send(head(CHAT, setup.groq_key, fields=("Transfer-Encoding: chunked",)))
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        for _ in range(LIMITS.largest // 65536 + 1):
            client.send(chunk)
        assert is_refused(client.read(), 400, "request_too_large")
        client.send_until_closed(chunk)


def test_chunks_without_an_end_from_a_stranger(setup: Setup) -> None:
    """The refusal does not wait for the body, and the connection is closed although chunks go on coming."""
    with RawClient(setup.port) as client:
        client.send(head(CHAT, "sk-foreign-key", fields=("Transfer-Encoding: chunked",)))
        assert is_refused(client.read(), 401, "invalid_api_key")
        client.send_until_closed(b"10000\r\n" + b" " * 65536 + b"\r\n")
    assert setup.vendors.requests("groq") == []


@pytest.mark.parametrize("sent", [b"", b'{"model": '])
def test_a_body_that_does_not_come(setup: Setup, sent: bytes) -> None:
    """After the limit the request is refused and its connection closed."""
    with RawClient(setup.port) as client:
        client.send(head(CHAT, setup.groq_key, length=1000) + sent)
        assert is_refused(client.read(), 408, "request_timeout")
        assert client.until_closed()
    assert setup.vendors.requests("groq") == []


@pytest.mark.parametrize("key", ["configured", "foreign"])
def test_a_client_that_leaves_in_the_middle_of_a_body(setup: Setup, key: str) -> None:
    """Nothing is sent to the vendor, and nothing stays open."""
    with RawClient(setup.port) as client:
        client.send(head(CHAT, setup.groq_key if key == "configured" else "sk-foreign", length=1000) + b'{"model": ')
    setup.settled()
    assert setup.vendors.requests("groq") == []


@pytest.mark.parametrize("start", [b"", b"GET ", b"GET /control/health HTTP/1.1\r\nHost: gateway\r\nX-Slow: "])
def test_half_a_head(setup: Setup, start: bytes) -> None:
    """A connection on which no request comes is closed, also if a byte comes now and then."""
    with RawClient(setup.port) as client:
        client.send(start)
        slow = threading.Event()

        def drip() -> None:
            try:
                while start and not slow.wait(0.2):
                    client.send(b"a")
            except OSError:
                pass

        thread = threading.Thread(target=drip)
        thread.start()
        assert client.until_closed()
        slow.set()
        thread.join()


def test_a_body_that_trickles_after_its_refusal(setup: Setup) -> None:
    """A stranger cannot keep a connection open with one byte now and then."""
    with RawClient(setup.port) as client:
        client.send(head(CHAT, "sk-foreign", length=1000))
        assert is_refused(client.read(), 401, "invalid_api_key")
        client.send(b"{")
        assert client.until_closed()


def test_a_thousand_silent_connections(setup: Setup) -> None:
    """Requests are answered beside them, and each of them is closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with ExitStack() as stack:
        silent = [stack.enter_context(RawClient(setup.port)) for _ in range(1000)]
        assert setup.served.ask(CHAT, setup.groq_key, BODY).status == 200
        assert all(client.until_closed() for client in silent)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/models", 404, "not_found"),
        ("POST", "/isabella-gateway", 404, "not_found"),
        ("POST", "/isabella-gateway/", 404, "provider_unknown"),
        ("POST", "/isabella-gateway/byok-groq", 404, "not_found"),
        ("POST", "/isabella-gateway/byok-groq/v1/", 404, "not_found"),
        ("POST", "/isabella-gateway/byok-groq/v2/chat/completions", 404, "provider_unknown"),
        ("GET", "/isabella-gateway/byok-groq/v1/../admin", 404, "not_found"),
        ("GET", "/isabella-gateway/byok-groq/v1/%2e%2e/admin", 404, "not_found"),
        ("GET", "/isabella-gateway/byok-groq/v1/.%2E/admin", 404, "not_found"),
        ("GET", "/isabella-gateway/byok-groq/v1/models%2f..%2f..%2fadmin", 404, "not_found"),
        ("GET", "/isabella-gateway/byok-groq/v1/models%5c..%5cadmin", 404, "not_found"),
        ("GET", "/isabella-gateway/byok-groq/v1//models", 404, "not_found"),
        ("GET", "/isabella-gateway/byok-groq/v1/models%00", 404, "not_found"),
        ("GET", "/isabella-gateway/byok-groq/v1/models%0d%0aX-Evil:%201", 404, "not_found"),
        ("GET", "/isabella-gateway/byok-groq/v1/models%23", 404, "not_found"),
        ("GET", "/isabella-gateway/byok-groq/v1/models#x", 404, "not_found"),
        ("GET", "/isabella-gateway/byok-groq/v1/models%ff", 404, "not_found"),
        ("GET", "/isabella%2dgateway/byok-groq/v1/models", 404, "not_found"),
        ("GET", "/isabella-gateway/byok-groq%0d%0aX-Evil:%201/v1/models", 404, "provider_unknown"),
        ("GET", "/isabella-gateway/%00%ff%zz/v1/models", 404, "provider_unknown"),
        ("GET", "/isabella-gateway/../byok-groq/v1/models", 404, "provider_unknown"),
        ("GET", "http://127.0.0.1/isabella-gateway/byok-groq/v1/models", 404, "not_found"),
        ("DELETE", "/isabella-gateway/byok-groq/v1/models", 405, "method_not_allowed"),
        ("PUT", "/isabella-gateway/byok-groq/v1/chat/completions", 405, "method_not_allowed"),
        ("BREW", "/isabella-gateway/byok-groq/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/isabella-gateway/nobody/v1/models", 404, "provider_unknown"),
        ("POST", "/isabella-gateway/keyless/v1/chat/completions", 503, "provider_not_configured"),
    ],
)
def test_what_is_not_forwarded(setup: Setup, method: str, path: str, status: int, code: str) -> None:
    """Wrong paths and methods, and providers that cannot be used; nothing reaches a vendor."""
    reply = setup.served.ask(path, setup.groq_key, b"{}", method=method)
    assert is_refused(reply, status, code)
    assert "x-evil" not in reply.headers
    assert setup.vendors.requests("groq") == []


def test_a_path_with_an_encoded_name_is_forwarded(setup: Setup) -> None:
    """The name of the provider and the model's own slash may be encoded."""
    reply = setup.served.ask(
        "/isabella-gateway/byok%2dgroq/v1/models/openai%2Fgpt-oss-120b?x=1", setup.groq_key, method="GET"
    )
    assert (reply.status, json.loads(reply.body)["id"]) == (200, "openai/gpt-oss-120b")


def test_a_body_is_not_asked_for_before_its_sender_is_known(setup: Setup) -> None:
    """A client that asks before it sends a body is asked for it with the right key only."""
    for key, path, status in (
        ("sk-foreign", CHAT, 401),
        (None, CHAT, 401),
        (setup.groq_key, "/isabella-gateway/nobody/v1/chat/completions", 404),
        (setup.groq_key, "/isabella-gateway/keyless/v1/chat/completions", 503),
        (setup.groq_key, "/isabella-gateway/byok-groq/v1/../x", 404),
    ):
        with RawClient(setup.port) as client:
            client.send(head(path, key, length=len(BODY), fields=("Expect: 100-continue",)))
            assert client.read_start().startswith(f"HTTP/1.1 {status}".encode())
    with RawClient(setup.port) as client:
        client.send(head(CHAT, setup.groq_key, length=len(BODY), fields=("Expect: 100-continue",)))
        assert client.read_start().startswith(b"HTTP/1.1 100")
        client.send(BODY)
        assert client.read().status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
    ids=["tls", "http09", "hosts", "huge", "negative", "lengths"],
)
def test_what_is_not_http(setup: Setup, data: bytes) -> None:
    """It is refused in OpenAI's shape, and the connection closed."""
    with RawClient(setup.port) as client:
        client.send(data)
        assert is_refused(client.read(), 400, "malformed_request")
        assert client.until_closed()


def test_malformed_chunks(setup: Setup) -> None:
    """A body whose framing breaks closes the connection; nothing reaches the vendor."""
    with RawClient(setup.port) as client:
        client.send(head(CHAT, setup.groq_key, fields=("Transfer-Encoding: chunked",)) + b"zz\r\n")
        assert client.until_closed()
    assert setup.vendors.requests("groq") == []


def test_many_foreign_keys_leave_nothing_behind(setup: Setup) -> None:
    """A stranger cannot fill the memory with keys: only their number is kept, and the last ones masked."""
    from isabella.system import redaction

    known = len(redaction._masked_forms)
    for number in range(300):
        key = f"sk-foreign-key-number-{number:06}"
        assert is_refused(setup.served.ask(CHAT, key, BODY), 401, "invalid_api_key")
    assert len(redaction._masked_forms) == known
    assert len(setup.served.traffic()["stopped_keys"]) <= 256


# --- answers --------------------------------------------------------------------------------------------------------


def plain(
    status: str, body: bytes = b"", *fields: str, content_type: str = "application/json", length: int | None = None
) -> bytes:
    """An answer with its length."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {content_type}", "connection: close", *fields]
    return "\r\n".join([*lines, f"content-length: {len(body) if length is None else length}", "", ""]).encode() + body


def chunk(data: bytes) -> bytes:
    """A chunk of a body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def error(message: str) -> bytes:
    """A vendor's error."""
    return json.dumps({"error": {"message": message, "code": "x"}}).encode()


ANSWER = json.dumps({"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}).encode()


@pytest.mark.parametrize(
    ("script", "status", "code", "outcome"),
    [
        (sends(), 502, "vendor_unreachable", "unreachable"),
        (sends_and_resets(), 502, "vendor_unreachable", "unreachable"),
        (sends(b"MARKER of an answer\r\n\r\n"), 502, "vendor_unreachable", "unreachable"),
        (sends(b"HTTP/1.1 200 OK\r\nMARKER\r\n\r\n"), 502, "vendor_unreachable", "unreachable"),
        (sends(b"HTTP/1.1 200 OK\r\nx: " + b"MARKER" * 50_000), 502, "vendor_unreachable", "unreachable"),
        (sends(plain("200 OK", b"<html>", content_type="text/html")), 502, "vendor_answer_unusable", "broken"),
        (sends(plain("307 Moved", b"", "location: /MARKER")), 502, "vendor_answer_unusable", "broken"),
        (sends(plain("304 Not Modified")), 502, "vendor_answer_unusable", "broken"),
        (sends(plain("999 Denied", b"{}")), 502, "vendor_answer_unusable", "broken"),
        (sends(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n"), 502, "vendor_unreachable", "unreachable"),
        (
            sends(plain("200 OK", b"\x00", "content-encoding: br")),
            502,
            "vendor_answer_unusable",
            "broken",
        ),
        (
            sends(plain("200 OK", b"MARKER", "content-encoding: gzip")),
            502,
            "vendor_unreachable",
            "unreachable",
        ),
    ],
    ids=[
        "closed",
        "reset",
        "status line",
        "header",
        "headers",
        "page",
        "redirect",
        "304",
        "999",
        "101",
        "brotli",
        "damaged gzip",
    ],
)
def test_no_answer_of_the_vendor(setup: Setup, script: Script, status: int, code: str, outcome: str) -> None:
    """The gateway answers for the vendor, without a word of what came; the vendor's connection is closed."""
    setup.raw.answer(script)
    reply = setup.served.ask(RAW_CHAT, RAW_KEY, BODY)
    assert is_refused(reply, status, code)
    assert setup.last_outcome()["code"] == outcome
    assert b"MARKER" not in reply.body
    assert "MARKER" not in json.dumps(setup.served.traffic())
    assert len(setup.raw.requests) == 1


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((plain("200 OK", ANSWER),), ANSWER),
        ((plain("200 OK", gzip.compress(ANSWER), "content-encoding: gzip"),), ANSWER),
        ((plain("200 OK", gzip.compress(b" " * (20 * _MIB)), "content-encoding: gzip"),), b" " * (20 * _MIB)),
        (
            (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n", plain("200 OK", ANSWER)),
            ANSWER,
        ),
        ((b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",), b""),
        ((plain("200 OK"),), b""),
        ((plain("200 OK", b'{"choices": ['),), b'{"choices": ['),
        ((plain("201 Made", b"[1, null]"),), b"[1, null]"),
        ((b"HTTP/1.1 200 OK\r\n\r\n", EVENT, b"data: {oops\n\n"), EVENT + b"data: {oops\n\n"),
        ((b"HTTP/1.0 200 OK\r\n\r\n", EVENT), EVENT),
        ((STREAMED, chunk(EVENT), chunk(b"\xff\x00"), b"0\r\nx-trailer: 1\r\n\r\n"), EVENT + b"\xff\x00"),
    ],
    ids=["plain", "gzip", "bomb", "1xx", "204", "empty", "cut", "201", "no length", "1.0", "trailers"],
)
def test_odd_answers_pass_whole(setup: Setup, pieces: tuple[bytes, ...], expected: bytes) -> None:
    """The client gets what the vendor said, decoded."""
    setup.raw.answer(sends(*pieces))
    reply = setup.served.ask(RAW_CHAT, RAW_KEY, BODY)
    assert reply.whole
    assert reply.status in (200, 201, 204)
    assert reply.body == expected
    assert "content-encoding" not in reply.headers


@pytest.mark.parametrize(
    "script",
    [
        sends(plain("200 OK", b'{"choices": ', length=1000)),
        sends(STREAMED, chunk(EVENT), b"ff\r\nhalf"),
        sends(STREAMED, chunk(EVENT), b"MARKER\r\n"),
        sends_and_resets(STREAMED, chunk(EVENT)),
    ],
    ids=["length", "chunk", "malformed chunk", "reset"],
)
def test_an_answer_that_breaks_off(setup: Setup, script: Script) -> None:
    """The client sees that the answer has no end, and the outcome says so."""
    setup.raw.answer(script)
    reply = setup.served.ask(RAW_CHAT, RAW_KEY, BODY)
    assert (reply.status, reply.whole) == (200, False)
    assert reply.body
    outcome = setup.last_outcome()
    assert (outcome["code"], outcome["message"][:21]) == ("broken", "the answer broke off:")
    assert "MARKER" not in outcome["message"]


@pytest.mark.parametrize(
    "script",
    [
        sends_and_waits(),
        sends_and_waits(STREAMED),
        sends_and_waits(STREAMED, chunk(EVENT)),
        sends_for_ever(STREAMED, chunk(EVENT)),
        sends_and_waits(plain("200 OK", b"{", length=1000)),
    ],
    ids=["hang", "headers", "a part", "endless", "half"],
)
def test_a_client_that_gives_up(setup: Setup, script: Script) -> None:
    """The vendor's connection is closed as soon as the client's is."""
    setup.raw.answer(script)
    with RawClient(setup.port) as client:
        client.send(head(RAW_CHAT, RAW_KEY, length=len(BODY)) + BODY)
        setup.raw.wait_for(lambda: len(setup.raw.requests) == 1, "the request does not arrive")
    setup.settled()
    assert (setup.last_outcome()["code"], setup.last_outcome()["message"]) == ("ended", "the client disconnected")


def test_tool_calls_without_a_number_get_one(setup: Setup) -> None:
    """Two calls that came in one stream arrive as two; the rest is what the vendor sent."""
    calls = [{"id": id, "function": {"name": "look", "arguments": "{}"}} for id in ("one", "two")]
    events = [json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}) for call in calls]
    stream = b"".join(f"data: {event}\n\n".encode() for event in events)
    setup.raw.answer(sends(STREAMED, chunk(EVENT + stream[:70]), chunk(stream[70:]), b"0\r\n\r\n"))
    reply = setup.served.ask(RAW_CHAT.replace("raw", "unnumbered"), RAW_KEY, BODY)
    assert reply.body.startswith(EVENT)
    lines = reply.body.removeprefix(EVENT).decode().split("\n\n")
    told = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"]["tool_calls"][0] for line in lines if line]
    assert told == [{**call, "index": number} for number, call in enumerate(calls)]


def test_an_answer_passes_as_it_comes(setup: Setup) -> None:
    """The vendor sends the second piece when the client has the first."""
    got_first = threading.Event()

    async def script(request: RawRequest) -> None:
        await request.send(STREAMED + chunk(EVENT))
        while not got_first.is_set():
            await request.send(b"")
        await request.send(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    setup.raw.answer(script)
    with RawClient(setup.port) as client:
        client.send(head(RAW_CHAT, RAW_KEY, length=len(BODY)) + BODY)
        start = b""
        while EVENT not in start:
            start += client.read_start()
        got_first.set()
        rest = b""
        while b"0\r\n\r\n" not in rest:
            rest += client.read_start()
        assert b"[DONE]" in rest


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (sends(plain("400 Bad", error("x" * (16 * _MIB)))), 400),
        (sends_for_ever(b"HTTP/1.1 429 Slow\r\n\r\n", b"no " * 10_000), 429),
        (sends_and_waits(plain("503 Busy", b"{", length=1000)), 503),
        (sends(plain("500 Broken", b'{"error": ', length=1000)), 500),
        (sends_and_resets(plain("502 Bad", b"{", length=1000)), 502),
        (sends(plain("401 No", b"not gzip", "content-encoding: gzip")), 401),
        (sends(plain("503 Busy", b"<html>busy</html>", content_type="text/html")), 503),
        (sends(plain("404 Not Found")), 404),
    ],
    ids=["huge", "endless", "silent", "cut", "reset", "damaged", "page", "empty"],
)
def test_odd_refusals_keep_their_status(
    setup: Setup, script: Script, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of their body at most 64 KiB passes, and it is not waited for; the vendor's connection is closed."""
    monkeypatch.setattr(app, "_REFUSAL_SECONDS", 0.5)
    setup.raw.answer(script)
    reply = setup.served.ask(RAW_CHAT, RAW_KEY, BODY)
    assert (reply.status, reply.whole, reply.headers["x-should-retry"]) == (status, True, "false")
    assert len(reply.body) <= 65536
    outcome = setup.last_outcome()
    assert (outcome["code"], outcome["status"]) == ("refused", status)
    assert outcome["message"]


def test_a_compressed_refusal_is_understood(setup: Setup) -> None:
    """An overflow in another vendor's words is one for Letta, also if it comes compressed."""
    words = error("This model's maximum context length is 8192 tokens.")
    setup.raw.answer(sends(plain("400 Bad", gzip.compress(words), "content-encoding: gzip")))
    reply = setup.served.ask(RAW_CHAT, RAW_KEY, BODY)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert setup.last_outcome()["window"] == 8192


def test_cookies_of_a_vendor_are_not_kept(setup: Setup) -> None:
    """Neither the next request nor the client gets them."""
    setup.raw.answer(sends(plain("200 OK", ANSWER, "set-cookie: session=1; Path=/")))
    for _ in range(2):
        assert "set-cookie" not in setup.served.ask(RAW_CHAT, RAW_KEY, BODY).headers
    assert all("cookie" not in request.head.lower() for request in setup.raw.requests)


def test_a_vendor_that_does_not_listen(setup: Setup, tmp_path: Path) -> None:
    """Nothing listens at the base URL."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        environment = {
            "GROQ_API_KEY": "gsk_of-the-tests-0123456789",
            "GROQ_BASE_URL": f"http://127.0.0.1:{taken.getsockname()[1]}",
        }
        settings = load_settings(environment=environment, home=tmp_path, config_file=tmp_path / "no", gateway="on")
        with served_gateway(settings) as served:
            reply = served.ask(CHAT, environment["GROQ_API_KEY"], BODY)
    assert is_refused(reply, 502, "vendor_unreachable")


# --- the control API ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "guessed", "a-token-for-the-gateway\xe9"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/control/traffic"), ("DELETE", "/control/calls?agent=a")])
def test_control_needs_its_token(setup: Setup, method: str, path: str, token: str | None) -> None:
    """Without it, only the health route answers."""
    assert is_refused(setup.served.control(method, path, token), 401, "unauthorized")
    assert json.loads(setup.served.control("GET", "/control/health", token).body)["service"] == "isabella-gateway"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/control/"),
        ("GET", "/control/keys"),
        ("POST", "/control/traffic"),
        ("GET", "/control/calls?agent=a"),
        ("DELETE", "/control/calls"),
        ("DELETE", "/control/calls?agent="),
        ("GET", "/control/traffic/../keys"),
    ],
)
def test_unknown_routes_of_control(setup: Setup, method: str, path: str) -> None:
    """They are refused, and say which there are."""
    assert is_refused(setup.served.control(method, path), 404, "not_found")


@pytest.mark.parametrize("after", ["-1", "x", "", "1" * 5000, "\u0661", "1&after=0"])
def test_odd_numbers_of_control(setup: Setup, after: str) -> None:
    """They count as none."""
    from urllib.parse import quote

    reply = setup.served.control("GET", f"/control/traffic?after={quote(after, safe='&=')}")
    assert reply.status == 200


# --- the configuration ----------------------------------------------------------------------------------------------


@dataclass
class Reloading:
    """A gateway that reads its configuration again before each request.

    Attributes:
        env: its `.env`.
        declared: its `isabella.toml`.
        stored: the rows of Letta's providers.
        lines: what it logged.
    """

    served: Served
    vendors: PracticeVendors
    env: Path
    declared: Path
    stored: list[dict[str, Any]]
    lines: list[dict[str, Any]]

    def models(self, name: str, key: str, *fields: str) -> Reply:
        """Ask for the models of a provider."""
        return self.served.ask(f"/isabella-gateway/{name}/v1/models", key, method="GET", fields=fields)


@pytest.fixture
def reloading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reloading]:
    """A gateway in a thread with files of its own, and a Letta that has nothing but a list of providers."""
    monkeypatch.setattr(keys, "_CONFIGURATION_SECONDS", 0.0)
    monkeypatch.setattr(keys, "_UNKNOWN_KEY_SECONDS", 0.0)
    env, declared, stored = tmp_path / ".env", tmp_path / "isabella.toml", list[dict[str, Any]]()

    async def providers(request: RawRequest) -> None:
        health = b'{"version": "0.16.8", "status": "ok"}'
        rows = json.dumps(stored).encode()
        await request.send(plain("200 OK", health if "/v1/health" in request.head else rows))

    with ExitStack() as stack:
        vendors, letta = stack.enter_context(PracticeVendors()), stack.enter_context(RawVendor())
        letta.answer(providers)
        env.write_text(groq_env(vendors, vendors.key("groq").get_secret_value()))
        settings = load_settings(env, environment={}, home=tmp_path, config_file=declared, gateway="on")
        connection = Connection(letta.url.removesuffix("/v1"), None, None, None, tmp_path, 5.0, embedded=False)

        async def find() -> Connection:
            return connection

        lines = stack.enter_context(capture_logs())
        served = stack.enter_context(served_gateway(settings, find=find))
        yield Reloading(served, vendors, env, declared, stored, lines)  # type: ignore[arg-type]


def groq_env(vendors: PracticeVendors, key: str, more: str = "") -> str:
    """The text of an `.env` for Groq."""
    return f"GROQ_API_KEY={key}\nGROQ_BASE_URL={vendors.base_url('groq')}\n{more}"


def row(key: str) -> dict[str, Any]:
    """Letta's row of Groq, with a key in plaintext."""
    return {
        "id": "provider-1",
        "name": "byok-groq",
        "provider_type": "groq",
        "provider_category": "byok",
        "base_url": "http://127.0.0.1:9/v1",
        "api_key": key,
        "api_key_enc": key,
    }


def test_a_key_that_changes_in_the_file(reloading: Reloading) -> None:
    """The new key passes at once; the former one as long as Letta holds it, and the vendor gets the new one."""
    old = reloading.vendors.key("groq").get_secret_value()
    assert reloading.models("byok-groq", old).status == 200
    new = reloading.vendors.rotate("groq").get_secret_value()
    reloading.env.write_text(groq_env(reloading.vendors, new))
    reloading.stored[:] = [row(old)]
    assert [reloading.models("byok-groq", key).status for key in (new, old)] == [200, 200]
    assert all(request.carries(new) for request in reloading.vendors.requests("groq")[1:])
    stopped = reloading.served.traffic()["stopped_keys"]
    assert [(one["kind"], one["answered"]) for one in stopped] == [("stale", True)]
    reloading.stored[:] = [row(new)]
    assert is_refused(reloading.models("byok-groq", old), 401, "invalid_api_key")


def test_isabella_asks_about_the_stored_key(reloading: Reloading) -> None:
    """With its header the vendor sees the key that Letta holds, and nothing is reported; any other key stays here."""
    old = reloading.vendors.key("groq").get_secret_value()
    new = reloading.vendors.rotate("groq").get_secret_value()
    reloading.env.write_text(groq_env(reloading.vendors, new))
    reloading.stored[:] = [row(old)]
    as_sent = f"{AS_SENT_HEADER}: 1"
    assert [reloading.models("byok-groq", key, as_sent).status for key in (new, old)] == [200, 401]
    assert [request.carries(old) for request in reloading.vendors.requests("groq")] == [False, False, True]
    assert reloading.served.traffic()["stopped_keys"] == []
    assert is_refused(reloading.models("byok-groq", "gsk_foreign-key-0000001", as_sent), 401, "invalid_api_key")
    assert len(reloading.vendors.requests("groq")) == 3


@pytest.mark.parametrize("verdict_seconds", [60.0, 0.0])
def test_a_configured_key_that_the_vendor_refuses(
    reloading: Reloading, monkeypatch: pytest.MonkeyPatch, verdict_seconds: float
) -> None:
    """The stored key is used as long as the vendor refuses the configured one, of which it is asked again later."""
    monkeypatch.setattr(keys, "_VERDICT_SECONDS", verdict_seconds)
    stored, configured = reloading.vendors.key("groq").get_secret_value(), "gsk_not-yet-known-to-the-vendor-0001"
    reloading.stored[:] = [row(stored)]
    reloading.env.write_text(groq_env(reloading.vendors, configured))
    assert [reloading.models("byok-groq", stored).status for _ in range(2)] == [200, 200]
    sent = [request.carries(stored) for request in reloading.vendors.requests("groq")]
    assert sent == ([False, True, True] if verdict_seconds else [False, True, False, True])
    if not verdict_seconds:
        reloading.vendors.accept("groq", [configured])
        assert reloading.models("byok-groq", stored).status == 200
        assert reloading.vendors.requests("groq")[-1].carries(configured)


def test_a_base_url_that_changes(reloading: Reloading) -> None:
    """The next request goes to the new one, with the key that belongs to it."""
    key = reloading.vendors.key("groq").get_secret_value()
    assert reloading.models("byok-groq", key).status == 200
    with PracticeVendors(keys={"groq": [key]}) as others:
        reloading.env.write_text(groq_env(others, key))
        assert reloading.models("byok-groq", key).status == 200
        assert len(others.requests("groq")) == len(reloading.vendors.requests("groq")) == 1


@pytest.mark.parametrize("text", [b"GROQ_API_KEY='unclosed\n", b"\xff\xfe", b"ISABELLA_PORT=x\n"])
def test_a_malformed_file_leaves_the_former_in_force(reloading: Reloading, text: bytes) -> None:
    """It is said once in the log, and so is its end."""
    key = reloading.vendors.key("groq").get_secret_value()
    good = reloading.env.read_bytes()
    for _ in range(2):
        reloading.env.write_bytes(text)
        assert [reloading.models("byok-groq", key).status for _ in range(5)] == [200] * 5
        reloading.env.unlink()
        assert reloading.models("byok-groq", key).status == 200
        reloading.env.write_bytes(good)
        assert reloading.models("byok-groq", key).status == 200
    events = [line["event"] for line in reloading.lines]
    assert [event.split(",")[0] for event in events] == 2 * [
        "configuration not read",
        "configuration not read",
        "configuration read again",
    ]
    assert str(reloading.env) in reloading.lines[0]["error"]


def test_a_provider_that_is_added_and_removed(reloading: Reloading) -> None:
    """It can be used as soon as it is declared, and no longer than that."""
    key = reloading.vendors.key("mistral").get_secret_value()
    reloading.env.write_text(groq_env(reloading.vendors, "gsk_of-groq", f"ADDED_API_KEY={key}\n"))
    assert is_refused(reloading.models("added", key), 404, "provider_unknown")
    reloading.declared.write_text(
        f'[[providers]]\nname = "added"\nbase_url = "{reloading.vendors.base_url("mistral")}"\n'
        'api_key_env = "ADDED_API_KEY"\n'
    )
    assert reloading.models("added", key).status == 200
    assert "added" in reloading.served.traffic()["providers"]
    reloading.declared.unlink()
    assert is_refused(reloading.models("added", key), 404, "provider_unknown")
    assert "added" not in reloading.served.traffic()["providers"]


# --- a gateway in a process of its own ------------------------------------------------------------------------------


@dataclass
class Stack:
    """What a gateway's process needs: settings whose environment names the vendors, and the vendors.

    Attributes:
        env: its `.env`.
        settings: its settings.
    """

    vendors: PracticeVendors
    raw: RawVendor
    env: Path
    settings: Settings

    @property
    def daemon(self) -> Daemon:
        """The gateway's daemon."""
        return process.daemon(self.settings.home)

    def supervisor(self) -> Supervised:
        """A supervisor that runs as long as the context."""
        return Supervised(self.settings)

    def command(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start `isabella` with the same configuration."""
        environment = {**os.environ, **self.settings.sources.environment, "ISABELLA_GATEWAY": "on", **variables}
        argv = [sys.executable, "-c", "from isabella.cli import main; main()", *arguments]
        return subprocess.Popen(
            [*argv, "--env-file", str(self.env)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def with_environment(self, **variables: str) -> Settings:
        """The settings with more variables."""
        environment = {**self.settings.sources.environment, **variables}
        return load_settings(self.env, environment=environment, gateway="on")


@contextmanager
def stacked(tmp_path: Path) -> Iterator[Stack]:
    """The settings of a gateway that does not run yet; its process is ended in any case."""
    with PracticeVendors() as vendors, RawVendor() as raw:
        env, declared = tmp_path / ".env", tmp_path / "isabella.toml"
        env.write_text(f"RAW_API_KEY={RAW_KEY}\n" + groq_env(vendors, vendors.key("groq").get_secret_value()))
        declared.write_text(f'[[providers]]\nname = "raw"\nbase_url = "{raw.url}"\napi_key_env = "RAW_API_KEY"\n')
        environment = {"ISABELLA_HOME": str(tmp_path / "home"), "ISABELLA_CONFIG_FILE": str(declared)}
        settings = load_settings(env, environment=environment, gateway="on")
        # Other gateways of this machine begin with the default port.
        with socket.create_server(("127.0.0.1", 0)) as free:
            state_file(settings.home).parent.mkdir(parents=True)
            state_file(settings.home).write_text(json.dumps({"port": free.getsockname()[1]}))
        yield Stack(vendors, raw, env, settings)
        for one in gateways_of(settings.home):
            one.kill()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """The settings of a gateway that does not run yet."""
    with stacked(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, RunningDaemon]]:
    """A gateway that runs in a process of its own."""
    with stacked(tmp_path_factory.mktemp("started")) as made:
        yield made, process.start(made.settings)


def gateways_of(home: Path) -> list[psutil.Process]:
    """The processes of the gateways of a home."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        arguments = one.info["cmdline"] or []
        if "isabella.gateway" in arguments and str(home) in arguments and not has_ended(one):
            found.append(one)
    return found


class Supervised:
    """A supervisor in a thread, which has started a gateway."""

    def __init__(self, settings: Settings) -> None:
        self.said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.part = GatewayPart(settings)
        self.supervisor = Supervisor(
            [self.part], lambda status: self.said.put(status.reason or f"{status.name} works again.")
        )
        self.daemon = process.daemon(settings.home)
        self.stack = ExitStack()

    def __enter__(self) -> Supervised:
        self.part.start()
        self.stack.callback(self.part.stop)
        portal = self.stack.enter_context(start_blocking_portal())
        self.stack.callback(portal.start_task_soon(self.supervisor.run).cancel)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @property
    def running(self) -> RunningDaemon:
        """The gateway's process and port."""
        running = self.daemon.recorded()
        assert running is not None
        return running

    def kill(self) -> None:
        """Kill the gateway's process."""
        killed = psutil.Process(self.running.process.pid)
        killed.kill()
        wait_until(lambda: has_ended(killed), "the process lives on")

    def until_said(self, part: str) -> str:
        """Wait until it says something."""
        said = ""
        while part not in said:
            said = self.said.get(timeout=30)
        return said


def ask(port: int, path: str = CHAT, key: str = "", body: bytes | None = BODY, method: str = "POST") -> Reply:
    """Send a request and read the reply."""
    with RawClient(port) as client:
        client.send(head(path, key, method=method, length=None if body is None else len(body)) + (body or b""))
        return client.read()


def test_killed_in_the_middle_of_a_request(stack: Stack) -> None:
    """It comes back on the same port; requests that come meanwhile wait and are answered."""
    with stack.supervisor() as supervised:
        port, first = supervised.running.port, supervised.running.process
        stack.raw.answer(sends_and_waits(STREAMED, chunk(EVENT)))
        with RawClient(port) as client:
            client.send(head(RAW_CHAT, RAW_KEY, length=len(BODY)) + BODY)
            assert client.read_start()
            with stack.daemon.locked():
                # The supervisor waits for the lock: the request is there before the new process is.
                supervised.kill()
                assert client.until_closed()
                stack.raw.wait_until_closed()
                stack.raw.answer(sends(plain("200 OK", ANSWER)))
                waiting = RawClient(port)
                waiting.send(head(RAW_CHAT, RAW_KEY, length=len(BODY)) + BODY)
        with waiting:
            assert waiting.read().body == ANSWER
        supervised.until_said("has ended")
        supervised.until_said("works again")
        assert supervised.running.port == port
        assert supervised.running.process != first
    assert gateways_of(stack.settings.home) == []
    with pytest.raises(ConnectionError):
        RawClient(port)


def test_a_start_that_fails_keeps_the_port(stack: Stack) -> None:
    """Killed while its configuration is malformed, it comes back when that is mended; the port is never free."""
    good = stack.env.read_text()
    with stack.supervisor() as supervised:
        port = supervised.running.port
        stack.env.write_text("GROQ_API_KEY='unclosed\n")
        supervised.kill()
        waiting = RawClient(port)
        waiting.send(head(CHAT, stack.vendors.key("groq").get_secret_value(), length=len(BODY)) + BODY)
        assert str(stack.daemon.log) in supervised.until_said("did not start")
        stack.env.write_text(good)
        with waiting:
            assert waiting.read().status == 200
        assert supervised.running.port == port


def test_files_that_are_lost_under_a_supervisor(stack: Stack) -> None:
    """One gateway runs in the end, on the same port."""
    with stack.supervisor() as supervised:
        port = supervised.running.port
        for name in ("process.json", "state.json"):
            (stack.daemon.folder / name).write_text("{")
        supervised.until_said("works again")
        assert supervised.running.port == port
        assert ask(port, key=stack.vendors.key("groq").get_secret_value()).status == 200
        assert [one.pid for one in gateways_of(stack.settings.home)] == [supervised.running.process.pid]


def test_the_port_of_a_gateway_of_another_program_is_held(stack: Stack) -> None:
    """`isabella letta up` has started it: from its end on, the supervisor has its port, and it comes back there."""
    first = process.start(stack.settings)
    with stack.supervisor() as supervised:
        assert supervised.running == first
        with stack.daemon.locked():
            # While another program may be starting it, nothing is taken from that.
            supervised.kill()
            supervised.until_said("has ended")
        supervised.until_said("works again")
        assert supervised.running.port == first.port
        supervised.kill()
        assert ask(first.port, key=stack.vendors.key("groq").get_secret_value()).status == 200
    assert gateways_of(stack.settings.home) == []


def test_a_supervised_gateway_is_left_alone(stack: Stack) -> None:
    """A start with another environment, such as one from another shell, must not move it to another port."""
    with stack.supervisor() as supervised:
        before = supervised.running
        told = stack.command("gateway", "up", MISTRAL_API_KEY="key-of-another-shell").communicate(timeout=60)[0]
        assert before.address in told
        assert supervised.running == before
        assert process.start(stack.settings) == before


def test_another_configuration_replaces_it(stack: Stack) -> None:
    """The same one finds it running; with another one it is started anew, on the same port."""
    first = process.start(stack.settings)
    assert process.start(stack.settings) == first
    # The environment of another shell is no other configuration.
    assert process.start(stack.with_environment(OTHER="1")) == first
    second = process.start(stack.with_environment(MISTRAL_API_KEY="key-of-another-shell"))
    assert (second.port, second.process != first.process) == (first.port, True)
    assert [one.pid for one in gateways_of(stack.settings.home)] == [second.process.pid]
    # Stopped, it has saved what passed.
    key = stack.vendors.key("groq").get_secret_value()
    assert ask(second.port, key=key).status == 200
    assert stack.daemon.stop()
    assert json.loads((stack.daemon.folder / "traffic.json").read_text())["byok-groq"]["answers"] == 1


def test_a_port_that_another_program_has(stack: Stack) -> None:
    """It listens on another one."""
    port = saved_port(stack.settings.home)
    assert port is not None
    with socket.create_server(("127.0.0.1", port)):
        running = process.start(stack.settings)
        assert running.port == saved_port(stack.settings.home) != port
        assert ask(running.port, key=stack.vendors.key("groq").get_secret_value()).status == 200


def test_two_processes_start_one(stack: Stack) -> None:
    """Both are told the same address."""
    starting = [stack.command("gateway", "up") for _ in range(2)]
    told = [one.communicate(timeout=60)[0] for one in starting]
    assert [one.returncode for one in starting] == [0, 0]
    assert len(set(told)) == 1
    assert len(gateways_of(stack.settings.home)) == 1


Damage = Callable[[Path], None]


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(b'\xff{"port": "x", "token": [], "pid": {}, "supervisor": 1, "byok-groq": 1')


def _other_values(path: Path) -> None:
    path.write_text('{"port": 99999999, "token": 1, "pid": -1, "started": "x", "supervisor": {"pid": "x"}}')


def _directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    (path / "more").mkdir(parents=True)


@pytest.mark.parametrize(
    ("state", "recorded", "traffic", "lock"),
    [
        (_empty, _garbage, _directory, _other_values),
        (_garbage, _other_values, _empty, _empty),
        (_other_values, _empty, _garbage, _garbage),
    ],
)
def test_damaged_files_do_not_prevent_a_start(
    stack: Stack, state: Damage, recorded: Damage, traffic: Damage, lock: Damage
) -> None:
    """Port, process and history are not known then. A history that cannot be written costs no request."""
    folder = stack.daemon.folder
    for name, damage in (("state", state), ("process", recorded), ("traffic", traffic)):
        damage(folder / f"{name}.json")
    lock(folder / "lock")
    running = process.start(stack.settings)
    assert ask(running.port, key=stack.vendors.key("groq").get_secret_value()).status == 200
    assert stack.daemon.stop()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("name", ["state.json", "process.json", "lock", "gateway.log"])
def test_a_directory_in_place_of_a_file(stack: Stack, name: str) -> None:
    """It is renamed, and the gateway starts."""
    _directory(stack.daemon.folder / name)
    process.start(stack.settings)
    assert (stack.daemon.folder / f"{name}.damaged").is_dir()
    assert len(gateways_of(stack.settings.home)) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("name", ["state.json", "process.json", "lock", "traffic.json"])
def test_files_that_may_not_be_read(stack: Stack, name: str) -> None:
    """A start works, or the error names the file."""
    (stack.daemon.folder / name).unlink(missing_ok=True)
    (stack.daemon.folder / name).touch(mode=0)
    try:
        process.start(stack.settings)
    except GatewayError as error:
        assert name in str(error)  # noqa: PT017 - either is right


def test_an_interrupt_at_the_end_of_a_start_leaves_no_gateway(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal can come when the gateway answers already, and its start has not returned yet."""
    start = process.up

    def interrupted(*arguments: Any, **options: Any) -> None:
        start(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "up", interrupted)
    part = GatewayPart(stack.settings)
    with pytest.raises(KeyboardInterrupt):
        part.start()
    assert len(gateways_of(stack.settings.home)) == 1
    part.stop()
    assert gateways_of(stack.settings.home) == []


def test_the_end_of_a_backend_ends_it(stack: Stack) -> None:
    """SIGTERM stops the gateway as well, also while the backend waits for Letta."""
    backend = stack.command("up", ISABELLA_PORT="0", LETTA_BASE_URL="http://127.0.0.1:9")
    try:
        wait_until(lambda: stack.daemon.status() is not None, "the gateway does not start")
        backend.terminate()
        backend.communicate(timeout=30)
    finally:
        backend.kill()
    assert gateways_of(stack.settings.home) == []


# --- memory ---------------------------------------------------------------------------------------------------------


def rss(running: RunningDaemon) -> int:
    """The memory of the gateway's process in bytes, without what the system buffers for its connections."""
    return int(psutil.Process(running.process.pid).memory_info().rss)


def stream_of(number: int, size: int) -> bytes:
    """Bytes that no other stream has."""
    return random.Random(number).randbytes(size)


def request_number(number: int) -> bytes:
    """A request that the vendor recognises."""
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": f"{number}"}]}).encode()


def number_of(request: RawRequest) -> int:
    """The number of a request."""
    return int(json.loads(request.body)["messages"][0]["content"])


def test_a_slow_reader_does_not_fill_the_memory(started: tuple[Stack, RunningDaemon]) -> None:
    """Of an answer that nobody reads the gateway holds at most 1 MiB, and lets the vendor wait; it ends whole."""
    stack, running = started
    streams, size = 4, 32 * _MIB

    async def script(request: RawRequest) -> None:
        await request.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        content = memoryview(stream_of(number_of(request), size))
        for at in range(0, size, 65536):
            await request.send(bytes(content[at : at + 65536]))

    stack.raw.answer(sends(plain("200 OK", ANSWER)))
    assert ask(running.port, RAW_CHAT, RAW_KEY).status == 200
    before = rss(running)
    stack.raw.answer(script)
    with ExitStack() as clients:
        reading = [clients.enter_context(RawClient(running.port)) for _ in range(streams)]
        for number, client in enumerate(reading):
            body = request_number(number)
            client.send(head(RAW_CHAT, RAW_KEY, length=len(body)) + body)
        stack.raw.wait_for(
            lambda: len(stack.raw.requests) == streams and all(one.stalled for one in stack.raw.requests),
            "the vendor is not held back",
        )
        assert rss(running) - before < streams * _MIB
        with ThreadPoolExecutor(streams) as threads:
            replies = [*threads.map(RawClient.read, reading)]
        assert all(reply.whole and reply.body == stream_of(number, size) for number, reply in enumerate(replies))
        assert rss(running) - before < streams * _MIB
    stack.raw.wait_until_closed()


def test_many_streams_at_once(started: tuple[Stack, RunningDaemon]) -> None:
    """200 pass whole while all are open, at 64 KiB each at first; a further round leaves not a quarter of it."""
    stack, running = started
    streams, rounds, pieces, size = 200, 3, 64, 512

    async def script(request: RawRequest) -> None:
        await request.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        content = stream_of(number_of(request), pieces * size)
        for at in range(0, len(content), size):
            await request.send(content[at : at + size])
            if at == 0 and len(stack.raw.requests) == streams:
                peaks.append(rss(running))
                all_here.set()
            await all_here.wait()

    def read(number: int) -> Reply:
        return ask(running.port, RAW_CHAT, RAW_KEY, request_number(number))

    before, peaks, after = rss(running), list[int](), list[int]()
    with ThreadPoolExecutor(streams) as threads:
        for _ in range(rounds):
            all_here = asyncio.Event()
            stack.raw.answer(script)
            replies = [*threads.map(read, range(streams))]
            for number, reply in enumerate(replies):
                assert reply.whole
                assert reply.body == stream_of(number, pieces * size)
            stack.raw.wait_until_closed()
            after.append(rss(running))
    limit, carried = streams * _MIB / 16, streams * pieces * size
    assert peaks[0] - before < limit
    # The heap of a new gateway still grows; each round would add all that was carried if it were kept.
    assert max(peaks) - peaks[0] < (rounds - 1) * carried
    assert after[-1] - after[0] < (rounds - 1) * limit / 4


def test_a_body_that_is_refused_takes_no_memory(started: tuple[Stack, RunningDaemon]) -> None:
    """Of a stranger's 40 MiB nothing is kept; of the right sender's, not more than is read."""
    stack, running = started
    stack.raw.answer(sends())
    before = rss(running)
    assert is_refused(ask(running.port, RAW_CHAT, "sk-foreign", bytes(40 * _MIB)), 401, "invalid_api_key")
    assert rss(running) - before < 4 * _MIB
    assert is_refused(ask(running.port, RAW_CHAT, RAW_KEY, bytes(40 * _MIB)), 400, "request_too_large")
    assert rss(running) - before < 64 * _MIB
    assert stack.raw.requests == []


# --- canaries -------------------------------------------------------------------------------------------------------

PROMPT, SECRET = "CANARY-PROMPT the cat sat on the secret mat", "CANARY-ANSWER the mat was red"
FOREIGN = "sk-foreign-canary-9876543210abcdef"


def test_no_key_prompt_or_answer_is_kept(stack: Stack) -> None:
    """In log, files, traffic, its own errors and process arguments there are at most masked keys."""
    running = process.start(stack.settings)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": PROMPT}]}).encode()
    delta = json.dumps({"choices": [{"index": 0, "delta": {"content": SECRET}, "finish_reason": None}]})
    quoting = f"The key {RAW_KEY} is wrong: {PROMPT!r} was said, and {PROMPT[7:]!r}."
    own: list[bytes] = []

    def sent(script: Script, key: str = RAW_KEY, content: bytes = body) -> Reply:
        stack.raw.answer(script)
        reply = ask(running.port, RAW_CHAT, key, content)
        if reply.status >= 400 and b"isabella-gateway" in reply.body:
            own.append(reply.body)
        return reply

    told = STREAMED + chunk(f"data: {delta}\n\n".encode())
    assert SECRET.encode() in sent(sends(told, b"0\r\n\r\n")).body
    for status in ("400 Bad", "401 No", "413 Large", "429 Slow", "500 Broken"):
        assert PROMPT.encode() in sent(sends(plain(status, error(quoting)))).body
    malformed = b'{"messages": "' + PROMPT.encode()
    sent(sends(plain("400 Bad", error(f"not JSON: {malformed.decode()}"))), content=malformed)
    sent(sends(told, chunk(b"data: " + error(quoting) + b"\n\n"), b"0\r\n\r\n"))
    assert not _ended_after(stack, running.port, body, told, SECRET.encode() + b"\r\n")
    sent(sends(SECRET.encode() + b"\r\n\r\n"))
    sent(sends(plain("302 Found", b"", f"location: /{RAW_KEY}")))
    sent(sends(plain("200 OK", f"<html>{SECRET}".encode(), content_type="text/html")))
    sent(sends(), key=FOREIGN)
    sent(sends(), key="")
    assert len(own) == 5
    traffic = ask_control(stack, running)
    assert (len(traffic["outcomes"]), len(traffic["stopped_keys"])) == (11, 2)
    arguments = psutil.Process(running.process.pid).cmdline()
    assert stack.daemon.stop()
    kept = {path.name: path.read_text() for path in stack.daemon.folder.iterdir() if path.is_file()}
    assert kept.keys() >= {"gateway.log", "state.json", "traffic.json"}
    assert "key stopped" in kept["gateway.log"]
    told_of = "\n".join([*kept.values(), json.dumps(traffic), *arguments, *(one.decode() for one in own)])
    for secret in (PROMPT, PROMPT[7:], SECRET, RAW_KEY, FOREIGN, "CANARY", "secret mat"):
        assert secret not in told_of
    assert traffic["stopped_keys"][0]["masked"] == "sk-…cdef"


def _ended_after(stack: Stack, port: int, body: bytes, first: bytes, second: bytes) -> bool:
    """Whether a streamed answer of two pieces comes to its end; the second is sent when the client has the first."""
    got_first = threading.Event()

    async def script(request: RawRequest) -> None:
        await request.send(first)
        while not got_first.is_set():
            await request.send(b"")
        await request.send(second)

    stack.raw.answer(script)
    with RawClient(port) as client:
        client.send(head(RAW_CHAT, RAW_KEY, length=len(body)) + body)
        came = b""
        while SECRET.encode() not in came:
            came += client.read_start()
        assert came.startswith(b"HTTP/1.1 200 ")
        got_first.set()
        with suppress(ConnectionError):
            while more := client.read_start():
                came += more
    return came.endswith(b"\r\n0\r\n\r\n")


def ask_control(stack: Stack, running: RunningDaemon) -> dict[str, Any]:
    """The traffic of a gateway in a process of its own."""
    with stack.daemon.client(running) as client:
        return dict(client.get("/control/traffic").raise_for_status().json())
