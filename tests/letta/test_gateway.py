"""The gateway between the real Letta and strict practice vendors: keys, adapting, ending, refusals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx2 as httpx
import pytest

from isabella.agents.prompt_budget import prompt_budget
from isabella.agents.repair import find_broken
from isabella.api import ensure_providers
from isabella.doctor.log_messages import recognise
from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from isabella.providers.report import Report
from isabella.system.urls import gateway_base_url
from isabella.turns.events import ErrorCode
from isabella.turns.stream import VendorRefusal, classify_refusal, parse_line
from tests.support.backend_server import Backend, Speaking, backend

CEREBRAS, GROQ = "cerebras/gpt-oss-120b", "byok-groq/openai/gpt-oss-120b"
MISTRAL, LONGCAT = "byok-mistral/mistral-medium-latest", "longcat/LongCat-2.0"
HANDLES = {"cerebras": CEREBRAS, "groq": GROQ, "mistral": MISTRAL, "longcat": LONGCAT}
#: The tokens of an answer that is cut off: its text is longer than what the context keeps of it.
LIMIT = 800
OLDER_TYPES = ("memgpt_v2_agent", "react_agent", "workflow_agent")


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with a gateway; its vendors refuse all that the real ones are known to refuse."""
    home: Path = tmp_path_factory.mktemp("home")
    with (
        PracticeVendors() as vendors,
        backend(letta_server, home, vendors, gateway="on", first_token_timeout=60.0, silence_timeout=60.0) as running,
    ):
        for vendor in HANDLES:
            vendors.strict(vendor)
        yield running


@pytest.fixture(autouse=True)
def without_faults(served: Backend) -> Iterator[None]:
    """No fault, no open circuit and no limit of a window outlives its test."""
    yield
    served.vendors.clear()
    served.vendors.forget()
    for handle in HANDLES.values():
        served.call(served.runtime.turns.deps.breaker.forgive, handle.partition("/")[0])
        # What one test has taught about a vendor's windows is forgotten before the next.
        for name in (handle, handle.partition("/")[0]):
            served.call(partial(served.runtime.agents.models.cap, name, 1_000_000, "It takes all."))


def wait_for_end(served: Backend, vendor: str) -> None:
    """Wait until the client of the vendor's last request has closed the connection."""
    until = time.monotonic() + 30
    while (request := served.vendors.requests(vendor)[-1]).ended is None:
        assert time.monotonic() < until, "the vendor goes on generating"
        time.sleep(0.02)
    assert request.ended == "disconnected"


@pytest.mark.parametrize("vendor", HANDLES)
def test_each_vendor_remembers(served: Backend, vendor: str) -> None:
    """An agent on each strict vendor goes through tool calls; only the vendor's own key arrives."""
    agent = served.agent(f"gateway-{vendor}", HANDLES[vendor])
    told = served.say(agent, "Please remember that my dog is called Rex.")
    assert told.one("tool_call")["name"] == "memory_insert"
    assert told.one("tool_result")["ok"]
    asked = served.say(agent, "What is my dog called?")
    assert "Rex" in asked.text
    assert asked.end["reason"] == "completed"
    assert {request.status for request in served.vendors.requests(vendor)} == {200}
    assert served.foreign_keys() == []


def test_the_first_prompt_of_the_default_agent_is_short(served: Backend) -> None:
    """At most 2,200 tokens, and no tool of it has Letta's own description: a new release would need new hashes."""
    turn = served.say("Isabella", "Say good morning")
    assert turn.one("usage")["prompt_tokens"] <= 2200
    record = served.call(served.runtime.agents.registry.find, "Isabella")
    budget = served.call(prompt_budget, served.runtime.agents.letta, record.id)
    sizes = {name: size for name, size in budget.parts.items() if name.startswith("tool ")}
    assert sizes.keys() == {f"tool {name}" for name in record.tools}
    assert max(sizes.values()) < 250
    # The practice vendor counts four characters of the whole request as a token, Isabella those of the parts, without
    # the JSON around them.
    assert 0.75 < budget.total / turn.one("usage")["prompt_tokens"] < 1.05


