"""Letta's REST API: how to reach a server, and one client with one attribute for each resource."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr

from isabella.config.settings import Settings
from isabella.errors import LettaRefused
from isabella.letta import paths
from isabella.letta.agents import Agents
from isabella.letta.conversations import Conversations
from isabella.letta.database import LettaDatabase
from isabella.letta.http import LettaHttp
from isabella.letta.messages import Image, by_user
from isabella.letta.providers import LettaProviders
from isabella.system.peers import Peer

_MESSAGES_OF_RUN = 200  # more than one run stores
_ACTIVE_RUNS = 1000
_ACTIVE_OF_AGENT = """
SELECT coalesce(json_object_agg(id, extract(epoch FROM created_at)), '{}') FROM runs
WHERE agent_id = %s AND status IN ('created', 'running') AND NOT is_deleted
"""


@dataclass(frozen=True)
class ActiveRun:
    """A run that is under way, or was when its Letta ended."""

    id: str
    began: float | None = None  # Unix time; None if it is not known


@dataclass(frozen=True)
class Connection:
    """The connection to a Letta server: base URL, password and master key."""

    base_url: str  # its base URL, without a trailing slash
    password: SecretStr | None = field(repr=False)  # its server password or cloud token
    master_key: SecretStr | None = field(repr=False)  # the key with which it encrypts stored keys, if it is known
    database_url: SecretStr | None = field(repr=False)  # its Postgres, for locks
    home: Path  # the folder of Isabella's locks and proofs
    timeout: float  # seconds to wait for a response
    embedded: bool  # whether Isabella runs this Letta
    #: verifies the process of an embedded Letta before anything is sent to it
    peer: Peer | None = field(default=None, repr=False, compare=False)


def configured_connection(settings: Settings) -> Connection | None:
    """Return the connection to the Letta at `LETTA_BASE_URL`; None if that is not set."""
    if settings.letta_base_url is None:
        return None
    return Connection(
        base_url=settings.letta_base_url,
        password=settings.letta_api_key,
        master_key=settings.letta_encryption_key,
        database_url=settings.known_database,
        home=settings.home,
        timeout=settings.timeout,
        embedded=False,
    )


class LettaClient:
    """The REST API of one Letta server. It is an asynchronous context manager that closes its connections."""

    def __init__(self, http: LettaHttp, database_url: SecretStr | None = None) -> None:
        self.http = http
        self._database = LettaDatabase(database_url)
        self.agents = Agents(http, self._database)
        self.blocks = Blocks(http)
        self.conversations = Conversations(http, database_url)
        self.messages = Messages(http, self._database)
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
                audit_home=connection.home,
            ),
            connection.database_url,
        )

    def move(self, connection: Connection) -> None:
        """Send later requests to another address of the same Letta, and of its Postgres."""
        self.http.move(connection.base_url)
        self.conversations.database_url = connection.database_url
        self._database.move(connection.database_url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.close()
        await self._database.close()


class Messages:
    """The messages of agents, and their runs. Every method raises `LettaError`."""

    def __init__(self, http: LettaHttp, database: LettaDatabase) -> None:
        self._http = http
        self._database = database

    async def page(self, agent_id: str, *, limit: int, order: str, **options: Any) -> list[dict[str, Any]]:
        """Return messages of an agent, oldest first. One message may be several rows with the same id.

        `order` is `asc` for the beginning of the history, `desc` for its end; `options` are Letta's `before`,
        `after`, `use_assistant_message` and `conversation_id`, without which the messages of all conversations come.
        A release without conversations ignores it.
        """
        return await self._http.rows(paths.agent(agent_id, "messages"), limit=limit, order=order, **options)

    async def get(self, message_id: str) -> list[dict[str, Any]]:
        """Return one message of any agent, perhaps as several rows. Letta answers 404, or 422 to a malformed id."""
        return await self._http.rows(f"{paths.MESSAGES}{message_id}")

    async def of_run(self, run_id: str) -> list[dict[str, Any]]:
        """Return Letta's record of a run."""
        return await self._http.rows(f"{paths.RUNS}{run_id}/messages", limit=_MESSAGES_OF_RUN)

    async def last_step_of_run(self, run_id: str) -> dict[str, Any] | None:
        """Return the last step of a run, with its numbers of tokens; None if it has none."""
        steps = await self._http.rows(f"{paths.RUNS}{run_id}/steps", limit=1, order="desc")
        return steps[0] if steps else None

    async def active_runs(self) -> list[dict[str, Any]]:
        """Return the runs that are under way, of all agents."""
        return await self._http.rows(paths.RUNS, active=True, limit=_ACTIVE_RUNS)

    async def active_runs_of(self, agent_id: str) -> list[ActiveRun]:
        """Return an agent's runs that are under way, from Letta's Postgres if that is known."""
        found = await self._database.select(_ACTIVE_OF_AGENT, agent_id)
        if found is not None:
            return [ActiveRun(id, began) for id, began in found.items()]
        runs = await self._http.rows(paths.RUNS, agent_id=agent_id, active=True, limit=_ACTIVE_RUNS)
        return [ActiveRun(str(run["id"])) for run in runs]

    async def latest_runs(self, agent_id: str, limit: int) -> list[dict[str, Any]]:
        """Return the latest runs of an agent, the newest first."""
        return await self._http.rows(paths.RUNS, agent_id=agent_id, limit=limit, order="desc")

    async def send(self, agent_id: str, text: str, **options: Any) -> dict[str, Any]:
        """Send a message of the user and return the whole turn."""
        answer: dict[str, Any] = await self._http.post(
            paths.agent(agent_id, "messages"), {"messages": [by_user(text)], "streaming": False, **options}
        )
        return answer

    def stream(
        self, agent_id: str, text: str, images: Sequence[Image] = (), request_id: str | None = None
    ) -> AsyncGenerator[str, None]:
        """Send a message of the user and yield the lines of Letta's event stream. It sends a ping every 30 s."""
        messages = [by_user(text, images, request_id)]
        body = {"messages": messages, "streaming": True, "stream_tokens": True, "include_pings": True}
        return self._http.stream(paths.agent(agent_id, "messages"), body)

    async def cancel(self, agent_id: str, run_id: str | None) -> None:
        """Cancel a run, or without its id every run of the agent. Letta answers 409 if none is active."""
        body = {} if run_id is None else {"run_ids": [run_id]}
        await self._http.post(paths.agent(agent_id, "messages", "cancel"), body)

    async def capture(self, agent_id: str, user_text: str, answer: str, *, model: str) -> None:
        """Add a message of the user, unless it is empty, and its answer to the history, and not to the context."""
        body = {
            "provider": "isabella",
            "model": model,
            "request_messages": [by_user(user_text)] if user_text else [],
            "response_dict": {"content": answer},
        }
        await self._http.post(paths.agent(agent_id, "messages", "capture"), body)


