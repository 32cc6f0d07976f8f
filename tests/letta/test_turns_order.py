"""One turn at a time, in order; stopping; clients that go away; several backends; the gate of a provider."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import anyio
import psycopg
import pytest

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from tests.support.backend_server import Backend, Speaking, backend, recreate

GROQ, MISTRAL = "byok-groq/openai/gpt-oss-120b", "byok-mistral/mistral-medium-latest"
PATIENCE = 2.0


@pytest.fixture(scope="module")
def backends(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backend, Backend]]:
    """Two backends in front of the same Letta and the same vendors."""
    home: Path = tmp_path_factory.mktemp("home")
    with (
        PracticeVendors() as vendors,
        backend(letta_server, home, vendors, turn_queue=2, gate_timeout=PATIENCE) as one,
        backend(letta_server, home, vendors, turn_queue=2, gate_timeout=PATIENCE) as other,
    ):
        yield one, other


@pytest.fixture
def served(backends: tuple[Backend, Backend]) -> Iterator[Backend]:
    """The first of them, in fair weather again afterwards."""
    yield backends[0]
    backends[0].vendors.clear()
    backends[0].vendors.forget()


@pytest.fixture
def other(backends: tuple[Backend, Backend]) -> Backend:
    """The second of them."""
    return backends[1]


@contextmanager
def slowly(served: Backend, vendor: str) -> Iterator[None]:
    """The vendor takes its time between words; an answer that is not over in the end comes at once then."""
    served.vendors.fault(vendor, on="chat", between=0.3)
    yield
    served.vendors.clear(vendor)


def runs(served: Backend, agent: str) -> list[str]:
    """How Letta's runs of an agent stand."""
    rows = served.letta.get("/v1/runs/", params={"agent_id": served.id_of(agent), "limit": 50}).json()
    return [row["status"] for row in rows]


def test_turns_wait_in_order_up_to_a_limit(served: Backend) -> None:
    """A second and a third turn wait, and are answered in order; one more is refused with the time to wait."""
    agent = served.agent("queue", GROQ)
    with slowly(served, "groq"):
        first = Speaking(served, agent, "Count to 60")
        first.until("text")
        second = Speaking(served, agent, "Say second")
        assert second.until("queued")["ahead"] == 1
        third = Speaking(served, agent, "Say third")
        assert third.until("queued")["ahead"] == 2
        refused = served.client.post(f"/api/agents/{agent}/turns", json={"message": "Say fourth"})
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    assert [one.whole().end["reason"] for one in (first, second, third)] == ["completed"] * 3
    assert served.said_to(agent) == ["Count to 60", "Say second", "Say third"]


def test_stop(served: Backend) -> None:
    """A stopped turn ends at Letta too, with one end; what came is kept and marked."""
    agent = served.agent("stopped", GROQ)
    with slowly(served, "groq"):
        turn = Speaking(served, agent, "Count to 60")
        turn.until("text")
        stopped = served.client.delete(f"/api/agents/{agent}/turns/{turn.until('turn')['id']}")
    assert stopped.status_code == 204
    heard = turn.whole()
    assert (heard.end["reason"], heard.end["stored"]) == ("stopped", True)
    assert heard.all("error") == []
    assert runs(served, agent) == ["cancelled"]
    assert served.said_to(agent) == ["Count to 60"]
    assert served.history(agent)[-1][1].endswith("[stopped]")
    again = served.client.delete(f"/api/agents/{agent}/turns/{turn.until('turn')['id']}")
    assert again.status_code == 404
    assert again.json()["error"]["code"] == "turn_unknown"


def test_stop_while_the_vendor_is_silent(served: Backend) -> None:
    """A turn that waits for a silent vendor stops at once, and nothing of it is stored, not even later."""
    agent = served.agent("stopped-silent", GROQ)
    served.vendors.fault("groq", on="chat", latency=4.0, times=1)
    turn = Speaking(served, agent, "Say something late")
    turn.until("vendor")
    assert served.client.delete(f"/api/agents/{agent}/turns/{turn.until('turn')['id']}").status_code == 204
    assert (turn.whole().end["reason"], turn.whole().end["stored"]) == ("stopped", False)
    assert served.say(agent, "Say something else").end["reason"] == "completed"
    assert served.said_to(agent) == ["Say something else"]


