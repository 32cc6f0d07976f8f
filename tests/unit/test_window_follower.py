"""When an agent follows the window of its model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import anyio
import pytest

from isabella.agents.definitions import AgentDefinition
from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.registry import AgentRecord
from isabella.errors import LettaUnreachable
from isabella.letta.llm_config import Binding, LlmConfig
from isabella.server import window_follower
from isabella.server.window_follower import followed
from isabella.turns.queue import TurnQueue

HANDLE = "smol/smollm2"


def record(window: int, chosen: int | None = None) -> AgentRecord:
    """An agent with this window, whose definition chooses another one at most."""
    config = Binding("smol", "smollm2", "http://127.0.0.1:9/v1", window).as_llm_config()
    definition = AgentDefinition(id="a", name="A", description="", persona="x", window=chosen)
    return AgentRecord("agent-1", "A", definition=definition, llm=LlmConfig.of(config))


@pytest.mark.parametrize(
    ("window", "former", "limit", "chosen", "then"),
    [
        (32_768, 32_768, 8192, None, 8192),  # the server was started with less
        (32_768, None, 8192, None, 8192),  # and nothing was known before
        (8192, 8192, 32_768, None, 32_768),  # with more
        (8192, 16_384, 32_768, None, None),  # the agent's was chosen
        (8192, 8192, 32_768, 16_384, 16_384),  # no more than its definition allows
        (8192, 8192, 8192, None, None),
        (8192, 8192, None, None, None),  # the vendor tells nothing
    ],
)
def test_the_window_of_an_agent(
    window: int, former: int | None, limit: int | None, chosen: int | None, then: int | None
) -> None:
    """Never more than the model has, and more again if it was the model's before."""
    binding = followed(record(window, chosen), {HANDLE: former} if former else {}, {HANDLE: limit} if limit else {})
    assert (None if binding is None else binding.window) == then


def test_an_agent_without_an_explicit_binding_stays() -> None:
    """Nothing is known of its model."""
    assert followed(AgentRecord("agent-1", "A"), {}, {HANDLE: 8192}) is None


class Agents:
    """One agent. The first `reads` of the list of agents fail, and so do the first `binds` of this one."""

    def __init__(self, reads: int, binds: int) -> None:
        self.agent = record(32_768)
        self.failures = {"overview": reads, "bind": binds}

    def _fail(self, name: str) -> None:
        if self.failures[name]:
            self.failures[name] -= 1
            raise LettaUnreachable("Letta cannot be reached.")

    async def overview(self) -> list[AgentRecord]:
        """Return it."""
        self._fail("overview")
        return [self.agent]

    async def get(self, _id: str) -> AgentRecord:
        """Return it."""
        return self.agent

    async def bind(self, _id: str, binding: Binding) -> None:
        """Give it another window."""
        self._fail("bind")
        self.agent = record(binding.window)


@pytest.mark.anyio
@pytest.mark.parametrize(("reads", "binds"), [(0, 0), (2, 0), (0, 2)])
async def test_a_window_is_lowered_although_letta_fails_at_first(
    reads: int, binds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent need not be known when the limit becomes known. The notice states the reason of the limit."""
    monkeypatch.setattr(window_follower, "_RETRY_SECONDS", 0.01)
    agents, models, events = Agents(reads, binds), ModelCatalog([]), Mock()
    queue = SimpleNamespace(in_use=(), take=lambda _id: SimpleNamespace(reached=nullcontext))
    service: Any = SimpleNamespace(registry=agents, models=models)
    told = anyio.Event()
    events.add_notice.side_effect = lambda *_arguments: told.set()
    async with window_follower.run_window_follower(service, cast("TurnQueue", queue), events):
        models.cap("smol", 8192, "smol takes at most 9,102 tokens per minute.")
        with anyio.fail_after(10):
            await told.wait()
    assert agents.agent.binding == record(8192).binding
    sentence = "smol takes at most 9,102 tokens per minute. The context window of A has 8,192 tokens now."
    events.add_notice.assert_called_once_with(sentence, "smol")


class ManyAgents(Agents):
    """Some agents with a window that is too large. Notes when each is bound, and how many hold their queue."""

    def __init__(self, number: int) -> None:
        super().__init__(0, 0)
        self.agents = {f"agent-{one}": replace(record(32_768), id=f"agent-{one}") for one in range(number)}
        self.order: list[str] = []
        self.began: list[float] = []
        self.ended: list[float] = []
        self.holding = 0
        self.most_holding = 0

    async def overview(self) -> list[AgentRecord]:
        """Return them."""
        return [*self.agents.values()]

    async def get(self, id: str) -> AgentRecord:
        """Return one, while other tasks run."""
        self.order.append(id)
        self.began.append(anyio.current_time())
        await anyio.sleep(0.005)
        return self.agents[id]

    async def bind(self, id: str, binding: Binding) -> None:
        """Give it another window, while other tasks run."""
        await anyio.sleep(0.005)
        self.agents[id] = replace(record(binding.window), id=id)
        self.ended.append(anyio.current_time())

    @asynccontextmanager
    async def reached(self) -> AsyncIterator[None]:
        """Hold the queue of an agent, which has no turn meanwhile."""
        self.holding += 1
        self.most_holding = max(self.holding, self.most_holding)
        yield
        self.holding -= 1


@pytest.mark.anyio
async def test_letta_is_left_to_turns_while_many_windows_change() -> None:
    """One agent is bound after the other, those in use first, with pauses as long; few turns have to wait."""
    agents, models, events = ManyAgents(12), ModelCatalog([]), Mock()
    in_use = {"agent-7", "agent-11"}
    queue = SimpleNamespace(in_use=in_use, take=lambda _id: SimpleNamespace(reached=agents.reached))
    service: Any = SimpleNamespace(registry=agents, models=models)
    told = anyio.Semaphore(0)
    events.add_notice.side_effect = lambda *_arguments: told.release()
    async with window_follower.run_window_follower(service, cast("TurnQueue", queue), events):
        models.cap("smol", 8192, "smol takes at most 9,102 tokens per minute.")
        with anyio.fail_after(10):
            for _ in agents.agents:
                await told.acquire()
    assert {agent.binding for agent in agents.agents.values()} == {record(8192).binding}
    pauses = [after - before for before, after in zip(agents.ended, agents.began[1:], strict=False)]
    took = [ended - began for began, ended in zip(agents.began, agents.ended, strict=True)]
    assert len(pauses) == len(took) - 1
    assert all(pause > 0.9 * binding for pause, binding in zip(pauses, took, strict=False))
    assert agents.most_holding <= 4
    assert set(agents.order[:2]) == in_use
