"""Letta's agents: their rows, and every request about an agent and its tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from isabella.errors import LettaRefused
from isabella.letta import paths
from isabella.letta.database import LettaDatabase
from isabella.letta.http import LettaHttp
from isabella.letta.llm_config import LlmConfig, base_url_fields, streams
from isabella.letta.releases import GENERIC, OPENAI, client_for, release_in
from isabella.system.urls import is_gateway_url, is_placeholder_url

#: What Letta adds to an agent's row on request. It takes Letta twice as long.
RELATIONS = ("agent.tags", "agent.blocks", "agent.tools")
TAGS, BLOCKS = RELATIONS[:1], RELATIONS[1:2]

_CURRENT = """
SELECT json_build_object('id', id, 'name', name, 'agent_type', agent_type, 'llm_config', llm_config)
FROM agents WHERE id = %s AND NOT is_deleted
"""
_OVERVIEW = """
SELECT json_agg(json_build_object(
    'id', id, 'name', name, 'description', description, 'agent_type', agent_type, 'metadata', metadata_,
    'llm_config', llm_config, 'embedding_config', embedding_config, 'compaction_settings', compaction_settings,
    'tags', (SELECT json_agg(tag) FROM agents_tags WHERE agent_id = agents.id),
    'blocks', CASE WHEN %s THEN (
        SELECT json_agg(json_build_object('id', block.id, 'label', block.label, 'value', block.value))
        FROM blocks_agents JOIN block ON block.id = block_id WHERE agent_id = agents.id AND NOT block.is_deleted
    ) END
) ORDER BY created_at, id)
FROM agents WHERE NOT is_deleted AND hidden IS NOT TRUE
"""
_NAMED = f"""{_OVERVIEW} AND (
    id = %s OR lower(name) = lower(%s)
    OR EXISTS (SELECT FROM agents_tags WHERE agent_id = agents.id AND tag = %s)
)"""

#: How long an import may take: this many seconds, and more for a file with many messages.
_IMPORT_SECONDS = 60
_IMPORT_BYTES_PER_SECOND = 50_000

#: An embedding configuration at which nothing answers, for releases that create no agent without one (fact O12).
_NO_EMBEDDING = {
    "embedding_endpoint_type": "openai",
    "embedding_endpoint": "http://127.0.0.1:9/v1",
    "embedding_model": "none",
    "embedding_dim": 128,
    "embedding_chunk_size": 300,
}


class _Related(BaseModel):
    """A block or a tool of an agent."""

    model_config = ConfigDict(extra="ignore")

    id: str
    label: str | None = None
    value: str | None = None
    name: str | None = None
    json_schema: dict[str, Any] | None = None


_NULL_IS_EMPTY = BeforeValidator(lambda value: [] if value is None else value)


class AgentRow(BaseModel):
    """An agent as Letta returns it. Tags, blocks and tools are empty unless they were requested."""

    model_config = ConfigDict(extra="ignore")

    id: str
    name: str | None = None
    description: str | None = None
    system: str | None = None
    agent_type: str | None = None
    created_at: datetime | None = None
    tags: Annotated[list[str], _NULL_IS_EMPTY] = []
    blocks: Annotated[list[_Related], _NULL_IS_EMPTY] = []
    tools: Annotated[list[_Related], _NULL_IS_EMPTY] = []
    metadata: dict[str, Any] | None = None
    message_ids: list[str] | None = None
    llm_config: dict[str, Any] | None = None
    embedding_config: dict[str, Any] | None = None
    compaction_settings: dict[str, Any] | None = None

    @property
    def llm(self) -> LlmConfig | None:
        """The agent's `llm_config`; None if Letta has none."""
        if not self.llm_config:
            return None
        return LlmConfig.of(self.llm_config, self.agent_type, (self.compaction_settings or {}).get("model"))


_ROWS = TypeAdapter(list[AgentRow])


