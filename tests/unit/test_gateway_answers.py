"""Answers that pass: read in chunks of any size, whatever is in them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isabella.gateway import answers
from isabella.gateway.answers import AnswerReader, CallNumbers, ReasoningMemory, Spoken

REQUEST = {"messages": [{"role": "user", "content": "Hello."}]}
CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}


def event(delta: dict[str, Any] | None = None, *, finish: str | None = None, **fields: Any) -> bytes:
    """An event of a stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return (
        b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": choices, **fields}).encode() + b"\n\n"
    )


def read(chunks: Iterable[bytes], *, keep: bool = True) -> AnswerReader:
    """The reader after these chunks."""
    reader = AnswerReader(keep_reasoning=keep)
    for chunk in chunks:
        reader.feed(chunk)
    reader.close()
    return reader


def facts(reader: AnswerReader) -> tuple[object, ...]:
    """All that a reader tells."""
    spoken = reader.spoken
    said = None if spoken is None else (spoken.calls, "".join(spoken.text), "".join(spoken.reasoning))
    return reader.prompt_tokens, reader.completion_tokens, reader.finish_reason, reader.error, said


STREAM = (
    b": a comment\n\nevent: message\n"
    + event({"role": "assistant", "content": ""})
    + event({"reasoning_content": 'He says "usage": {"prompt_tokens": 1}.'})
    + event({"content": 'Der "finish_reason": "stop" — straße.'})
    + event({"tool_calls": [CALL]})
    + event({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})
    + event({}, finish="tool_calls")
    + event(usage={"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16})
    + b"data: [DONE]\n\n"
)
WHOLE = json.dumps(
    {
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "content": "Wait.",
                    "reasoning_content": "Hm.",
                    "tool_calls": [CALL],
                },
            }
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 5},
    }
).encode()


