"""An attempt whose answer does not come: it is the vendor that is silent, or Letta."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from isabella.errors import LettaRefused, LettaUnreachable
from isabella.turns.attempt import Attempt, CancelRequest
from isabella.turns.events import EndReason, ErrorCode, Event, ToolReturned
from isabella.turns.message import UserMessage
from isabella.turns.stream import VendorRefusal

pytestmark = pytest.mark.anyio

PING = 'data: {"message_type": "ping", "run_id": "run-1"}'


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the backend runs on."""
    return "asyncio"


class SilentLetta:
    """A Letta whose stream stays open after its first line; it answers a cancellation like this."""

    def __init__(self, answer: Exception | None) -> None:
        self._answer = answer
        self.go_on = anyio.Event()

    async def stream(self, *_message: object) -> AsyncGenerator[str, None]:
        """Begin, and go on only when told to."""
        yield PING
        await self.go_on.wait()
        yield 'data: {"message_type": "assistant_message", "content": "Good morning", "id": "message-1"}'
        yield 'data: {"message_type": "stop_reason", "stop_reason": "end_turn"}'

    async def cancel(self, _agent_id: str, _run_id: str | None) -> None:
        """Cancel a run."""
        if self._answer is not None:
            raise self._answer


async def attempted(letta: SilentLetta | CallingLetta, **options: Any) -> tuple[list[Event], Attempt]:
    """An attempt that waits for a moment; what came of it."""
    attempt = Attempt("agent-1", UserMessage("Hello?"), 0.05, 0.05, CancelRequest(), **options)
    with anyio.fail_after(10):
        client: Any = SimpleNamespace(messages=letta)
        return [event async for event in attempt.events(client) if event is not None], attempt


def refusal_of(attempt: Attempt) -> VendorRefusal:
    """Why no answer began."""
    assert attempt.refusal is not None
    return attempt.refusal


@pytest.mark.parametrize("answer", [None, LettaRefused("Nothing runs.", status=409)])
async def test_a_letta_that_answers_shows_that_the_vendor_is_silent(answer: Exception | None) -> None:
    """It counts against the vendor, and the next one is asked."""
    _, attempt = await attempted(SilentLetta(answer))
    refusal = refusal_of(attempt)
    assert (refusal.code, refusal.counts, refusal.elsewhere) == (ErrorCode.VENDOR_SILENT, True, True)


async def test_a_frozen_letta_is_not_taken_for_a_silent_vendor() -> None:
    """It does not answer either, so nothing is said of the vendor."""
    silent = LettaUnreachable("Letta did not answer.", sent=True, timed_out=True)
    _, attempt = await attempted(SilentLetta(silent))
    refusal = refusal_of(attempt)
    assert (refusal.code, refusal.counts, refusal.elsewhere) == (ErrorCode.LETTA_UNREACHABLE, False, False)


async def test_the_message_is_sent_before_the_reader_has_anything_to_do() -> None:
    """An HTTP client writes the head and the body of a request in steps of their own."""
    sent: list[str] = []

    async def stream(*_message: object) -> AsyncGenerator[str, None]:
        for part in ("head", "body"):
            await anyio.lowlevel.checkpoint()
            sent.append(part)
        yield PING

    attempt = Attempt("agent-1", UserMessage("Hello?"), 0.05, 0.05, CancelRequest())
    client: Any = SimpleNamespace(messages=SimpleNamespace(stream=stream, cancel=SilentLetta(None).cancel))
    async with aclosing(attempt.events(client)) as events:
        assert await anext(events) is None
        assert sent == ["head", "body"]


async def test_an_answer_goes_on_when_letta_was_frozen_only_for_a_while() -> None:
    """The time in which it was frozen is not the vendor's."""
    letta, asked = SilentLetta(None), []

    async def outlast() -> bool:
        asked.append("frozen")
        letta.go_on.set()
        return True

    events, attempt = await attempted(letta, outlast=outlast)
    assert (asked, attempt.refusal) == (["frozen"], None)
    assert "".join(event.text for event in events if hasattr(event, "text")) == "Good morning"


class EndingLetta:
    """A Letta that ends a turn with a stop reason and no error."""

    def __init__(self, word: str) -> None:
        self._word = word

    async def stream(self, *_message: object) -> AsyncGenerator[str, None]:
        """Begin, and end at once."""
        yield PING
        yield f'data: {{"message_type": "stop_reason", "stop_reason": "{self._word}"}}'


