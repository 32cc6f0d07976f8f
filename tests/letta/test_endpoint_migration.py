"""A vendor that moves, with another key: agents go along, and no key arrives where it does not belong (fact M6)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from isabella.agents import reconcile
from isabella.agents.definitions import AgentDefinition
from isabella.agents.repair import find_broken
from isabella.api import compare_providers, ensure_providers, verify_providers
from isabella.config.choices import Strategy
from isabella.config.settings import Settings
from isabella.doctor.run import DoctorOptions, apply_fixes, run_doctor
from isabella.embedded import Letta
from isabella.errors import LettaRefused, ModelUnknown
from isabella.letta.http import LettaHttp
from isabella.practice import PracticeVendors
from isabella.practice.overlay import with_practice_vendors
from isabella.providers.desired import desired_providers
from isabella.providers.plan import Action, ProviderState
from isabella.providers.report import Proof, ProviderReport, Receipt
from isabella.system.redaction import mask
from isabella.system.urls import PLACEHOLDER_URL
from tests.support.backend_server import Backend, backend

CEREBRAS, GROQ = "cerebras/gpt-oss-120b", "byok-groq/openai/gpt-oss-120b"


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[PracticeVendors]:
    """Where Cerebras moves to. It takes keys of its own only."""
    with PracticeVendors() as vendors:
        yield vendors


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend on practice vendors."""
    with PracticeVendors() as vendors, backend(letta_server, tmp_path_factory.mktemp("home"), vendors) as running:
        yield running


@pytest.fixture
def before(served: Backend, elsewhere: PracticeVendors) -> None:
    """Cerebras is where it was first, for every test."""
    assert move(served, served.settings).proof is Proof.PROVEN
    served.vendors.clear()
    for vendors in (served.vendors, elsewhere):
        vendors.forget()


def moved(served: Backend, elsewhere: PracticeVendors) -> Settings:
    """The settings after the move: another address and another key for Cerebras, and nothing else."""
    there = with_practice_vendors(served.settings, elsewhere)
    changed = {name: value for name, value in there.sources.overlay.items() if name.startswith("CEREBRAS_")}
    overlay = {**served.settings.sources.overlay, **changed}
    return there.model_copy(update={"sources": replace(there.sources, overlay=overlay)})


def move(served: Backend, settings: Settings, strategy: Strategy | None = None) -> ProviderReport:
    """Sync Cerebras behind the backend's gate."""

    async def sync() -> ProviderReport:
        report = await ensure_providers(
            settings,
            connection=served.connection,
            only=("cerebras",),
            strategy=strategy,
            gate=served.locks,
        )
        return report.providers[0]

    found: ProviderReport = served.call(sync)
    return found


def endpoint(served: Backend, agent: str) -> str:
    """The address that an agent calls."""
    return str(served.letta.get(f"/v1/agents/{served.id_of(agent)}").json()["llm_config"]["model_endpoint"])


def astray(*vendors: PracticeVendors) -> list[str | None]:
    """Keys that arrived at a Cerebras which is not theirs."""
    return [one.key_masked for some in vendors for one in some.requests("cerebras") if not one.accepted]


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("strategy", [None, Strategy.RECREATE])
def test_agents_go_along_while_they_talk(
    served: Backend, elsewhere: PracticeVendors, strategy: Strategy | None
) -> None:
    """Under load, updated or recreated: every turn is answered, and neither key is seen at the other address."""
    agents = [served.agent(f"mover-{strategy}-{number}", CEREBRAS) for number in range(2)]
    done = threading.Event()
    ends: list[str] = []

    def conversation(agent: str) -> None:
        while True:
            last = done.is_set()
            ends.append(served.say(agent, "Say good morning").end["reason"])
            if last:
                return

    threads = [threading.Thread(target=conversation, args=(agent,)) for agent in agents]
    for thread in threads:
        thread.start()
    try:
        entry = move(served, moved(served, elsewhere), strategy)
    finally:
        done.set()
        for thread in threads:
            thread.join(60)

    assert (entry.action, entry.proof) == (Action.RECREATE if strategy else Action.UPDATE, Proof.PROVEN)
    assert "agents moved to the new base URL: " in entry.reason
    assert set(ends) == {"completed"}
    assert astray(served.vendors, elsewhere) == []
    assert {endpoint(served, agent) for agent in agents} == {elsewhere.base_url("cerebras")}
    assert any(request.path.endswith("/chat/completions") for request in elsewhere.requests("cerebras"))


