"""Refusals on their way to Letta."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isabella.config.quirks import Quirks
from isabella.config.vendors import known_vendors
from isabella.gateway.refusals import Refusal, adapt_refusal, error_of, refuses_tools, words_of
from tests.support.recorded_messages import OVERFLOWS, REFUSALS

GROQ = next(vendor.quirks for vendor in known_vendors() if vendor.name == "groq")
NOW = 1_800_000_000.0

TOO_LARGE = {
    "error": {
        "message": "Request too large for model `openai/gpt-oss-120b` in organization `org_1` service tier "
        "`on_demand` on tokens per minute (TPM): Limit 8000, Requested 14810, please reduce your message "
        "size and try again.",
        "type": "tokens",
        "code": "rate_limit_exceeded",
    }
}


def adapt(status: int, body: Any, quirks: Quirks = GROQ, **headers: str) -> Refusal:
    """The refusal with this body as Letta gets it."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return adapt_refusal(status, given, json.dumps(body).encode(), quirks, now=NOW)


def raised(refusal: Refusal) -> openai.APIStatusError:
    """What the client that Letta uses makes of it, and how often it asks."""
    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(refusal.status, headers=refusal.headers, content=refusal.body)

    client = openai.OpenAI(
        api_key="k", base_url="http://v", http_client=httpx2.Client(transport=httpx2.MockTransport(answer))
    )
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="m", messages=[])
    assert len(asked) == 1
    return caught.value


@pytest.mark.parametrize("name", OVERFLOWS)
def test_an_overflow_is_one_that_letta_recognises(name: str) -> None:
    """With the code and the words that Letta 0.16.8 looks for, and the vendor's own words and numbers."""
    told_as, body = OVERFLOWS[name], OVERFLOWS[name].document
    refusal = adapt(told_as.status, body)
    assert (refusal.status, refusal.window) == (400, told_as.window)
    error = raised(refusal)
    assert isinstance(error, openai.BadRequestError)
    assert error.code == "context_length_exceeded"
    assert "exceeds the context window" in str(error)
    told = error_of(body)
    assert told is not None
    assert words_of(told) in json.loads(refusal.body)["error"]["message"]
    assert refusal.headers["content-type"] == "application/json"


@pytest.mark.parametrize("name", sorted(REFUSALS.keys() - OVERFLOWS.keys()))
def test_no_other_refusal_is_taken_for_an_overflow(name: str) -> None:
    """What people recorded of other refusals."""
    assert b'"context_length_exceeded"' not in adapt(REFUSALS[name].status, REFUSALS[name].document).body


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "Invalid model: m", "code": "model_not_found"}}),
        (400, {"object": "error", "message": "Unexpected role 'user' after role 'tool'", "code": "3230"}),
        (400, {"error": {"message": "`max_completion_tokens` must be less than or equal to `16384`"}}),
        (401, {"error": {"message": "This model's maximum context length is 5 tokens"}}),
        (422, {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "user"]}]}}),
        (503, {"error": {"message": "Overloaded"}}),
    ],
)
def test_other_refusals_stay_as_they_are(status: int, body: Any) -> None:
    """Only the header that forbids retries is added."""
    refusal = adapt(status, body, x_request_id="req_1")
    assert (refusal.status, json.loads(refusal.body)) == (status, body)
    assert refusal.headers == {"x-request-id": "req_1", "x-should-retry": "false"}
    assert refusal.words


@pytest.mark.parametrize("status", [400, 401, 408, 409, 413, 429, 500, 503])
def test_no_refusal_is_tried_again(status: int) -> None:
    """Whatever the vendor says about it."""
    assert raised(adapt(status, {"error": "no"}, x_should_retry="true", retry_after="1")).status_code == status


def test_groqs_413_is_a_rate_limit() -> None:
    """It would never fit, which is told apart from a limit that comes back."""
    refusal = adapt(413, TOO_LARGE)
    assert (refusal.status, refusal.never_fits) == (429, 8000)
    assert (refusal.headers["retry-after"], refusal.retry_after) == ("60", 60.0)
    assert json.loads(refusal.body) == TOO_LARGE
    assert isinstance(raised(refusal), openai.RateLimitError)
    assert adapt(413, TOO_LARGE, retry_after="7").headers["retry-after"] == "7"