@pytest.mark.parametrize(
    ("word", "code"), [("invalid_tool_call", ErrorCode.TOOL_CALL_MALFORMED), ("error", ErrorCode.LETTA_FAILING)]
)
async def test_a_stop_reason_without_an_error_is_told(word: str, code: ErrorCode) -> None:
    """A malformed tool call is the model's fault, not Letta's; and nobody says that there was no reason."""
    attempt = Attempt("agent-1", UserMessage("Hello?"), 5, 5, CancelRequest())
    client: Any = SimpleNamespace(messages=EndingLetta(word))
    assert [event async for event in attempt.events(client) if event is not None] == []
    refusal = refusal_of(attempt)
    assert (refusal.code, refusal.counts, refusal.vendor) == (code, False, None)
    assert word in refusal.message
    assert ("model" in refusal.message) is (code is ErrorCode.TOOL_CALL_MALFORMED)


async def test_a_slow_vendor_gets_the_time_that_its_prompt_needs() -> None:
    """Asked once, when the first token is late; the answer that comes then counts."""
    letta, asked = SilentLetta(None), []

    async def more_time() -> float:
        asked.append(True)
        letta.go_on.set()
        return 30.0

    events, attempt = await attempted(letta, more_time=more_time)
    assert [event.kind for event in events] == ["text"]
    assert (attempt.reason, asked) == (EndReason.COMPLETED, [True])


class EndlessLetta(SilentLetta):
    """A Letta whose model repeats itself."""

    async def stream(self, *_message: object) -> AsyncGenerator[str, None]:
        """Send a word now and then."""
        yield PING
        while True:
            yield data(message_type="assistant_message", content="again ", id="message-1")
            await anyio.sleep(0.01)


async def test_an_answer_without_an_end_is_cut_off() -> None:
    """By time; nothing is wrong with the vendor."""
    events, attempt = await attempted(EndlessLetta(None), longest=1.0)
    assert {event.kind for event in events} == {"text"}
    assert (attempt.reason, attempt.refusal) == (EndReason.LENGTH, None)


async def test_a_vendor_that_stays_silent_is_given_up_after_that_and_the_setting_is_named() -> None:
    """No second extension."""
    asked = []

    async def more_time() -> float:
        asked.append(True)
        return 0.05

    _, attempt = await attempted(SilentLetta(None), more_time=more_time)
    assert refusal_of(attempt).code is ErrorCode.VENDOR_SILENT
    assert "within 0.1 s" in refusal_of(attempt).message
    assert "ISABELLA_FIRST_TOKEN_TIMEOUT" in refusal_of(attempt).message
    assert asked == [True]


class CallingLetta:
    """A Letta whose model calls a tool with these arguments; its stream goes on with these lines."""

    def __init__(self, arguments: str, *lines: str) -> None:
        self._lines = [
            PING,
            data(
                message_type="tool_call_message",
                tool_call={"tool_call_id": "c", "name": "look", "arguments": arguments},
            ),
            *lines,
        ]

    async def stream(self, *_message: object) -> AsyncGenerator[str, None]:
        """Send the lines."""
        for line in self._lines:
            yield line


def data(**document: object) -> str:
    """A line of the stream."""
    return f"data: {json.dumps(document)}"


@pytest.mark.parametrize("arguments", ["[1, 2]", '"text"', '{"label": "hum', ""])
async def test_a_malformed_call_is_the_models_fault(arguments: str) -> None:
    """Both where Letta fails on it, and where its tool does."""
    error = data(message_type="error_message", error_type="internal_error", detail="must be str, not list")
    _, attempt = await attempted(CallingLetta(arguments, error))
    assert refusal_of(attempt).code is ErrorCode.TOOL_CALL_MALFORMED
    assert refusal_of(attempt).message == (
        "The model made a malformed tool call: The arguments of look are not a JSON object."
    )
    failed = data(message_type="tool_return_message", tool_call_id="c", name="look", status="error", tool_return="no")
    end = data(message_type="stop_reason", stop_reason="end_turn")
    (_, result), attempt = await attempted(CallingLetta(arguments, failed, end))
    assert isinstance(result, ToolReturned)
    assert result.text.startswith("The model's call is malformed")
    assert attempt.reason is EndReason.COMPLETED


