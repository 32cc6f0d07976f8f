"""The binding of agents to vendors, on a real Letta, with vendors as strict as the real ones are known to be."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import anyio
import httpx2 as httpx
import psycopg
import pytest
from pydantic import SecretStr

from isabella.embedded import Letta
from isabella.errors import LettaRefused
from isabella.letta.agents import BLOCKS, TAGS, AgentRow
from isabella.letta.client import LettaClient
from isabella.letta.http import LettaHttp
from isabella.letta.llm_config import Binding
from isabella.letta.releases import OPENAI
from isabella.practice import PracticeVendors

VENDORS = [
    ("cerebras", "cerebras", "gpt-oss-120b"),
    ("groq", "groq", "openai/gpt-oss-120b"),
    ("mistral", "mistral", "mistral-medium-latest"),
    ("longcat", "openai", "LongCat-2.0"),
]
CONVERSATION = ["Hello there.", "Remember that my dog is called Rex.", "What is my dog called?"]


@dataclass
class Bench:
    """A Letta in plain REST, and vendors that refuse what the real ones refuse."""

    http: httpx.Client
    vendors: PracticeVendors

    def register(self, vendor: str, type: str) -> dict[str, Any]:
        body = {
            "name": f"{vendor}-{secrets.token_hex(4)}",
            "provider_type": type,
            "base_url": self.vendors.base_url(vendor),
            "api_key": self.vendors.key(vendor).get_secret_value(),
        }
        made: dict[str, Any] = self.http.post("/v1/providers/", json=body).raise_for_status().json()
        return made

    def agent(self, binding: Binding, **fields: object) -> str:
        body = {
            "name": f"bound-{secrets.token_hex(4)}",
            "llm_config": binding.as_llm_config(),
            "memory_blocks": [{"label": "human", "value": ""}],
            **fields,
        }
        return str(self.http.post("/v1/agents/", json=body).raise_for_status().json()["id"])

    def say(self, agent: str, text: str) -> httpx.Response:
        return self.http.post(f"/v1/agents/{agent}/messages", json={"messages": [{"role": "user", "content": text}]})


@pytest.fixture(scope="module")
def bench(letta_server: Letta) -> Iterator[Bench]:
    """One for all tests of this file."""
    headers = {"Authorization": f"Bearer {letta_server.password.get_secret_value()}"}
    with (
        PracticeVendors() as vendors,
        httpx.Client(base_url=letta_server.base_url, headers=headers, timeout=60, trust_env=False) as http,
    ):
        for vendor, _, _ in VENDORS:
            vendors.strict(vendor)
        yield Bench(http, vendors)


@pytest.mark.parametrize(("vendor", "type", "model"), VENDORS[:2])
def test_a_conversation_with_tools_and_reasoning_works_at_a_strict_vendor(
    bench: Bench, vendor: str, type: str, model: str
) -> None:
    """Turns after a tool call and after reasoning are taken by a vendor that knows no foreign fields (M13)."""
    provider = bench.register(vendor, type)
    agent = bench.agent(Binding(provider["name"], model, provider["base_url"], 65_536))
    bench.vendors.forget()

    answers = [bench.say(agent, text) for text in CONVERSATION]

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert "Rex" in answers[-1].text
    arrived = bench.vendors.requests(vendor)
    assert len(arrived) >= len(CONVERSATION)
    assert all(request.carries(bench.vendors.key(vendor).get_secret_value()) for request in arrived)


@pytest.mark.parametrize(
    ("vendor", "type", "model", "noted"),
    [
        ("mistral", "mistral", "mistral-medium-latest", "body.user: Extra inputs are not permitted"),
        (
            "longcat",
            "openai",
            "LongCat-2.0",
            "thinking is enabled but reasoning_content is missing in assistant tool call message at index 4",
        ),
    ],
)
def test_letta_itself_cannot_satisfy_these_strict_vendors(
    bench: Bench, vendor: str, type: str, model: str, noted: str
) -> None:
    """It sends `user` to Mistral, and sends LongCat no reasoning back after a tool call (M30, M31)."""
    provider = bench.register(vendor, type)
    agent = bench.agent(Binding(provider["name"], model, provider["base_url"], 65_536))
    bench.vendors.forget()

    answers = [bench.say(agent, text) for text in CONVERSATION]

    assert not answers[-1].is_success
    assert noted in [request.strictness for request in bench.vendors.requests(vendor)]


def test_the_openai_client_of_letta_is_refused_by_a_strict_vendor(bench: Bench) -> None:
    """The reason for the generic client: with Letta's openai client, Mistral refuses the first turn (M13)."""
    provider = bench.register("mistral", "mistral")
    agent = bench.agent(
        Binding(provider["name"], "mistral-medium-latest", provider["base_url"], 65_536, client=OPENAI)
    )

    assert not bench.say(agent, "Hello.").is_success


def test_an_agent_whose_provider_is_gone_fails_closed(bench: Bench) -> None:
    """No key at all reaches the vendor when the provider was deleted (M14)."""
    provider = bench.register("cerebras", "cerebras")
    agent = bench.agent(Binding(provider["name"], "gpt-oss-120b", provider["base_url"], 65_536))
    bench.http.delete(f"/v1/providers/{provider['id']}").raise_for_status()
    bench.vendors.forget()

    answer = bench.say(agent, "Hello.")

    assert answer.status_code == 500
    assert bench.vendors.requests("cerebras") == []