def test_stop_while_it_waits(served: Backend) -> None:
    """A turn that waits for another one can be stopped, and leaves nothing."""
    agent = served.agent("stopped-waiting", GROQ)
    with slowly(served, "groq"):
        first = Speaking(served, agent, "Count to 60")
        first.until("text")
        second = Speaking(served, agent, "Say second")
        second.until("queued")
        path = f"/api/agents/{agent}/turns/{second.until('turn')['id']}"
        assert served.client.delete(path).status_code == 204
        assert second.whole().end["reason"] == "stopped"
        assert first.thread.is_alive()
    assert first.whole().end["reason"] == "completed"
    assert served.said_to(agent) == ["Count to 60"]


def test_a_client_that_goes_away(served: Backend) -> None:
    """The turn of a client that goes away ends at Letta; what came is kept, and the agent is free again."""
    agent = served.agent("gone", GROQ)
    with slowly(served, "groq"):
        turn = Speaking(served, agent, "Count to 60")
        turn.until("text")
        turn.leave.set()
        turn.thread.join(30)
        # It waits for the end of the first turn, which the vendor would complete as soon as it is no longer slow.
        assert served.say(agent, "Say that you are back").end["reason"] == "completed"
    assert sorted(runs(served, agent)) == ["cancelled", "completed"]
    assert served.said_to(agent) == ["Count to 60", "Say that you are back"]
    assert any(text.endswith("[stopped]") for _, text in served.history(agent))


def test_two_backends_take_turns(served: Backend, other: Backend) -> None:
    """Turns of one agent in two backends never overlap: the second begins when the first has ended."""
    agent = served.agent("shared", GROQ)
    with slowly(served, "groq"):
        first = Speaking(served, agent, "Count to 60")
        first.until("text")
        second = Speaking(other, agent, "Say second")
        second.until("turn")
        assert first.thread.is_alive()
        assert not any(event.kind == "vendor" for event in second.happened)
    assert first.whole().end["reason"] == "completed"
    assert second.whole().end["reason"] == "completed"
    assert served.said_to(agent) == ["Count to 60", "Say second"]


