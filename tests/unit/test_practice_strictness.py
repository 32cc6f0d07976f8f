"""What the practice vendors refuse as the real ones do: what is certain, and in strict mode all that is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx2
import pytest
from mistralai.client import models as mistral_models

from isabella.practice import PracticeVendors, strictness
from isabella.practice.wire import profile
from tests.support.practice_models import MODELS

ANSWER = {"role": "assistant", "content": "I will."}


@pytest.fixture(scope="module")
def vendors() -> Iterator[PracticeVendors]:
    """Practice vendors for all tests of the module."""
    with PracticeVendors() as running:
        yield running


@pytest.fixture(autouse=True)
def _by_default(vendors: PracticeVendors) -> Iterator[None]:
    vendors.forget()
    yield
    for vendor in MODELS:
        vendors.strict(vendor, None)


def chat(vendors: PracticeVendors, vendor: str, **fields: Any) -> httpx2.Response:
    """Say something to a vendor's first model."""
    body = {"model": MODELS[vendor], "messages": [{"role": "user", "content": "Hello"}]} | fields
    headers = {"Authorization": f"Bearer {vendors.key(vendor).get_secret_value()}"}
    return httpx2.post(vendors.base_url(vendor) + "/chat/completions", headers=headers, json=body, timeout=10)


