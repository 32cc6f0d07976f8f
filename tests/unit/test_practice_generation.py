"""The practice vendors count the tokens they generate, up to a limit and until the client is gone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from isabella.practice import NAMES, PracticeVendors, Request
from tests.support.practice_models import MODELS

TOOL = {
    "type": "function",
    "function": {"name": "archival_memory_insert", "parameters": {"properties": {"content": {"type": "string"}}}},
}
_PATIENCE = 30.0


pytestmark = pytest.mark.usefixtures("without_faults")


class Chat:
    """A chat request to a vendor's first model."""

    def __init__(self, vendors: PracticeVendors, vendor: str, text: str = "Hello", **fields: Any) -> None:
        self.url = vendors.base_url(vendor) + "/chat/completions"
        self.headers = {"Authorization": f"Bearer {vendors.key(vendor).get_secret_value()}"}
        self.body = {"model": MODELS[vendor], "messages": [{"role": "user", "content": text}]} | fields

    def answer(self) -> Any:
        """The whole answer."""
        return httpx2.post(self.url, headers=self.headers, json=self.body, timeout=_PATIENCE).json()

    def events(self) -> list[Any]:
        """The events of the streamed answer."""
        response = httpx2.post(self.url, headers=self.headers, json=self.body | {"stream": True}, timeout=_PATIENCE)
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


def last(vendors: PracticeVendors, vendor: str) -> Request:
    """The last request at a vendor."""
    return vendors.requests(vendor)[-1]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that is to come about."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("vendor", NAMES)
def test_tokens_of_a_completed_answer_are_those_of_its_usage(
    vendors: PracticeVendors, vendor: str, stream: bool
) -> None:
    """Reasoning, text and tool calls count alike."""
    chat = Chat(vendors, vendor, "Remember that I live in Bergen.", tools=[TOOL])
    if stream:
        chat.body["stream_options"] = {"include_usage": True}
        usage = chat.events()[-1]["usage"]
    else:
        usage = chat.answer()["usage"]
    request = last(vendors, vendor)
    assert request.generated == usage["completion_tokens"] > 1
    assert request.ended == "completed"
    assert request.last_token is not None
    assert request.ended_after is not None
    assert request.last_token <= request.ended_after


def test_refused_requests_generate_nothing(vendors: PracticeVendors) -> None:
    """A refusal is a completed answer without tokens."""
    vendors.fault("groq", status=503)
    Chat(vendors, "groq").answer()
    request = last(vendors, "groq")
    assert (request.generated, request.last_token, request.ended) == (0, None, "completed")


@pytest.mark.parametrize(
    ("vendor", "field"),
    [
        ("cerebras", "max_completion_tokens"),
        ("groq", "max_tokens"),
        ("mistral", "max_tokens"),
        ("longcat", "max_tokens"),
    ],
)
def test_answer_is_cut_at_the_limit_of_tokens(vendors: PracticeVendors, vendor: str, field: str) -> None:
    """The end reason is `length`; so many tokens were generated, and the text is the beginning of the whole one."""
    chat = Chat(vendors, vendor, "count to 50")
    whole = chat.answer()["choices"][0]["message"]["content"]
    chat.body[field] = 10
    answer = chat.answer()
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 10
    assert choice["message"]["content"]
    assert whole.startswith(choice["message"]["content"])
    ends = [event["choices"][0]["finish_reason"] for event in chat.events() if event["choices"]]
    assert [end for end in ends if end] == ["length"]
    assert [request.generated for request in vendors.requests(vendor)[1:]] == [10, 10]


def test_longcat_knows_one_limit_only(vendors: PracticeVendors) -> None:
    """`max_completion_tokens` is in none of its documents: it is passed over."""
    answer = Chat(vendors, "longcat", "count to 50", max_completion_tokens=10).answer()
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_tool_call_is_cut_too(vendors: PracticeVendors) -> None:
    """The arguments break off in the middle, at Mistral in one piece, elsewhere in several."""
    for vendor in ("mistral", "groq"):
        chat = Chat(vendors, vendor, f"Remember that I live in {'Bergen ' * 20}.", tools=[TOOL])
        full = chat.answer()
        call = full["choices"][0]["message"]["tool_calls"][0]["function"]
        chat.body["max_tokens"] = full["usage"]["completion_tokens"] - 1
        choice = chat.answer()["choices"][0]
        cut = choice["message"]["tool_calls"][0]["function"]
        assert choice["finish_reason"] == "length"
        assert call["arguments"].startswith(cut["arguments"])
        assert len(cut["arguments"]) < len(call["arguments"])
        streamed = [one for event in chat.events() for one in event["choices"][0]["delta"].get("tool_calls", [])]
        assert "".join(one["function"]["arguments"] for one in streamed) == cut["arguments"]


