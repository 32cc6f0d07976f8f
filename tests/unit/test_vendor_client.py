"""Asking vendors: every body of the vendors' table is judged by status and shape, and nothing raises."""

from __future__ import annotations

import gzip
import socket
from dataclasses import replace
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Response

from isabella.system import redaction
from isabella.vendors.client import KeyVerdict, Trouble, VendorAnswer, VendorState, ask_vendor, classify_answer

KEY = SecretStr("csk-canary-inquiry-0001")

WRONG_KEYS: list[tuple[int, Any]] = [
    (
        401,
        {"message": "Wrong API Key", "type": "invalid_request_error", "param": "api_key", "code": "wrong_api_key"},
    ),
    (
        401,
        {"error": {"message": "Invalid API Key", "type": "invalid_request_error", "code": "invalid_api_key"}},
    ),
    (401, {"detail": "Unauthorized"}),
    (401, {"detail": "Invalid API Key"}),
    (401, {"message": "Unauthorized", "request_id": "abc"}),
    (401, {"error": {"message": "anything", "type": "authentication_error", "code": "invalid_api_key"}}),
    (403, {"detail": "Not authenticated"}),
    (403, {"error": {"message": "Access denied. Please check your network settings."}}),
    (400, [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "-"}}]),
    (400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: ab***cd."}),
    (401, {}),
    (401, []),
    (401, "Unauthorized"),
]
MODEL_LISTS: list[tuple[Any, dict[str, int | None]]] = [
    ({"data": [{"id": "m", "object": "model", "created": 1, "owned_by": "Cerebras"}]}, {"m": None}),
    (
        {"data": [{"id": "m", "active": True, "context_window": 131072, "max_completion_tokens": 65536}]},
        {"m": 131072},
    ),
    ({"data": [{"id": "m", "max_context_length": 40960, "capabilities": {}, "aliases": []}]}, {"m": 40960}),
    ({"data": [{"id": "m"}]}, {"m": None}),
    ([{"id": "m", "context_length": 8192}], {"m": 8192}),
    ({"data": [{"id": "m", "context_window": "8k"}, {"id": "n", "context_window": 0}]}, {"m": None, "n": None}),
    ({"object": "list", "data": []}, {}),
]


@pytest.mark.parametrize(("status", "body"), WRONG_KEYS)
def test_every_vendor_s_refusal_is_a_refused_key(status: int, body: Any) -> None:
    """However a vendor words it, a JSON 401 or 403 means that the key is refused, and some answer 400."""
    answer = classify_answer(status, body)
    assert (answer.verdict, answer.takes_key, answer.status) == (KeyVerdict.REFUSED, False, status)
    assert answer.said


@pytest.mark.parametrize(("body", "models"), MODEL_LISTS)
def test_every_vendor_s_model_list_is_read(body: Any, models: dict[str, int | None]) -> None:
    """A model list means that the key is taken; windows are read where the vendor tells them."""
    answer = classify_answer(200, body)
    assert (answer.verdict, answer.takes_key, dict(answer.models)) == (KeyVerdict.ACCEPTED, True, models)


@pytest.mark.parametrize(
    ("status", "body", "verdict", "takes_key"),
    [
        (402, {"detail": "Payment required"}, KeyVerdict.OUT_OF_FUNDS, True),
        (402, None, KeyVerdict.OUT_OF_FUNDS, True),
        (403, {"error": {"message": "-", "code": "insufficient_quota"}}, KeyVerdict.OUT_OF_FUNDS, True),
        (403, {"error": {"message": "-", "type": "insufficient_balance"}}, KeyVerdict.OUT_OF_FUNDS, True),
        (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, KeyVerdict.RATE_LIMITED, True),
        (429, None, KeyVerdict.RATE_LIMITED, True),
        (400, {"error": {"message": "Bad request"}}, KeyVerdict.FAILING, None),
        (401, None, KeyVerdict.FAILING, None),
        (403, None, KeyVerdict.FAILING, None),
        (200, None, KeyVerdict.WRONG_ADDRESS, None),
        (200, {"status": "ok"}, KeyVerdict.WRONG_ADDRESS, None),
        (200, {"data": ["m"]}, KeyVerdict.WRONG_ADDRESS, None),
        (200, {"data": [{"name": "m"}]}, KeyVerdict.WRONG_ADDRESS, None),
        (404, {"detail": "Not Found"}, KeyVerdict.WRONG_ADDRESS, None),
        (405, None, KeyVerdict.WRONG_ADDRESS, None),
        (301, None, KeyVerdict.WRONG_ADDRESS, None),
        (308, None, KeyVerdict.WRONG_ADDRESS, None),
        (500, {"error": {"message": "Internal Server Error"}}, KeyVerdict.FAILING, None),
        (502, None, KeyVerdict.FAILING, None),
        (503, {"message": "busy"}, KeyVerdict.FAILING, None),
        (418, None, KeyVerdict.FAILING, None),
    ],
)
def test_what_says_nothing_of_the_key_is_not_held_against_it(
    status: int, body: Any, verdict: KeyVerdict, takes_key: bool | None
) -> None:
    """Money and haste mean a good key; failures, pages and wrong addresses mean nothing about it."""
    answer = classify_answer(status, body)
    assert (answer.verdict, answer.takes_key) == (verdict, takes_key)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("2", 2.0), ("0.5", 0.5), (None, None), ("", None), ("soon", None), (".", None), ("²", None)],
)
def test_the_wish_to_be_asked_later_is_read(header: str | None, seconds: float | None) -> None:
    """A number of seconds is taken over; a date or anything else is not."""
    assert classify_answer(429, None, retry_after=header).retry_after == seconds


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "data", "message", "detail", "code", "type", "id"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(st.integers(100, 599), JSON, st.none() | st.text(max_size=6))
def test_judging_never_raises(status: int, body: Any, retry_after: str | None) -> None:
    """Whatever comes back is judged; only a 401 or 403 refuses a key, only a list, 402, 403 or 429 takes it."""
    answer = classify_answer(status, body, retry_after=retry_after)
    assert answer.said
    assert answer.takes_key is not False or status in (400, 401, 403)
    assert not answer.takes_key or status in (200, 402, 403, 429)