@pytest.mark.parametrize(
    ("vendor", "agent_type"),
    [*((vendor, "memgpt_agent") for vendor in HANDLES), *(("mistral", agent_type) for agent_type in OLDER_TYPES)],
)
def test_older_types_of_agents_answer_on_every_vendor(served: Backend, vendor: str, agent_type: str) -> None:
    """Behind the gateway agents of the older types stream on all vendors, Mistral included (facts M26 and M28)."""
    agent = served.agent(f"{agent_type}-{vendor}", HANDLES[vendor], agent_type=agent_type, tools=["send_message"])
    for text in ("Please remember that my dog is called Rex.", "Say goodbye"):
        turn = served.say(agent, text)
        assert turn.end["reason"] in ("completed", "max_steps"), turn.all("failover") + turn.all("error")
        assert turn.end["handle"] == HANDLES[vendor]
    assert {request.status for request in served.vendors.requests(vendor)} == {200}


def test_a_conversation_through_all_vendors(served: Backend) -> None:
    """A conversation with tool calls and a stopped turn is answered by each strict vendor; nothing is lost."""
    agent = served.agent("gateway-wanders", CEREBRAS)
    names = ("Ada", "Bea", "Cleo", "Dora", "Elsa")
    for handle, name in zip((CEREBRAS, LONGCAT, MISTRAL, GROQ, MISTRAL), names, strict=True):
        switched = served.client.post(f"/api/agents/{agent}/switch", json={"handle": handle})
        assert switched.status_code == 200, switched.text
        assert switched.json().get("notes", []) == []
        told = served.say(agent, f"Please remember that one of my boats is called {name}.")
        assert told.handles == [told.end["handle"]] == [handle], told.events
        assert told.end["reason"] == "completed", told.all("failover") + told.all("error")
        vendor = next(vendor for vendor, known in HANDLES.items() if known == handle)
        served.vendors.fault(vendor, between=0.2, on="chat")
        turn = Speaking(served, agent, f"Count to 60, {name}")
        turn.until("text")
        served.client.delete(f"/api/agents/{agent}/turns/{turn.until('turn')['id']}")
        assert turn.whole().end["reason"] == "stopped"
        served.vendors.clear()
    said = served.said_to(agent)
    assert [text for text in said if "boats" in text] == [
        f"Please remember that one of my boats is called {name}." for name in names
    ]
    assert len([text for text in said if "Count" in text]) == 5
    assert served.foreign_keys() == []
    refused = [request for vendor in HANDLES for request in served.vendors.requests(vendor) if request.status >= 400]
    assert refused == []


def test_an_image_in_the_context_of_a_model_that_sees_none(served: Backend) -> None:
    """Images stay in the history: a model that takes none gets a text in their place."""
    agent = served.agent("gateway-image", MISTRAL, GROQ)
    content = [
        {"type": "text", "text": "Say what is here"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ]
    body = {"model": agent, "messages": [{"role": "user", "content": content}]}
    seen = served.client.post("/v1/chat/completions", json=body).json()
    assert seen["choices"][0]["message"]["content"] == "what is here\n[image/png, 8 bytes]"
    served.client.post(f"/api/agents/{agent}/switch", json={"handle": GROQ}).raise_for_status()
    turn = served.say(agent, "Say hello")
    assert (turn.text, turn.handles) == ("hello", [GROQ])


def test_an_aside_passes_the_gateway(served: Backend) -> None:
    """It is adapted to the vendor and counted, as a request of Letta's is."""
    agent = served.agent("gateway-aside", MISTRAL)
    body = {
        "model": f"{agent}:aside",
        "messages": [{"role": "user", "content": "Say hello", "name": "ada"}],
        "max_completion_tokens": 50,
        "seed": 3,
    }
    answer = served.client.post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == "hello", answer.text
    (request,) = (one for one in served.vendors.requests("mistral") if one.path.endswith("/chat/completions"))
    assert (request.status, request.strictness) == (200, None)
    assert served.said_to(agent) == []


@pytest.mark.parametrize("stream", [False, True])
def test_an_aside_ends_with_its_client(served: Backend, stream: bool) -> None:
    """Nobody pays for what nobody reads."""
    agent = served.agent(f"gateway-aside-{stream}", GROQ)
    served.vendors.fault("groq", on="chat", endless=True, between=0.05)
    body = {"model": f"{agent}:aside", "messages": [{"role": "user", "content": "Say hello"}], "stream": stream}
    with httpx.Client(base_url=served.url, headers=served.client.headers, timeout=10) as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body, timeout=1.0)
    wait_for_end(served, "groq")


