"""Adapted requests at practice vendors in strict mode: each rule, and a conversation that moves between vendors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from isabella.config.api_keys import NO_KEY
from isabella.config.vendors import known_vendors
from isabella.gateway.adapting import NO_RESULT, RECEIVED, adapt_request
from isabella.gateway.answers import AnswerReader, ReasoningMemory
from isabella.gateway.limits import RateLimits, parse_limits
from isabella.gateway.refusals import Refusal, adapt_refusal
from isabella.practice import NAMES, PracticeVendors
from tests.support.further_vendors import FURTHER, PROFILES

VENDORS = {vendor.name: vendor for vendor in known_vendors()}
NOW = 1_800_000_000.0
SYSTEM = {
    "role": "system",
    "content": "You are an agent.\n<memory_blocks>\n<human>\n<description>\nThe user.\n</description>\n<metadata>\n"
    "- chars_current=0\n- chars_limit=5000\n</metadata>\n<value>\n\n</value>\n</human>\n</memory_blocks>",
}
TEXT = {"type": "string"}
INSERT = {
    "type": "function",
    "function": {
        "name": "memory_insert",
        "description": "Insert a text.",
        "parameters": {
            "type": "object",
            "properties": {"label": TEXT, "new_string": TEXT},
            "required": ["label", "new_string"],
        },
        "strict": False,
    },
}
HELLO = {"role": "user", "content": "Hello."}


@pytest.fixture(scope="module")
def practice() -> Iterator[PracticeVendors]:
    """Practice vendors that refuse all that the real ones are known to refuse."""
    with PracticeVendors() as running:
        for name in NAMES:
            running.strict(name)
        yield running


def letta_body(vendor: str, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """A request as Letta's plain client sends it."""
    return {
        "model": model_of(vendor),
        "messages": messages,
        "max_completion_tokens": None,
        "temperature": 1.0,
        "user": "",
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [INSERT],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        **fields,
    }


def least_body(vendor: str, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """A request that differs from what the vendor accepts by nothing else."""
    return {"model": model_of(vendor), "messages": messages, **fields}


def model_of(vendor: str) -> str:
    """The vendor's default model; of a server of one's own, the first that it lists."""
    return VENDORS[vendor].default_model or PROFILES[vendor].listed[0].id


def send(practice: PracticeVendors, vendor: str, body: dict[str, Any]) -> httpx2.Response:
    """Send a request to a vendor."""
    key = NO_KEY if VENDORS[vendor].key_optional else practice.key(vendor).get_secret_value()
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(practice.base_url(vendor) + "/chat/completions", headers=headers, json=body, timeout=20)


def refused(practice: PracticeVendors, vendor: str, body: dict[str, Any]) -> Refusal:
    """The adapted refusal of a request."""
    response = send(practice, vendor, body)
    return adapt_refusal(response.status_code, response.headers, response.content, VENDORS[vendor].quirks, now=NOW)


def call(id: str, **fields: Any) -> dict[str, Any]:
    """An assistant message with a tool call."""
    function = {"name": "memory_insert", "arguments": '{"label": "human", "new_string": "It rains."}'}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": id, "type": "function", "function": function}],
        **fields,
    }


def result(id: str) -> dict[str, Any]:
    """A tool's result."""
    return {"role": "tool", "tool_call_id": id, "content": "Done."}


ANSWER = {"role": "assistant", "content": "I will."}
RULES: list[tuple[str, list[dict[str, Any]], dict[str, Any], str]] = [
    ("mistral", [HELLO], {"user": "user-1"}, '"user"'),
    ("mistral", [HELLO], {"user": ""}, '"user"'),
    ("mistral", [HELLO], {"stream": True, "stream_options": {"include_usage": True}}, "stream_options"),
    ("mistral", [HELLO], {"max_completion_tokens": 100}, "max_completion_tokens"),
    ("mistral", [HELLO], {"seed": 1}, "seed"),
    ("mistral", [HELLO | {"name": "ada"}], {}, "name"),
    ("mistral", [HELLO, ANSWER | {"reasoning_content": "Hm."}, HELLO], {}, "reasoning_content"),
    ("mistral", [HELLO, call("call_1"), result("call_1")], {}, "3280"),
    ("mistral", [HELLO, call("Abc123xyZ"), result("Abc123xyZ"), HELLO], {}, "after role 'tool'"),
    ("mistral", [HELLO, call("Abc123xyZ"), HELLO], {}, "number of function calls"),
    ("mistral", [HELLO, call("Abc123xyZ")], {}, "last role"),
    ("mistral", [HELLO, result("Abc123xyZ"), ANSWER, HELLO], {}, "number of function calls"),
    ("mistral", [HELLO, {"role": "assistant", "content": ""}, HELLO], {}, "either content or tool_calls"),
    ("mistral", [HELLO, ANSWER], {}, "last role"),
    ("cerebras", [HELLO, ANSWER | {"reasoning_content": "Hm."}, HELLO], {}, "reasoning_content"),
    ("cerebras", [HELLO], {"frequency_penalty": 0.5}, "frequency_penalty"),
    ("groq", [HELLO, ANSWER | {"reasoning_content": "Hm."}, HELLO], {}, "reasoning_content"),
    ("groq", [HELLO | {"name": "ada"}], {}, "name"),
    ("groq", [HELLO], {"logprobs": True, "top_logprobs": 2}, "logprobs"),
    ("longcat", [HELLO, call("call_1"), result("call_1")], {}, "reasoning_content is missing"),
    ("longcat", [HELLO], {"reasoning_effort": "low"}, "reasoning_effort"),
]


