"""Turns while one vendor after the other fails in every way, directly and behind the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from tests.support.backend_server import Backend, TurnRecord, backend

HANDLES = {
    "cerebras": "cerebras/gpt-oss-120b",
    "groq": "byok-groq/openai/gpt-oss-120b",
    "mistral": "byok-mistral/mistral-medium-latest",
    "longcat": "longcat/LongCat-2.0",
}
PROVIDERS = {"cerebras": "cerebras", "groq": "byok-groq", "mistral": "byok-mistral", "longcat": "longcat"}
#: Every kind of failure: refusals, a failing vendor, broken and silent connections, answers that break in the middle.
STORMS: tuple[dict[str, object], ...] = (
    {"status": 401},
    {"status": 402},
    {"status": 403},
    {"status": 429, "retry_after": 0.1},
    {"status": 500, "share": 0.5},
    {"reset": True},
    {"hang": True},
    {"reset": "midway"},
    {"truncated": True, "share": 0.5},
)
AGENTS = 2
#: The vendors of each half of the turns: whether Letta asks them directly or through the gateway.
HALVES = {"off": ("cerebras", "longcat"), "on": ("groq", "mistral")}


@dataclass(frozen=True)
class Said:
    """What was said to an agent, and what came of it."""

    agent: str
    message: str
    heard: TurnRecord


@pytest.fixture(scope="module", params=HALVES)
def served(
    request: pytest.FixtureRequest, letta_server: Letta, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """A backend that loses patience with a silent vendor soon."""
    home: Path = tmp_path_factory.mktemp("home")
    options = {"gateway": request.param, "first_token_timeout": 5.0, "silence_timeout": 10.0}
    with PracticeVendors() as vendors, backend(letta_server, home, vendors, **options) as running:
        yield running


@pytest.mark.timeout(600)
def test_all_turns_end_in_a_storm(served: Backend) -> None:
    """Each turn ends in an answer or a clear event: none hangs, is answered twice, or is lost."""
    gateway = "on" if served.gateway else "off"
    half = HALVES[gateway]
    agents = [served.agent(f"storm-{gateway}-{number}", *HANDLES.values()) for number in range(AGENTS)]
    said: list[Said] = []
    with ThreadPoolExecutor(AGENTS) as pool:
        for vendor in half:
            for agent in agents:
                switch = served.client.post(f"/api/agents/{agent}/switch", json={"handle": HANDLES[vendor]})
                switch.raise_for_status()
            for storm in STORMS:
                served.vendors.clear()
                served.call(served.runtime.turns.deps.breaker.forgive, PROVIDERS[vendor])
                served.vendors.fault(vendor, on="chat", **storm)
                messages = [f"Say sentence number {len(said) + index}, please" for index in range(AGENTS)]
                said += [
                    Said(agent, message, heard)
                    for agent, message, heard in zip(
                        agents, messages, pool.map(served.say, agents, messages), strict=True
                    )
                ]
    served.vendors.clear()
    assert len(said) == len(half) * len(STORMS) * AGENTS
    for one in said:
        end = one.heard.end
        if end["reason"] == "completed":
            assert one.message.removeprefix("Say ") in one.heard.text
            assert one.heard.handles[-1] == end["handle"]
        else:
            assert one.heard.one("error")["code"] in ("stream_broken", "empty_answer")
        assert end["stored"]
    # Whatever failed in one vendor, another one answered, unless the answer broke off in the middle.
    assert sum(one.heard.end["reason"] == "completed" for one in said) >= 0.75 * len(said)
    assert any(one.heard.all("failover") for one in said)
    for agent in agents:
        _check_history(served, agent, [one.message for one in said if one.agent == agent])
    assert served.foreign_keys() == []


def _check_history(served: Backend, agent: str, messages: list[str]) -> None:
    """Everything that was said is in the history once, in order, and each time there is one answer."""
    conversation = [
        (kind, text) for kind, text in served.history(agent) if kind in ("user_message", "assistant_message")
    ]
    assert [text for kind, text in conversation if kind == "user_message"] == messages
    assert [kind for kind, _ in conversation] == ["user_message", "assistant_message"] * len(messages)