@pytest.mark.parametrize("limit", [0, -1, "ten", 1.5])
def test_limit_that_is_none(vendors: PracticeVendors, limit: object) -> None:
    """A limit that is no number of tokens is the client's mistake."""
    chat = Chat(vendors, "cerebras", max_tokens=limit)
    assert httpx2.post(chat.url, headers=chat.headers, json=chat.body).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_endless_answer_ends_at_the_limit(vendors: PracticeVendors, stream: bool) -> None:
    """A model that repeats itself stops where the client set the limit."""
    vendors.fault("groq", endless=True)
    chat = Chat(vendors, "groq", max_tokens=60)
    if stream:
        end = next(e["choices"][0]["finish_reason"] for e in chat.events() if e["choices"][0]["finish_reason"])
    else:
        end = chat.answer()["choices"][0]["finish_reason"]
    assert end == "length"
    request = last(vendors, "groq")
    assert (request.generated, request.fault, request.ended) == (60, "endless", "completed")


def test_a_stuck_model_calls_a_tool_that_fails(vendors: PracticeVendors) -> None:
    """The same call whatever its result; without such a tool it answers."""
    vendors.fault("groq", stuck=True)
    block = "<human><description>d</description><metadata>m</metadata><value>\nRex\n</value></human>"
    texts = {name: {"type": "string"} for name in ("label", "old_string", "new_string")}
    schema = {"type": "object", "properties": texts, "required": [*texts]}
    tools = [{"type": "function", "function": {"name": "memory_replace", "parameters": schema}}]
    asked = [{"role": "system", "content": block}, {"role": "user", "content": "Say hello"}]
    first = Chat(vendors, "groq", messages=asked, tools=tools).answer()["choices"][0]["message"]
    (call,) = first["tool_calls"]
    assert json.loads(call["function"]["arguments"])["label"] == "human"
    result = {"role": "tool", "tool_call_id": call["id"], "content": "Error: it is not there."}
    second = Chat(vendors, "groq", messages=[*asked, first, result], tools=tools).answer()["choices"][0]["message"]
    assert second["tool_calls"][0]["function"] == call["function"]
    assert last(vendors, "groq").fault == "stuck"
    assert Chat(vendors, "groq", messages=asked).answer()["choices"][0]["message"]["content"] == "hello"


def test_endless_answer_ends_when_the_faults_are_switched_off(vendors: PracticeVendors) -> None:
    """So a test leaves nothing behind."""
    vendors.fault("longcat", endless=True, between=0.001)
    chat = Chat(vendors, "longcat", stream=True)
    with httpx2.stream("POST", chat.url, headers=chat.headers, json=chat.body, timeout=_PATIENCE) as response:
        lines = response.iter_lines()
        for _ in range(20):
            next(lines)
        request = last(vendors, "longcat")
        assert request.generated > 0
        assert request.ended is None
        vendors.clear()
        assert [line for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_generation_stops_when_the_client_is_gone(vendors: PracticeVendors, stream: bool) -> None:
    """The count grows while the client waits; after it has disconnected there is no token more."""
    vendors.fault("cerebras", endless=True, between=0.001)
    chat = Chat(vendors, "cerebras", stream=stream)
    with httpx2.Client() as client:
        if stream:
            request = client.build_request("POST", chat.url, headers=chat.headers, json=chat.body)
            client.send(request, stream=True)
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.post(chat.url, headers=chat.headers, json=chat.body, timeout=0.2)
        wait_until(lambda: last(vendors, "cerebras").generated > 10)
    wait_until(lambda: last(vendors, "cerebras").ended is not None)
    ended = last(vendors, "cerebras")
    assert ended.ended == "disconnected"
    assert ended.last_token is not None
    assert ended.ended_after is not None
    assert ended.last_token <= ended.ended_after
    # Another endless answer at the same pace is far along before the first one is looked at again.
    with httpx2.stream("POST", chat.url, headers=chat.headers, json=chat.body | {"stream": True}):
        wait_until(lambda: last(vendors, "cerebras").generated > 50)
    assert vendors.requests("cerebras")[0] == ended


def test_slow_answer_that_nobody_waits_for(vendors: PracticeVendors) -> None:
    """A client that leaves before the answer begins is noticed as well."""
    vendors.fault("mistral", latency=3600)
    chat = Chat(vendors, "mistral")
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(chat.url, headers=chat.headers, json=chat.body, timeout=0.2)
    wait_until(lambda: vendors.requests("mistral")[-1].ended is not None)
    assert (last(vendors, "mistral").ended, last(vendors, "mistral").generated) == ("disconnected", 0)


def test_faults_that_break_an_answer(vendors: PracticeVendors) -> None:
    """An answer that the vendor itself breaks off is neither completed nor left by the client."""
    vendors.fault("groq", truncated=True)
    with pytest.raises(httpx2.RemoteProtocolError):
        Chat(vendors, "groq").events()
    assert last(vendors, "groq").ended == "broken"
