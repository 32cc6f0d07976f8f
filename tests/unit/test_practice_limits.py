"""The practice vendors' limits per minute, with the refusals and headers of the real ones, and prompts too long."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from isabella.errors import PracticeError
from isabella.practice import PracticeVendors, VendorFault
from isabella.practice.limits import VendorAllowance, VendorLimits, go_duration
from isabella.practice.server import TOKEN_HEADER
from tests.support.practice_models import MODELS

pytestmark = pytest.mark.usefixtures("without_faults")


def chat(vendors: PracticeVendors, vendor: str, tokens: int = 100, **fields: Any) -> httpx2.Response:
    """Send a prompt of exactly so many tokens to a vendor's first model."""
    body = {"model": MODELS[vendor], "messages": [{"role": "user", "content": ""}]} | fields
    empty = len(json.dumps(body))
    body["messages"][0]["content"] = "x" * (4 * tokens - empty)
    headers = {
        "Authorization": f"Bearer {vendors.key(vendor).get_secret_value()}",
        "content-type": "application/json",
    }
    url = vendors.base_url(vendor) + "/chat/completions"
    return httpx2.post(url, headers=headers, content=json.dumps(body), timeout=10)


def told(response: httpx2.Response) -> dict[str, str]:
    """The rate-limit headers of an answer."""
    return {name: value for name, value in response.headers.items() if name.startswith("x-ratelimit")}


