"""The conversations of an agent beside its default one: their rows, requests about them, and their contexts.

Letta has no request that changes the context of such a conversation, as there is one for the default conversation
(fact M29). So it is changed in Letta's Postgres, if that is known.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, SecretStr, TypeAdapter, ValidationError

from isabella.errors import DatabaseUnusable
from isabella.letta import paths
from isabella.letta.http import LettaHttp
from isabella.letta.messages import Image, by_user
from isabella.letta.releases import has, release_in
from isabella.locks.postgres import open_connection
from isabella.system.english import english
from isabella.system.redaction import redact

#: Letta's name for the conversation that every agent has.
DEFAULT = "default"

_ADOPT = """
UPDATE messages SET conversation_id = %(conversation)s
FROM conversations
WHERE messages.id = ANY(%(ids)s) AND messages.conversation_id IS NULL
  AND conversations.id = %(conversation)s AND conversations.agent_id = messages.agent_id
"""
_ADD = """
INSERT INTO conversation_messages (id, conversation_id, agent_id, message_id, position, in_context, organization_id)
SELECT 'conv_msg-' || gen_random_uuid(), conversation_id, agent_id, id, 0, true, organization_id
FROM messages WHERE id = ANY(%(ids)s) AND conversation_id = %(conversation)s
ON CONFLICT (conversation_id, message_id) DO NOTHING
"""
_SELECT = """
UPDATE conversation_messages
SET in_context = message_id = ANY(%(ids)s),
    position = coalesce(array_position(%(ids)s::varchar[], message_id) - 1, position)
WHERE conversation_id = %(conversation)s AND NOT is_deleted
RETURNING in_context
"""


class ConversationRow(BaseModel):
    """A conversation as Letta returns it. A list leaves `in_context_message_ids` empty."""

    model_config = ConfigDict(extra="ignore")

    id: str
    agent_id: str
    summary: str | None = None
    model: str | None = None
    created_at: datetime | None = None
    last_message_at: datetime | None = None
    in_context_message_ids: list[str] = []


_ROWS = TypeAdapter(list[ConversationRow])


class Conversations:
    """The conversations of one Letta. Every method raises `LettaError`.

    `database_url` is Letta's Postgres, without which no context can be changed.
    """

    def __init__(self, http: LettaHttp, database_url: SecretStr | None = None) -> None:
        self._http = http
        self.database_url = database_url
        self._offered = False

    async def offered(self) -> bool:
        """Return whether this release has them. Once it has, it is not asked again."""
        if not self._offered:
            self._offered = has(release_in(await self._http.get(paths.HEALTH)), "conversations")
        return self._offered

    async def of_agent(self, agent_id: str) -> list[ConversationRow]:
        """Return the conversations of an agent, the oldest first."""
        rows = await self._http.list_all(paths.CONVERSATIONS, agent_id=agent_id)
        try:
            return _ROWS.validate_python(rows)
        except ValidationError:
            raise self._http.not_letta("its list of conversations has another shape") from None

    async def get(self, conversation_id: str) -> ConversationRow:
        """Return a conversation. Letta answers 404, or 422 to a malformed id."""
        return self._row(await self._http.get(paths.conversation(conversation_id)))

    async def create(self, agent_id: str, summary: str | None = None) -> ConversationRow:
        """Create a conversation of an agent."""
        query, body = {"agent_id": agent_id}, {} if summary is None else {"summary": summary}
        return self._row(await self._http.write("POST", paths.CONVERSATIONS, params=query, json=body))

    async def rename(self, conversation_id: str, summary: str) -> None:
        """Set the field of a conversation that serves as its name."""
        await self._http.patch(paths.conversation(conversation_id), {"summary": summary})

    async def recompile(self, conversation_id: str) -> None:
        """Write the agent's present memory into the system prompt of a conversation."""
        await self._http.post(paths.conversation(conversation_id, "recompile"), {})

    def stream(
        self, conversation_id: str, text: str, images: Sequence[Image] = (), request_id: str | None = None
    ) -> AsyncGenerator[str, None]:
        """Send a message of the user and yield the lines of Letta's event stream, as `Messages.stream` does."""
        body = {
            "messages": [by_user(text, images, request_id)],
            "streaming": True,
            "stream_tokens": True,
            "include_pings": True,
        }
        return self._http.stream(paths.conversation(conversation_id, "messages"), body)

    async def set_context(self, conversation_id: str, ids: Sequence[str]) -> None:
        """Select the messages that are in the context of a conversation, in this order.

        Messages that belong to no conversation yet, such as captured ones, become part of this one. Raises
        `DatabaseUnusable`, and then nothing is changed.
        """
        import psycopg

        if self.database_url is None:
            raise DatabaseUnusable(
                english("The context of this conversation cannot be changed: Letta's database is not known."),
                remedy=english("Set ISABELLA_DATABASE_URL."),
            )
        values = {"conversation": conversation_id, "ids": list(ids)}
        try:
            async with await open_connection(self.database_url) as connection, connection.transaction():
                await connection.execute(_ADOPT, values)
                await connection.execute(_ADD, values)
                rows = await (await connection.execute(_SELECT, values)).fetchall()
                selected = sum(bool(in_context) for (in_context,) in rows)
                if selected != len(ids):
                    raise DatabaseUnusable(
                        english(
                            "Of %(all)s messages, %(others)s belong to another conversation.",
                            all=len(ids),
                            others=len(ids) - selected,
                        ),
                        remedy=english("Nothing was changed."),
                    )
        except psycopg.Error as error:
            lines = redact(str(error)).strip().splitlines()
            raise DatabaseUnusable(
                english(
                    "The context of a conversation cannot be changed: %(why)s",
                    why=lines[0] if lines else type(error).__name__,
                ),
                remedy=english("Check ISABELLA_DATABASE_URL."),
            ) from None

    def _row(self, document: Any) -> ConversationRow:
        try:
            return ConversationRow.model_validate(document)
        except ValidationError:
            raise self._http.not_letta("its conversation has another shape") from None
