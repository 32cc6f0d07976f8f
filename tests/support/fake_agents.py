"""Agents for a fake Letta: each of their requests goes through the store, so that faults befall it, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isabella.errors import LettaError, LettaRefused
from isabella.letta.store import Store
from isabella.providers.bound_agents import MovedAgent, Note


@dataclass
class Agent:
    """One of them.

    Attributes:
        provider: what it is bound to.
        address: what it calls.
        late: whether it is changed after its request, so that a fault leaves it as it was, and not before.
        stubborn: whether Letta refuses to change it.
    """

    provider: str
    address: str | None
    late: bool = False
    stubborn: bool = False


@dataclass
class FakeAgents:
    """The agents of a Letta, by their ids.

    Attributes:
        agents: all of them.
        store: what their requests go through; None where none is to go wrong.
    """

    agents: Mapping[str, Agent]
    store: Store | None = None

    async def any_elsewhere(self, provider: str, base_url: str) -> bool:
        """Whether any calls another address."""
        await self._request()
        return bool(self._behind(provider, base_url))

    async def move_to(self, provider: str, base_url: str, note: Note) -> None:
        """Have all of a provider call this address."""
        await self._request()
        await self._change(dict.fromkeys(self._behind(provider, base_url), base_url), note)

    async def move_back(self, provider: str, moved: Sequence[MovedAgent]) -> None:
        """Have these call what they called before."""
        assert all(self.agents[one.id].provider == provider for one in moved)
        await self._change({one.id: one.former for one in moved}, lambda moved: None)

    def _behind(self, provider: str, base_url: str) -> list[str]:
        return [id for id, one in self.agents.items() if one.provider == provider and one.address != base_url]

    async def _change(self, addresses: Mapping[str, str | None], note: Note) -> None:
        trouble: LettaError | None = None
        for id, address in addresses.items():
            agent = self.agents[id]
            if agent.stubborn:
                trouble = LettaRefused("Letta refused to change an agent.", status=422, detail="no")
                continue
            note(MovedAgent(id, id, agent.address))
            try:
                if not agent.late:
                    agent.address = address
                await self._request()
                agent.address = address
            except LettaError as error:
                trouble = error
        if trouble is not None:
            raise trouble

    async def _request(self) -> None:
        if self.store is not None:
            await self.store.find("nobody")