def test_limits_are_off_at_first(vendors: PracticeVendors) -> None:
    """Each request finds the whole allowance, however many came before; a prompt above it is answered, too."""
    answers = [chat(vendors, "groq", 1_000) for _ in range(40)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-ratelimit-remaining-tokens"] for answer in answers} == {"7000"}
    assert chat(vendors, "groq", 9_000).status_code == 200


def test_request_larger_than_groqs_allowance_is_a_413(vendors: PracticeVendors) -> None:
    """It would never be admitted; the answer that the request allows counts."""
    vendors.limit("groq", tokens=8_000)
    for refused, requested in [
        (chat(vendors, "groq", 9_000), 9_000),
        (chat(vendors, "groq", 100, max_completion_tokens=20_000), 20_100),
    ]:
        assert refused.status_code == 413
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
        assert error["message"].startswith("Request too large for model `openai/gpt-oss-120b` in organization `org_")
        assert (
            f"on tokens per minute (TPM): Limit 8000, Requested {requested}, please reduce your message size "
            "and try again. Need more tokens? Upgrade to Dev Tier today" in error["message"]
        )
        assert "retry-after" not in refused.headers
        assert refused.headers["x-ratelimit-remaining-tokens"] == "8000"


def test_tokens_used_up_at_groq(vendors: PracticeVendors) -> None:
    """The headers count down, the refusal says how long to wait, and after that time the request is admitted."""
    vendors.limit("groq", tokens=6_000)
    first = told(chat(vendors, "groq", 5_034))
    assert first["x-ratelimit-limit-tokens"] == "6000"
    assert first["x-ratelimit-remaining-tokens"] == "966"
    assert first["x-ratelimit-reset-tokens"] == "50.34s"
    refused = chat(vendors, "groq", 1_443)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert "Rate limit reached for model `openai/gpt-oss-120b`" in error["message"]
    assert "(TPM): Limit 6000, Used 5034, Requested 1443. Please try again in 4.77s." in error["message"]
    assert refused.headers["retry-after"] == "5"
    assert told(refused)["x-ratelimit-remaining-tokens"] == "966"
    vendors.advance("groq", 4.7)
    assert chat(vendors, "groq", 1_443).status_code == 429
    vendors.advance("groq", 0.07)
    admitted = chat(vendors, "groq", 1_443)
    assert (admitted.status_code, told(admitted)["x-ratelimit-remaining-tokens"]) == (200, "0")


def test_requests_used_up_at_groq(vendors: PracticeVendors) -> None:
    """The headers tell the requests of the day; those of the minute are told by the refusal only."""
    vendors.limit("groq", requests=2, tokens=100_000)
    left = [int(told(chat(vendors, "groq"))["x-ratelimit-remaining-requests"]) for _ in range(2)]
    assert left == [left[0], left[0] - 1]
    refused = chat(vendors, "groq")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
    error = refused.json()["error"]
    assert error["type"] == "requests"
    assert "(RPM): Limit 2, Used 2, Requested 1. Please try again in 30s." in error["message"]
    vendors.advance("groq", 30)
    assert chat(vendors, "groq").status_code == 200


def test_cerebras_counts_the_answer_that_might_come(vendors: PracticeVendors) -> None:
    """Without a limit of the request it reserves 16,384 tokens, and never more; a 429 tells no time to wait."""
    vendors.limit("cerebras", tokens=30_000)
    assert told(chat(vendors, "cerebras", 100))["x-ratelimit-remaining-tokens-minute"] == str(30_000 - 16_484)
    refused = chat(vendors, "cerebras", 100)
    assert refused.status_code == 429
    assert refused.json() == {
        "message": "Tokens per minute limit exceeded - too many tokens processed.",
        "type": "too_many_tokens_error",
        "param": "quota",
        "code": "token_quota_exceeded",
    }
    assert "retry-after" not in refused.headers
    assert float(told(refused)["x-ratelimit-reset-tokens-minute"]) == pytest.approx(16_484 / 500)
    small = chat(vendors, "cerebras", 100, max_completion_tokens=400)
    assert told(small)["x-ratelimit-remaining-tokens-minute"] == str(30_000 - 16_484 - 500)
    vendors.limit("cerebras", tokens=30_000)
    large = chat(vendors, "cerebras", 100, max_completion_tokens=40_000)
    assert told(large)["x-ratelimit-remaining-tokens-minute"] == str(30_000 - 16_484)


def test_mistral_tells_what_a_request_costs(vendors: PracticeVendors) -> None:
    """Its headers have the tokens and the requests of the minute, and the cost of this request."""
    vendors.limit("mistral", requests=2, tokens=1_000)
    headers = told(chat(vendors, "mistral", 300))
    assert headers == {
        "x-ratelimit-limit-tokens-minute": "1000",
        "x-ratelimit-remaining-tokens-minute": "700",
        "x-ratelimit-tokens-query-cost": "300",
        "x-ratelimit-limit-req-minute": "2",
        "x-ratelimit-remaining-req-minute": "1",
    }
    refused = chat(vendors, "mistral", 800)
    assert (refused.status_code, refused.json()["code"]) == (429, "1300")


def test_refused_requests_are_not_charged(vendors: PracticeVendors) -> None:
    """Neither by a wrong key nor by a mistake in the request does an allowance shrink; a list costs nothing."""
    vendors.limit("groq", requests=1, tokens=1_000)
    url = vendors.base_url("groq")
    assert httpx2.post(f"{url}/chat/completions", headers={"Authorization": "Bearer gsk_wrong"}).status_code == 401
    assert chat(vendors, "groq", model="no-such").status_code == 404
    headers = {"Authorization": f"Bearer {vendors.key('groq').get_secret_value()}"}
    assert httpx2.get(f"{url}/models", headers=headers).status_code == 200
    assert chat(vendors, "groq").status_code == 200
    assert chat(vendors, "groq").status_code == 429


def test_clock_that_runs() -> None:
    """Then allowance comes back as time passes."""
    limits = VendorLimits(VendorAllowance(requests=1, tokens=1))
    limits.limit(requests=60_000, tokens=60_000_000, running=True)
    assert limits.admit(60_000_000).exceeded is None
    while limits.admit(1_000).exceeded is not None:
        pass


def test_limits_are_driven_by_the_control_api(vendors: PracticeVendors) -> None:
    """They can be set, seen, driven and lifted over HTTP, with the token only."""
    with httpx2.Client(base_url=f"http://127.0.0.1:{vendors.port}") as client:
        assert client.get("/practice/groq/limits").status_code == 401
        client.headers[TOKEN_HEADER] = vendors._app._token.decode()
        assert client.get("/practice/groq/limits").json() == {"limits": None}
        state = client.put("/practice/groq/limits", json={"tokens": 6_000}).json()["limits"]
        assert state == {
            "requests": 30,
            "requests_left": 30,
            "tokens": 6_000,
            "tokens_left": 6_000,
            "running": False,
        }
        chat(vendors, "groq", 1_000)
        state = client.post("/practice/groq/limits", json={"seconds": 5}).json()["limits"]
        assert (state["tokens_left"], state["requests_left"]) == (5_500, 30)
        assert client.put("/practice/groq/limits", json={"tokens": 0}).status_code == 422
        assert client.post("/practice/groq/limits", json={"seconds": -1}).status_code == 422
        assert client.delete("/practice/groq/limits").status_code == 204
        assert client.get("/practice/groq/limits").json() == {"limits": None}


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0ms"), (0.12, "120ms"), (7.66, "7.66s"), (60, "1m0s"), (179.56, "2m59.56s"), (3_725, "1h2m5s")],
)
def test_times_as_groq_tells_them(seconds: float, told: str) -> None:
    """They are written as Go writes durations."""
    assert go_duration(seconds) == told