def test_a_stale_key_in_letta_cannot_fail_a_turn(served: Backend) -> None:
    """With another key in Letta the turn is answered with the configured one; the drift is told and mended."""
    agent = served.agent("gateway-stale", GROQ)
    provider = stored(served, "byok-groq")
    served.letta.patch(
        f"/v1/providers/{provider['id']}",
        json={"api_key": "gsk_stale-key-of-nobody", "base_url": provider["base_url"]},
    ).raise_for_status()
    before = served.gateway.traffic.vendor("byok-groq").stopped_keys if served.gateway else 0
    turn = served.say(agent, "Say hello")
    assert (turn.text, turn.handles) == ("hello", [GROQ])
    assert served.foreign_keys() == []
    assert served.gateway is not None
    stopped = served.gateway.traffic.stopped[-1]
    assert served.gateway.traffic.vendor("byok-groq").stopped_keys > before
    assert (stopped.provider, stopped.kind, stopped.answered) == ("byok-groq", "stale", True)
    assert "stale-key" not in stopped.masked
    assert until_noticed(served, "byok-groq")
    assert in_sync(served)


def test_an_agent_whose_provider_was_deleted_is_answered(served: Backend) -> None:
    """Letta sends a key of its own environment then (fact P7); the vendor gets the configured one."""
    agent = served.agent("gateway-deleted", CEREBRAS)
    provider = stored(served, "cerebras")
    served.letta.delete(f"/v1/providers/{provider['id']}").raise_for_status()
    direct = served.letta.post(
        f"/v1/agents/{served.id_of(agent)}/messages", json={"messages": [{"role": "user", "content": "Say hello"}]}
    )
    assert [m["content"] for m in direct.json()["messages"] if m["message_type"] == "assistant_message"] == ["hello"]
    assert served.foreign_keys() == []
    assert served.gateway is not None
    stopped = served.gateway.traffic.stopped[-1]
    assert (stopped.provider, stopped.kind, stopped.answered) == ("cerebras", "foreign", True)
    assert in_sync(served)


def test_agents_stay_at_the_gateway_while_another_program_moves_their_provider(served: Backend) -> None:
    """Not even a new binding follows it: if it is deleted there, a key of Letta's own would arrive at the vendor."""
    agents, vendors = served.runtime.agents, served.vendors
    assert served.say("Isabella", "Say hello").handles == [CEREBRAS]
    provider, id = stored(served, "cerebras"), served.id_of("Isabella")
    moved = {"api_key": vendors.key("cerebras").get_secret_value(), "base_url": vendors.base_url("cerebras")}
    served.letta.patch(f"/v1/providers/{provider['id']}", json=moved).raise_for_status()
    (isabella,) = [one for one in served.call(agents.ensure) if one.name == "Isabella"]
    assert (isabella.done.value, isabella.changes) == ("kept", ())
    found = served.call(find_broken, agents.registry, agents.models)
    assert [one.why for one in found if one.agent_id == id] == []
    bound = served.call(agents.registry.bind, id, served.call(agents.models.binding, CEREBRAS))
    assert bound.binding.base_url == provider["base_url"]
    served.letta.delete(f"/v1/providers/{provider['id']}").raise_for_status()
    said = {"messages": [{"role": "user", "content": "Say hello"}]}
    served.letta.post(f"/v1/agents/{id}/messages", json=said).raise_for_status()
    assert served.foreign_keys() == []
    assert in_sync(served)


def test_another_program_is_refused_without_the_provider_s_key(served: Backend) -> None:
    """A process that is not Letta needs the provider's own key; with any other, nothing leaves the machine."""
    served.vendors.forget()
    url = gateway_base_url(f"http://127.0.0.1:{port_of(served)}", "cerebras")
    groq_key = served.vendors.key("groq").get_secret_value()
    for key in (None, "DUMMY_API_KEY", groq_key):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        refused = httpx.get(f"{url}/models", headers=headers, trust_env=False)
        assert refused.status_code == 401
        assert refused.headers["x-should-retry"] == "false"
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert key is None or key not in refused.text
    assert served.vendors.requests("cerebras") == []


@pytest.mark.parametrize("how", ["stopped", "gone", "cancelled at Letta"])
def test_a_turn_that_is_over_costs_nothing_more(served: Backend, how: str) -> None:
    """A vendor that would never stop generating is stopped when the turn is over (fact G1)."""
    agent = served.agent(f"gateway-ends-{how.replace(' ', '-')}", CEREBRAS)
    served.vendors.fault("cerebras", endless=True, between=0.02, on="chat")
    turn = Speaking(served, agent, "Count to 60")
    turn.until("text")
    match how:
        case "stopped":
            served.client.delete(f"/api/agents/{agent}/turns/{turn.until('turn')['id']}")
        case "gone":
            turn.leave.set()
            turn.thread.join(30)
        case _:
            cancelled = served.letta.post(f"/v1/agents/{served.id_of(agent)}/messages/cancel", json={})
            cancelled.raise_for_status()
    wait_for_end(served, "cerebras")
    served.vendors.clear()
    turn.thread.join(30)


