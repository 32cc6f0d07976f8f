"""Requests on their way to a vendor: each rule by itself, and what holds for every request."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isabella.config.quirks import Quirks
from isabella.config.vendors import known_vendors
from isabella.gateway.adapting import CONTINUE, IMAGE, NO_RESULT, RECEIVED, adapt_request
from isabella.gateway.answers import AnswerReader, ReasoningMemory

QUIRKS = {vendor.name: vendor.quirks for vendor in known_vendors()}
NONE = Quirks()
SYSTEM = {"role": "system", "content": "You remember."}
#: A call that Mistral accepts, and one that it does not.
SHORT, LONG = "Abc123xyZ", "call_0fypS1hVX"


def user(text: str = "Hello.") -> dict[str, Any]:
    """A user message."""
    return {"role": "user", "content": text}


def says(text: str | None) -> dict[str, Any]:
    """An assistant message without tool calls."""
    return {"role": "assistant", "content": text}


def calls(*ids: str, **fields: Any) -> dict[str, Any]:
    """An assistant message with these tool calls."""
    functions = [{"id": id, "type": "function", "function": {"name": "look", "arguments": "{}"}} for id in ids]
    return {"role": "assistant", "content": None, "tool_calls": functions, **fields}


def result(id: str, text: str = "found") -> dict[str, Any]:
    """A tool's result."""
    return {"role": "tool", "tool_call_id": id, "content": text}


def adapt(quirks: Quirks, *messages: Any, memory: ReasoningMemory | None = None, **fields: Any) -> dict[str, Any]:
    """The adapted body of a request with these messages."""
    body = {"model": "m", "messages": list(messages), **fields}
    return adapt_request(body, quirks, memory or ReasoningMemory(), provider="p")


def remembered(provider: str, request: dict[str, Any], *events: dict[str, Any]) -> ReasoningMemory:
    """A memory that has read one streamed answer."""
    memory, reader = ReasoningMemory(), AnswerReader(keep_reasoning=True)
    for delta in events:
        reader.feed(b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n")
    reader.close()
    memory.remember(provider, request, reader.spoken)
    return memory


# Histories as Letta keeps them, and broken ones.
IDS = st.sampled_from([SHORT, LONG, "call_0", "call_0_", "fc_é", "", "x" * 29, "aaaaaaaaa", "Ａ23456789"]) | st.text(
    max_size=40
)
MESSAGES = st.one_of(
    st.builds(user, st.text(max_size=5)),
    st.builds(says, st.none() | st.text(max_size=5)),
    st.lists(IDS, min_size=1, max_size=3).map(lambda ids: calls(*ids)),
    st.builds(result, IDS, st.text(max_size=5)),
    st.builds(calls, IDS, reasoning_content=st.text(min_size=1, max_size=3), name=st.just("Ada")),
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(MESSAGES, max_size=12)},
    optional={
        "user": st.sampled_from(["", "someone"]),
        "max_completion_tokens": st.none() | st.integers(1, 10**6),
        "max_tokens": st.integers(1, 10**6),
        "stream_options": st.just({"include_usage": True}),
        "logprobs": st.booleans(),
        "thinking": st.just({"type": "enabled"}),
    },
)
ANY_QUIRKS = st.sampled_from(
    [
        *QUIRKS.values(),
        Quirks(tool_call_id_length=9),
        Quirks(paired_results=True, tool_call_id_length=12, reasoning_required=True),
    ]
)


@given(BODIES, ANY_QUIRKS)
def test_an_adapted_request_stays_as_it_is(body: dict[str, Any], quirks: Quirks) -> None:
    """Adapting twice is adapting once, and the body that was given is not changed."""
    memory, before = ReasoningMemory(), copy.deepcopy(body)
    once = adapt_request(body, quirks, memory, provider="p")
    assert body == before
    assert adapt_request(once, quirks, memory, provider="p") == once


@given(BODIES)
def test_a_vendor_without_quirks_gets_what_letta_sent(body: dict[str, Any]) -> None:
    """Only an empty `user` is left out."""
    body = body | {"user": body.get("user") or "someone"}
    assert adapt_request(body, NONE, ReasoningMemory(), provider="p") == body
    without = {name: value for name, value in body.items() if name != "user"}
    assert adapt_request(body | {"user": ""}, NONE, ReasoningMemory(), provider="p") == without


@given(BODIES)
def test_what_mistral_gets_is_in_the_order_and_form_that_it_accepts(body: dict[str, Any]) -> None:
    """The rules of Mistral's own validator hold for every history."""
    messages = adapt_request(body, QUIRKS["mistral"], ReasoningMemory(), provider="p")["messages"]
    waiting: list[str] = []
    previous = ""
    for message in messages:
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
        else:
            assert not waiting
            assert (previous, message["role"]) != ("tool", "user")
            waiting = [call["id"] for call in message.get("tool_calls", ())]
        if message["role"] == "assistant":
            assert message["content"] or waiting
        assert all(re.fullmatch("[a-zA-Z0-9]{9}", id) for id in waiting)
        previous = message["role"]
    assert not waiting
    assert previous != "assistant"