def test_a_413_that_is_no_rate_limit_stays_one() -> None:
    """The body itself was too large, for instance for a proxy."""
    assert adapt(413, {"error": {"message": "Request Entity Too Large", "code": "request_too_large"}}).status == 413


def test_a_limit_that_comes_back_tells_when() -> None:
    """From the header, the words, or the limit that is used up."""
    words = (
        "Rate limit reached on tokens per minute (TPM): Limit 6000, Used 5034, Requested 1443. Please try again in "
    )
    said = adapt(429, {"error": {"message": words + "4.77s. Need more tokens?"}})
    assert (said.headers["retry-after"], said.retry_after, said.never_fits) == ("5", 4.77, None)
    assert adapt(429, {"error": {"message": words + "2m1.5s."}}).retry_after == 121.5
    assert adapt(429, {"error": {"message": words + "450ms."}}).retry_after == 0.45
    used_up = adapt(429, {"message": "no"}, x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="7.66s")
    assert used_up.retry_after == 7.66
    assert adapt(429, {"message": words + "4.77s."}, retry_after="2").headers["retry-after"] == "2"
    cerebras = {"message": "Tokens per minute limit exceeded - too many tokens processed."}
    assert adapt(429, cerebras, x_ratelimit_reset_tokens_minute="11.38").headers["retry-after"] == "12"
    unknown = adapt(429, {"message": "Rate limit exceeded", "code": "1300"})
    assert (unknown.retry_after, unknown.headers) == (None, {"x-should-retry": "false"})


def test_openais_429_that_never_fits() -> None:
    """The same words, with another status."""
    words = "Request too large for gpt-4o on tokens per min (TPM): Limit 30,000, Requested 342,389."
    assert adapt(429, {"error": {"message": words}}).never_fits == 30_000
    assert adapt(429, {"error": {"message": words.replace("342,389", "3,000")}}).never_fits is None
    requests = "Rate limit reached on requests per minute (RPM): Limit 30, Used 30, Requested 31."
    assert adapt(429, {"error": {"message": requests}}).never_fits is None


def test_a_page_of_a_proxy_stays_as_it_is_and_bounded() -> None:
    """It is no JSON; headers that describe the vendor's coding of it are left out."""
    page = b"<html>exceeds the available context size</html>"
    headers = {"Content-Type": "text/html", "Content-Length": "9", "Content-Encoding": "gzip", "Server": "nginx"}
    refusal = adapt_refusal(400, headers, page, GROQ, now=NOW)
    assert (refusal.status, refusal.body, refusal.words) == (400, page, "")
    assert refusal.headers == {"content-type": "text/html", "server": "nginx", "x-should-retry": "false"}
    assert len(adapt_refusal(502, {}, page * 100_000, GROQ, now=NOW).body) == 64 * 1024


def test_words_are_bounded() -> None:
    """Mistral repeats what it was given."""
    assert len(adapt(422, {"message": {"detail": [{"input": "x" * 10**6}]}}).words) == 2_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "code", "type", "metadata", "raw", "n_ctx"]), inner
        )
    ),
)


@given(st.sampled_from([400, 404, 413, 429, 500]), JSON)
def test_no_body_breaks_it(status: int, body: Any) -> None:
    """Whatever a server sends is a refusal that is not tried again."""
    refusal = adapt(status, body)
    assert refusal.headers["x-should-retry"] == "false"
    assert refusal.status in (status, 400, 429)


@given(st.sampled_from([400, 413, 429, 500]), st.binary(max_size=200))
def test_no_bytes_break_it(status: int, body: bytes) -> None:
    """Nor bytes that are no JSON."""
    assert adapt_refusal(status, {}, body, GROQ, now=NOW).headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("registry.ollama.ai/library/gemma:2b does not support tools", True),
        ('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', True),
        ("tools param requires --jinja flag", True),
        ("`tool calling` is not supported with this model", True),
        ("No endpoints found that support tool use", True),
        ("Failed to call a function. Please adjust your prompt.", False),
        ("Tool call id was call_1 but must be a-z, A-Z, 0-9, with a length of 9.", False),
        ("tool call validation failed: attempted to call tool 'x' which was not in request.tools", False),
    ],
)
def test_a_model_that_calls_no_tools(words: str, refused: bool) -> None:
    """The words of servers and vendors, and those about a single call."""
    assert refuses_tools(words) is refused