def test_a_killed_backend_leaves_a_run_that_is_waited_for(served: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Letta goes on with a turn whose backend was killed: the first turn of that agent after the start waits."""
    monkeypatch.setattr("isabella.turns.turn._LEFTOVER_SECONDS", 60.0)
    agent = served.agent("orphan", GROQ)
    path = f"/v1/agents/{served.id_of(agent)}/messages/stream"
    body = {"messages": [{"role": "user", "content": "Count to 300"}], "stream_tokens": True}
    with slowly(served, "groq"):
        with served.letta.stream("POST", path, json=body) as killed:
            next(line for line in killed.iter_lines() if "assistant_message" in line)
        turn = Speaking(served, agent, "Say that you are back")
        assert "earlier turn" in str(turn.until("held"))
        assert runs(served, agent) == ["running"]
    assert turn.whole().end["reason"] == "completed"
    assert runs(served, agent) == ["completed"] * 2
    assert served.said_to(agent) == ["Count to 300", "Say that you are back"]
    first, second = (one for one in served.vendors.requests("groq") if one.path.endswith("/chat/completions"))
    assert first.ended_after is not None
    assert first.at + first.ended_after <= second.at


def test_a_killed_letta_leaves_a_run_that_is_ended(served: Backend, letta_server: Letta) -> None:
    """It would stay active for ever. It is not waited for, and later turns of the agent do not look for such runs."""
    agent = served.agent("stale", GROQ)
    id = served.id_of(agent)
    said = {"messages": [{"role": "user", "content": "Say something"}], "streaming": False}
    served.letta.post(f"/v1/agents/{id}/messages", json=said).raise_for_status()

    def leave() -> None:
        with psycopg.connect(letta_server.database_url.get_secret_value()) as database:
            database.execute(
                "UPDATE runs SET status = 'running', stop_reason = NULL, completed_at = NULL, "
                "created_at = created_at - interval '1 day' "
                "WHERE agent_id = %s AND status <> 'running'",
                (id,),
            )

    leave()
    assert runs(served, agent) == ["running"]
    turn = served.say(agent, "Say something else")
    assert (turn.end["reason"], turn.all("held")) == ("completed", [])
    assert sorted(runs(served, agent)) == ["cancelled", "completed"]
    leave()
    assert served.say(agent, "Say more").end["reason"] == "completed"
    assert sorted(runs(served, agent)) == ["completed", "running", "running"]


def test_a_change_waits_only_so_long(served: Backend) -> None:
    """A turn that outlasts the patience of a change is ended with a clear event and kept; then the change is made."""
    agent = served.agent("evicted", GROQ)
    with slowly(served, "groq"):
        turn = Speaking(served, agent, "Count to 60")
        turn.until("text")
        assert recreate(served, "byok-groq").all_proven
    heard = turn.whole()
    assert heard.one("error")["code"] == "provider_changing"
    assert (heard.end["reason"], heard.end["stored"]) == ("broken", True)
    assert served.said_to(agent) == ["Count to 60"]
    assert served.foreign_keys() == []


@contextmanager
def gate_closed(served: Backend, provider: str) -> Iterator[None]:
    """The gate of a provider, closed by somebody who takes his time."""
    opened, closed = threading.Event(), threading.Event()

    async def hold() -> None:
        async with served.locks.closed(provider):
            closed.set()
            await anyio.to_thread.run_sync(opened.wait)

    with ThreadPoolExecutor(1) as holder:
        holding = holder.submit(served.call, hold)
        assert closed.wait(30)
        try:
            yield
        finally:
            opened.set()
            holding.result(30)


def test_turns_wait_at_a_closed_gate_only_so_long(served: Backend) -> None:
    """A turn on a provider that is being changed says that it waits, then goes on with another vendor."""
    agent = served.agent("held", GROQ, MISTRAL)
    with gate_closed(served, "byok-groq"):
        heard = served.say(agent, "Say good morning")
        alone = served.agent("held-alone", GROQ)
        refused = served.say(alone, "Say good morning")
    assert heard.one("held")["provider"] == "byok-groq"
    assert heard.one("failover")["code"] == "provider_changing"
    assert heard.end["handle"] == MISTRAL
    assert refused.one("error")["code"] == "provider_changing"
    assert (refused.end["reason"], refused.end["stored"]) == ("failed", False)
    assert [request for request in served.vendors.requests("groq") if "chat" in request.path] == []


def test_the_gate_holds_in_other_backends(served: Backend, other: Backend) -> None:
    """A gate that one backend has closed holds the turns of another one; other providers go on."""
    on_groq, on_mistral = served.agent("far-groq", GROQ), served.agent("far-mistral", MISTRAL)
    with gate_closed(other, "byok-groq"):
        turn = Speaking(served, on_groq, "Say good morning")
        turn.until("turn")
        assert served.say(on_mistral, "Say good morning").end["reason"] == "completed"
        assert [request for request in served.vendors.requests("groq") if "chat" in request.path] == []
    assert turn.whole().end["reason"] in ("completed", "failed")


def test_a_change_waits_for_turns_of_other_backends(served: Backend, other: Backend) -> None:
    """A change in one backend waits for a turn of another one, which is asked to end when that takes too long."""
    agent = served.agent("far-turn", GROQ)
    with slowly(served, "groq"):
        turn = Speaking(served, agent, "Count to 60")
        turn.until("text")
        with gate_closed(other, "byok-groq"):
            assert turn.whole().one("error")["code"] == "provider_changing"
    assert served.said_to(agent) == ["Count to 60"]