@given(st.lists(IDS, max_size=30), st.integers(8, 12))
def test_ids_stay_apart_and_valid_ones_stay_as_they_are(ids: list[str], length: int) -> None:
    """Distinct ids stay distinct, equal ones equal; call and result match."""
    history = [message for id in ids for message in (calls(id), result(id))]
    adapted = adapt(Quirks(tool_call_id_length=length), *history)["messages"]
    made = [message["tool_calls"][0]["id"] for message in adapted[::2]]
    assert made == [message["tool_call_id"] for message in adapted[1::2]]
    assert len(set(zip(ids, made, strict=True))) == len(set(ids)) == len(set(made))
    assert all(re.fullmatch(rf"[a-zA-Z0-9]{{{length}}}", id) for id in made)
    assert all(
        new == old for old, new in zip(ids, made, strict=True) if re.fullmatch(rf"[a-zA-Z0-9]{{{length}}}", old)
    )


def test_an_id_is_always_replaced_by_the_same_one() -> None:
    """A history that grows keeps its ids, so a vendor's cache of prompts holds."""
    first = adapt(QUIRKS["mistral"], user(), calls(LONG), result(LONG))["messages"]
    later = adapt(QUIRKS["mistral"], user(), calls(LONG), result(LONG), says("Yes."), user(), calls("b"), result("b"))
    assert later["messages"][:3] == first


def test_an_id_that_looks_like_a_replacement_is_not_taken_twice() -> None:
    """A valid id that equals what another would become keeps it."""
    (made,) = {
        call["id"] for call in adapt(QUIRKS["mistral"], calls(LONG), result(LONG))["messages"][0]["tool_calls"]
    }
    adapted = adapt(QUIRKS["mistral"], calls(LONG, made), result(made, "second"), result(LONG, "first"))["messages"]
    first, second = (call["id"] for call in adapted[0]["tool_calls"])
    assert second == made != first
    assert {message["tool_call_id"]: message["content"] for message in adapted[1:]} == {
        first: "first",
        second: "second",
    }


def test_a_call_that_was_stopped_gets_a_result() -> None:
    """Each call without a result gets one that says so, before anything else is said."""
    messages = adapt(QUIRKS["groq"], user(), calls("a", "b"), result("b"), user("And now?"))["messages"]
    assert messages[2:] == [result("b"), result("a", NO_RESULT), user("And now?")]


def test_a_result_moves_behind_its_call() -> None:
    """A user message that came between is not taken for the end of the turn."""
    messages = adapt(QUIRKS["groq"], calls("a"), user("Wait."), result("a"))["messages"]
    assert messages == [calls("a"), result("a"), user("Wait.")]


def test_a_result_whose_call_was_summarised_away_is_left_out() -> None:
    """So is a second result of the same call."""
    messages = adapt(
        QUIRKS["groq"], SYSTEM, user("(a summary)"), result("gone"), calls("a"), result("a"), result("a")
    )
    assert messages["messages"] == [SYSTEM, user("(a summary)"), calls("a"), result("a")]


def test_an_id_that_is_used_again_belongs_to_the_latest_call() -> None:
    """Some servers count their calls anew in every answer."""
    history = [calls("call_0"), result("call_0", "1"), says("One."), user(), calls("call_0"), result("call_0", "2")]
    assert adapt(QUIRKS["groq"], *history)["messages"] == history
    stopped = [calls("call_0"), user(), calls("call_0"), result("call_0", "2")]
    assert adapt(QUIRKS["groq"], *stopped)["messages"][1] == result("call_0", NO_RESULT)


def test_mistral_gets_an_answer_between_a_result_and_a_user() -> None:
    """A turn that broke off behind a tool's result."""
    messages = adapt(QUIRKS["mistral"], user(), calls(SHORT), result(SHORT), user("Again."))["messages"]
    assert messages[3:] == [says(RECEIVED), user("Again.")]


def test_mistral_gets_no_empty_answer_and_a_user_last() -> None:
    """An answer that was stopped before its first word says nothing."""
    messages = adapt(QUIRKS["mistral"], user(), says(""), says(None), user("Again."), says("Yes."))["messages"]
    assert messages == [user(), user("Again."), says("Yes."), user(CONTINUE)]
    prefix = says("Yes") | {"prefix": True}
    assert adapt(QUIRKS["mistral"], user(), prefix)["messages"] == [user(), prefix]