def test_an_agent_in_the_database_is_the_one_that_letta_returns(bench: Bench, letta_server: Letta) -> None:
    """As it was made, after a change through Letta, and after its end; and without a usable database."""
    first = Binding("cerebras", "gpt-oss-120b", bench.vendors.base_url("cerebras"), 65_536)
    second = Binding("groq", "openai/gpt-oss-120b", bench.vendors.base_url("groq"), 131_072)
    agent = bench.agent(first)
    unusable = letta_server.database_url.get_secret_value() + "-missing"

    async def compare(database_url: SecretStr) -> None:
        async with LettaClient(
            LettaHttp(letta_server.base_url, password=letta_server.password), database_url
        ) as letta:
            for binding in (first, second):
                await letta.agents.update(agent, {"llm_config": binding.as_llm_config()})
                row, current = await letta.agents.get(agent), await letta.agents.current(agent)
                assert row.llm is not None
                assert current.llm is not None
                assert (replace(current.llm, compaction=None), row.llm.binding) == (
                    replace(row.llm, compaction=None),
                    binding,
                )
                assert (current.id, current.name, current.agent_type) == (row.id, row.name, row.agent_type)

    anyio.run(compare, letta_server.database_url)
    anyio.run(compare, SecretStr(unusable))
    bench.http.delete(f"/v1/agents/{agent}").raise_for_status()

    async def read() -> None:
        async with LettaClient(
            LettaHttp(letta_server.base_url, password=letta_server.password), letta_server.database_url
        ) as letta:
            await letta.agents.current(agent)

    with pytest.raises(LettaRefused) as refused:
        anyio.run(read)
    assert refused.value.status == 404


def test_the_agents_in_the_database_are_those_that_letta_lists(bench: Bench, letta_server: Letta) -> None:
    """In the same order, with the same tags, bindings and blocks; without those that are hidden or deleted."""
    binding = Binding("groq", "openai/gpt-oss-120b", bench.vendors.base_url("groq"), 131_072)
    named, hidden, deleted = bench.agent(binding), bench.agent(binding, hidden=True), bench.agent(binding)
    block = {"label": "friend", "value": "She is called Ada."}
    created = bench.http.post("/v1/blocks/", json=block).raise_for_status().json()["id"]
    bench.http.patch(f"/v1/agents/{named}/core-memory/blocks/attach/{created}").raise_for_status()
    bench.http.patch(f"/v1/agents/{named}", json={"tags": ["one", "two"], "metadata": {"a": 1}}).raise_for_status()
    bench.http.delete(f"/v1/agents/{deleted}").raise_for_status()

    async def compare() -> None:
        http = LettaHttp(letta_server.base_url, password=letta_server.password)
        async with LettaClient(http, letta_server.database_url) as letta:
            for blocks in (False, True):
                listed = await letta.agents.all(relations=(*TAGS, *BLOCKS) if blocks else TAGS)
                assert [_shown(row) for row in await letta.agents.overview(blocks=blocks)] == [
                    _shown(row) for row in listed
                ]
                ids = {row.id for row in listed}
                assert named in ids
                assert not ids & {hidden, deleted}
                (row,) = [row for row in listed if row.id == named]
                assert {"one", "two"} <= {*row.tags}
                assert ("Ada" in str(row.blocks)) is blocks
            assert row.name is not None
            for name, tag in ((named, ""), (row.name.upper(), ""), ("", "two")):
                assert [_shown(found) for found in await letta.agents.named(name, tag)] == [
                    _shown(found) for found in await letta.agents.overview() if found.id == named
                ]
            for id in (hidden, deleted, "one"):
                assert await letta.agents.named(id, "nothing") == []

    anyio.run(compare)


def _shown(row: AgentRow) -> tuple[object, ...]:
    blocks = {(block.id, block.label, block.value) for block in row.blocks}
    llm = None if row.llm is None else replace(row.llm, compaction=None)
    return row.id, row.name, row.description, row.agent_type, {*row.tags}, row.metadata, llm, blocks


def test_the_active_runs_in_the_database_are_those_that_letta_lists(bench: Bench, letta_server: Letta) -> None:
    """None of an agent whose turn is over; its run, if it is under way or was left so."""
    provider = bench.register("cerebras", "cerebras")
    agent = bench.agent(Binding(provider["name"], "gpt-oss-120b", provider["base_url"], 65_536))
    bench.say(agent, "Hello.").raise_for_status()

    async def read(database_url: SecretStr | None) -> list[str]:
        async with LettaClient(
            LettaHttp(letta_server.base_url, password=letta_server.password), database_url
        ) as letta:
            found = await letta.messages.active_runs_of(agent)
            assert all(run.began is None or 0 <= time.time() - run.began < 600 for run in found)
            assert all((run.began is None) == (database_url is None) for run in found)
            return [run.id for run in found]

    def both() -> tuple[list[str], list[str]]:
        return anyio.run(read, letta_server.database_url), anyio.run(read, None)

    assert both() == ([], [])
    with psycopg.connect(letta_server.database_url.get_secret_value(), autocommit=True) as database:
        for status in ("created", "running"):
            (run,) = database.execute(
                "UPDATE runs SET status = %s WHERE agent_id = %s RETURNING id", (status, agent)
            ).fetchone() or ("",)
            assert both() == ([run], [run])
        database.execute("UPDATE runs SET status = 'completed' WHERE agent_id = %s", (agent,))
    assert both() == ([], [])