def ask(base_url: str, *, timeout: float = 10.0) -> VendorAnswer:
    """Ask the vendor there."""

    async def asked() -> VendorAnswer:
        return await ask_vendor(base_url, KEY, timeout=timeout)

    return anyio.run(asked)


def test_the_key_goes_to_the_model_list(httpserver: HTTPServer) -> None:
    """One GET of the model list, with the key as the bearer."""
    httpserver.expect_oneshot_request(
        "/v1/models", method="GET", headers={"Authorization": f"Bearer {KEY.get_secret_value()}"}
    ).respond_with_json({"data": [{"id": "m"}]})
    assert ask(httpserver.url_for("/v1")).verdict is KeyVerdict.ACCEPTED
    assert len(httpserver.log) == 1


def test_nothing_listening_is_unreachable() -> None:
    """No answer is never a refusal."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        answer = ask(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
    assert (answer.verdict, answer.takes_key, answer.status) == (KeyVerdict.UNREACHABLE, None, None)


def test_a_vendor_that_hangs_is_unreachable() -> None:
    """A vendor that accepts and stays silent is given up after the time that it was given."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        answer = ask(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", timeout=0.2)
    assert (answer.verdict, answer.said) == (KeyVerdict.UNREACHABLE, "no answer within 0.2 s")


def test_a_redirect_is_not_followed_with_the_key(httpserver: HTTPServer) -> None:
    """The key goes nowhere but to the configured address."""
    httpserver.expect_request("/v1/models").respond_with_response(
        Response(status=302, headers={"Location": httpserver.url_for("/elsewhere")})
    )
    assert ask(httpserver.url_for("/v1")).verdict is KeyVerdict.WRONG_ADDRESS
    assert [request.path for request, _ in httpserver.log] == ["/v1/models"]


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (Response("<html>Sign in</html>", 200, content_type="text/html"), KeyVerdict.WRONG_ADDRESS),
        (Response("<html>Blocked</html>", 403, content_type="text/html"), KeyVerdict.FAILING),
        (Response("<html>Bad gateway</html>", 502, content_type="text/html"), KeyVerdict.FAILING),
        (Response("", 200), KeyVerdict.WRONG_ADDRESS),
        (Response(b"\xff\xfe", 200, content_type="application/json"), KeyVerdict.WRONG_ADDRESS),
        (Response(gzip.compress(b"{}"), 401, headers={"Content-Encoding": "gzip"}), KeyVerdict.REFUSED),
        (Response(b"no gzip", 200, headers={"Content-Encoding": "gzip"}), KeyVerdict.UNREACHABLE),
    ],
)
def test_pages_and_garbage_say_nothing_of_the_key(
    httpserver: HTTPServer, response: Response, verdict: KeyVerdict
) -> None:
    """What a proxy, a captive portal or a broken server sends does not count against the key, and never raises."""
    httpserver.expect_request("/v1/models").respond_with_response(response)
    assert ask(httpserver.url_for("/v1")).verdict is verdict


def test_a_vendor_that_quotes_the_key_is_not_repeated(httpserver: HTTPServer) -> None:
    """A vendor's own words are shortened and scrubbed of the key."""
    redaction.remember(KEY.get_secret_value())
    said = f"Incorrect API key provided: {KEY.get_secret_value()}. " + "x" * 500
    httpserver.expect_request("/v1/models").respond_with_json({"error": {"message": said}}, status=401)
    answer = ask(httpserver.url_for("/v1"))
    assert answer.verdict is KeyVerdict.REFUSED
    assert KEY.get_secret_value() not in answer.said
    assert len(answer.said) <= 160


@pytest.mark.parametrize(
    ("status", "state"),
    [(403, VendorState.UNREACHABLE), (407, VendorState.UNREACHABLE), (502, VendorState.FAILS)],
)
def test_a_web_page_of_a_proxy_is_no_answer_of_the_vendor(status: int, state: VendorState) -> None:
    """A page that refuses was not written by the vendor; one of its own front that fails is its failure."""
    answer = replace(classify_answer(status, None), trouble=Trouble.HTML)
    assert answer.vendor_status.state is state
    assert ("proxy" in answer.vendor_status.reason) is (state is VendorState.UNREACHABLE)


def test_a_refusal_of_the_gateway_says_nothing_of_the_key(httpserver: HTTPServer) -> None:
    """By way of the gateway, only the vendor's own words are a verdict; the key that was asked about is sent on."""
    base_url = httpserver.url_for("/isabella-gateway/byok-groq/v1")
    own = {"error": {"message": "its key is neither", "type": "isabella-gateway", "code": "invalid_api_key"}}
    vendors = {"error": {"message": "Invalid API Key", "type": "invalid_request_error", "code": "invalid_api_key"}}
    for body, verdict in ((own, KeyVerdict.UNREACHABLE), (vendors, KeyVerdict.REFUSED)):
        httpserver.expect_ordered_request(
            "/isabella-gateway/byok-groq/v1/models", headers={"x-isabella-key-as-sent": "1"}
        ).respond_with_json(body, status=401)
        answer = anyio.run(ask_vendor, base_url, KEY)
        assert answer.verdict is verdict
        assert answer.takes_key is (None if verdict is KeyVerdict.UNREACHABLE else False)