@pytest.mark.parametrize(("vendor", "messages", "fields", "objection"), RULES)
def test_a_vendor_refuses_without_a_rule_and_answers_with_it(
    practice: PracticeVendors, vendor: str, messages: list[dict[str, Any]], fields: dict[str, Any], objection: str
) -> None:
    """Each body differs from what the vendor accepts by one thing."""
    body = least_body(vendor, messages, **fields)
    refusal = refused(practice, vendor, body)
    assert refusal.status in (400, 422)
    assert objection in refusal.body.decode()
    adapted = adapt_request(body, VENDORS[vendor].quirks, ReasoningMemory(), provider=vendor)
    assert send(practice, vendor, adapted).status_code == 200


@pytest.mark.parametrize("vendor", NAMES)
def test_a_vendor_tells_its_limits(practice: PracticeVendors, vendor: str) -> None:
    """In the headers of every answer; LongCat tells none."""
    response = send(practice, vendor, least_body(vendor, [HELLO]))
    limits = parse_limits(response.headers, now=NOW, request_period=VENDORS[vendor].quirks.request_limit_period)
    if vendor == "longcat":
        assert limits == RateLimits()
        return
    tokens, requests = limits.tokens_minute, limits.requests_day or limits.requests_minute
    assert tokens is not None
    assert requests is not None
    assert None not in (tokens.limit, tokens.remaining, requests.limit, requests.remaining)
    assert (limits.requests_day is None) == (vendor == "mistral")


def test_a_request_larger_than_groqs_minute_is_a_rate_limit(practice: PracticeVendors) -> None:
    """It would never pass; one that would pass later says when."""
    practice.limit("groq", tokens=200)
    try:
        large = refused(practice, "groq", least_body("groq", [HELLO | {"content": "long " * 500}]))
        assert (large.status, large.never_fits) == (429, 200)
        assert large.headers["retry-after"] == "60"
        assert json.loads(large.body)["error"]["code"] == "rate_limit_exceeded"
        fits = least_body("groq", [HELLO | {"content": "long " * 40}])
        answers = [send(practice, "groq", fits) for _ in range(20)]
        (first, *_) = [answer for answer in answers if answer.status_code == 429]
        later = adapt_refusal(429, first.headers, first.content, VENDORS["groq"].quirks, now=NOW)
        assert (later.status, later.never_fits) == (429, None)
        assert later.retry_after is not None
        assert 0 < later.retry_after <= 60
    finally:
        practice.clear("groq")


@pytest.mark.parametrize("vendor", NAMES)
def test_an_overflow_of_each_vendor_is_one_for_letta(practice: PracticeVendors, vendor: str) -> None:
    """Groq does not tell its window."""
    # The practice vendors have the larger windows of paid plans, and count four characters as a token.
    huge = HELLO | {"content": "word " * max(VENDORS[vendor].default_window, 131_072)}
    refusal = refused(practice, vendor, least_body(vendor, [huge]))
    assert refusal.status == 400
    assert json.loads(refusal.body)["error"]["code"] == "context_length_exceeded"
    assert (refusal.window is None) == (vendor == "groq")


