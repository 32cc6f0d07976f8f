"""The backend as it is served, in a thread, in front of the session's Letta and practice vendors of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import httpx2 as httpx
from anyio.from_thread import BlockingPortal
from pydantic import SecretStr

from isabella.api import ensure_providers
from isabella.config.choices import Strategy
from isabella.config.gateway_address import state_file
from isabella.config.settings import Settings, load_settings
from isabella.embedded import Letta
from isabella.gateway.server import GatewayServer, publish
from isabella.letta.client import Connection
from isabella.locks.provider_lock import ProviderLock, open_locks
from isabella.practice import PracticeVendors
from isabella.practice.overlay import ConfigSnapshot, with_practice_vendors
from isabella.practice.server import listen
from isabella.providers.report import Report
from isabella.server.app import create_app
from isabella.server.gateway_monitor import run_gateway_monitor
from isabella.server.running_backend import address_published
from isabella.server.runtime import Runtime, open_agents, open_turns
from isabella.server.sessions import Sessions
from isabella.server.startup_app import http_server
from isabella.server.supervised import Supervised, run_supervisor
from isabella.server.window_follower import run_window_follower

TOKEN = "a-token-for-the-tests"
_UP_SECONDS = 60.0


@dataclass(frozen=True)
class StreamEvent:
    """One event of a turn as a client sees it."""

    kind: str
    data: dict[str, Any]


@dataclass(frozen=True)
class TurnRecord:
    """A whole turn as a client sees it."""

    events: list[StreamEvent]

    def all(self, kind: str) -> list[dict[str, Any]]:
        """The data of all events of a kind."""
        return [event.data for event in self.events if event.kind == kind]

    def one(self, kind: str) -> dict[str, Any]:
        """The data of the only event of a kind."""
        (found,) = self.all(kind)
        return found

    @property
    def text(self) -> str:
        """What the agent said."""
        return "".join(data["text"] for data in self.all("text"))

    @property
    def end(self) -> dict[str, Any]:
        """The end event, which is the last, and the only one."""
        assert self.events[-1].kind == "end", self.events[-1]
        return self.one("end")

    @property
    def handles(self) -> list[str]:
        """The handles that were asked, in order."""
        return [data["handle"] for data in self.all("vendor")]


def events_of(lines: Iterator[str]) -> Iterator[StreamEvent]:
    """Server-sent events from the lines of a stream."""
    kind = ""
    for line in lines:
        if line.startswith("event: "):
            kind = line[7:]
        elif line.startswith("data: "):
            yield StreamEvent(kind, json.loads(line[6:]))


@dataclass
class Backend:
    """A backend that serves.

    Attributes:
        url: its address.
        vendors: the practice vendors behind it.
        settings: what it was started with.
        connection: the Letta behind it.
        client: sends its token.
        app: the application itself.
        runtime: the services of the application.
        locks: the locks of its turns.
        portal: calls into its event loop.
        gateway: the gateway between Letta and the vendors, if the settings have one.
    """

    url: str
    vendors: PracticeVendors
    settings: Settings
    connection: Connection
    client: httpx.Client
    app: Any
    runtime: Runtime
    locks: ProviderLock
    portal: BlockingPortal
    letta: httpx.Client
    gateway: GatewayServer | None = None
    _made: list[str] = field(default_factory=list)

    def say(self, agent: str, message: str, **fields: Any) -> TurnRecord:
        """Say something, and hear the whole turn; `fields` are further fields of the request."""
        body = {"message": message, **fields}
        with self.client.stream("POST", f"/api/agents/{agent}/turns", json=body) as response:
            assert response.status_code == 200, response.read()
            return TurnRecord(list(events_of(response.iter_lines())))

    def agent(self, name: str, *handles: str, settings: Mapping[str, Any] | None = None, **fields: Any) -> str:
        """An agent of its own for a test, bound to the first handle and preferring all of them. Returns its name.

        One of this name that the tests of another file have left in the same Letta is deleted. `settings` are
        further fields of its `llm_config`, `fields` those of Letta's agent.
        """
        from isabella.agents.metadata import MANAGED_TAG, definition_tag
        from isabella.agents.model_catalog import ModelCatalog

        models = ModelCatalog.of(self.settings)
        binding = anyio.run(models.binding, handles[0]).suited(fields.get("agent_type"))
        definition = f"test-{name}"
        for left in self.letta.get("/v1/agents/", params={"name": name}).raise_for_status().json():
            self.letta.delete(f"/v1/agents/{left['id']}").raise_for_status()
        made = self.letta.post(
            "/v1/agents/",
            json={
                "name": name,
                **fields,
                "llm_config": {**binding.as_llm_config(), **(settings or {})},
                "memory_blocks": [{"label": "human", "value": ""}, {"label": "persona", "value": "I am Isabella."}],
                "tags": [MANAGED_TAG, definition_tag(definition)],
            },
        )
        made.raise_for_status()
        self._made.append(made.json()["id"])
        registry = self.runtime.turns.deps.agent_cache.registry
        registry.definitions[definition] = _definition(definition, name, handles)
        return name

    def id_of(self, agent: str) -> str:
        """Letta's id of an agent."""
        (found,) = self.letta.get("/v1/agents/", params={"name": agent}).json()
        return str(found["id"])

    def history(self, agent: str) -> list[tuple[str, str]]:
        """What is in an agent's history, oldest first: kind and text of each message."""
        rows = self.letta.get(
            f"/v1/agents/{self.id_of(agent)}/messages", params={"limit": 1000, "order": "asc"}
        ).json()
        return [(row["message_type"], str(row.get("content") or row.get("reasoning") or "")) for row in rows]

    def said_to(self, agent: str) -> list[str]:
        """What was said to an agent, as its history has it."""
        return [text for kind, text in self.history(agent) if kind == "user_message"]

    def in_context(self, agent: str) -> list[str]:
        """The ids of the messages that an agent sees."""
        return list(self.letta.get(f"/v1/agents/{self.id_of(agent)}").json()["message_ids"])

    def check_shortened(self, agent: str, turn: TurnRecord) -> None:
        """Assert that the history has the whole answer of a turn, and the context ends with its beginning alone."""
        rows = self.letta.get(
            f"/v1/agents/{self.id_of(agent)}/messages", params={"limit": 100, "order": "desc"}
        ).json()
        said = {row["id"]: row["content"] for row in rows if row["message_type"] == "assistant_message"}
        assert turn.text in said.values()
        seen = self.in_context(agent)
        assert said[seen[-1]] == f"{turn.text[:2000].strip()} [cut off]"
        assert not [id for id in seen if said.get(id) == turn.text]

    @contextmanager
    def patience(self, *, first_token: float, silence: float) -> Iterator[None]:
        """Wait for vendors for other times than the settings say, meanwhile."""
        turn_service = self.runtime.turns
        before = turn_service.deps
        turn_service.deps = replace(before, first_token=first_token, silence=silence)
        try:
            yield
        finally:
            turn_service.deps = before

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run an async function in the backend's own event loop."""
        return self.portal.call(function, *arguments)

    def foreign_keys(self) -> list[tuple[str, str | None]]:
        """Requests at any vendor with a key that is not its own."""
        return [
            (name, request.key_masked)
            for name in ("cerebras", "groq", "mistral", "longcat")
            for request in self.vendors.requests(name)
            if not request.accepted
        ]


