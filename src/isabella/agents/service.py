"""The agents of one Letta, with their models and their memory, opened together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from isabella.agents import reconcile
from isabella.agents.block_history import BlockFiles, BlockHistory, Limits, NoStore
from isabella.agents.conversations import AgentConversations
from isabella.agents.definitions import AgentDefinition, load_definitions
from isabella.agents.embedder import Embedder
from isabella.agents.embeddings import EmbeddingSetup, address, address_secret, choose_search_method
from isabella.agents.history import History
from isabella.agents.memory import ArchivalMemory, CoreMemory
from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.reconcile import EnsureResult
from isabella.agents.registry import AgentRegistry
from isabella.agents.relevance import RelevanceFilter
from isabella.config.settings import Settings
from isabella.connect import connect
from isabella.embedded.instance import histories_folder
from isabella.letta.client import Connection, LettaClient
from isabella.letta.releases import client_for
from isabella.locks.sync_lock import sync_lock


@dataclass
class AgentService:
    """The agents of one Letta."""

    settings: Settings
    connection: Connection
    definitions: Sequence[AgentDefinition]
    registry: AgentRegistry
    models: ModelCatalog
    memory: CoreMemory
    archive: ArchivalMemory
    history: History
    conversations: AgentConversations
    embedder: Embedder
    vectors: EmbeddingSetup | None = None  # None if no backend serves embeddings
    ensured: Sequence[EnsureResult] = field(default_factory=tuple)  # the results of the last `ensure`

    @property
    def letta(self) -> LettaClient:
        """The client of this Letta."""
        return self.registry.letta

    async def ensure(self) -> Sequence[EnsureResult]:
        """Make the agents match their definitions; one process at a time does so."""
        connection = self.connection
        async with sync_lock(connection.base_url, home=connection.home, database_url=connection.database_url):
            self.ensured = await reconcile.ensure(self.registry, self.definitions, self.models, self.vectors)
        return self.ensured


@asynccontextmanager
async def open_agent_service(
    settings: Settings, connection: Connection | None = None, *, backend: str | None = None
) -> AsyncIterator[AgentService]:
    """Open the agents of a Letta, by default the one of the settings.

    `backend` is the base URL of the backend that serves embeddings, as Letta reaches it.
    """
    definitions = load_definitions(settings)
    models = ModelCatalog.of(settings)
    connection = connection or await connect(settings)
    vectors = None
    if backend is not None:
        method = choose_search_method(settings, models.providers)
        vectors = EmbeddingSetup(method, address(backend, address_secret(connection.home)))
    embedder = Embedder(models, settings.timeout)
    async with LettaClient.open(connection, timeout=connection.timeout * 2) as letta:
        models.client = client_for((await letta.providers.abilities()).release)
        yield AgentService(
            settings,
            connection,
            definitions,
            AgentRegistry(letta, definitions, answer_tokens=settings.answer_tokens),
            models,
            CoreMemory(letta, history=_block_history(settings, connection), find_message=History(letta).find_message),
            ArchivalMemory(letta, RelevanceFilter(embedder.embed)),
            History(letta),
            AgentConversations(letta),
            embedder,
            vectors,
        )


def _block_history(settings: Settings, connection: Connection) -> BlockHistory:
    days = settings.block_history_days
    return BlockHistory(BlockFiles(histories_folder(connection.home)) if days else NoStore(), Limits(days=days))
