"""Faults on demand over real HTTP: each breaks the answer in the way that it is named after."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from isabella.errors import PracticeError
from isabella.practice import NAMES, PracticeVendors, VendorFault
from isabella.practice.vendor import ActiveFaults, Faults
from tests.support.practice_models import MODELS

pytestmark = pytest.mark.usefixtures("without_faults")


def chat(vendors: PracticeVendors, vendor: str, *, wait: float = 10, **fields: Any) -> httpx2.Response:
    """Say something to a vendor's first model."""
    body = {"model": MODELS[vendor], "messages": [{"role": "user", "content": "Hello"}]} | fields
    headers = {"Authorization": f"Bearer {vendors.key(vendor).get_secret_value()}"}
    return httpx2.post(vendors.base_url(vendor) + "/chat/completions", headers=headers, json=body, timeout=wait)


def models(vendors: PracticeVendors, vendor: str) -> httpx2.Response:
    """Ask a vendor for its models."""
    headers = {"Authorization": f"Bearer {vendors.key(vendor).get_secret_value()}"}
    return httpx2.get(vendors.base_url(vendor) + "/models", headers=headers, timeout=10)


def ask_in_vain(vendors: PracticeVendors) -> None:
    """Wait for an answer that does not come."""
    with suppress(httpx2.TransportError):
        chat(vendors, "groq", wait=30)


@pytest.mark.parametrize("vendor", NAMES)
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422, 429, 500, 502, 503, 504])
def test_refusals_in_the_vendors_words(vendors: PracticeVendors, vendor: str, status: int) -> None:
    """Any status that a vendor may answer with comes with a JSON body of that vendor."""
    vendors.fault(vendor, status=status)
    response = chat(vendors, vendor)
    assert response.status_code == status
    assert "%" not in json.dumps(response.json())
    assert [request.fault for request in vendors.requests(vendor)] == [str(status)]


def test_longcat_out_of_funds_is_a_403(vendors: PracticeVendors) -> None:
    """LongCat says `insufficient_quota` with 402 and with 403."""
    for status in (402, 403):
        vendors.clear("longcat")
        vendors.fault("longcat", status=status)
        assert chat(vendors, "longcat").json()["error"]["code"] == "insufficient_quota"


def test_retry_after(vendors: PracticeVendors) -> None:
    """Groq says how long to wait of its own accord, the others only when the fault does."""
    vendors.fault("groq", status=429, times=1)
    vendors.fault("groq", status=429, retry_after=7)
    vendors.fault("cerebras", status=429)
    assert [chat(vendors, "groq").headers["retry-after"] for _ in range(2)] == ["2", "7"]
    assert "retry-after" not in chat(vendors, "cerebras").headers


def test_wrong_key_is_refused_before_any_status(vendors: PracticeVendors) -> None:
    """A vendor that is too busy still looks at the key first, and the fault is not used up by it."""
    vendors.fault("groq", status=503, times=1)
    headers = {"Authorization": "Bearer gsk_wrong"}
    assert httpx2.get(vendors.base_url("groq") + "/models", headers=headers).status_code == 401
    assert models(vendors, "groq").status_code == 503


def test_limited_to_an_endpoint_and_a_number_of_times(vendors: PracticeVendors) -> None:
    """What it is not limited to goes well, and after the given number of times all is well."""
    vendors.fault("groq", status=500, on="chat", times=2)
    assert models(vendors, "groq").status_code == 200
    assert [chat(vendors, "groq").status_code for _ in range(3)] == [500, 500, 200]
    assert chat(vendors, "cerebras").status_code == 200


def test_share_of_the_requests_is_the_same_in_every_run() -> None:
    """A share is spread evenly, beginning with the first request."""
    faults = Faults()
    faults.add(VendorFault(status=500, share=0.25))
    struck = [faults.take("chat").fault is not None for _ in range(8)]
    assert sum(struck) == 2
    faults.clear()
    faults.add(VendorFault(status=500, share=0.1))
    assert sum(faults.take("chat").fault is not None for _ in range(1000)) == 100


def test_latency_before_the_answer_and_between_its_pieces(vendors: PracticeVendors) -> None:
    """Each is really waited. How long a machine takes besides decides nothing, so there is no upper bound."""
    vendors.fault("mistral", latency=0.3, on="models")
    vendors.fault("mistral", between=0.02, on="chat")
    started = time.monotonic()
    models(vendors, "mistral")
    assert time.monotonic() - started >= 0.3
    started = time.monotonic()
    chat(vendors, "mistral", stream=True)
    assert time.monotonic() - started > 0.2


def test_waits_add_up_and_other_endpoints_are_not_slowed() -> None:
    """What befalls a request is the sum of what is meant for its endpoint."""
    faults = Faults()
    faults.add(VendorFault(latency=0.25, on="models"))
    faults.add(VendorFault(latency=0.5, on="models"))
    faults.add(VendorFault(between=0.125, on="chat"))
    assert faults.take("models") == ActiveFaults(latency=0.75)
    assert faults.take("chat") == ActiveFaults(between=0.125)
    assert faults.take("embeddings") == ActiveFaults()


