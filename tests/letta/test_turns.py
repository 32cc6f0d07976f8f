"""Turns on the real Letta: events, memory, failover, order, stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from isabella.turns.events import Ended, EndReason, Event, Failover, VendorAsked
from isabella.vendors.client import VendorState
from tests.support.backend_server import Backend, TurnRecord, backend, recreate, recreated

CEREBRAS, GROQ = "cerebras/gpt-oss-120b", "byok-groq/openai/gpt-oss-120b"
MISTRAL, LONGCAT = "byok-mistral/mistral-medium-latest", "longcat/LongCat-2.0"
HANDLES = {"cerebras": CEREBRAS, "groq": GROQ, "mistral": MISTRAL, "longcat": LONGCAT}


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend that has patience: how fast this machine is decides nothing."""
    home: Path = tmp_path_factory.mktemp("home")
    with (
        PracticeVendors() as vendors,
        backend(letta_server, home, vendors, first_token_timeout=60.0, silence_timeout=60.0, turn_queue=2) as running,
    ):
        yield running


@pytest.fixture(autouse=True)
def without_faults(served: Backend) -> Iterator[None]:
    """No fault outlives its test, and nothing is held against a vendor."""
    served.vendors.forget()
    yield
    served.vendors.clear()
    for provider in ("cerebras", "byok-groq", "byok-mistral", "longcat"):
        served.call(served.runtime.turns.deps.breaker.forgive, provider)


@pytest.mark.parametrize("vendor", HANDLES)
def test_each_vendor_remembers(served: Backend, vendor: str) -> None:
    """An agent on each vendor writes down what it is told, knows it in the next turn, and only its key is used."""
    agent = served.agent(f"remembers-{vendor}", HANDLES[vendor])
    told = served.say(agent, "Please remember that my dog is called Rex.")
    assert told.one("tool_call")["name"] == "memory_insert"
    assert told.one("tool_result")["ok"]
    asked = served.say(agent, "What is my dog called?")
    assert "Rex" in asked.text
    assert asked.end["reason"] == "completed"
    assert asked.end["handle"] == HANDLES[vendor]
    key = served.vendors.key(vendor).get_secret_value()
    requests = [request for request in served.vendors.requests(vendor) if "chat" in request.path]
    assert requests
    assert all(request.carries(key) for request in requests)
    assert served.foreign_keys() == []


#: What a vendor does wrong, and the code by which a client is told. Each before the first token.
FAULTS: dict[str, tuple[dict[str, object], str, int | None]] = {
    "401": ({"status": 401}, "key_refused", 401),
    "402": ({"status": 402}, "out_of_funds", 402),
    "403": ({"status": 403}, "forbidden", 403),
    "404": ({"status": 404}, "model_unknown", 404),
    "429": ({"status": 429, "retry_after": 0.2}, "rate_limited", 429),
    "500": ({"status": 500}, "vendor_failing", 500),
    "503": ({"status": 503}, "vendor_failing", 503),
    "html": ({"html": 502}, "vendor_failing", 502),
    "reset": ({"reset": True}, "vendor_unreachable", None),
    "hang": ({"hang": True}, "vendor_silent", None),
    "malformed": ({"malformed": True}, "vendor_garbled", None),
}

