"""The form of an answer that a client of the OpenAI format asks for, and what is no conversation."""

from __future__ import annotations

import time
from typing import Any

import pytest

from isabella.server.api.openai.asides import is_task
from isabella.server.api.openai.errors import FormatNotMet, Unsupported
from isabella.server.api.openai.formats import JsonFormat, Pieces, json_format
from isabella.server.api.openai.messages import ChatMessage, refuse_forced_tool

DOG = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Rex"}',
        ' {"name": "Rex"}\n',
        'Here it is:\n```json\n{"name": "Rex"}\n```\nAnything else?',
        'I think [1] that {"name": "Rex"} is right {see above}.',
        '{"nom": 1} or {"name": "Rex"}',
    ],
)
def test_the_json_in_an_answer_is_found(text: str) -> None:
    """Models put words around it."""
    assert JsonFormat(DOG).extract(text).strip() == '{"name": "Rex"}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Rex", "it is not JSON"),
        ('{"name": "Rex"', "it is not JSON"),
        ('{"name": 5}', "name: 5 is not of type"),
        ("[" * 100_000, "it is not JSON"),
        ("", "it is not JSON"),
    ],
)
def test_an_answer_without_it(text: str, reason: str) -> None:
    """The error says what is wrong, in the words of the schema."""
    with pytest.raises(FormatNotMet, match=reason):
        JsonFormat(DOG).extract(text)


def test_any_object() -> None:
    """`json_object` wants an object, not a list or a number."""
    format = json_format({"type": "json_object"})
    assert format is not None
    assert format.extract('[{"a": 1}]  {"b": 2}') == '{"b": 2}'
    with pytest.raises(FormatNotMet):
        format.extract("5")


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1:9/schema"}}},
        {"type": "json_schema", "json_schema": {"schema": {"pattern": "("}}},
    ],
)
def test_formats_that_cannot_be_met(wanted: dict[str, Any]) -> None:
    """A schema that is none, or that would have to be fetched, is refused before the agent is asked."""
    with pytest.raises(Unsupported):
        json_format(wanted)


def test_a_pattern_without_an_end() -> None:
    """A regular expression that would take for ever is given up."""
    format = JsonFormat({"type": "string", "pattern": "^(a|a)*(?=b)c$"})
    began = time.monotonic()
    with pytest.raises(FormatNotMet):
        format.extract(f'"{"a" * 40}"')
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        ((), "one two", "one two"),
        (("two",), "one two three", "one "),
        (("twx",), "one two three", "one two three"),
        (("ee", "o t"), "one two three", "one tw"),
        (("aab",), "aaaab", "aa"),
        (("e",), "e", ""),
        (("three!",), "one two three", "one two three"),
    ],
)
def test_pieces_end_before_a_sequence(stop: tuple[str, ...], text: str, expected: str, size: int) -> None:
    """However the pieces are cut, and no character of the sequence is sent before it is known to be none."""
    pieces = Pieces(stop)
    sent = [pieces.feed(text[at : at + size]) for at in range(0, len(text), size)]
    assert "".join([*sent, pieces.end()]) == expected


def test_a_format_is_checked_at_the_end() -> None:
    """Nothing is sent before."""
    pieces = Pieces(format=JsonFormat(DOG))
    assert pieces.feed('{"name": ') == pieces.feed('"Rex"} ') == ""
    assert pieces.end() == '{"name": "Rex"}'


@pytest.mark.parametrize(
    "choice", ["required", "any", {"type": "function", "function": {"name": "x"}}, {"type": "any"}]
)
def test_a_forced_tool_is_refused(choice: object) -> None:
    """An agent would never call it."""
    with pytest.raises(Unsupported):
        refuse_forced_tool(choice)


@pytest.mark.parametrize("choice", [None, "auto", "none", {"type": "auto"}, {"type": "none"}])
def test_an_offered_tool_is_not(choice: object) -> None:
    """The agent answers without it."""
    refuse_forced_tool(choice)


def said(*texts: str) -> list[ChatMessage]:
    """Messages of a user and an assistant in turn."""
    return [ChatMessage(role="assistant" if index % 2 else "user", content=text) for index, text in enumerate(texts)]


TASK = "### Task:\nGenerate a concise title …\n### Chat History:\n<chat_history>\nUSER: hello\n</chat_history>"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (said(TASK), True),
        ([ChatMessage(role="system", content="Be short."), *said(TASK)], True),
        (said("### Task:\nSummarize …\n### Messages Being Compacted:\nUSER: hello"), True),
        (said("Provide a concise, 5-word-or-less title for the conversation, …"), True),
        (
            [
                ChatMessage(
                    role="system",
                    content="Available Tools: []\n\nYour task is to choose and return the correct tool(s) …",
                ),
                *said("Query: What is the weather?"),
            ],
            True,
        ),
        (said("hello", "hello!", TASK), False),
        (said(f"What does this mean? {TASK}"), False),
        (said("### Task:\nTidy up the kitchen."), False),
        (said("### Task:\nRespond to the user query …\n<context>a <chat_history></context>\nhello"), False),
        (said("Please give this chat a title."), False),
        ([ChatMessage(role="system", content=TASK)], False),
        ([ChatMessage(role="assistant", content=TASK)], False),
    ],
)
def test_requests_of_chat_programs(messages: list[ChatMessage], expected: bool) -> None:
    """They are recognised by the form that the programs give them, not by what they are about."""
    assert is_task(messages) is expected