class Agents:
    """The agents of one Letta. Every method raises `LettaError`."""

    def __init__(self, http: LettaHttp, database: LettaDatabase) -> None:
        self._http = http
        self._database = database

    async def all(self, *, relations: Sequence[str] = (), hidden: bool = False, **filters: Any) -> list[AgentRow]:
        """Return every agent, oldest first, with these members of `RELATIONS`. `hidden` adds those that Letta hides.

        `filters` are Letta's, such as `name` and `tags`.
        """
        query: dict[str, Any] = {"order_by": "created_at", **filters, **_relations(relations)}
        if hidden:
            query["show_hidden_agents"] = "true"
        try:
            rows = await self._http.list_all(paths.AGENTS, **query)
        except LettaRefused as refused:
            # Older releases do not take this parameter, and always add the relations.
            if refused.status not in (400, 422) or query.pop("include_relationships", None) is None:
                raise
            rows = await self._http.list_all(paths.AGENTS, **query)
        return self._rows(rows)

    async def overview(self, *, blocks: bool = False) -> list[AgentRow]:
        """Return every agent that Letta does not hide, oldest first, with its tags, and its blocks if wanted.

        System prompt and context may be missing. The agents are read from Letta's Postgres if that is known: ten
        thousand of them would occupy Letta for half a minute.
        """
        found = await self._database.select(_OVERVIEW, blocks)
        if found is None:
            return await self.all(relations=(*TAGS, *BLOCKS) if blocks else TAGS)
        return self._rows(found)

    async def named(self, name: str, tag: str) -> list[AgentRow]:
        """Return the agents of `overview` with this id, name (in upper or lower case) or tag.

        They are read from Letta's Postgres only: empty if that is not known.
        """
        return self._rows(await self._database.select(_NAMED, False, name, name, tag) or [])

    async def get(self, agent_id: str, *, relations: Sequence[str] = ()) -> AgentRow:
        """Return one agent. Letta answers 404, or 422 to a malformed id."""
        return self._row(await self._http.get(paths.agent(agent_id), **_relations(relations)), agent_id)

    async def current(self, agent_id: str) -> AgentRow:
        """Return name, type and `llm_config` of an agent, and no other field.

        They are read from Letta's Postgres if that is known: Letta, one process for all agents, is not kept from the
        turns that it runs.
        """
        found = await self._database.select(_CURRENT, agent_id)
        return await self.get(agent_id) if found is None else self._row(found, agent_id)

    async def count(self) -> int:
        """Return the number of all agents, hidden ones included."""
        number = await self._http.get(paths.AGENT_COUNT, show_hidden_agents="true")
        if not isinstance(number, int):
            raise self._http.not_letta("its number of agents is not a number")
        return number

    async def create(self, fields: Mapping[str, Any]) -> str:
        """Create an agent and return its id."""
        try:
            row = await self._http.post(paths.AGENTS, fields)
        except LettaRefused as refused:
            # Before 0.16.2 an agent needs an embedding model (fact O12).
            if refused.status != 400 or "embedding" not in refused.detail:
                raise
            row = await self._http.post(paths.AGENTS, {**fields, "embedding_config": _NO_EMBEDDING})
        return str(row["id"])

    async def update(self, agent_id: str, fields: Mapping[str, Any]) -> None:
        """Change fields of an agent. Letta replaces `llm_config` as a whole (fact M25)."""
        await self._http.patch(paths.agent(agent_id), fields)

    async def delete(self, agent_id: str) -> None:
        """Delete an agent with its memory."""
        await self._http.delete(paths.agent(agent_id))

    async def point_to(
        self,
        agent_id: str,
        provider: str,
        base_url: str | None,
        before: Callable[[AgentRow], None] = lambda _row: None,
    ) -> bool:
        """Set the base URL that an agent calls if it is bound to this provider and calls another one; return whether.

        `before` is called with the agent before it is changed.
        """
        row = await self.get(agent_id)
        if row.llm is None or not row.llm.calls_elsewhere(provider, base_url):
            return False
        before(row)
        client = await self._client_at(row.llm, base_url)
        await self.update(agent_id, base_url_fields(row.llm_config or {}, base_url, client))
        return True

    async def _client_at(self, llm: LlmConfig, base_url: str | None) -> str | None:
        """Return the client for an agent that begins or ceases to use the gateway; None to keep the one it has."""
        if llm.endpoint_type not in (GENERIC, OPENAI) or base_url is None or is_placeholder_url(base_url):
            return None
        if is_gateway_url(base_url):
            return OPENAI
        if not is_gateway_url(llm.endpoint):
            return None
        client = client_for(release_in(await self._http.get(paths.HEALTH)))
        return client if streams(client, llm.agent_type) else OPENAI

    async def export_file(self, agent_id: str) -> dict[str, Any]:
        """Return an agent as an agent file, without its archival memory (fact M19)."""
        document = await self._http.get(paths.agent(agent_id, "export"))
        if not isinstance(document, dict):
            raise self._http.not_letta("its agent file is not a JSON object")
        return document

    async def import_file(self, content: bytes, name: str) -> str:
        """Create an agent from an agent file and return its id. Existing tools are not overwritten."""
        answer = await self._http.write(
            "POST",
            paths.AGENT_IMPORT,
            timeout=max(self._http.timeout, _IMPORT_SECONDS + len(content) / _IMPORT_BYTES_PER_SECOND),
            files={"file": ("agent.af", content, "application/json")},
            data={"name": name, "append_copy_suffix": "false", "override_existing_tools": "false"},
        )
        return str(answer["agent_ids"][0])

    async def recompile(self, agent_id: str) -> None:
        """Write the agent's memory into its system prompt. Releases without this request do so in every turn."""
        try:
            await self._http.post(paths.agent(agent_id, "recompile"), {})
        except LettaRefused as refused:
            if refused.status not in (404, 405):
                raise

    async def summarise(self, agent_id: str) -> None:
        """Make an agent's model summarise its older messages. Letta refuses if there is nothing to summarise."""
        await self._http.post(paths.agent(agent_id, "summarize"), {})

    async def tools(self) -> list[dict[str, Any]]:
        """Return every tool of this Letta."""
        return await self._http.list_all(paths.TOOLS)

    async def attach_tool(self, agent_id: str, tool_id: str) -> None:
        """Give an agent a tool."""
        await self._http.patch(paths.agent(agent_id, "tools", "attach", tool_id), {})

    async def detach_tool(self, agent_id: str, tool_id: str) -> None:
        """Take a tool from an agent."""
        await self._http.patch(paths.agent(agent_id, "tools", "detach", tool_id), {})

    def _rows(self, documents: Any) -> list[AgentRow]:
        try:
            return _ROWS.validate_python(documents)
        except ValidationError:
            raise self._http.not_letta("its list of agents has another shape") from None

    def _row(self, document: Any, agent_id: str) -> AgentRow:
        try:
            return AgentRow.model_validate(document)
        except ValidationError:
            raise self._http.not_letta(f"its agent {agent_id} has another shape") from None


def _relations(relations: Sequence[str]) -> dict[str, Any]:
    return {"include": list(relations)} if relations else {"include_relationships": ""}
