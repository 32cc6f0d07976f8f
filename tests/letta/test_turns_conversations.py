"""Several conversations of one agent on the real Letta: one memory, separate histories and contexts, one order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from isabella.agents import context
from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from tests.support.backend_server import Backend, Speaking, backend

GROQ, MISTRAL = "byok-groq/openai/gpt-oss-120b", "byok-mistral/mistral-medium-latest"


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend on practice vendors."""
    with PracticeVendors() as vendors, backend(letta_server, tmp_path_factory.mktemp("home"), vendors) as running:
        yield running


@pytest.fixture(autouse=True)
def _fair(served: Backend) -> Iterator[None]:
    served.vendors.forget()
    yield
    served.vendors.clear()
    for provider in ("byok-groq", "byok-mistral"):
        served.call(served.runtime.turns.deps.breaker.forgive, provider)


@contextmanager
def slowly(served: Backend, vendor: str) -> Iterator[None]:
    """The vendor takes its time between words; an answer that is not over in the end comes at once then."""
    served.vendors.fault(vendor, on="chat", between=0.3)
    yield
    served.vendors.clear(vendor)


def begin(served: Backend, agent: str, **fields: Any) -> dict[str, Any]:
    """A new conversation."""
    answer = served.client.post(f"/api/agents/{agent}/conversations", json=fields)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def known(served: Backend, agent: str, **query: str) -> dict[str, dict[str, Any]]:
    """The conversations of an agent by id, in the order of the list."""
    answer = served.client.get(f"/api/agents/{agent}/conversations", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.json()["several"]
    return {each["id"]: each for each in answer.json()["conversations"]}


def said(served: Backend, agent: str, conversation: str = "default") -> list[tuple[str, str]]:
    """What was said in a conversation."""
    answer = served.client.get(f"/api/agents/{agent}/messages", params={"conversation": conversation, "limit": 200})
    assert answer.status_code == 200, answer.text
    return [(one["kind"], one["text"]) for one in answer.json()["messages"] if one["kind"] in ("user", "assistant")]


def users(served: Backend, agent: str, conversation: str = "default") -> list[str]:
    """What the user said in a conversation."""
    return [text for kind, text in said(served, agent, conversation) if kind == "user"]


def test_one_memory_separate_histories(served: Backend) -> None:
    """What is told in one conversation is known in another, older or newer; neither sees what the other said."""
    agent = served.agent("several", GROQ)
    older, newer = begin(served, agent)["id"], begin(served, agent, name="About pets")["id"]
    told = served.say(agent, "Please remember that my dog is called Rex.", conversation=newer)
    assert told.one("turn")["conversation"] == newer
    assert told.one("tool_result")["ok"]
    assert told.end["stored"]
    assert "Rex" in served.say(agent, "What is my dog called?", conversation=older).text
    assert "Rex" in served.say(agent, "And what is my dog called?").text
    assert users(served, agent, older) == ["What is my dog called?"]
    assert users(served, agent, newer) == ["Please remember that my dog is called Rex."]
    assert users(served, agent) == ["And what is my dog called?"]
    listed = known(served, agent)
    assert [*listed] == ["default", older, newer]
    assert (listed[older]["name"], listed[newer]["name"]) == ("What is my dog called?", "About pets")
    found = known(served, agent, q="dog called")
    assert {id: [one["text"] for one in each["matches"] if one["kind"] == "user"] for id, each in found.items()} == {
        "default": ["And what is my dog called?"],
        older: ["What is my dog called?"],
        newer: ["Please remember that my dog is called Rex."],
    }
    assert [*known(served, agent, q="pets")] == [newer]
    # The OpenAI format names it, too: as text, or as an object.
    ask = [{"role": "user", "content": "Say good morning"}]
    for path, body in (
        ("chat/completions", {"messages": ask, "conversation": newer}),
        ("responses", {"input": ask, "conversation": {"id": newer}}),
    ):
        answer = served.client.post(f"/v1/{path}", json={"model": agent, **body})
        assert answer.status_code == 200, answer.text
    assert users(served, agent, newer)[1:] == ["Say good morning"] * 2
    unknown = served.client.post("/v1/responses", json={"model": agent, "input": ask, "conversation": "conv_1"})
    assert unknown.status_code == 400


def test_names_and_archive(served: Backend) -> None:
    """A conversation is renamed, archived and taken out again; its messages stay. The default one stays as it is."""
    agent = served.agent("named", GROQ)
    made = begin(served, agent)
    assert (made["name"], made["archived"]) == ("New conversation", False)
    path = f"/api/agents/{agent}/conversations"
    served.say(agent, "Say good morning", conversation=made["id"])
    changed = served.client.patch(f"{path}/{made['id']}", json={"name": "  Mornings ", "archived": True})
    assert (changed.json()["name"], changed.json()["archived"]) == ("Mornings", True)
    assert known(served, agent)[made["id"]]["archived"]
    served.say(agent, "Say it again", conversation=made["id"])
    back = served.client.patch(f"{path}/{made['id']}", json={"archived": False})
    assert (back.json()["name"], back.json()["archived"]) == ("Mornings", False)
    assert users(served, agent, made["id"]) == ["Say good morning", "Say it again"]
    for id, body, status in (
        ("default", {"archived": True}, 422),
        ("default", {"name": "Other"}, 422),
        (made["id"], {"name": "x" * 201}, 422),
        (f"conv-{'0' * 8}-0000-4000-8000-{'0' * 12}", {"archived": True}, 404),
    ):
        assert served.client.patch(f"{path}/{id}", json=body).status_code == status, (id, body)
    other = served.agent("named-other", GROQ)
    foreign = served.client.post(f"/api/agents/{other}/turns", json={"message": "Hello", "conversation": made["id"]})
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (404, "conversation_unknown")
    older = served.agent("named-older", GROQ, agent_type="memgpt_v2_agent")
    refused = served.client.post(f"/api/agents/{older}/conversations", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "conversation_refused")


def test_a_stopped_answer_stays_in_its_conversation(served: Backend) -> None:
    """Turns of two conversations wait for each other; what came of a stopped one is kept where it was said."""
    agent = served.agent("stopped-there", GROQ)
    id = begin(served, agent)["id"]
    with slowly(served, "groq"):
        first = Speaking(served, agent, "Count to 60", conversation=id)
        first.until("text")
        second = Speaking(served, agent, "Say second")
        assert second.until("queued")["ahead"] == 1
        turn = first.until("turn")["id"]
        assert served.client.delete(f"/api/agents/{agent}/turns/{turn}").status_code == 204
    assert (first.whole().end["reason"], first.whole().end["stored"]) == ("stopped", True)
    assert second.whole().end["reason"] == "completed"
    assert users(served, agent) == ["Say second"]
    assert [kind for kind, _ in said(served, agent, id)] == ["user", "assistant"]
    kept = said(served, agent, id)[-1][1]
    assert kept.startswith("1")
    assert kept.endswith("[stopped]")
    assert known(served, agent)[id]["name"] == "Count to 60"
    # It is in the context of the next turn, and stays there in order.
    assert served.say(agent, "Say third", conversation=id).end["reason"] == "completed"
    assert users(served, agent, id) == ["Count to 60", "Say third"]
    row = served.letta.get(f"/v1/conversations/{id}").json()
    assert len(row["in_context_message_ids"]) == len(said(served, agent, id)) + 1


def test_a_failover_in_a_conversation(served: Backend) -> None:
    """Calls of another vendor leave the context of this conversation for Mistral, and come back afterwards."""
    agent = served.agent("over-there", GROQ, MISTRAL)
    id = begin(served, agent)["id"]
    assert served.say(agent, "Please remember that my dog is called Rex.", conversation=id).all("tool_call")
    before = served.letta.get(f"/v1/conversations/{id}").json()["in_context_message_ids"]
    served.vendors.fault("groq", on="chat", status=402)
    heard = served.say(agent, "What is my dog called?", conversation=id)
    assert (heard.handles, heard.end["reason"]) == ([GROQ, MISTRAL], "completed")
    assert [failover["code"] for failover in heard.all("failover")] == ["out_of_funds"]
    assert "Rex" in heard.text
    after = served.letta.get(f"/v1/conversations/{id}").json()["in_context_message_ids"]
    assert after[: len(before)] == before
    assert len(after) == len(before) + 2
    assert users(served, agent) == []
    # A message is taken out of the context of its conversation, and put back, as for one that replaces it.
    letta, agent_id = served.runtime.agents.letta, served.id_of(agent)
    whole = served.call(partial(context.rewind, letta, agent_id, after[-2], conversation=id))
    assert served.letta.get(f"/v1/conversations/{id}").json()["in_context_message_ids"] == after[:-2]
    served.call(partial(context.reinstate, letta, agent_id, whole, conversation=id))
    assert served.letta.get(f"/v1/conversations/{id}").json()["in_context_message_ids"] == after
    assert users(served, agent, id) == ["Please remember that my dog is called Rex.", "What is my dog called?"]