#: What a code shows of the vendor. A model that it does not have says nothing of the vendor itself.
SHOWS = {
    "key_refused": "refuses_key",
    "out_of_funds": "refuses",
    "forbidden": "refuses",
    "rate_limited": "refuses",
    "vendor_failing": "fails",
    "vendor_garbled": "fails",
    "vendor_unreachable": "unreachable",
    "vendor_silent": "unreachable",
    "model_unknown": "answers",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_goes_on_with_the_next_vendor(served: Backend, fault: str) -> None:
    """A vendor that fails before its first token is passed over: the client learns why, the history has it once."""
    kind, code, status = FAULTS[fault]
    agent = served.agent(f"failover-{fault}", GROQ, MISTRAL)
    statuses = served.runtime.readiness.vendors
    statuses.observe("byok-groq", VendorState.ANSWERS, "before the fault")
    served.vendors.fault("groq", on="chat", **kind)
    with served.patience(first_token=3.0 if fault == "hang" else 60.0, silence=60.0):
        heard = served.say(agent, "Say good morning to all of you")
    failover = heard.one("failover")
    assert (failover["handle"], failover["code"], failover.get("status")) == (GROQ, code, status)
    assert heard.handles == [GROQ, MISTRAL]
    assert statuses.of("byok-groq").state == SHOWS[code]
    assert statuses.of("byok-mistral").state is VendorState.ANSWERS
    assert heard.end["reason"] == "completed"
    assert heard.end["handle"] == MISTRAL
    assert "good morning" in heard.text
    assert served.said_to(agent) == ["Say good morning to all of you"]
    assert [kind for kind, _ in served.history(agent)].count("assistant_message") == 1
    # It stays with the vendor that its people chose.
    served.vendors.clear()
    served.call(served.runtime.turns.deps.breaker.forgive, "byok-groq")
    assert served.say(agent, "Say it again").handles == [GROQ]
    assert statuses.of("byok-groq").state is VendorState.ANSWERS


def test_a_wish_to_be_left_alone_is_granted(served: Backend) -> None:
    """A vendor that asks for a pause is not asked during it, not even where nobody else is left."""
    agent = served.agent("retry-after", GROQ)
    served.vendors.fault("groq", on="chat", status=429, retry_after=600)
    first = served.say(agent, "Say one")
    assert first.end["reason"] == "failed"
    assert first.one("error")["code"] == "rate_limited"
    assert first.one("error")["retry_after"] == 600
    served.vendors.clear()
    asked = len(served.vendors.requests("groq"))
    second = served.say(agent, "Say two")
    assert second.one("failover")["code"] == "left_out"
    assert second.one("error")["retry_after"] > 500
    assert len(served.vendors.requests("groq")) == asked
    assert served.said_to(agent) == []


def test_a_vendor_that_keeps_refusing_is_left_out(served: Backend) -> None:
    """After three failures in a row the first vendor is not asked any more, and the turn says so."""
    agent = served.agent("left-out", CEREBRAS, LONGCAT)
    served.vendors.fault("cerebras", on="chat", status=401)
    for _ in range(3):
        assert served.say(agent, "Say hello").one("failover")["code"] == "key_refused"
    asked = len(served.vendors.requests("cerebras"))
    heard = served.say(agent, "Say hello")
    assert heard.one("failover")["code"] == "left_out"
    assert heard.handles == [LONGCAT]
    assert len(served.vendors.requests("cerebras")) == asked


def test_nobody_answers(served: Backend) -> None:
    """Where no vendor answers, one error and one end say so, and nothing is stored: it may be said again."""
    agent = served.agent("nobody", GROQ, MISTRAL)
    for vendor in ("groq", "mistral"):
        served.vendors.fault(vendor, on="chat", status=401)
    heard = served.say(agent, "Say good morning")
    assert [one["handle"] for one in heard.all("failover")] == [GROQ, MISTRAL]
    assert heard.one("error")["code"] == "no_vendor"
    assert (heard.end["reason"], heard.end["stored"]) == ("failed", False)
    assert served.said_to(agent) == []


@pytest.mark.parametrize("fault", ["reset", "truncated"])
def test_a_broken_answer_is_marked_and_kept(served: Backend, fault: str) -> None:
    """A stream that breaks in the middle is not repeated elsewhere; what was said and what came is in the history."""
    agent = served.agent(f"broken-{fault}", GROQ, MISTRAL)
    how = {"reset": "midway"} if fault == "reset" else {"truncated": True}
    served.vendors.fault("groq", on="chat", times=1, **how)
    heard = served.say(agent, "Count to 40")
    assert heard.one("error")["code"] == "stream_broken"
    assert (heard.end["reason"], heard.end["stored"]) == ("broken", True)
    assert heard.text.startswith("1 2 3")
    assert heard.handles == [GROQ]
    assert served.vendors.requests("mistral") == []
    history = served.history(agent)
    assert served.said_to(agent) == ["Count to 40"]
    assert ("assistant_message", f"{heard.text.strip()} [broken off]") in history
    # The agent sees it, too: system message, question, broken answer.
    assert len(served.in_context(agent)) == 3
    assert served.say(agent, "Say that you are fine").end["reason"] == "completed"


def test_an_answer_that_falls_silent_is_broken(served: Backend) -> None:
    """An answer that stops in the middle, with the connection open, ends by itself."""
    agent = served.agent("silent", CEREBRAS)
    served.vendors.fault("cerebras", on="chat", between=1.5)
    with served.patience(first_token=20.0, silence=0.5):
        heard = served.say(agent, "Count to 9")
    assert heard.end["reason"] == "broken"
    assert heard.end["stored"]
    assert served.said_to(agent) == ["Count to 9"]


def test_an_empty_answer_is_no_answer(served: Backend) -> None:
    """A proxy's page with status 200, which Letta takes for an answer, is told as an error."""
    agent = served.agent("empty", GROQ)
    served.vendors.fault("groq", on="chat", html=200, times=1)
    heard = served.say(agent, "Say something")
    assert heard.one("error")["code"] == "empty_answer"
    assert (heard.end["reason"], heard.end["stored"]) == ("broken", True)
    assert served.said_to(agent) == ["Say something"]


def test_without_a_gateway_an_answer_that_reaches_its_limit_is_cut_off(served: Backend) -> None:
    """The context has the beginning of it with a mark, the history all of it."""
    agent = served.agent("endless", LONGCAT)
    id = served.id_of(agent)
    config = served.letta.get(f"/v1/agents/{id}").json()["llm_config"]
    served.letta.patch(f"/v1/agents/{id}", json={"llm_config": {**config, "max_tokens": 800}}).raise_for_status()
    assert served.say(agent, "Please remember that my dog is called Rex.").end["reason"] == "completed"
    served.vendors.fault("longcat", on="chat", endless=True)
    turn = served.say(agent, "Go on for ever")
    assert (turn.end["reason"], turn.end["stored"]) == ("length", True)
    assert turn.one("usage")["completion_tokens"] == 800
    served.check_shortened(agent, turn)


def test_a_model_that_repeats_a_failing_call_is_ended(served: Backend) -> None:
    """After five steps, not after Letta's fifty; the vendor is not blamed, and the next turn goes on."""
    agent = served.agent("stuck", CEREBRAS, GROQ)
    served.vendors.fault("cerebras", on="chat", stuck=True)
    heard = served.say(agent, "Please remember that my dog is called Rex.")
    assert {call["name"] for call in heard.all("tool_call")} == {"memory_replace"}
    # Letta goes on until it has noticed that the turn is over.
    assert 5 <= len(heard.all("tool_result")) < 20
    assert not any(result["ok"] for result in heard.all("tool_result"))
    error = heard.one("error")
    assert error["code"] == "tool_call_repeated"
    assert "memory_replace 5 times in a row" in error["message"]
    assert (heard.end["reason"], heard.end["stored"], heard.end["handle"]) == ("broken", True, CEREBRAS)
    assert served.said_to(agent) == ["Please remember that my dog is called Rex."]
    assert served.history(agent)[-1] == ("assistant_message", "[broken off]")
    assert served.runtime.readiness.vendors.of("cerebras").state is VendorState.ANSWERS
    served.vendors.clear()
    again = served.say(agent, "Please remember that my dog is called Rex.")
    assert (again.end["reason"], again.end["handle"]) == ("completed", CEREBRAS)
    assert again.one("tool_result")["ok"]


def test_a_conversation_through_all_vendors(served: Backend) -> None:
    """A conversation that is switched from vendor to vendor keeps its history, and each answer names its vendor."""
    agent = served.agent("wanders", CEREBRAS)
    served.say(agent, "Please remember that my boat is called Nautilus.")
    for handle in (GROQ, MISTRAL, LONGCAT, CEREBRAS):
        switched = served.client.post(f"/api/agents/{agent}/switch", json={"handle": handle})
        assert switched.status_code == 200, switched.text
        heard = served.say(agent, "What is my boat called?")
        assert "Nautilus" in heard.text
        assert heard.handles == [heard.end["handle"]] == [handle]
    assert len(served.said_to(agent)) == 5
    assert served.foreign_keys() == []


def test_a_key_that_was_renewed_meanwhile_has_another_say(served: Backend) -> None:
    """Where every vendor has refused, the one whose key Isabella has changed since then is asked once more."""
    agent = served.agent("renewed", GROQ, MISTRAL)
    for vendor in ("groq", "mistral"):
        served.vendors.fault(vendor, on="chat", status=401)

    async def conversation() -> list[Event]:
        events = []
        turn = await served.runtime.turns.open(agent, "Say good morning")
        async for event in turn.events():
            events.append(event)
            if isinstance(event, Failover) and event.handle == GROQ:
                served.vendors.clear()
                served.vendors.fault("mistral", on="chat", status=401)
                report = await recreated(served, "byok-groq")
                for on_event in served.runtime.readiness.on_sync:
                    on_event(report)
        return events

    events: list[Event] = served.call(conversation)
    assert [event.handle for event in events if isinstance(event, VendorAsked)] == [GROQ, MISTRAL, GROQ]
    end = events[-1]
    assert isinstance(end, Ended)
    assert (end.reason, end.handle) == (EndReason.COMPLETED, GROQ)
    assert served.said_to(agent) == ["Say good morning"]


def test_providers_are_recreated_under_load(served: Backend) -> None:
    """While agents talk on all vendors, every provider is recreated again and again: nothing fails, nothing leaks."""
    agents = [
        served.agent(f"loaded-{number}", handle) for number, handle in enumerate((CEREBRAS, GROQ, MISTRAL, LONGCAT))
    ]
    done = threading.Event()

    def conversation(agent: str) -> list[TurnRecord]:
        heard = []
        while not done.is_set():
            heard.append(served.say(agent, "Say good morning"))
        return heard

    with ThreadPoolExecutor(len(agents)) as pool:
        talking = [pool.submit(conversation, agent) for agent in agents]
        try:
            for _ in range(3):
                assert recreate(served).all_proven
        finally:
            done.set()
        turns = [heard for one in talking for heard in one.result()]
    assert [heard.end["reason"] for heard in turns] == ["completed"] * len(turns)
    assert served.foreign_keys() == []


def test_no_vendor_is_blamed_for_letta_s_database(served: Backend, letta_server: Letta) -> None:
    """If Letta cannot read the key of a call, the events name its database, and no circuit opens."""
    agent = served.agent("database", MISTRAL)
    url = letta_server.database_url.get_secret_value()
    with psycopg.connect(url, autocommit=True) as database:
        database.execute("ALTER TABLE providers RENAME COLUMN api_key_enc TO moved")
        try:
            heard = [served.say(agent, f"Say {number}") for number in ("one", "two", "three", "four")]
        finally:
            database.execute("ALTER TABLE providers RENAME COLUMN moved TO api_key_enc")
    for turn in heard:
        failover = turn.one("failover")
        assert (failover["handle"], failover["code"]) == (MISTRAL, "letta_failing")
        assert "database" in str(failover["message"])
        assert "SELECT" not in str(failover["message"])
        error = turn.one("error")
        assert (turn.end["reason"], error["code"], error["message"]) == (
            "failed",
            "letta_failing",
            failover["message"],
        )
    assert served.say(agent, "Say five").text == "five"


def test_a_message_edited_over_the_api(served: Backend) -> None:
    """It takes the place of the earlier one in the context; its own model answers, and the agent keeps its model."""
    agent = served.agent("edited", *HANDLES.values())
    served.say(agent, "Say one")
    served.say(agent, "Say two")
    whole = served.in_context(agent)
    messages = served.client.get(f"/api/agents/{agent}/messages").json()["messages"]
    edited = next(one["id"] for one in messages if one["text"] == "Say two")
    again = served.say(agent, "Say three", replaces=edited, model=HANDLES["longcat"])
    assert (again.text, again.end["handle"]) == ("three", HANDLES["longcat"])
    after = served.in_context(agent)
    assert (after[:3], len(after)) == (whole[:3], 5)
    assert edited not in after
    assert served.said_to(agent) == ["Say one", "Say two", "Say three"]
    assert served.say(agent, "Say four").end["handle"] == HANDLES["cerebras"]
    gone = served.say(agent, "Say five", replaces=edited)
    assert gone.one("error")["code"] == "message_gone"
    unknown = {"message": "Say six", "replaces": "message-00000000-0000-4000-8000-000000000000"}
    assert served.say(agent, **unknown).one("error")["code"] == "message_gone"
    for wrong in ({"replaces": "../x"}, {"model": "no-handle"}):
        refused = served.client.post(f"/api/agents/{agent}/turns", json={"message": "Say seven", **wrong})
        assert refused.status_code == 422


def test_a_switch_by_somebody_else_is_noticed(served: Backend) -> None:
    """Where another program has switched the agent in Letta, the turn says in the end who really answered."""
    agent = served.agent("switched-elsewhere", GROQ)
    assert served.say(agent, "Say hello").end["handle"] == GROQ
    _switch_to_mistral(served, agent)
    heard = served.say(agent, "Say hello again")
    assert heard.handles == [GROQ, MISTRAL]
    assert heard.end["handle"] == MISTRAL
    assert served.say(agent, "Say hello once more").handles == [MISTRAL]


def test_a_switch_to_a_vendor_that_refuses_leaves_the_preferred_one(served: Backend) -> None:
    """The vendor that the turn first thought it was asking was not asked, and is once the other one has refused."""
    agent = served.agent("switched-badly", GROQ)
    assert served.say(agent, "Say hello").end["handle"] == GROQ
    _switch_to_mistral(served, agent)
    served.vendors.fault("mistral", on="chat", status=401)
    heard = served.say(agent, "Say hello again")
    assert heard.handles == [GROQ, MISTRAL, GROQ]
    assert heard.one("failover")["handle"] == MISTRAL
    assert (heard.end["reason"], heard.end["handle"]) == ("completed", GROQ)
    assert served.said_to(agent) == ["Say hello", "Say hello again"]
    # It goes back to where somebody wanted it.
    served.vendors.clear()
    assert served.say(agent, "Say hello once more").handles == [MISTRAL]


def _switch_to_mistral(served: Backend, agent: str) -> None:
    """Switch an agent as another program would: in Letta, past the backend."""
    there = served.call(served.runtime.turns.deps.agent_cache.registry.find, agent)
    changed = {**_config(served, there.id), "handle": MISTRAL, "model": MISTRAL.partition("/")[2]}
    changed |= {"provider_name": "byok-mistral", "model_endpoint": served.vendors.base_url("mistral")}
    served.letta.patch(f"/v1/agents/{there.id}", json={"llm_config": changed}).raise_for_status()


def _config(served: Backend, agent_id: str) -> dict[str, object]:
    """An agent's `llm_config` as Letta has it."""
    found: dict[str, object] = served.letta.get(f"/v1/agents/{agent_id}").json()["llm_config"]
    return found
