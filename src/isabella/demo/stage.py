"""The environment of the demo: a Letta instance of its own, a practice vendor, a `.env` file, and an agent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout
from pydantic import SecretStr

from isabella.config.settings import Settings, load_settings
from isabella.embedded import Letta, Progress, Server, Step
from isabella.embedded.instance import make_private
from isabella.errors import LettaBroken, LettaError, LettaRefused, LockTimeout
from isabella.letta.client import LettaClient
from isabella.letta.connection import Connection, configured_connection
from isabella.letta.encryption import KeyReading, read_back
from isabella.letta.llm_config import Binding, creation_fields
from isabella.letta.store import StoredProvider
from isabella.practice import PracticeVendors, Request
from isabella.providers.desired import Desired, desired_providers
from isabella.system.files import write_private
from isabella.system.redaction import mask

INSTANCE = "demo"
VENDOR = "cerebras"
PROVIDER = "cerebras"

#: Steps that take long; they are shown when they start and when they end.
_LONG = ("fetch", "install", "wait")
_SAID_LIMIT = 240


@dataclass(frozen=True)
class DemoAnswer:
    """The answer to a message: Letta's HTTP status, 0 if there was none, and the text of the agent or the error."""

    status: int
    said: str

    @property
    def shown(self) -> str:
        """The text, with the status unless it is 200."""
        return self.said if self.status == 200 else f"{self.status}  {self.said}"


@dataclass
class DemoStage:
    """The environment of the demo."""

    server: Server
    letta: Letta  #: that Letta as it runs now; a restart replaces it
    vendors: PracticeVendors
    folder: Path  #: a temporary folder with the `.env` file
    _client: LettaClient | None = field(default=None, repr=False)
    _agent: str = ""

    def configure(self, key: SecretStr, master_key: SecretStr | None) -> Settings:
        """Write `.env` as an operator does, and load the settings from it."""
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
        """Restart Letta on the same data with another `LETTA_ENCRYPTION_KEY`."""
        self.letta = self.server.restart_letta(only_long(progress), master_key=master_key)

    @asynccontextmanager
    async def speaking(self, settings: Settings) -> AsyncIterator[None]:
        """Open a client for the Letta that runs now."""
        connection = _connection(settings)
        async with LettaClient.open(connection, timeout=connection.timeout * 2) as client:
            self._client = client
            yield

    async def make_agent(self, settings: Settings) -> None:
        """Create an agent with a memory, bound to the provider (fact M6)."""
        desired = desired_provider(settings)
        model = desired.vendor.default_model or "default"
        window = desired.vendor.models.get(model, desired.vendor.default_window)
        self._agent = await self._letta.agents.create(
            {
                "name": "isabella-demo",
                "memory_blocks": [
                    {"label": "persona", "value": "I am Isabella, an assistant who remembers."},
                    {"label": "human", "value": ""},
                ],
                **creation_fields(Binding(desired.name, model, desired.base_url, window)),
            }
        )

    async def say(self, text: str) -> DemoAnswer:
        """Send a message to the agent."""
        try:
            turn = await self._letta.messages.send(self._agent, text)
        except (LettaRefused, LettaBroken) as error:
            return DemoAnswer(error.status or 0, _one_line(error.detail or error.what))
        except LettaError as error:
            return DemoAnswer(0, f"no answer: {error.what}")
        rows = [row for row in turn["messages"] if row.get("message_type") == "assistant_message"]
        said = " ".join(str(row.get("content")) for row in rows)
        return DemoAnswer(200, said or f"(nothing; the turn ended with {turn['stop_reason']['stop_reason']})")

    def completions(self, *, after: int) -> list[Request]:
        """Return the chat requests at the vendor after the one with that number."""
        return [request for request in self.vendors.requests(VENDOR, after=after) if "completions" in request.path]

    def last_request(self) -> int:
        """Return the number of the last request at the vendor."""
        return max((request.number for request in self.vendors.requests(VENDOR)), default=0)

    @property
    def _letta(self) -> LettaClient:
        if self._client is None:
            raise AssertionError("nobody is speaking")
        return self._client


def desired_provider(settings: Settings) -> Desired:
    """Return the provider that `.env` configures."""
    return next(provider for provider in desired_providers(settings) if provider.configured)


async def stored_provider(settings: Settings) -> tuple[StoredProvider | None, KeyReading | None]:
    """Return the provider as Letta stores it, and its key read back with the master key of `.env`."""
    async with LettaClient.open(_connection(settings)) as letta:
        found = await letta.providers.find(PROVIDER)
    key = desired_provider(settings).key
    if found is None or key is None:
        return found, None
    return found, read_back(found.key_text, key.get_secret_value(), settings.letta_encryption_key, None)


async def patch(settings: Settings) -> None:
    """Update the provider in place, without a plan."""
    async with LettaClient.open(_connection(settings)) as letta:
        found, desired = await letta.providers.find(PROVIDER), desired_provider(settings)
        if found is None or desired.key is None:
            raise AssertionError("there is nothing to update")
        await letta.providers.update(found.id, key=desired.key, base_url=desired.base_url)


def shown(key: SecretStr | None) -> str:
    """Return a key masked for output."""
    return "no key" if key is None else mask(key.get_secret_value())


@contextmanager
def open_stage(home: Path, progress: Progress) -> Iterator[DemoStage]:
    """Start the environment of the demo; at the end, stop and erase it. Raise `LockTimeout` if one runs already."""
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
            # A demo that was killed may have left data behind. The instance belongs to the demo alone.
            server.erase()
            yield DemoStage(server, server.up(only_long(progress)), vendors, Path(folder))
        finally:
            server.erase()


def only_long(progress: Progress) -> Progress:
    """Return a progress callback that reports the end of long steps only; the start of each step is reported."""

    def report(event: Step) -> None:
        if event.state == "started" or (event.name in _LONG and event.state != "skipped"):
            progress(event)

    return report


def _connection(settings: Settings) -> Connection:
    connection = configured_connection(settings)
    if connection is None:
        raise AssertionError("the demo's .env has the base URL of its Letta")
    return connection


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SAID_LIMIT else f"{line[:_SAID_LIMIT]}…"
