"""Agents for tests: a real Letta with practice vendors, and definitions of each test's own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from isabella.agents.registry import AgentRecord
from isabella.agents.service import AgentService, open_agent_service
from isabella.api import ensure_providers
from isabella.config.settings import Settings, load_settings
from isabella.config.vendors import usual_vendors
from isabella.embedded import Letta
from isabella.letta.client import Connection
from isabella.practice import NAMES, PracticeVendors
from isabella.practice.overlay import with_practice_vendors

PROVIDERS = {vendor.name: vendor.provider for vendor in usual_vendors()}

#: A definition with what most tests need; `%` is made the test's own.
PLAIN = """
[[agents]]
id = "%"
name = "Agent %"
description = "For a test."
persona = "You are an agent for a test."
handles = ["cerebras/gpt-oss-120b", "byok-groq/openai/gpt-oss-120b"]
tools = ["memory_insert", "memory_replace", "archival_memory_insert", "archival_memory_search"]

[[agents.blocks]]
label = "human"
description = "About the user."
limit = 400
shared = true
"""

#: One that reflects on it.
REFLECTING = """
[[agents]]
id = "%-reflection"
name = "Reflection on %"
persona = "You tidy memory."
reflects_on = "%"
handles = ["cerebras/gpt-oss-120b"]
tools = ["memory_insert", "memory_replace", "memory_finish_edits"]
"""


@dataclass
class AgentEnv:
    """A Letta, vendors, and a file of definitions.

    Attributes:
        letta: the real server.
        vendors: the practice vendors.
        folder: for the file and for Isabella's home.
        id: the definition's id, of this test alone.
    """

    letta: Letta
    vendors: PracticeVendors
    folder: Path
    id: str = field(default_factory=lambda: f"t{secrets.token_hex(4)}")

    @property
    def name(self) -> str:
        """What the plain agent is called."""
        return f"Agent {self.id}"

    @property
    def file(self) -> Path:
        """The file of definitions."""
        return self.folder / f"{self.id}.toml"

    def define(self, text: str = PLAIN, **changes: str) -> None:
        """Write the definitions: `%` is the test's own id, and each change replaces one text by another."""
        for old, new in changes.items():
            text = text.replace(old, new)
        self.file.write_text(text.replace("%", self.id))

    @property
    def connection(self) -> Connection:
        """How to reach the Letta."""
        letta = self.letta
        return Connection(
            letta.base_url,
            letta.password,
            letta.master_key,
            letta.database_url,
            self.folder / "home",
            30.0,
            embedded=True,
            peer=letta.peer,
        )

    def settings(self, **options: Any) -> Settings:
        """Settings with the practice vendors' keys and addresses, and the test's definitions."""
        base = load_settings(
            environment={}, home=self.folder / "home", agents_file=self.file, **{"embeddings": "off", **options}
        )
        return with_practice_vendors(base, self.vendors)

    @asynccontextmanager
    async def agent_service(self, backend: str | None = None, **options: Any) -> AsyncIterator[AgentService]:
        """The agents, opened."""
        async with open_agent_service(self.settings(**options), self.connection, backend=backend) as agent_service:
            yield agent_service

    def run(
        self, work: Callable[[AgentService], Coroutine[Any, Any, Any]], backend: str | None = None, **options: Any
    ) -> Any:
        """Run something on the agents."""

        async def opened() -> Any:
            async with self.agent_service(backend, **options) as agent_service:
                return await work(agent_service)

        return anyio.run(opened)

    def key(self, vendor: str) -> str:
        """The vendor's own key."""
        return self.vendors.key(vendor).get_secret_value()

    def strangers(self) -> list[tuple[str, str | None]]:
        """Requests at any vendor that came with another key than its own."""
        return [
            (vendor, request.key_masked)
            for vendor in NAMES
            for request in self.vendors.requests(vendor)
            if not request.carries(self.key(vendor))
        ]


async def say(agent_service: AgentService, agent_id: str, text: str) -> str:
    """Say something to an agent through Letta alone, and return what it answers."""
    answer = await agent_service.letta.http.post(
        f"/v1/agents/{agent_id}/messages", {"messages": [{"role": "user", "content": text}]}
    )
    return " ".join(row["content"] for row in answer["messages"] if row["message_type"] == "assistant_message")


async def raw(agent_service: AgentService, record: AgentRecord) -> dict[str, Any]:
    """An agent as Letta has it."""
    row = await agent_service.letta.http.get(f"/v1/agents/{record.id}")
    return dict(row)


@contextmanager
def agent_env(letta: Letta, folder: Path) -> Iterator[Callable[[], AgentEnv]]:
    """Makes colonies on one Letta with vendors of their own, whose providers are in line."""
    with PracticeVendors() as vendors:

        def make() -> AgentEnv:
            made = AgentEnv(letta, vendors, folder)
            made.define()
            return made

        first = make()
        anyio.run(lambda: ensure_providers(first.settings(), connection=first.connection))
        yield make