@pytest.mark.parametrize("fault", [{"status": 429}, {"status": 500}, {"status": 503}, {"reset": True}])
def test_failover_begins_at_once(served: Backend, fault: dict[str, object]) -> None:
    """A refusal is final: Letta does not try the vendor twice more before the next one is asked (fact G2)."""
    agent = served.agent(f"gateway-failover-{'-'.join(map(str, fault.values()))}", CEREBRAS, GROQ)
    served.vendors.fault("cerebras", on="chat", **fault)
    turn = served.say(agent, "Say hello")
    assert turn.end["handle"] == GROQ
    assert len([one for one in served.vendors.requests("cerebras") if "chat" in one.path]) == 1


def test_the_vendors_own_words_and_its_pause_reach_the_turn(served: Backend) -> None:
    """A failover says what the vendor said, with its status and the pause in its header."""
    agent = served.agent("gateway-words", GROQ, CEREBRAS)
    served.vendors.fault("groq", on="chat", status=429, retry_after=17)
    turn = served.say(agent, "Say hello")
    failover = turn.one("failover")
    assert (failover["code"], failover["status"], failover["retry_after"]) == ("rate_limited", 429, 17)


def test_a_context_that_is_too_long_is_summarised(served: Backend) -> None:
    """An overflow in the words of llama.cpp makes Letta summarise, and the turn is answered (fact G8)."""
    agent = served.agent("gateway-overflow", CEREBRAS)
    for number in range(6):
        served.say(agent, f"Say {number}")
    served.vendors.fault("cerebras", on="chat", overflow="llama.cpp", times=1)
    turn = served.say(agent, "Say hello")
    assert turn.end["reason"] == "completed", turn.events
    assert turn.all("summarized") or turn.text


def test_letta_quotes_the_gateway_s_own_refusal(served: Backend) -> None:
    """The error of an agent at a provider that the gateway does not have is the gateway's, and no vendor's."""
    id = served.id_of(served.agent("gateway-nobody", MISTRAL))
    config = served.letta.get(f"/v1/agents/{id}").json()["llm_config"]
    nobody = gateway_base_url(f"http://127.0.0.1:{port_of(served)}", "nobody")
    served.letta.patch(
        f"/v1/agents/{id}", json={"llm_config": {**config, "model_endpoint": nobody}}
    ).raise_for_status()
    said = {"messages": [{"role": "user", "content": "Say hello"}]}
    refused = served.letta.post(f"/v1/agents/{id}/messages", json=said)
    assert refused.status_code == 500, refused.text
    error = refused.json()["error"]
    assert [one.message.id for one in recognise(refused.text)] == ["gateway-no-provider"]
    lines = served.letta.post(f"/v1/agents/{id}/messages/stream", json={**said, "stream_tokens": True}).text
    streamed = [piece for line in lines.splitlines() if isinstance(piece := parse_line(line), VendorRefusal)]
    for refusal in (classify_refusal(error["type"], error["detail"]), *streamed):
        assert (refusal.code, refusal.vendor, refusal.counts) == (ErrorCode.GATEWAY_REFUSED, None, False)
        assert refusal.message.startswith("Isabella's gateway has no provider 'nobody'.")
    assert streamed


def test_an_answer_that_reaches_its_limit_is_cut_off(served: Backend) -> None:
    """The turn and OpenAI's format say so. The context has the beginning of it with a mark, the history all of it."""
    agent = served.agent("endless", CEREBRAS, settings={"max_tokens": LIMIT})
    served.say(agent, "Say hello")
    served.vendors.fault("cerebras", on="chat", endless=True)
    turn = served.say(agent, "Go on for ever")
    assert (turn.end["reason"], turn.end["stored"]) == ("length", True)
    assert turn.one("usage")["completion_tokens"] == LIMIT
    assert len(turn.text) > 3000
    served.check_shortened(agent, turn)
    body = {"model": agent, "messages": [{"role": "user", "content": "And again"}]}
    completion = served.client.post("/v1/chat/completions", json=body).raise_for_status().json()
    assert completion["choices"][0]["finish_reason"] == "length"
    served.vendors.clear()
    assert served.say(agent, "Say that it is over").end["reason"] == "completed"