class Blocks:
    """The memory blocks of one Letta. Every method raises `LettaError`."""

    def __init__(self, http: LettaHttp) -> None:
        self._http = http

    async def of_agent(self, agent_id: str) -> list[dict[str, Any]]:
        """Return the blocks that are attached to an agent."""
        return await self._http.list_all(paths.agent(agent_id, "core-memory", "blocks"))

    async def labelled(self, label: str) -> list[dict[str, Any]]:
        """Return up to a hundred blocks of one label, attached or not."""
        return await self._http.rows(paths.BLOCKS, label=label, limit=100)

    async def create(self, fields: Mapping[str, Any]) -> str:
        """Create a block that is attached to no agent, and return its id."""
        return str((await self._http.post(paths.BLOCKS, fields))["id"])

    async def update(self, block_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Change fields of a block and return it. A label may hold a slash, which Letta's route by label refuses."""
        row: dict[str, Any] = await self._http.patch(f"{paths.BLOCKS}{block_id}", fields)
        return row

    async def attach(self, agent_id: str, block_id: str) -> None:
        """Attach a block to an agent."""
        await self._http.patch(paths.agent(agent_id, "core-memory", "blocks", "attach", block_id), {})

    async def detach(self, agent_id: str, block_id: str) -> None:
        """Take a block from an agent."""
        await self._http.patch(paths.agent(agent_id, "core-memory", "blocks", "detach", block_id), {})

    async def delete(self, block_id: str) -> None:
        """Delete a block."""
        await self._http.delete(f"{paths.BLOCKS}{block_id}")


class Passages:
    """The archival memory of agents. Every method raises `LettaError`."""

    def __init__(self, http: LettaHttp) -> None:
        self._http = http

    async def page(self, agent_id: str, *, limit: int, after: str | None = None) -> list[dict[str, Any]]:
        """Return passages of an agent, oldest first. Each row has its whole vector, about 40 kB."""
        path = paths.agent(agent_id, "archival-memory")
        return await self._http.rows(path, limit=limit, after=after, ascending=True)

    async def search(self, agent_id: str, query: str, *, limit: int) -> list[dict[str, Any]]:
        """Return the passages nearest to a query, best first."""
        found = await self._http.get(paths.agent(agent_id, "archival-memory", "search"), query=query, top_k=limit)
        rows: list[dict[str, Any]] = found["results"]
        return rows

    async def nearest(self, agent_id: str, query: str, *, limit: int) -> list[dict[str, Any]]:
        """Return the passages nearest to a query, best first, each with its vector in `embedding`.

        The agent needs an `embedding_config`. Letta asks for the vector of the query.
        """
        body = {"agent_id": agent_id, "query": query, "limit": limit}
        rows = await self._http.post(f"{paths.PASSAGES}search", body)
        return [row["passage"] for row in rows]

    async def add(
        self, agent_id: str, text: str, *, tags: Sequence[str] = (), created_at: str | None = None
    ) -> dict[str, Any]:
        """Add a passage and return it."""
        body: dict[str, Any] = {"text": text}
        if tags:
            body["tags"] = list(tags)
        if created_at is not None:
            body["created_at"] = created_at
        rows = await self._http.post(paths.agent(agent_id, "archival-memory"), body)
        row: dict[str, Any] = rows[0]
        return row

    async def delete(self, agent_id: str, passage_id: str) -> bool:
        """Delete a passage of an agent, and return whether it had it. Letta's route by agent deletes any agent's."""
        for archive in await self._http.get(paths.ARCHIVES, agent_id=agent_id):
            try:
                await self._http.delete(f"{paths.ARCHIVES}{archive['id']}/passages/{passage_id}")
            except LettaRefused as refused:
                # 400: it belongs to another archive.
                if refused.status not in (400, 404, 422):
                    raise
            else:
                return True
        return False

    async def archives(self, agent_id: str) -> list[str]:
        """Return the ids of the archives that are attached to an agent."""
        return [str(row["id"]) for row in await self._http.get(paths.ARCHIVES, agent_id=agent_id)]

    async def agents_of(self, archive_id: str) -> list[str]:
        """Return the ids of the agents that an archive is attached to."""
        return [str(row["id"]) for row in await self._http.rows(f"{paths.ARCHIVES}{archive_id}/agents", limit=100)]

    async def delete_archive(self, archive_id: str) -> None:
        """Delete an archive with its passages. Letta keeps it when its agent is deleted."""
        await self._http.delete(f"{paths.ARCHIVES}{archive_id}")