def connection_to(letta: Letta, home: Path) -> Connection:
    """The connection to the session's Letta."""
    return Connection(
        base_url=letta.base_url,
        password=letta.password,
        master_key=letta.master_key,
        database_url=letta.database_url,
        home=home,
        timeout=30.0,
        embedded=True,
        peer=letta.peer,
    )


@contextmanager
def gateway(settings: Settings, connection: Connection) -> Iterator[GatewayServer]:
    """A gateway in a thread; settings with `gateway="on"` and this home use it."""
    listener, token, folder = listen(0), SecretStr("a-token-for-the-gateway"), state_file(settings.home).parent

    async def find() -> Connection:
        return connection

    publish(folder, listener.getsockname()[1], token)
    server = GatewayServer(ConfigSnapshot.of(settings), listener, token, folder, find=find)
    thread = threading.Thread(target=server.run, name="gateway", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(20)


@contextmanager
def backend(
    letta: Letta,
    home: Path,
    vendors: PracticeVendors,
    environment: Mapping[str, str] | None = None,
    /,
    **options: Any,
) -> Iterator[Backend]:
    """A backend whose providers are the practice vendors; `options` are fields of the settings."""
    base = load_settings(environment=environment or {}, home=home, token=SecretStr(TOKEN), **options)
    settings = with_practice_vendors(base, vendors)
    connection = connection_to(letta, home)
    between = gateway(settings, connection) if settings.gateway == "on" else nullcontext()
    with between as server, serve(letta, vendors, settings, connection) as running:
        running.gateway = server
        yield running


@contextmanager
def published_backend(letta: Letta, home: Path) -> Iterator[Backend]:
    """A backend with practice vendors of its own, which programs of the same home find."""
    with (
        PracticeVendors() as vendors,
        backend(letta, home, vendors) as running,
        address_published(home, running.url),
    ):
        yield running


@contextmanager
def serve(
    letta: Letta,
    vendors: PracticeVendors,
    settings: Settings,
    connection: Connection,
    supervised: Supervised | None = None,
) -> Iterator[Backend]:
    """A backend with these settings, in front of this Letta; `supervised` is what it starts again."""
    listener = listen(0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    up = threading.Event()

    token = settings.token or SecretStr(TOKEN)
    runtime = Runtime(token, settings, connection, Sessions(token))
    opened: list[Any] = []

    async def start() -> None:
        async with AsyncExitStack() as stack:
            if supervised is not None:
                await stack.enter_async_context(run_supervisor(runtime, supervised, settings))
            portal = await stack.enter_async_context(BlockingPortal())
            locks = await stack.enter_async_context(
                open_locks(connection.database_url, patience=settings.gate_timeout)
            )
            await runtime.readiness.run_start_sync(
                lambda: ensure_providers(settings, connection=connection, gate=locks)
            )
            agent_service = await stack.enter_async_context(open_agents(runtime, settings, connection, url))
            turn_service = await stack.enter_async_context(open_turns(runtime, agent_service, locks))
            await stack.enter_async_context(run_window_follower(agent_service, turn_service.queue, runtime.event_log))
            await stack.enter_async_context(run_gateway_monitor(runtime, turn_service))
            opened[:] = [locks, portal]
            up.set()
            await anyio.sleep_forever()

    app = create_app(runtime, start)
    server = http_server(app)
    thread = threading.Thread(target=server.run, args=([listener],), name="backend", daemon=True)
    thread.start()
    try:
        assert up.wait(_UP_SECONDS), "the backend did not come up"
        password = connection.password.get_secret_value() if connection.password else ""
        # Both servers close connections that were idle for 5 s; a request on one that is being closed fails.
        limits = httpx.Limits(keepalive_expiry=2.0)
        # verify: to load the certificates of all authorities takes 60 ms, and both serve HTTP.
        own, lettas = ({"Authorization": f"Bearer {secret}"} for secret in (TOKEN, password))
        with (
            httpx.Client(base_url=url, headers=own, timeout=120, limits=limits, verify=False) as client,
            httpx.Client(base_url=letta.base_url, headers=lettas, timeout=60, limits=limits, verify=False) as direct,
        ):
            locks, portal = opened
            yield Backend(url, vendors, settings, connection, client, app, runtime, locks, portal, direct)
    finally:
        server.should_exit = True
        thread.join(20)


def recreate(served: Backend, *only: str) -> Report:
    """Recreate providers in the backend's own process, behind its gate; by default all of them."""
    report: Report = served.call(recreated, served, *only)
    return report


async def recreated(served: Backend, *only: str) -> Report:
    """The same for whoever is in the backend's event loop already."""
    return await ensure_providers(
        served.settings,
        connection=served.connection,
        strategy=Strategy.RECREATE,
        only=only,
        gate=served.locks,
    )


def _definition(id: str, name: str, handles: tuple[str, ...]) -> Any:
    from isabella.agents.definitions import AgentDefinition

    return AgentDefinition(id=id, name=name, description="", persona="", handles=handles)


class Speaking:
    """A turn under way in a thread, as a client hears it."""

    def __init__(self, served: Backend, agent: str, message: str, **fields: Any) -> None:
        self.happened: list[StreamEvent] = []
        self._seen: dict[str, threading.Event] = {}
        self._served, self._agent, self._body = served, agent, {"message": message, **fields}
        self.leave = threading.Event()
        self.thread = threading.Thread(target=self._hear, daemon=True)
        self.thread.start()

    def _hear(self) -> None:
        path = f"/api/agents/{self._agent}/turns"
        with self._served.client.stream("POST", path, json=self._body) as response:
            for event in events_of(response.iter_lines()):
                self.happened.append(event)
                self._seen.setdefault(event.kind, threading.Event()).set()
                if self.leave.is_set():
                    return

    def until(self, kind: str) -> dict[str, object]:
        """Wait for the first event of a kind."""
        assert self._seen.setdefault(kind, threading.Event()).wait(30), self.happened
        return next(event.data for event in self.happened if event.kind == kind)

    def whole(self) -> TurnRecord:
        """The whole turn."""
        self.thread.join(60)
        assert not self.thread.is_alive()
        return TurnRecord(self.happened)
