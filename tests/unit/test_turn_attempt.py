"""An attempt whose answer does not come: it is the vendor that is silent, or Letta."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from isabella.errors import LettaRefused, LettaUnreachable
from isabella.turns.attempt import Attempt, CancelRequest
from isabella.turns.events import ErrorCode, Event
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

    async def stream(self, _agent_id: str, _text: str, _images: object) -> AsyncGenerator[str, None]:
        """Begin, and go on only when told to."""
        yield PING
        await self.go_on.wait()
        yield 'data: {"message_type": "assistant_message", "content": "Good morning", "id": "message-1"}'
        yield 'data: {"message_type": "stop_reason", "stop_reason": "end_turn"}'

    async def cancel(self, _agent_id: str, _run_id: str | None) -> None:
        """Cancel a run."""
        if self._answer is not None:
            raise self._answer


async def attempted(letta: SilentLetta, **options: Any) -> tuple[list[Event], Attempt]:
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

    async def stream(self, _agent_id: str, _text: str, _images: object) -> AsyncGenerator[str, None]:
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