@pytest.mark.usefixtures("before")
def test_nothing_else_about_an_agent_is_changed(served: Backend, elsewhere: PracticeVendors) -> None:
    """Only the address; and an agent of another vendor's is not touched at all."""
    mine, other = served.agent("plain", CEREBRAS), served.agent("other", GROQ)
    path = f"/v1/agents/{served.id_of(mine)}"
    config = served.letta.get(path).json()["llm_config"] | {"temperature": 0.25, "max_tokens": 77}
    served.letta.patch(path, json={"llm_config": config}).raise_for_status()
    rows = {agent: served.letta.get(f"/v1/agents/{served.id_of(agent)}").json() for agent in (mine, other)}
    assert move(served, moved(served, elsewhere)).stored is ProviderState.STALE
    now = served.letta.get(path).json()["llm_config"]
    assert now == rows[mine]["llm_config"] | {"model_endpoint": elsewhere.base_url("cerebras")}
    assert served.letta.get(f"/v1/agents/{served.id_of(other)}").json()["llm_config"] == rows[other]["llm_config"]


@pytest.mark.usefixtures("before")
def test_while_one_agent_cannot_follow_the_key_is_withheld(
    served: Backend, elsewhere: PracticeVendors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is refused by Letta, one is gone by then, one was switched to Groq: the others follow, and it is told.

    No key is written that the one that stays behind would carry to the former address. Once it is gone, all is well.
    """
    agents = [served.agent(f"follower-{number}", CEREBRAS) for number in range(5)]
    refused, gone, switched = (served.id_of(agent) for agent in agents[1:4])
    groq = served.letta.get(f"/v1/agents/{served.id_of(served.agent('of-groq', GROQ))}").json()["llm_config"]
    really = LettaHttp.patch

    async def patch_or_not(http: LettaHttp, path: str, body: Mapping[str, Any] | None = None) -> Any:
        if path == f"/v1/agents/{refused}":
            raise LettaRefused("Letta refused to change it.", status=422, detail="no")
        if path == f"/v1/agents/{gone}":
            served.letta.delete(path).raise_for_status()
        return await really(http, path, body)

    served.letta.patch(f"/v1/agents/{switched}", json={"llm_config": groq}).raise_for_status()
    there, settings = elsewhere.base_url("cerebras"), moved(served, elsewhere)
    with monkeypatch.context() as patched:
        patched.setattr(LettaHttp, "patch", patch_or_not)
        entry = move(served, settings)
    assert entry.proof is Proof.FAILED
    assert "Letta refused to change it." in entry.reason
    assert "providers sync --only cerebras" in str(entry.remedy)
    assert [endpoint(served, agents[number]) == there for number in (0, 1, 3, 4)] == [True, False, False, True]
    assert served.letta.get(f"/v1/agents/{switched}").json()["llm_config"] == groq
    for agent in (refused, served.id_of(agents[0])):
        body = {"messages": [{"role": "user", "content": "Hello."}], "max_steps": 1}
        served.letta.post(f"/v1/agents/{agent}/messages", json=body)
    for vendors in (served.vendors, elsewhere):
        carried = {request.key_masked for request in vendors.requests("cerebras") if not request.accepted}
        assert len(carried) == 1, "each agent carries what is no key, and that to its own address"
        assert carried.isdisjoint(
            mask(vendor.key("cerebras").get_secret_value()) for vendor in (served.vendors, elsewhere)
        )
        vendors.forget()
    served.letta.delete(f"/v1/agents/{refused}").raise_for_status()
    assert move(served, settings).proof is Proof.PROVEN
    assert astray(served.vendors, elsewhere) == []


@pytest.mark.usefixtures("before")
def test_an_agent_that_calls_the_same_place_is_left_as_it_is(served: Backend) -> None:
    """A slash at the end is no other address, and a turn changes nothing about somebody's agent."""
    agent = served.agent("slash", CEREBRAS)
    path = f"/v1/agents/{served.id_of(agent)}"
    config = served.letta.get(path).json()["llm_config"]
    config |= {"model_endpoint": config["model_endpoint"] + "/", "temperature": 0.25}
    served.letta.patch(path, json={"llm_config": config}).raise_for_status()
    before = served.letta.get(path).json()["llm_config"]
    assert served.say(agent, "Say good morning").end["reason"] == "completed"
    assert served.letta.get(path).json()["llm_config"] == before


@pytest.mark.usefixtures("before")
def test_a_turn_that_was_answered_elsewhere_goes_back_to_the_new_address(
    served: Backend, elsewhere: PracticeVendors
) -> None:
    """Cerebras fails, Groq answers, and Cerebras moves meanwhile."""
    agent = served.agent("returning", CEREBRAS, GROQ)
    served.vendors.fault("cerebras", status=500, on="chat")
    served.vendors.fault("groq", between=0.05, on="chat")
    with served.client.stream("POST", f"/api/agents/{agent}/turns", json={"message": "Say good morning"}) as turn:
        lines = turn.iter_lines()
        while GROQ not in next(lines):
            pass
        assert move(served, moved(served, elsewhere)).proof is Proof.PROVEN
        assert any('"completed"' in line for line in lines)
    assert endpoint(served, agent) == elsewhere.base_url("cerebras")
    assert served.say(agent, "Say good evening").end["handle"] == CEREBRAS
    assert astray(served.vendors, elsewhere) == []


@pytest.mark.usefixtures("before")
def test_an_agent_that_was_left_behind_is_taken_along_by_its_next_turn(
    served: Backend, elsewhere: PracticeVendors
) -> None:
    """As after a sync that was killed in between, or an agent that somebody has bound to the former address."""
    settings = moved(served, elsewhere)
    agent = served.agent("left-behind", CEREBRAS)
    path = f"/v1/agents/{served.id_of(agent)}"
    config = served.letta.get(path).json()["llm_config"] | {"temperature": 0.25}
    assert move(served, settings).proof is Proof.PROVEN
    served.letta.patch(path, json={"llm_config": config}).raise_for_status()
    models = served.runtime.agents.models
    try:
        models.renew(desired_providers(settings))
        assert served.say(agent, "Say good morning").end["handle"] == CEREBRAS
    finally:
        models.renew(desired_providers(served.settings))
    assert served.letta.get(path).json()["llm_config"] == config | {"model_endpoint": elsewhere.base_url("cerebras")}
    assert astray(served.vendors, elsewhere) == []


@pytest.mark.usefixtures("before")
def test_an_agent_that_letta_hides_goes_along(served: Backend, elsewhere: PracticeVendors) -> None:
    """It speaks as all others do, and is followed by them where the provider was deleted, too."""
    config = served.letta.get(f"/v1/agents/{served.id_of(served.agent('seen', CEREBRAS))}").json()["llm_config"]
    body = {"name": "hidden", "llm_config": config, "include_base_tools": False, "hidden": True}
    id = served.letta.post("/v1/agents/", json=body).raise_for_status().json()["id"]
    assert served.letta.get("/v1/agents/", params={"name": "hidden"}).json() == []

    def called() -> str:
        return str(served.letta.get(f"/v1/agents/{id}").json()["llm_config"]["model_endpoint"])

    assert move(served, moved(served, elsewhere)).proof is Proof.PROVEN
    assert called() == elsewhere.base_url("cerebras")
    (row,) = served.letta.get("/v1/providers/", params={"name": "cerebras"}).json()
    served.letta.delete(f"/v1/providers/{row['id']}").raise_for_status()
    assert move(served, served.settings).action is Action.CREATE
    assert called() == served.vendors.base_url("cerebras")
    served.letta.delete(f"/v1/agents/{id}").raise_for_status()
    assert astray(served.vendors, elsewhere) == []


@pytest.mark.usefixtures("before")
def test_before_the_move_the_stored_key_stays_where_it_belongs(served: Backend, elsewhere: PracticeVendors) -> None:
    """The configuration names another address, and the new vendor refuses: nothing carries the stored key there.

    Not a receipt, not what the doctor mends, not an agent that is made, bound anew or switched meanwhile.
    """
    settings, here = moved(served, elsewhere), served.vendors.base_url("cerebras")
    elsewhere.fault("cerebras", status=401)
    agent, other = served.agent("stays", CEREBRAS), served.agent("switches", GROQ)
    agent_service = served.runtime.agents

    async def ask_and_mend() -> tuple[ProviderReport, list[str]]:
        report = await verify_providers(settings, connection=served.connection, only=("cerebras",))
        options = DoctorOptions(providers=("cerebras",), probe=True)
        doctor_run = await run_doctor(settings=settings, connection=served.connection, options=options)
        return report.providers[0], [line async for line in apply_fixes(doctor_run)]

    async def switch_and_make() -> str:
        registry = agent_service.registry
        await registry.switch(await registry.find(other), CEREBRAS, agent_service.models)
        made = AgentDefinition(id="test-made", name="made", description="", persona="", handles=(CEREBRAS,))
        (ensured,) = await reconcile.ensure(registry, [made], agent_service.models)
        return ensured.name

    entry, lines = served.call(ask_and_mend)
    assert (entry.stored, entry.receipt) == (ProviderState.STALE, Receipt.FAILED)
    assert "Letta has another base URL for it" in entry.reason
    assert any("refuses the configured key" in line for line in lines)
    agent_service.models.renew(desired_providers(settings))
    elsewhere.clear()
    try:
        names = [agent, other, served.call(switch_and_make)]
        served.say(agent, "Say good morning")
    finally:
        agent_service.models.renew(desired_providers(served.settings))
    assert {endpoint(served, name) for name in names} == {here}
    stored = served.vendors.key("cerebras").get_secret_value()
    assert not [request for request in elsewhere.requests("cerebras") if request.carries(stored)]
    served.letta.delete(f"/v1/agents/{served.id_of('made')}").raise_for_status()


@pytest.mark.usefixtures("before")
def test_a_provider_between_two_addresses_is_told_as_such(served: Backend, elsewhere: PracticeVendors) -> None:
    """As after a sync that was killed in the middle: nothing is bound to nowhere, and everybody says what it is."""
    settings = moved(served, elsewhere)
    agent, other = served.agent("between", CEREBRAS), served.agent("not-between", GROQ)
    (row,) = served.letta.get("/v1/providers/", params={"name": "cerebras"}).json()
    body = {"api_key": "no-key-yet-0000", "base_url": PLACEHOLDER_URL}
    served.letta.patch(f"/v1/providers/{row['id']}", json=body).raise_for_status()
    agent_service = served.runtime.agents

    async def look() -> tuple[ProviderReport, list[str], list[str]]:
        report = await compare_providers(settings, connection=served.connection, only=("cerebras",))
        doctor_run = await run_doctor(settings=settings, connection=served.connection)
        found = [cause.finding.summary for cause in doctor_run.diagnosis.causes]
        broken = [repair.why for repair in await find_broken(agent_service.registry, agent_service.models)]
        return report.providers[0], found, broken

    entry, summaries, broken = served.call(look)
    assert entry.reason == "a move was interrupted: Letta holds a placeholder, not a key"
    assert "Letta holds no key for it: a change of its base URL was interrupted." in summaries
    assert not [why for why in broken if PLACEHOLDER_URL in why]

    async def switch() -> None:
        with pytest.raises(ModelUnknown, match="between two addresses"):
            await agent_service.registry.switch(
                await agent_service.registry.find(other), CEREBRAS, agent_service.models
            )

    served.call(switch)
    elsewhere.fault("cerebras", status=401)
    refused = move(served, settings)
    assert "Letta holds a placeholder, not a key, because a move was interrupted" in refused.reason
    elsewhere.clear()
    assert move(served, settings).proof is Proof.PROVEN
    assert endpoint(served, agent) == elsewhere.base_url("cerebras")