def test_a_model_that_takes_no_images_gets_a_text() -> None:
    """The words stay, and a model that takes images gets them as they came."""
    content = [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "data:,"}}, "!"]
    request = {"model": "a", "messages": [{"role": "user", "content": content}, {"role": "user", "content": "Hi"}]}
    blind = adapt_request(request, Quirks(image_models=("b*",)), ReasoningMemory(), provider="x")
    assert blind["messages"][0]["content"] == f"Look:\n{IMAGE}\n!"
    assert blind["messages"][1]["content"] == "Hi"
    for quirks in (Quirks(), Quirks(image_models=("a*",))):
        assert adapt_request(request, quirks, ReasoningMemory(), provider="x") == request


def test_mistral_gets_only_what_is_in_its_schema() -> None:
    """Fields of its own name, and none that it does not know; contents of several parts pass."""
    seen = user() | {
        "name": "ada",
        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}],
    }
    body = adapt(
        QUIRKS["mistral"],
        seen,
        says("A cat.") | {"reasoning_content": "Fur.", "omitted_reasoning_content": True},
        user(),
        model="mistral-small-latest",
        user="user-1",
        max_completion_tokens=None,
        seed=3,
        stream_options={"include_usage": True},
    )
    assert body.keys() == {"model", "messages", "max_tokens", "random_seed"}
    assert (body["max_tokens"], body["random_seed"]) == (16_384, 3)
    assert body["messages"][:2] == [{"role": "user", "content": seen["content"]}, says("A cat.")]


@pytest.mark.parametrize(
    ("quirks", "asked", "sent"),
    [
        (NONE, {}, {}),
        (NONE, {"max_completion_tokens": None}, {"max_completion_tokens": None}),
        (NONE, {"max_tokens": 9}, {"max_tokens": 9}),
        (QUIRKS["longcat"], {}, {}),
        (QUIRKS["longcat"], {"max_completion_tokens": "many"}, {"max_tokens": "many"}),
        (QUIRKS["longcat"], {"max_completion_tokens": 10**6}, {"max_tokens": 131_072}),
        (QUIRKS["mistral"], {}, {"max_tokens": 16_384}),
        (QUIRKS["mistral"], {"max_completion_tokens": 50}, {"max_tokens": 50}),
        (QUIRKS["groq"], {}, {}),
    ],
)
def test_the_output_is_limited(quirks: Quirks, asked: dict[str, Any], sent: dict[str, Any]) -> None:
    """A limit that is too high is lowered; Groq and Cerebras, who reserve it from the minute's tokens, get none."""
    body = adapt_request({"model": "m", **asked}, quirks, ReasoningMemory(), provider="p")
    assert body == {"model": "m", **sent}


def test_longcat_gets_its_reasoning_back() -> None:
    """By the id of the call, cut as Letta cuts it, and for a text by the message before it."""
    request = {"messages": [user("Where?")]}
    called = {"tool_calls": [{"index": 0, "id": "call_" + "7" * 32, "function": {"name": "look", "arguments": ""}}]}
    memory = remembered("p", request, {"reasoning_content": "I must "}, {"reasoning_content": "look."}, called)
    history = [user("Where?"), calls("call_" + "7" * 24), result("call_" + "7" * 24)]
    body = adapt(QUIRKS["longcat"], *history, memory=memory)
    assert body["messages"] == [history[0], history[1] | {"reasoning_content": "I must look."}, history[2]]
    assert "thinking" not in body

    memory = remembered("p", request, {"reasoning_content": "Easy."}, {"content": "In "}, {"content": "Rome. "})
    told = says("In Rome.")
    assert adapt(QUIRKS["longcat"], user("Where?"), told, user(), memory=memory)["messages"][1] == (
        told | {"reasoning_content": "Easy."}
    )
    assert adapt(QUIRKS["longcat"], user("Who?"), told, user(), memory=memory)["messages"][1] == told


def test_longcat_does_not_think_when_its_reasoning_is_not_known() -> None:
    """After a restart of the gateway, or a tool call of another vendor."""
    request = {"messages": [user()]}
    called = {"tool_calls": [{"id": "a", "function": {"name": "look"}}]}
    memory = remembered("another", request, {"reasoning_content": "Hm."}, called)
    history = [user(), calls("a"), result("a")]
    body = adapt(QUIRKS["longcat"], *history, memory=memory, thinking={"type": "enabled"})
    assert body == {"model": "m", "messages": history, "thinking": {"type": "disabled"}}
    own = calls("a", reasoning_content="Sent by Letta.")
    assert adapt(QUIRKS["longcat"], user(), own, result("a"))["messages"][1] == own


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "Hello.",
        ["Hello."],
        [{"role": "tool", "content": "no id"}],
        [{"role": "tool", "tool_call_id": 7, "content": "x"}],
        [{"role": "assistant", "tool_calls": "look"}],
        [{"role": "assistant", "tool_calls": [{"function": {}}]}],
        [{"role": "assistant", "tool_calls": [{"id": ["a"]}]}, user()],
    ],
)
@pytest.mark.parametrize("name", QUIRKS)
def test_odd_messages_are_left_to_the_vendor(name: str, messages: object) -> None:
    """What is not understood passes as it is."""
    body = adapt_request({"model": "m", "messages": messages}, QUIRKS[name], ReasoningMemory(), provider="p")
    assert body["messages"] == messages