def test_an_agent_on_a_model_without_tools_talks(served: Backend) -> None:
    """The vendor refuses the first request because of its tools; the gateway leaves them out from then on."""
    handle = "byok-groq/openai/gpt-oss-20b"
    agent = served.agent("without-tools", handle, CEREBRAS)
    words = '{"error": {"message": "registry.ollama.ai/library/small does not support tools"}}'
    served.vendors.fault("groq", on="chat", status=400, body=words, times=1)
    turn = served.say(agent, "Please remember that my dog is called Rex.")
    assert turn.handles == [handle, handle]
    assert turn.one("failover")["code"] == "tools_refused"
    assert (turn.end["reason"], turn.all("tool_call")) == ("completed", [])
    again = served.say(agent, "Please remember that my cat is called Tom.")
    assert (again.handles, again.all("failover"), again.all("tool_call")) == ([handle], [], [])


def test_what_passed_is_told(served: Backend) -> None:
    """The API has the gateway and both base URLs of a provider; /metrics has the gateway's totals."""
    agent = served.agent("gateway-counted", LONGCAT)
    assert served.say(agent, "Say hello").text == "hello"
    document = served.client.get("/api/providers").json()
    assert document["gateway"]["state"] == "runs"
    (longcat,) = [one for one in document["providers"] if one["name"] == "longcat"]
    assert longcat["stored_base_url"] == longcat["base_url"] == stored(served, "longcat")["base_url"]
    assert longcat["upstream"] == served.vendors.base_url("longcat")
    assert served.gateway is not None
    vendor = served.gateway.traffic.vendor("longcat")
    wanted = {
        "isabella_gateway_up 1.0",
        f'isabella_gateway_answers_total{{provider="longcat"}} {vendor.answers}.0',
        f'isabella_gateway_tokens_total{{kind="completion",provider="longcat"}} {vendor.completion_tokens}.0',
    }
    assert vendor.answers > 0
    assert vendor.completion_tokens > 0
    until = time.monotonic() + 30
    while not wanted <= set(served.client.get("/metrics").text.splitlines()):
        assert time.monotonic() < until, served.client.get("/metrics").text
        time.sleep(0.1)


def test_a_request_larger_than_the_allowance_is_a_rate_limit(served: Backend) -> None:
    """Groq's 413 hides no part of the conversation (fact G3); the window is lowered to the allowance before."""
    served.vendors.limit("groq", tokens=100_000)
    models = served.runtime.agents.models
    # The allowance that earlier tests have met is forgotten only when another answer has told this one.
    served.say(served.agent("gateway-allowance-told", GROQ), "Say hello")
    until = time.monotonic() + 30
    while models.capped("byok-groq", "openai/gpt-oss-120b", 131_072) != 90_000:
        assert time.monotonic() < until
        time.sleep(0.1)
    agent = served.agent("gateway-allowance", GROQ, CEREBRAS)
    served.call(partial(models.cap, "byok-groq", 1_000_000, "It takes all."))
    for number in range(3):
        served.say(agent, f"Say {number}")
    until = time.monotonic() + 30
    while served.letta.get(f"/v1/agents/{served.id_of(agent)}").json()["llm_config"]["context_window"] != 90_000:
        assert time.monotonic() < until
        time.sleep(0.1)
    before = served.in_context(agent)
    served.vendors.limit("groq", tokens=2000)
    turn = served.say(agent, "Say hello")
    failover = turn.one("failover")
    assert (failover["code"], failover["status"]) == ("rate_limited", 413)
    assert (turn.text, turn.end["handle"]) == ("hello", CEREBRAS)
    assert served.in_context(agent)[: len(before)] == before


def stored(served: Backend, name: str) -> dict[str, str]:
    """Return Letta's row of a provider."""
    (row,) = [row for row in served.letta.get("/v1/providers/").json() if row["name"] == name]
    return dict(row)


def in_sync(served: Backend) -> bool:
    """Sync the providers, and return whether all are proven."""

    async def sync() -> Report:
        return await ensure_providers(served.settings, connection=served.connection, gate=served.locks)

    report: Report = served.call(sync)
    return report.all_proven


def until_noticed(served: Backend, provider: str) -> bool:
    """Wait until the backend has recorded that a key of this provider was stopped."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if any(one.subject == provider and "outdated key" in one.text for one in served.runtime.event_log.entries):
            return True
        time.sleep(0.1)
    return False


def port_of(served: Backend) -> int:
    """Return the port of the gateway."""
    base_url = stored(served, "longcat")["base_url"]
    return int(base_url.split(":")[2].partition("/")[0])
