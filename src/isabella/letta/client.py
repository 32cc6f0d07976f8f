"""Letta's REST API: one client, with one attribute for each resource."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from isabella.letta.agents import Agents
from isabella.letta.connection import Connection
from isabella.letta.http import LettaHttp
from isabella.letta.memory import Blocks, Passages
from isabella.letta.messages import Messages
from isabella.letta.providers import LettaProviders


class LettaClient:
    """The REST API of one Letta server. It is an asynchronous context manager that closes its connections.

    Attributes:
        http: the HTTP client of all resources.
        agents: agents, and the tools that they use.
        blocks: memory blocks.
        messages: messages and turns.
        passages: archival memory.
        providers: vendors' keys and base URLs.
    """

    def __init__(self, http: LettaHttp) -> None:
        self.http = http
        self.agents = Agents(http)
        self.blocks = Blocks(http)
        self.messages = Messages(http)
        self.passages = Passages(http)
        self.providers = LettaProviders(http)

    @classmethod
    def open(cls, connection: Connection, *, timeout: float | None = None, keep_alive: bool = True) -> Self:
        """Return a client for a connection; `timeout` replaces the connection's own. No request is sent."""
        return cls(
            LettaHttp(
                connection.base_url,
                password=connection.password,
                timeout=connection.timeout if timeout is None else timeout,
                peer=connection.peer,
                keep_alive=keep_alive,
            )
        )

    async def close(self) -> None:
        """Close its connections."""
        await self.http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