@given(st.sampled_from([STREAM, STREAM.replace(b"\n", b"\r\n"), b"\n " + WHOLE]), st.lists(st.integers(0, 1_500)))
def test_where_chunks_end_makes_no_difference(answer: bytes, cuts: list[int]) -> None:
    """Even within a character or a line's end."""
    ends = sorted({min(cut, len(answer)) for cut in cuts} | {len(answer)})
    pieces = [answer[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    for keep in (False, True):
        assert facts(read(pieces, keep=keep)) == facts(read([answer], keep=keep))


@pytest.mark.parametrize("keep", [False, True])
def test_a_stream_is_read(keep: bool) -> None:
    """Quotations in the model's own words are not taken for facts."""
    reader = read([STREAM], keep=keep)
    assert facts(reader)[:4] == (11, 5, "tool_calls", None)
    assert (reader.spoken is not None) == keep
    if reader.spoken is not None:
        assert reader.spoken.calls == {"call_1": "look"}
        assert "".join(reader.spoken.reasoning) == 'He says "usage": {"prompt_tokens": 1}.'


def test_a_whole_answer_is_read() -> None:
    """As one JSON object."""
    assert facts(read([WHOLE])) == (11, 5, "tool_calls", None, ({"call_1": "look"}, "Wait.", "Hm."))


def test_usage_is_read_where_groq_and_mistral_put_it() -> None:
    """In an extension, or beside the last piece."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    groq = read([event({}, finish="stop", x_groq={"id": "req_1", "usage": usage})], keep=False)
    mistral = read([event({"content": ""}, finish="length", usage=usage)], keep=False)
    assert facts(groq)[:3] == (3, 2, "stop")
    assert facts(mistral)[:3] == (3, 2, "length")


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b'data: {"error": {"message": "overloaded", "code": 503}}\n\n', "overloaded"),
        (b'event: error\ndata: {"error": "too long"}\n\n', "too long"),
        (b'data: {"object":"error","message":"Rate limit exceeded","code":"1300"}\n\n', "Rate limit exceeded"),
        (b'{"error": {"message": "no model"}}', "no model"),
        (b'{"detail": "Unauthorized"}', "Unauthorized"),
    ],
)
def test_an_error_instead_of_an_answer_or_inside_it(sent: bytes, message: str) -> None:
    """Vendors send errors with status 200 as well."""
    error = read([sent], keep=False).error
    assert error is not None
    assert error["message"] == message
    if sent.startswith(b"{"):
        return
    late = read([event({"content": "Hel"}), sent], keep=False)
    assert late.error == error


def test_only_the_first_choice_is_read() -> None:
    """Letta asks for one; whoever asks for more is answered in turns."""
    pieces = [{"index": index, "delta": {"reasoning_content": f"of {index}"}} for index in (1, 0)]
    ends = [{"index": index, "delta": {}, "finish_reason": reason} for index, reason in enumerate(("stop", "length"))]
    reader = read([b"data: " + json.dumps({"choices": choices}).encode() + b"\n\n" for choices in (pieces, ends)])
    assert facts(reader) == (None, None, "stop", None, ({}, "", "of 0"))


def test_the_first_error_is_kept() -> None:
    """Some servers say twice that they give up."""
    error = read([b'data: {"error": "too long"}\n\ndata: {"error": {"message": "aborted"}}\n\n']).error
    assert error == {"message": "too long"}


@pytest.mark.parametrize(
    "chunk",
    [
        b"",
        b"\n\n\n",
        b"data:",
        b"data: {",
        b"data: [1]\n",
        b'data: {"choices": {"0": 1}, "usage": {"prompt_tokens": "x"}}\n',
        b'data: {"choices": [1, null, {"delta": 3, "finish_reason": 4}], "usage": {"prompt_tokens": -1}}\n',
        b'data: {"choices": [{"delta": {"tool_calls": [1, {"id": 3}, {"id": "a"}], "content": [1]}}], "usage": {}}\n',
        b'data: {"usage": {' + b'"a": {' * 100_000 + b"\n",
        b"data: \xff\xfe\n",
        b"<html>Bad gateway</html>",
        b"[" * 100_000,
        b"null",
    ],
)
def test_malformed_answers_are_passed_over(chunk: bytes) -> None:
    """Nothing raises, and nothing is made up."""
    for keep in (False, True):
        assert facts(read([chunk], keep=keep))[:4] == (None, None, None, None)
        assert facts(read([chunk + b"\n", STREAM], keep=keep))[0] in (11, None)


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"data: ", b"\n", b'{"choices":[{"delta":', b'"usage":{'])))
def test_no_bytes_break_it(chunks: list[bytes]) -> None:
    """Whatever arrives."""
    read(chunks)


def test_a_line_without_end_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is skipped, and the next line is read again."""
    monkeypatch.setattr(answers, "_LONGEST_LINE", 1_000)
    reader = AnswerReader(keep_reasoning=True)
    reader.feed(b'data: {"choices": "')
    for _ in range(100):
        reader.feed(b"x" * 900)
        assert len(reader._rest) <= 1_000
    reader.feed(b'"}\n' + event({}, finish="stop"))
    reader.close()
    assert reader.finish_reason == "stop"


def test_a_whole_answer_without_end_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read at all."""
    monkeypatch.setattr(answers, "_LONGEST_BODY", 1_000)
    reader = read([WHOLE[:-1], b" " * 2_000, b"}"])
    assert facts(reader)[:4] == (None, None, None, None)


def test_reasoning_that_is_too_long_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of it would not be the reasoning of the answer."""
    monkeypatch.setattr(answers, "_LONGEST_TEXT", 100)
    assert read([event({"reasoning_content": "x" * 60})] * 2).spoken is None


def test_the_memory_is_bounded_by_entries_and_by_size() -> None:
    """The oldest is forgotten first; what was asked for lately stays."""
    memory = ReasoningMemory(entries=3, size=25)

    def learn(id: str, reasoning: str) -> None:
        memory.remember("p", REQUEST, Spoken(calls={id: "look"}, reasoning=[reasoning]))

    def known(id: str) -> str | None:
        message = {"tool_calls": [{"id": id, "function": {"name": "look"}}]}
        return memory.recall("p", message, before=REQUEST["messages"][0])

    for id in "abc":
        learn(id, f"of {id}")
    assert known("a") == "of a"
    learn("d", "of d")
    assert [known(id) for id in "abcd"] == ["of a", None, "of c", "of d"]
    learn("e", "x" * 20)
    assert [known(id) for id in "acde"] == [None, None, "of d", "x" * 20]
    learn("e", "shorter")
    learn("f", "of f")
    assert [known(id) for id in "def"] == ["of d", "shorter", "of f"]
    learn("g", "x" * 26)
    assert known("g") is None


def test_reasoning_of_another_tool_or_provider_is_not_found() -> None:
    """Some servers count their calls: `call_0` is in every answer."""
    memory = ReasoningMemory()
    memory.remember("p", REQUEST, Spoken(calls={"call_0": "look"}, reasoning=["Hm."]))
    before = REQUEST["messages"][0]
    same = {"tool_calls": [{"id": "call_0", "function": {"name": "look"}}]}
    other = {"tool_calls": [{"id": "call_0", "function": {"name": "send"}}]}
    assert memory.recall("p", same, before=before) == "Hm."
    assert memory.recall("p", other, before=before) is None
    assert memory.recall("q", same, before=before) is None
    assert memory.recall("p", {"content": None}, before=before) is None


def test_an_answer_without_reasoning_is_not_remembered() -> None:
    """Nor one that was too long to be read."""
    memory = ReasoningMemory()
    memory.remember("p", REQUEST, Spoken(text=["Hi."]))
    memory.remember("p", REQUEST, None)
    memory.remember("p", {"messages": "odd"}, Spoken(text=["Hi."], reasoning=["Hm."]))
    assert memory.recall("p", {"content": "Hi."}, before=REQUEST["messages"][0]) is None


def numbered(chunks: Iterable[bytes]) -> bytes:
    """The answer with its tool calls numbered."""
    numbers = CallNumbers()
    return b"".join([*(numbers.feed(chunk) for chunk in chunks), numbers.close()])


def indices(stream: bytes) -> list[tuple[str | None, int]]:
    """Id and number of each piece of a tool call."""
    events = [json.loads(line[5:]) for line in stream.split(b"\n") if line.startswith(b"data: {")]
    return [
        (call.get("id"), call["index"])
        for event in events
        for choice in event["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]


def piece(id: str | None, **fields: Any) -> bytes:
    """An event with a piece of a tool call."""
    return event({"tool_calls": [{**({} if id is None else {"id": id}), "function": {"arguments": "{}"}, **fields}]})


@given(st.lists(st.integers(0, 400), max_size=6))
def test_calls_are_numbered_by_their_ids(cuts: list[int]) -> None:
    """Pieces of one call have one number, with an id or without; a number that the vendor gives does not count."""
    stream = event({"content": "Hm."}) + piece("a", index=0) + piece(None) + piece("b", index=0) + piece(None)
    stream += event({"tool_calls": [{"id": "c"}, {"id": "a"}]}) + event({}, finish="stop") + b"data: [DONE]\n\n"
    bounds = [0, *sorted(cuts), len(stream)]
    passed = numbered(stream[start:end] for start, end in itertools.pairwise(bounds))
    assert indices(passed) == [("a", 0), (None, 0), ("b", 1), (None, 1), ("c", 2), ("a", 0)]
    assert passed.startswith(event({"content": "Hm."}))
    assert passed.endswith(event({}, finish="stop") + b"data: [DONE]\n\n")


@given(st.binary(max_size=60))
def test_what_is_no_tool_call_passes_as_it_is(line: bytes) -> None:
    """Whatever comes, also beside words that a tool call has."""
    for answer in (line, b'data: "tool_calls"' + line, b'data: {"choices":[{"delta":{"tool_calls":' + line + b"\n"):
        assert numbered([answer[:5], answer[5:]]) == answer


def test_a_line_without_an_end_is_not_kept() -> None:
    """It passes on, however long."""
    numbers = CallNumbers()
    long = b'data: {"tool_calls": "' + b"x" * 2 * 1024 * 1024
    assert numbers.feed(long) == long
    assert numbers.close() == b""
