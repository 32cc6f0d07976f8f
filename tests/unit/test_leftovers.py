"""What another backend has left at Letta: runs, which are ended, and the answer to a repeated request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from isabella.errors import LettaRefused
from isabella.letta.client import ActiveRun, LettaClient
from isabella.letta.messages import Image, by_user
from isabella.server.idempotency import TurnRequest
from isabella.system.peers import Peer
from isabella.system.processes import ChildProcess
from isabella.turns import leftovers
from isabella.turns.leftovers import FirstTurns, end_runs, found_turn

WAITED, CANCELLED, AT_VENDOR = "waited", "cancelled", "ended at the vendor"


class Runs:
    """The runs of one agent at a Letta: those that are active at each question, and what was done to them."""

    def __init__(self, *active: Sequence[str], refuses: bool = False, began: float | None = None) -> None:
        self.active = [*active]
        self.refuses, self.began = refuses, began
        self.done: list[str] = []
        self.messages = self

    async def active_runs_of(self, agent_id: str) -> list[ActiveRun]:
        assert agent_id == "agent-1"
        now = self.active.pop(0) if len(self.active) > 1 else self.active[0]
        return [ActiveRun(id, self.began) for id in now]

    async def cancel(self, agent_id: str, run_id: str) -> None:
        self.done.append(f"{CANCELLED} {run_id}")
        if self.refuses:
            raise LettaRefused("409", status=409)

    async def end(self, wait: float, alive_since: float = 0.0) -> list[str]:
        """End them, and return what happened."""

        async def told() -> None:
            self.done.append(WAITED)

        async def end_calls(_agent: str) -> None:
            self.done.append(AT_VENDOR)

        await end_runs(
            cast(LettaClient, self),
            "agent-1",
            wait=wait,
            alive_since=alive_since,
            on_wait=told,
            end_calls=end_calls,
        )
        return self.done


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(leftovers, "_END_SECONDS", 0.0)


def test_an_agent_without_runs_costs_one_question() -> None:
    """Nothing is waited for, and nothing is cancelled."""
    assert anyio.run(Runs([]).end, 10.0) == []


def test_a_run_that_ends_by_itself_is_waited_for() -> None:
    """It may have the answer that somebody will ask for again."""
    assert anyio.run(Runs(["run-1"], ["run-1"], []).end, 60.0) == [WAITED]


def test_a_run_that_does_not_end_is_cancelled() -> None:
    """Its Letta may have been killed; so may have been the gateway, whose requests end, too."""
    assert anyio.run(Runs(["run-1", "run-2"]).end, 0.0) == [
        f"{CANCELLED} run-1",
        f"{CANCELLED} run-2",
        AT_VENDOR,
    ]


def test_a_run_that_ends_before_it_is_cancelled_is_no_error() -> None:
    """Letta answers 409 then."""
    assert anyio.run(Runs(["run-1"], refuses=True).end, 0.0) == [f"{CANCELLED} run-1", AT_VENDOR]


def test_a_run_of_a_letta_that_has_ended_is_not_waited_for() -> None:
    """It would stay active for ever. One that began later, or at an unknown time, may still be answered."""
    now = time.time()
    assert anyio.run(Runs(["run-1"], began=now - 60).end, 60.0, now) == [f"{CANCELLED} run-1", AT_VENDOR]
    assert anyio.run(Runs(["run-1"], [], began=now + 1).end, 60.0, now) == [WAITED]
    assert anyio.run(Runs(["run-1"], []).end, 60.0, now) == [WAITED]


def test_a_single_backend_looks_once_for_each_agent_and_letta() -> None:
    """Before the first turn of an agent after a start of the backend, and again after one of Letta."""
    peer = Peer("Letta", Path("letta.json"), "", verified=ChildProcess(1, 100.0))
    first = FirstTurns(peer)
    assert (first.is_next("agent-1"), first.alive_since) == (True, 100.0)
    first.note("agent-1")
    assert (first.is_next("agent-1"), first.is_next("agent-2")) == (False, True)
    peer.verified = ChildProcess(2, 200.0)
    assert (first.is_next("agent-1"), first.alive_since) == (True, 200.0)


def row(kind: str, id: str, content: str = "", otid: str | None = None) -> dict[str, Any]:
    """A row of Letta's history."""
    return {"message_type": kind, "id": id, "content": content, "otid": otid}


def test_the_answer_to_a_repeated_request_is_found_by_its_id() -> None:
    """Everything from the message to the next message of the user."""
    rows = [
        row("user_message", "message-1", "former", "another"),
        row("assistant_message", "message-2", "not this"),
        row("user_message", "message-3", "asked", "this"),
        row("tool_call_message", "message-4"),
        row("tool_return_message", "message-5"),
        row("assistant_message", "message-6", "One."),
        row("assistant_message", "message-7", "Two."),
        row("user_message", "message-8", "later", None),
        row("assistant_message", "message-9", "nor this"),
    ]
    found = found_turn(rows, "this")
    assert found is not None
    assert [(text.text, text.message_id) for text in found.answer] == [("One.", "message-6"), ("Two.", "message-7")]
    unanswered = found_turn(rows[:5], "this")
    assert unanswered is not None
    assert unanswered.answer == ()
    assert found_turn(rows, "unknown") is None


def test_the_id_of_a_request_is_the_same_at_every_backend() -> None:
    """It depends on key and body only; without a key nothing proves that a request is a repeat."""
    one = TurnRequest.of({"idempotency-key": "k1"}, b"body")
    again = TurnRequest.of({"idempotency-key": "k1", "x-stainless-retry-count": "1"}, b"body")
    assert one.id == again.id is not None
    assert len({one.id, TurnRequest.of({"idempotency-key": "k2"}, b"body").id}) == 2
    assert len({one.id, TurnRequest.of({"idempotency-key": "k1"}, b"other").id}) == 2
    assert TurnRequest.of({"x-stainless-retry-count": "1"}, b"body").id is None


def test_the_id_goes_with_the_message() -> None:
    """Letta stores it, with images or without."""
    assert by_user("hello", request_id="id-1") == {"role": "user", "content": "hello", "otid": "id-1"}
    assert by_user("hello", [Image("image/png", "aaaa")], "id-1")["otid"] == "id-1"
    assert "otid" not in by_user("hello")