def test_slow_answers_do_not_hold_up_others(vendors: PracticeVendors) -> None:
    """Ten requests wait for their answers; the eleventh has its own before any of them."""
    vendors.fault("groq", latency=3600, times=10)
    threads = [threading.Thread(target=ask_in_vain, args=(vendors,), daemon=True) for _ in range(10)]
    for thread in threads:
        thread.start()
    while len(vendors.requests("groq")) < 10:
        time.sleep(0.01)
    assert chat(vendors, "groq").status_code == 200
    assert all(thread.is_alive() for thread in threads)


def test_hang_is_silence(vendors: PracticeVendors) -> None:
    """The request is taken and logged at once, and nothing comes back until the client gives up."""
    vendors.fault("cerebras", hang=True, times=1)
    with pytest.raises(httpx2.ReadTimeout):
        chat(vendors, "cerebras", wait=0.3)
    assert [(request.status, request.fault) for request in vendors.requests("cerebras")] == [(0, "hang")]
    assert chat(vendors, "cerebras").status_code == 200


def test_hang_with_a_limit_ends_without_an_answer(vendors: PracticeVendors) -> None:
    """After its limit the connection is closed."""
    vendors.fault("cerebras", hang=0.2)
    started = time.monotonic()
    with pytest.raises(httpx2.RemoteProtocolError):  # not the client's own ReadTimeout
        chat(vendors, "cerebras", wait=60)
    assert time.monotonic() - started >= 0.2


def test_reset_is_a_tcp_reset(vendors: PracticeVendors) -> None:
    """The client's socket sees ECONNRESET, not an orderly end."""
    vendors.fault("cerebras", reset=True)
    with socket.create_connection(("127.0.0.1", vendors.port), timeout=5) as client:
        client.sendall(b"GET /cerebras/v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1024)
    assert [(request.status, request.fault) for request in vendors.requests("cerebras")] == [(0, "reset")]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        pytest.param({"truncated": True}, httpx2.RemoteProtocolError, id="truncated"),
        pytest.param({"reset": "midway"}, httpx2.ReadError, id="reset midway"),
    ],
)
def test_answers_that_break_in_the_middle(
    vendors: PracticeVendors, fault: dict[str, Any], error: type[Exception], stream: bool
) -> None:
    """The first half arrives, then the connection ends as the fault says; no end mark, no last chunk."""
    vendors.fault("groq", **fault)
    body = {"model": MODELS["groq"], "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    headers = {"Authorization": f"Bearer {vendors.key('groq').get_secret_value()}"}
    address = vendors.base_url("groq") + "/chat/completions"
    arrived: list[bytes] = []
    with httpx2.stream("POST", address, headers=headers, json=body) as response:
        assert response.status_code == 200
        with pytest.raises(error):
            arrived.extend(response.iter_raw())
    assert b"chatcmpl" in b"".join(arrived)
    assert b"[DONE]" not in b"".join(arrived)


@pytest.mark.parametrize("status", [200, 502])
def test_html_of_a_proxy(vendors: PracticeVendors, status: int) -> None:
    """A page instead of JSON, whatever the key."""
    vendors.fault("longcat", html=status)
    response = httpx2.get(vendors.base_url("longcat") + "/models")
    assert (response.status_code, response.headers["content-type"]) == (status, "text/html")
    assert "<html>" in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_malformed_json(vendors: PracticeVendors, stream: bool) -> None:
    """The answer is complete as HTTP, and broken as JSON."""
    vendors.fault("mistral", malformed=True)
    response = chat(vendors, "mistral", stream=stream)
    assert response.status_code == 200
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    with pytest.raises(json.JSONDecodeError):
        [json.loads(line) for line in lines if line != "[DONE]"]


def test_body_of_ones_own(vendors: PracticeVendors) -> None:
    """A refusal may be worded in any way, for tests of what must not depend on wording."""
    vendors.fault("mistral", status=401, body='{"detail":"Invalid API Key"}')
    assert chat(vendors, "mistral").json() == {"detail": "Invalid API Key"}


@pytest.mark.parametrize(
    "mistake",
    [{}, {"times": 0, "status": 500}, {"share": 0.0, "status": 500}, {"status": 99}, {"latency": -1.0}, {"on": "x"}],
)
def test_faults_that_make_no_sense(mistake: dict[str, Any]) -> None:
    """They are refused when they are made, not when they would befall."""
    with pytest.raises(PracticeError):
        VendorFault(**mistake)


def test_stopping_does_not_wait_for_those_who_hang() -> None:
    """A hanging request is cut off when the vendors stop."""
    with PracticeVendors() as own:
        own.fault("groq", hang=True)
        thread = threading.Thread(target=ask_in_vain, args=(own,))
        thread.start()
        while not own.requests("groq"):
            time.sleep(0.01)
    thread.join(10)  # well before its own patience, 30 seconds, is over
    assert not thread.is_alive()