class Conversation:
    """A conversation as Letta keeps it, with vendors that change."""

    def __init__(self, practice: PracticeVendors, *, adapts: bool = True) -> None:
        self.practice = practice
        self.history: list[dict[str, Any]] = [SYSTEM]
        self.sent: dict[str, Any] = {}
        self._memory = ReasoningMemory()
        self._adapts = adapts

    def ask(self, vendor: str, text: str, *, steps: int = 9) -> str:
        """Say something to the agent on a vendor, and run its tools; after so many steps the turn is stopped.

        Returns:
            The answer; empty if the turn was stopped.
        """
        self.history.append({"role": "user", "content": text})
        for _ in range(steps):
            message = self._step(vendor)
            self.history.append(message)
            if not message.get("tool_calls"):
                return str(message["content"])
            self.history += [result(called["id"]) for called in message["tool_calls"]]
        return ""

    def _step(self, vendor: str) -> dict[str, Any]:
        body = letta_body(vendor, self.history)
        if self._adapts:
            body = adapt_request(body, VENDORS[vendor].quirks, self._memory, provider=vendor)
        self.sent = body
        response = send(self.practice, vendor, body)
        if response.status_code != 200:
            raise AssertionError(f"{vendor}: {response.text}")
        reader = AnswerReader(keep_reasoning=VENDORS[vendor].quirks.reasoning_required)
        reader.feed(response.content)
        reader.close()
        assert reader.finish_reason in ("stop", "tool_calls", "eos")
        assert reader.prompt_tokens
        assert reader.completion_tokens
        self._memory.remember(vendor, body, reader.spoken)
        return as_stored(response.text)


def as_stored(stream: str) -> dict[str, Any]:
    """The message that Letta's plain client makes of a stream, as it is sent again later."""
    text, reasoning = "", ""
    functions: dict[int, dict[str, Any]] = {}
    for line in stream.splitlines():
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            delta = choice["delta"]
            content = delta.get("content")
            text += content if isinstance(content, str) else ""
            reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
            for piece in delta.get("tool_calls") or ():
                # Letta cuts ids to 29 characters.
                begun = functions.setdefault(
                    # Letta takes a call without a number for the first one.
                    piece.get("index", 0),
                    {"id": piece.get("id", "")[:29], "type": "function", "function": {"name": "", "arguments": ""}},
                )["function"]
                for name in begun:
                    begun[name] += piece["function"].get(name) or ""
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if functions:
        message["tool_calls"] = list(functions.values())
    if text and reasoning:
        # The reasoning of a message with nothing else beside its calls is not sent again.
        message["reasoning_content"] = reasoning
    return message


def test_a_conversation_goes_from_vendor_to_vendor(practice: PracticeVendors) -> None:
    """With tool calls at each of them, and turns that were stopped behind a call and behind a result."""
    conversation = Conversation(practice)
    assert conversation.ask("cerebras", "Remember that my dog is called Rex.")
    assert conversation.ask("longcat", "Remember that I live in Oslo.")
    # The calls of Cerebras have no reasoning that LongCat could get.
    assert conversation.sent["thinking"] == {"type": "disabled"}
    assert conversation.ask("mistral", "Remember that I play chess.", steps=1) == ""
    assert conversation.history[-1]["role"] == "tool"
    assert conversation.ask("groq", "Hello.")
    assert conversation.ask("mistral", "Remember that I like tea.")
    # A turn that was stopped while its tool ran.
    assert conversation.ask("groq", "Remember that I have two cats.", steps=1) == ""
    conversation.history.pop()
    assert conversation.ask("mistral", "Hello again.")
    assert conversation.ask("longcat", "Remember that I study law.")
    assert conversation.ask("cerebras", "Hello.")

    # Nothing that was said is left out.
    assert conversation.ask("mistral", "Hello at last.")
    sent = conversation.sent["messages"]
    added = [message["content"] for message in sent if message["content"] in (RECEIVED, NO_RESULT)]
    assert added == [RECEIVED, NO_RESULT, RECEIVED]
    said = [message["content"] for message in sent if message["role"] != "tool" and message["content"] != RECEIVED]
    history = conversation.history[:-1]
    assert said == [message["content"] for message in history if message["role"] != "tool"]
    results = [
        message["content"] for message in sent if message["role"] == "tool" and message["content"] != NO_RESULT
    ]
    assert results == [message["content"] for message in history if message["role"] == "tool"]


def test_longcat_goes_on_thinking_with_its_own_calls(practice: PracticeVendors) -> None:
    """Its reasoning comes back with each of its calls, so nothing has to be switched off."""
    conversation = Conversation(practice)
    for fact in ("my dog is called Rex", "I live in Oslo", "I play chess"):
        assert conversation.ask("longcat", f"Remember that {fact}.")
    assert "thinking" not in conversation.sent
    called = [message for message in conversation.sent["messages"] if message.get("tool_calls")]
    assert len(called) == 3
    assert all(message["reasoning_content"] for message in called)