@pytest.mark.parametrize(
    ("model", "tools", "effort"),
    [
        ("gpt-6-luna", [{"type": "function"}], "none"),
        ("gpt-5.6-sol", [{"type": "function"}], "none"),
        ("gpt-6-luna", [], None),
        ("gpt-4.1", [{"type": "function"}], None),
        ("o3", [{"type": "function"}], None),
        ("gpt-5", [{"type": "function"}], None),
    ],
)
def test_openai_answers_with_tools_without_an_effort_only(model: str, tools: list[Any], effort: str | None) -> None:
    """The newer models refuse tools on this route unless the effort is `none`, and the older ones refuse `none`."""
    body = {"model": model, "messages": [user()], "tools": tools, "max_tokens": 9, "temperature": 0.7}
    adapted = adapt_request(body, QUIRKS["openai"], ReasoningMemory(), provider="p")
    assert adapted.get("reasoning_effort") == effort
    assert (adapted["max_completion_tokens"], "temperature" in adapted, "max_tokens" in adapted) == (9, False, False)


def test_gemini_gets_a_signature_for_each_tool_call_that_has_none() -> None:
    """Its own one is not replaced, and messages without calls are as they were."""
    own = {"google": {"thought_signature": "abc"}}
    signed = calls("one", "two")
    signed["tool_calls"][0]["extra_content"] = own
    messages = adapt(QUIRKS["gemini"], user(), signed, result("one"), result("two"), user("store"), store=True)
    first, second = messages["messages"][1]["tool_calls"]
    assert first["extra_content"] == own
    assert second["extra_content"] == {"google": {"thought_signature": "skip_thought_signature_validator"}}
    assert messages["messages"][0] == user()
    assert "store" not in messages


@pytest.mark.parametrize("choice", ["auto", "required", None, {"function": {}}, {"type": "function"}])
def test_a_choice_that_names_no_tool_stays(choice: object) -> None:
    """LM Studio takes texts, and refuses by itself what is malformed."""
    tools = [{"type": "function", "function": {"name": name}} for name in ("look", "ask")]
    adapted = adapt(QUIRKS["lm-studio"], user(), tools=tools, tool_choice=choice)
    assert (adapted["tools"], adapted["tool_choice"]) == (tools, choice)


def test_a_named_tool_is_the_only_one_for_lm_studio() -> None:
    """It refuses a choice that names a tool: any tool is required, of that one."""
    tools = [{"type": "function", "function": {"name": name}} for name in ("look", "ask")]
    choice = {"type": "function", "function": {"name": "ask"}}
    adapted = adapt(QUIRKS["lm-studio"], user(), tools=tools, tool_choice=choice)
    assert (adapted["tools"], adapted["tool_choice"]) == (tools[1:], "required")
    assert adapt(QUIRKS["vllm"], user(), tools=tools, tool_choice=choice)["tool_choice"] == choice


@pytest.mark.parametrize(
    ("vendor", "refused"),
    [
        ("openai", {"presence_penalty", "temperature"}),
        ("deepseek", {"tool_choice", "max_completion_tokens"}),
        ("together", {"max_completion_tokens", "parallel_tool_calls"}),
        ("fireworks", {"max_completion_tokens", "store"}),
        ("xai", {"frequency_penalty", "presence_penalty", "stop", "reasoning_effort"}),
        ("gemini", {"frequency_penalty", "presence_penalty", "store", "parallel_tool_calls", "user"}),
    ],
)
def test_the_catalog_s_vendors_get_no_field_that_they_refuse(vendor: str, refused: set[str]) -> None:
    """A request with everything that Letta may send: what the vendor refuses is gone, the conversation is not."""
    fields: dict[str, Any] = {
        "temperature": 0.7,
        "max_completion_tokens": 9,
        "frequency_penalty": 1.0,
        "presence_penalty": 1.0,
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "stop": ["x"],
        "store": True,
        "tool_choice": "required",
        "tools": [{"type": "function", "function": {"name": "look"}}],
        "user": "",
        "stream": True,
    }
    adapted = adapt(QUIRKS[vendor], user(), calls(LONG), result(LONG), user("again"), **fields)
    assert not refused & set(adapted)
    assert adapted["tools"] == fields["tools"]
    assert [message["role"] for message in adapted["messages"]] == ["user", "assistant", "tool", "user"]
