"""The stage: a Letta of the story's own, a practice vendor, a `.env` file, and an agent."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from filelock import FileLock, Timeout
from letta_client import APIConnectionError, APIStatusError, AsyncLetta
from pydantic import SecretStr

from isabella.agents import bindings
from isabella.config.settings import Settings, load_settings
from isabella.embedded import Letta, Progress, Server, Step
from isabella.embedded.instance import make_private
from isabella.errors import LockTimeout
from isabella.letta.client import open_sdk_client
from isabella.letta.connection import Connection, configured_connection
from isabella.letta.encryption import KeyReading, read_back
from isabella.letta.llm_config import Binding
from isabella.letta.providers import LettaProviders
from isabella.letta.store import StoredProvider
from isabella.practice import PracticeVendors, Request
from isabella.providers.desired import Desired, desired_providers
from isabella.system.files import write_private
from isabella.system.redaction import mask, redact

INSTANCE = "demo"
VENDOR = "cerebras"
PROVIDER = "cerebras"

#: Steps that take long enough for somebody to wonder.
_LONG = ("fetch", "install", "wait")
_SAID_LIMIT = 240


@dataclass(frozen=True)
class DemoAnswer:
    """What came of saying something to the agent.

    Attributes:
        status: Letta's HTTP status; 0 where no answer came.
        said: the agent's words, or Letta's.
    """

    status: int
    said: str

    @property
    def shown(self) -> str:
        """For people: with the status where it is not 200."""
        return self.said if self.status == 200 else f"{self.status}  {self.said}"


@dataclass
class DemoStage:
    """What the story is played on.

    Attributes:
        server: the Letta and Postgres of the story's own.
        letta: that Letta, as it runs now.
        vendors: the practice vendors.
        folder: a temporary folder with the `.env` file.
    """

    server: Server
    letta: Letta
    vendors: PracticeVendors
    folder: Path
    _client: AsyncLetta | None = field(default=None, repr=False)
    _agent: str = ""

    def configure(self, key: SecretStr, master_key: SecretStr | None) -> Settings:
        """Write `.env` as an operator would, and read it."""
        lines = {
            "LETTA_BASE_URL": self.letta.base_url,
            "LETTA_API_KEY": self.letta.password.get_secret_value(),
            "CEREBRAS_API_KEY": key.get_secret_value(),
            "CEREBRAS_BASE_URL": self.vendors.base_url(VENDOR),
        }
        if master_key is not None:
            lines["LETTA_ENCRYPTION_KEY"] = master_key.get_secret_value()
        path = self.folder / ".env"
        write_private(path, "".join(f"{name}={value}\n" for name, value in lines.items()))
        return load_settings(path, environment={}, home=self.folder, config_file=self.folder / "isabella.toml")

    def restart_under(self, master_key: SecretStr, progress: Progress) -> None:
        """Stop Letta, and start it on the same data with another `LETTA_ENCRYPTION_KEY`."""
        self.letta = self.server.restart_letta(only_long(progress), master_key=master_key)

    @asynccontextmanager
    async def speaking(self, settings: Settings) -> AsyncIterator[None]:
        """A client for the agent, on the Letta that runs now."""
        async with open_sdk_client(_connection(settings)) as client:
            self._client = client
            yield

    async def make_agent(self, settings: Settings) -> None:
        """An agent with a memory, bound to the provider (fact M6)."""
        desired = desired_provider(settings)
        model = desired.vendor.default_model or "default"
        window = desired.vendor.models.get(model, desired.vendor.default_window)
        agent = await self._sdk.agents.create(
            name="isabella-demo",
            memory_blocks=[
                {"label": "persona", "value": "I am Isabella, an assistant who remembers."},
                {"label": "human", "value": ""},
            ],
            **cast(Any, bindings.creation_fields(Binding(desired.name, model, desired.base_url, window))),
        )
        self._agent = agent.id

    async def say(self, text: str) -> DemoAnswer:
        """Say something to the agent."""
        try:
            turn = await self._sdk.agents.messages.create(
                self._agent, messages=[{"role": "user", "content": text}], streaming=False
            )
        except APIStatusError as error:
            return DemoAnswer(error.status_code, _words(error))
        except APIConnectionError as error:
            return DemoAnswer(0, f"no answer: {error}")
        said = [str(message.content) for message in turn.messages if message.message_type == "assistant_message"]
        return DemoAnswer(200, " ".join(said) or f"(nothing; the turn ended with {turn.stop_reason.stop_reason})")

    def completions(self, *, after: int) -> list[Request]:
        """The completions that arrived at the vendor after that request."""
        return [request for request in self.vendors.requests(VENDOR, after=after) if "completions" in request.path]

    def last_request(self) -> int:
        """The number of the last request that arrived at the vendor."""
        return max((request.number for request in self.vendors.requests(VENDOR)), default=0)

    @property
    def _sdk(self) -> AsyncLetta:
        if self._client is None:
            raise AssertionError("nobody is speaking")
        return self._client


def desired_provider(settings: Settings) -> Desired:
    """The provider that `.env` asks for."""
    return next(provider for provider in desired_providers(settings) if provider.wanted)


async def stored_provider(settings: Settings) -> tuple[StoredProvider | None, KeyReading | None]:
    """What Letta holds of the provider, and what the master key of `.env` makes of it. Nothing is remembered."""
    async with _store(settings) as store:
        found = await store.find(PROVIDER)
    key = desired_provider(settings).key
    if found is None or key is None:
        return found, None
    return found, read_back(found.key_text, key.get_secret_value(), settings.letta_encryption_key, None)


async def patch(settings: Settings) -> None:
    """The update that the earlier system would send.

    Raises:
        LettaRefused: Letta does not take it.
    """
    async with _store(settings) as store:
        found, desired = await store.find(PROVIDER), desired_provider(settings)
        if found is None or desired.key is None:
            raise AssertionError("there is nothing to update")
        await store.update(found.id, key=desired.key, base_url=desired.base_url)


def shown(key: SecretStr | None) -> str:
    """A key as it may be shown."""
    return "no key" if key is None else mask(key.get_secret_value())


def new_master_key() -> SecretStr:
    """A master key that nobody has used."""
    return SecretStr(secrets.token_hex(32))


@contextmanager
def open_stage(home: Path, progress: Progress) -> Iterator[DemoStage]:
    """The stage, set up, and taken down again with all that was on it.

    Raises:
        LockTimeout: the story is being told in this home already.
        EmbeddedError: Letta or Postgres did not come up.
    """
    server = Server(home, instance=INSTANCE)
    make_private(home / "locks")
    lock = FileLock(home / "locks" / "demo.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LockTimeout(
            "The demo is running already, in another window.", remedy="Wait until it is over."
        ) from None
    with lock, PracticeVendors() as vendors, TemporaryDirectory(prefix="isabella-demo-") as folder:
        try:
            # Whatever one that was killed has left behind. These data are nobody's but the story's.
            server.erase()
            yield DemoStage(server, server.up(only_long(progress)), vendors, Path(folder))
        finally:
            server.erase()


def only_long(progress: Progress) -> Progress:
    """Tell what takes long; the rest only shows that something moves."""

    def tell(event: Step) -> None:
        if event.state == "started" or (event.name in _LONG and event.state != "skipped"):
            progress(event)

    return tell


def _connection(settings: Settings) -> Connection:
    connection = configured_connection(settings)
    if connection is None:
        raise AssertionError("the story's .env names its Letta")
    return connection


def _store(settings: Settings) -> LettaProviders:
    connection = _connection(settings)
    return LettaProviders.at(connection)


def _words(error: APIStatusError) -> str:
    """Letta's own words, in one line."""
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    details = inner if isinstance(inner, dict) else body
    said = details.get("detail") or details.get("message") or str(error)
    if "message" in details and "detail" in details:
        said = f"{details['message']} {details['detail']}"
    line = " ".join(redact(str(said)).split())
    return line if len(line) <= _SAID_LIMIT else f"{line[:_SAID_LIMIT]}…"