async def test_lettas_own_failure_after_a_good_call_stays_lettas() -> None:
    """It has nothing to do with the call."""
    error = data(message_type="error_message", error_type="internal_error", detail="no")
    _, attempt = await attempted(CallingLetta('{"query": 1}', error))
    assert refusal_of(attempt).code is ErrorCode.LETTA_FAILING


def steps_of(*calls: tuple[str, str, bool], id: str = "c") -> list[str]:
    """The lines of steps with one call each: the name of the tool, its arguments, and whether the call succeeds."""
    lines = []
    for number, (name, arguments, ok) in enumerate(calls):
        call = {"tool_call_id": f"{id}{number}", "name": name, "arguments": arguments}
        lines += [
            data(message_type="tool_call_message", tool_call=call),
            data(
                message_type="tool_return_message",
                tool_call_id=f"{id}{number}",
                name=name,
                status="success" if ok else "error",
                tool_return="done" if ok else "no",
            ),
        ]
    return lines


class StepsOfLetta(SilentLetta):
    """A Letta with these steps; afterwards it says that the turn is over."""

    def __init__(self, *lines: str) -> None:
        super().__init__(None)
        self._lines = [PING, *lines, data(message_type="stop_reason", stop_reason="end_turn")]
        self.read = 0
        self.cancelled: list[str | None] = []

    async def stream(self, *_message: object) -> AsyncGenerator[str, None]:
        """Send the lines."""
        for line in self._lines:
            self.read += 1
            yield line
            await anyio.lowlevel.checkpoint()

    async def cancel(self, _agent_id: str, run_id: str | None) -> None:
        """Cancel a run."""
        self.cancelled.append(run_id)


FAILS, SUCCEEDS = ("look", '{"at": 1}', False), ("look", '{"at": 1}', True)


async def test_a_model_that_repeats_a_failing_call_is_stopped() -> None:
    """After the fifth time; it is the model's fault, and what it would do next is not waited for."""
    letta = StepsOfLetta(*steps_of(*[FAILS] * 50))
    events, attempt = await attempted(letta)
    assert [event.kind for event in events][:10] == ["tool_call", "tool_result"] * 5
    assert (attempt.reason, letta.cancelled) == (EndReason.BROKEN, ["run-1"])
    refusal = refusal_of(attempt)
    assert (refusal.code, refusal.counts, refusal.vendor) == (ErrorCode.TOOL_CALL_REPEATED, False, None)
    assert refusal.message == (
        "The model called look 5 times in a row with the same arguments, and it failed each time."
    )


@pytest.mark.parametrize(
    "calls",
    [
        [FAILS] * 4,
        [*[FAILS] * 4, SUCCEEDS, *[FAILS] * 4],
        [SUCCEEDS] * 20,
        [FAILS, ("look", '{"at": 2}', False)] * 10,
        [FAILS, ("find", '{"at": 1}', False)] * 10,
    ],
    ids=["four", "a success between", "successes", "other arguments", "another tool"],
)
async def test_calls_that_differ_or_succeed_go_on(calls: list[tuple[str, str, bool]]) -> None:
    """Up to Letta's own limit of steps."""
    letta = StepsOfLetta(*steps_of(*calls))
    events, attempt = await attempted(letta)
    assert [event.kind for event in events] == ["tool_call", "tool_result"] * len(calls)
    assert (attempt.reason, attempt.refusal, letta.cancelled) == (EndReason.COMPLETED, None, [])


async def test_calls_of_one_step_are_no_repetition() -> None:
    """A model that calls a tool several times at once has not seen that it fails. Each step counts once."""

    def step(number: int) -> list[str]:
        lines = steps_of(*[FAILS] * 6, ("find", "{}", False), id=f"c{number}-")
        return [*lines[::2], *lines[1::2]]

    _, attempt = await attempted(StepsOfLetta(*(line for number in range(4) for line in step(number))))
    assert (attempt.reason, attempt.refusal) == (EndReason.COMPLETED, None)
    _, attempt = await attempted(StepsOfLetta(*(line for number in range(5) for line in step(number))))
    assert refusal_of(attempt).code is ErrorCode.TOOL_CALL_REPEATED