def conversation(call_id: str, *between: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """A tool call with its result, something after it, and the next message; `fields` are added to the call."""
    function = {"name": "memory_insert", "arguments": "{}"}
    calls = [{"id": call_id, "type": "function", "function": function}]
    return [
        {"role": "user", "content": "Remember that it rains."},
        {"role": "assistant", "content": "", "tool_calls": calls, **fields},
        {"role": "tool", "tool_call_id": call_id, "content": "Done."},
        *between,
        {"role": "user", "content": "Hello"},
    ]


@pytest.mark.parametrize(
    ("vendor", "fields", "status", "noted"),
    [
        ("mistral", {"max_completion_tokens": 9}, 422, "body.max_completion_tokens: Extra inputs are not permitted"),
        ("mistral", {"user": ""}, 422, "body.user: Extra inputs are not permitted"),
        ("mistral", {"stream_options": None}, 422, "body.stream_options: Extra inputs are not permitted"),
        ("mistral", {"store": False}, 422, "body.store: Extra inputs are not permitted"),
        (
            "mistral",
            {"messages": [{"role": "user", "content": "Hello", "name": "Ada"}]},
            422,
            "body.messages.0.user.name: Extra inputs are not permitted",
        ),
        (
            "mistral",
            {"messages": conversation("abcDEF123", ANSWER, reasoning_content="hm")},
            422,
            "body.messages.1.assistant.reasoning_content: Extra inputs are not permitted",
        ),
        ("cerebras", {"store": False}, 400, "store: property 'store' is unsupported"),
        (
            "cerebras",
            {"frequency_penalty": 0.5},
            400,
            "frequency_penalty: property 'frequency_penalty' is unsupported",
        ),
        ("cerebras", {"logit_bias": {"1": 2}}, 400, "logit_bias: property 'logit_bias' is unsupported"),
        (
            "cerebras",
            {"messages": conversation("abcDEF123", ANSWER, reasoning_content="hm")},
            400,
            "messages.1.assistant.reasoning_content: "
            "property 'messages.1.assistant.reasoning_content' is unsupported",
        ),
        ("groq", {"logprobs": True}, 400, "property 'logprobs' is unsupported"),
        ("groq", {"top_logprobs": 2}, 400, "property 'top_logprobs' is unsupported"),
        ("groq", {"logit_bias": {"1": 2}}, 400, "property 'logit_bias' is unsupported"),
        ("groq", {"n": 2}, 400, "'n' : number must be at most 1"),
        (
            "groq",
            {"messages": [{"role": "user", "content": "Hello", "name": "Ada"}]},
            400,
            "'messages.0' : for 'role:user' the following must be satisfied"
            "[('messages.0' : property 'name' is unsupported)]",
        ),
        (
            "groq",
            {"model": "qwen/qwen3.6-27b", "max_completion_tokens": 20_000},
            400,
            "`max_completion_tokens` must be less than or equal to `16384`, the maximum value for "
            "`max_completion_tokens` is less than the `context_window` for this model",
        ),
        ("longcat", {"reasoning_effort": "high"}, 400, "Unsupported parameter: reasoning_effort"),
        (
            "longcat",
            {"messages": conversation("call_1", ANSWER)},
            400,
            "thinking is enabled but reasoning_content is missing in assistant tool call message at index 1",
        ),
    ],
)
def test_strict_vendors_refuse_what_the_real_ones_are_known_to(
    vendors: PracticeVendors, vendor: str, fields: dict[str, Any], status: int, noted: str
) -> None:
    """By default it is only noted in the log."""
    assert chat(vendors, vendor, **fields).status_code == 200
    vendors.strict(vendor)
    refused = chat(vendors, vendor, **fields)
    assert refused.status_code == status
    assert noted.split(": ")[-1] in refused.text
    assert chat(vendors, vendor).status_code == 200
    assert [request.strictness for request in vendors.requests(vendor)] == [noted, noted, None]


def test_mistral_names_all_foreign_fields_at_once(vendors: PracticeVendors) -> None:
    """The body is the one of its validator: where each is, and what was given there."""
    vendors.strict("mistral")
    told = chat(vendors, "mistral", user="", stream_options={"include_usage": True}).json()
    problem = {"type": "extra_forbidden", "msg": "Extra inputs are not permitted"}
    assert told["detail"] == [
        problem | {"loc": ["body", "user"], "input": ""},
        problem | {"loc": ["body", "stream_options"], "input": {"include_usage": True}},
    ]


def fields_of(model: Any) -> set[str]:
    """The names of the fields of a type of Mistral's SDK, as they are sent."""
    return {field.alias or name for name, field in model.model_fields.items()}


def test_mistral_takes_the_fields_of_its_own_sdk() -> None:
    """No field that the SDK sends is objected to."""
    request = dict.fromkeys(fields_of(mistral_models.ChatCompletionRequest))
    assert request.keys() == fields_of(mistral_models.ChatCompletionStreamRequest)
    messages: list[Mapping[str, Any]] = [
        dict.fromkeys(fields_of(model)) | {"role": role, "tool_call_id": "abcDEF123"}
        for role, model in (
            ("system", mistral_models.SystemMessage),
            ("user", mistral_models.UserMessage),
            ("assistant", mistral_models.AssistantMessage),
            ("tool", mistral_models.ToolMessage),
        )
    ]
    for message in messages[:-1]:
        del message["tool_call_id"]  # type: ignore[attr-defined]
    found = strictness.objections(profile("mistral"), request | {"messages": messages})
    assert [objection.text for objection in found if objection.problem is not None] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": conversation("call_1", ANSWER, reasoning_content="I should store that.")},
        {"messages": conversation("call_1", ANSWER, reasoning_content="")},
        {"messages": conversation("call_1", ANSWER), "thinking": {"type": "disabled"}},
        {"messages": [{"role": "user", "content": "Hi"}, ANSWER, {"role": "user", "content": "Hello"}]},
    ],
)
def test_strict_longcat_answers_with_reasoning_or_without_thinking(
    vendors: PracticeVendors, fields: dict[str, Any]
) -> None:
    """Only tool calls need their reasoning, which may be empty, and only while thinking is on."""
    vendors.strict("longcat")
    assert chat(vendors, "longcat", **fields).status_code == 200


@pytest.mark.parametrize(
    ("messages", "said", "type", "code"),
    [
        (
            conversation("call_81c2f1b5ab", ANSWER),
            "Tool call id was call_81c2f1b5ab but must be a-z, A-Z, 0-9, with a length of 9.",
            "invalid_function_call",
            "3280",
        ),
        (
            conversation("abcDEF123"),
            "Unexpected role 'user' after role 'tool'",
            "invalid_request_message_order",
            "3230",
        ),
    ],
)
def test_mistral_is_particular_about_tool_calls_unless_told_otherwise(
    vendors: PracticeVendors, messages: list[dict[str, Any]], said: str, type: str, code: str
) -> None:
    """Ids of another form, and a user's message behind a tool's result, are refused as many have reported it."""
    refused = chat(vendors, "mistral", messages=messages)
    assert refused.status_code == 400
    body = refused.json()
    assert (body["message"], body["type"], body["code"]) == (said, type, code)
    assert chat(vendors, "mistral", messages=conversation("abcDEF123", ANSWER)).status_code == 200
    assert chat(vendors, "groq", messages=messages).status_code == 200
    vendors.strict("mistral", False)
    assert chat(vendors, "mistral", messages=messages).status_code == 200