WORDS = {
    "llama.cpp": "request (500 tokens) exceeds the available context size (400 tokens), try increasing it",
    "vllm": "This model's maximum context length is 400 tokens. However, you requested 0 output tokens and your "
    "prompt contains at least 401 input tokens, for a total of at least 401 tokens.",
    "ollama": "prompt too long; exceeded max context length by 100 tokens",
    "groq": "Please reduce the length of the messages or completion.",
    "cerebras": "Please reduce the length of the messages or completion. Current length is 500 while limit is 400",
    "mistral": "Prompt contains 500 tokens and 0 draft tokens, too large for model with 400 maximum context length",
    "longcat": "This model's maximum context length is 400 tokens. However, your messages resulted in 500 tokens.",
}


def said(response: httpx2.Response) -> str:
    """The message of a refusal, in whichever shape."""
    body = response.json()
    return str(body.get("error", body)["message"])


@pytest.mark.parametrize("server", WORDS)
def test_prompt_above_a_smaller_window(vendors: PracticeVendors, server: str) -> None:
    """Whatever the model list tells, a prompt above the window is refused in the words of any server."""
    vendors.fault("longcat", window=400, overflow=server)
    refused = chat(vendors, "longcat", 500)
    assert refused.status_code == 400
    assert said(refused).startswith(WORDS[server])
    assert chat(vendors, "longcat", 400).status_code == 200
    assert [request.fault for request in vendors.requests("longcat")] == ["overflow", "overflow"]


def test_llama_cpp_tells_both_figures(vendors: PracticeVendors) -> None:
    """They stand in fields of their own, as numbers."""
    vendors.fault("longcat", window=400, overflow="llama.cpp")
    error = chat(vendors, "longcat", 500).json()["error"]
    assert error["type"] == "exceed_context_size_error"
    assert (error["code"], error["n_prompt_tokens"], error["n_ctx"]) == (400, 500, 400)


@pytest.mark.parametrize("vendor", MODELS)
def test_window_alone_is_told_in_the_vendors_own_words(vendors: PracticeVendors, vendor: str) -> None:
    """So is a prompt above the window that the model really has."""
    vendors.fault(vendor, window=400)
    assert said(chat(vendors, vendor, 500)).startswith(WORDS[vendor])
    vendors.clear()
    assert chat(vendors, vendor, 500).status_code == 200
    assert chat(vendors, vendor, 1_100_000).status_code == 400


def test_overflow_without_a_window_refuses_every_prompt(vendors: PracticeVendors) -> None:
    """It is limited to conversations: lists are answered."""
    vendors.fault("groq", overflow="vllm", times=1)
    headers = {"Authorization": f"Bearer {vendors.key('groq').get_secret_value()}"}
    assert httpx2.get(f"{vendors.base_url('groq')}/models", headers=headers).status_code == 200
    assert "maximum context length is 99 tokens" in said(chat(vendors, "groq", 100))
    assert chat(vendors, "groq", 100).status_code == 200


@pytest.mark.parametrize("mistake", [{"overflow": "gpt"}, {"window": 0}, {"window": -1, "overflow": "vllm"}])
def test_overflows_that_make_no_sense(mistake: dict[str, Any]) -> None:
    """They are refused when they are made."""
    with pytest.raises(PracticeError):
        VendorFault(**mistake)
