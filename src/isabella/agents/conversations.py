"""Several conversations of an agent over one memory: list, create, name, archive, and search them.

Every agent has a default conversation, which is its history in Letta's other requests. Letta's own field `summary`
serves as a name. Letta can only delete a conversation, and its messages with it, so Isabella archives: the ids are in
Isabella's part of the agent's metadata.

Everything here raises `LettaError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import anyio

from isabella.agents.history import History, HistoryEntry
from isabella.agents.metadata import AgentMetadata, fingerprint
from isabella.errors import ConversationRefused, ConversationUnknown, LettaRefused
from isabella.letta.client import LettaClient
from isabella.letta.conversations import DEFAULT, ConversationRow
from isabella.letta.llm_config import is_older
from isabella.system import audit
from isabella.system.english import english

#: In characters.
LONGEST_NAME = 200
_NAME_OF_DEFAULT = english("Default conversation")
_UNNAMED = "New conversation"
_FIRST_WORDS = 60
#: How often a mark of archiving is written again that another writer of the metadata has overwritten.
_WRITES = 3
_FIRST_MESSAGES = 4


@dataclass(frozen=True)
class ConversationRecord:
    """A conversation of an agent."""

    id: str  # `default`, or Letta's id
    name: str
    archived: bool = False
    at: str | None = None  # the time of its last message, or else of its creation; ISO 8601. None for the default one


@dataclass(frozen=True)
class FoundConversation:
    """A conversation that a search found: by its name, or by messages."""

    conversation: ConversationRecord
    messages: tuple[HistoryEntry, ...] = ()  # newest first


class AgentConversations:
    """The conversations of the agents of one Letta."""

    def __init__(self, letta: LettaClient) -> None:
        self._letta = letta
        self._history = History(letta)
        #: First words of conversations without a name, by id. They never change.
        self._first_words: dict[str, str] = {}
        self._marking = anyio.Lock()

    async def offered(self, agent_type: str | None) -> bool:
        """Return whether an agent of this type can have several, on this release of Letta."""
        return await _offered(self._letta, agent_type)

    async def all(self, agent_id: str, agent_type: str | None) -> list[ConversationRecord]:
        """Return the conversations of an agent, archived ones included: the default one, then the latest first.

        Without the ability it is the default one alone.
        """
        default = ConversationRecord(DEFAULT, _NAME_OF_DEFAULT)
        if not await self.offered(agent_type):
            return [default]
        rows = await self._letta.conversations.of_agent(agent_id)
        archived = await self._archived(agent_id) if rows else ()
        rows.sort(key=lambda row: str(row.last_message_at or row.created_at or ""), reverse=True)
        return [default, *[await self._conversation(row, archived) for row in rows]]

    async def get(self, agent_id: str, agent_type: str | None, id: str) -> ConversationRecord:
        """Return a conversation of an agent by its id; `ConversationUnknown` if there is none."""
        if id == DEFAULT:
            return ConversationRecord(DEFAULT, _NAME_OF_DEFAULT)
        row = await usable(self._letta, agent_id, agent_type, id)
        return await self._conversation(row, await self._archived(agent_id))

    async def new(self, agent_id: str, agent_type: str | None, name: str = "") -> ConversationRecord:
        """Begin a conversation. Without a name, it is named after its first message."""
        await _require(self._letta, agent_type)
        row = await self._letta.conversations.create(agent_id, _valid_name(name) if name.strip() else None)
        return await self._conversation(row, ())

    async def rename(self, agent_id: str, agent_type: str | None, id: str, name: str) -> ConversationRecord:
        """Give a conversation another name."""
        _refuse_default(id, english("The default conversation has no other name: it is the agent's history."))
        name = _valid_name(name)
        await usable(self._letta, agent_id, agent_type, id)
        await self._letta.conversations.rename(id, name)
        return await self.get(agent_id, agent_type, id)

    @audit.recorded(
        "conversation.archived",
        lambda self, agent_id, agent_type, id, *, archived: {"subject": id, "archived": archived},
    )
    async def archive(self, agent_id: str, agent_type: str | None, id: str, *, archived: bool) -> ConversationRecord:
        """Archive a conversation, or take it out of the archive. Its messages and its context stay as they are."""
        _refuse_default(id, english("The default conversation cannot be archived: it is the agent's history."))
        await usable(self._letta, agent_id, agent_type, id)
        async with self._marking:
            for _ in range(_WRITES + 1):
                row = await self._letta.agents.get(agent_id)
                own = AgentMetadata.read(row.metadata)
                if (id in own.archived) == archived:
                    break
                marked = (*(each for each in own.archived if each != id), *([id] if archived else []))
                await self._letta.agents.update(
                    agent_id, {"metadata": replace(own, archived=marked).into(row.metadata)}
                )
            else:
                raise ConversationRefused(
                    english(
                        "The conversation could not be marked: the agent's metadata is being changed by "
                        "another program."
                    ),
                    remedy=english("Try again."),
                )
        return await self.get(agent_id, agent_type, id)

    async def search(
        self, agent_id: str, agent_type: str | None, query: str, *, each: int = 3
    ) -> list[FoundConversation]:
        """Return the conversations whose name or messages have all words of a query.

        Messages are read page by page, conversation by conversation; `each` limits those that are returned of one.
        """
        words = query.casefold().split()
        found = []
        for conversation in await self.all(agent_id, agent_type):
            within = None if conversation.id == DEFAULT else conversation.id
            matches = await self._history.search(agent_id, query, limit=each, conversation=within)
            if matches or (words and all(word in conversation.name.casefold() for word in words)):
                found.append(FoundConversation(conversation, tuple(matches)))
        return found

    async def _archived(self, agent_id: str) -> tuple[str, ...]:
        return AgentMetadata.read((await self._letta.agents.get(agent_id)).metadata).archived

    async def _conversation(self, row: ConversationRow, archived: Iterable[str]) -> ConversationRecord:
        name = (row.summary or "").strip() or await self._named_by_message(row)
        at = row.last_message_at or row.created_at
        return ConversationRecord(row.id, name, row.id in archived, None if at is None else at.isoformat())

    async def _named_by_message(self, row: ConversationRow) -> str:
        """Return the first words of a conversation that another program has left without a name."""
        if row.id not in self._first_words and row.last_message_at is not None:
            rows = await self._letta.messages.page(
                row.agent_id, limit=_FIRST_MESSAGES, order="asc", conversation_id=row.id
            )
            texts = (str(one.get("content")) for one in rows if one.get("message_type") == "user_message")
            if text := next(texts, ""):
                self._first_words[row.id] = first_words(text)
        return self._first_words.get(row.id, _UNNAMED)


class SystemPrompts:
    """Keeps the memory in the system prompts of conversations up to date.

    Letta compiles the system prompt of a conversation when it is created, and again only when it summarises. So it is
    compiled before a turn if the memory has changed since it was compiled last; not more often, because a changed
    prompt costs vendors their cache.
    """

    def __init__(self) -> None:
        self._compiled: dict[str, str] = {}

    async def refresh(self, letta: LettaClient, agent_id: str, conversation: str) -> None:
        """Compile the system prompt of a conversation if it is not known to be up to date. No turn may run in it."""
        row = await letta.agents.get(agent_id)
        blocks = [
            [block.get(name) for name in ("label", "value", "limit", "description", "read_only")]
            for block in await letta.blocks.of_agent(agent_id)
        ]
        # Taken before: a change meanwhile is noticed by the next turn.
        now = fingerprint([row.system, blocks])
        if self._compiled.get(conversation) == now:
            return
        try:
            await letta.conversations.recompile(conversation)
        except LettaRefused as refused:
            if refused.status == 404:
                raise _unknown(conversation) from None
            raise
        self._compiled[conversation] = now


async def usable(letta: LettaClient, agent_id: str, agent_type: str | None, id: str) -> ConversationRow:
    """Return a conversation of an agent in which turns can run.

    Raises `ConversationUnknown`, or `ConversationRefused` for one that has its own model.
    """
    await _require(letta, agent_type)
    try:
        row = await letta.conversations.get(id)
    except LettaRefused as refused:
        if refused.status in (404, 422):
            raise _unknown(id) from None
        raise
    if row.agent_id != agent_id:
        raise _unknown(id)
    if row.model:
        raise ConversationRefused(
            english(
                "The conversation has its own model in Letta, %(model)s, which Isabella does not manage.",
                model=row.model,
            ),
            remedy=english("Use another conversation."),
        )
    return row


async def _offered(letta: LettaClient, agent_type: str | None) -> bool:
    # Letta's older loop would take the default conversation.
    return not is_older(agent_type) and await letta.conversations.offered()


async def _require(letta: LettaClient, agent_type: str | None) -> None:
    """Raise `ConversationRefused` if an agent of this type cannot have several conversations."""
    if not await _offered(letta, agent_type):
        raise ConversationRefused(
            english("This agent has one conversation only."),
            remedy=english("Several need Letta 0.16.7 or later, and an agent of the type letta_v1_agent."),
        )


async def name_if_unnamed(letta: LettaClient, id: str, message: str) -> None:
    """Name a conversation after its first message, unless it has got a name meanwhile."""
    if not (await letta.conversations.get(id)).summary:
        await letta.conversations.rename(id, first_words(message))


def first_words(text: str) -> str:
    """Return the beginning of a text, as a name."""
    line = " ".join(text.split())
    if len(line) <= _FIRST_WORDS:
        return line
    return f"{line[:_FIRST_WORDS].rsplit(' ', 1)[0].rstrip(' ,;:.')} …"


def _valid_name(name: str) -> str:
    name = " ".join(name.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise ConversationRefused(
            english("A name has between 1 and %(most)s visible characters.", most=LONGEST_NAME),
            remedy=english("Choose another name."),
        )
    return name


def _refuse_default(id: str, why: str) -> None:
    if id == DEFAULT:
        raise ConversationRefused(why, remedy=english("Begin another conversation for this."))


def _unknown(id: str) -> ConversationUnknown:
    return ConversationUnknown(
        english("This agent has no conversation %(id)s.", id=repr(id[:60])),
        remedy=english("GET /api/agents/NAME/conversations lists them."),
    )