def test_the_same_conversation_without_adapting_is_refused(practice: PracticeVendors) -> None:
    """At the second step of the first tool call, or at once."""
    for vendor in ("mistral", "longcat"):
        with pytest.raises(AssertionError, match=vendor):
            Conversation(practice, adapts=False).ask(vendor, "Remember that my dog is called Rex.")
    conversation = Conversation(practice, adapts=False)
    assert conversation.ask("cerebras", "Remember that my dog is called Rex.")
    with pytest.raises(AssertionError, match=r"cerebras: .*reasoning_content"):
        conversation.ask("cerebras", "Hello.")


# --- the further vendors of the catalog -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def further() -> Iterator[PracticeVendors]:
    """Practice vendors that refuse all that these vendors are publicly known to refuse."""
    with PracticeVendors(vendors=FURTHER) as running:
        for name in FURTHER:
            running.strict(name)
        yield running


@pytest.mark.parametrize("vendor", FURTHER)
def test_a_further_vendor_remembers(further: PracticeVendors, vendor: str) -> None:
    """Tool calls of its own, and the calls and the reasoning of a vendor that answered before."""
    conversation = Conversation(further)
    assert conversation.ask(vendor, "Remember that my dog is called Rex.")
    empty = {"role": "assistant", "content": None}
    conversation.history[2:2] = [
        *(call("Abc123xyZ"), result("Abc123xyZ"), ANSWER | {"reasoning_content": "Hm."}, HELLO, empty, HELLO)
    ]
    assert conversation.ask(vendor, "Remember that I live in Oslo.")
    assert conversation.ask(vendor, "Hello.")
    huge = HELLO | {"content": "word " * max(model.window for model in FURTHER[vendor].listed)}
    refusal = refused(further, vendor, least_body(vendor, [huge]))
    assert json.loads(refusal.body)["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("vendor", FURTHER)
def test_a_further_vendor_tells_its_limits(further: PracticeVendors, vendor: str) -> None:
    """In the headers of its answers, if it has any; a request too many is one for Letta, with the time to wait."""
    body = least_body(vendor, [HELLO], **FURTHER[vendor].refuses.get("with_tools", {}))
    further.limit(vendor, requests=1)
    try:
        limits = parse_limits(send(further, vendor, body).headers, now=NOW)
        response = send(further, vendor, body)
    finally:
        further.clear(vendor)
    if FURTHER[vendor].limit_headers:
        requests, tokens = limits.requests_minute, limits.tokens_minute
        assert requests is not None
        assert (requests.limit, requests.remaining) == (1, 0)
        assert vendor == "together" or (tokens is not None and tokens.limit == 500_000)
    refusal = adapt_refusal(429, response.headers, response.content, VENDORS[vendor].quirks, now=NOW)
    assert (response.status_code, refusal.status) == (429, 429)
    assert (refusal.retry_after is not None) == (vendor in ("openai", "openrouter", "together", "gemini"))


#: Those that refuse some of what Letta sends; the others leave out what they do not know.
REFUSING = [name for name in FURTHER if name not in ("openrouter", "ollama", "vllm")]


@pytest.mark.parametrize("vendor", REFUSING)
def test_a_further_vendor_refuses_what_is_not_adapted(further: PracticeVendors, vendor: str) -> None:
    """Its quirks are needed: Letta's own request fails, at once or at the step after the first tool call."""
    fields: dict[str, Any] = {"frequency_penalty": 0.5, "store": False, "max_completion_tokens": 100}
    if vendor == "lm-studio":
        fields["tool_choice"] = {"type": "function", "function": {"name": "memory_insert"}}
    body = letta_body(vendor, [SYSTEM, HELLO, call("call_1"), result("call_1")], **fields)
    assert refused(further, vendor, body).status == 400
    adapted = adapt_request(body, VENDORS[vendor].quirks, ReasoningMemory(), provider=vendor)
    assert send(further, vendor, adapted).status_code == 200


@pytest.mark.parametrize("vendor", PROFILES)
def test_a_limit_of_output_tokens_ends_every_model(
    further: PracticeVendors, practice: PracticeVendors, vendor: str
) -> None:
    """It arrives by the name that the vendor knows: Ollama and LM Studio know only `max_tokens`."""
    running = further if vendor in FURTHER else practice
    body = letta_body(vendor, [SYSTEM, HELLO], stream=False, max_completion_tokens=3)
    adapted = adapt_request(body, VENDORS[vendor].quirks, ReasoningMemory(), provider=vendor)
    answered = send(running, vendor, adapted).json()
    assert answered["usage"]["completion_tokens"] == 3
