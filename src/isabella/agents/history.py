"""The conversation of an agent: its messages, reasoning and tool calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from isabella.agents.context import context_ids
from isabella.agents.memory import check_text, unless_unknown
from isabella.errors import LettaRefused
from isabella.letta.client import LettaClient
from isabella.letta.conversations import DEFAULT
from isabella.letta.http import PAGE_SIZE
from isabella.letta.messages import Image
from isabella.system.english import english

_PAGES_SEARCHED = 100  # how many pages back a search reads

#: The kind of an entry, and the field of the message with its text, by Letta's type of the message.
_KINDS = {
    "user_message": ("user", "content"),
    "assistant_message": ("assistant", "content"),
    "reasoning_message": ("reasoning", "reasoning"),
    "hidden_reasoning_message": ("reasoning", "reasoning"),
    "tool_call_message": ("tool_call", "tool_call"),
    "approval_request_message": ("tool_call", "tool_call"),
    "tool_return_message": ("tool_return", "tool_return"),
    "summary_message": ("summary", "summary"),
    "event_message": ("event", "event_data"),
}


@dataclass(frozen=True)
class HistoryEntry:
    """An entry of the history."""

    id: str  # Letta's id of the message, which several entries may share
    at: str  # its time; ISO 8601
    kind: str  # `user`, `assistant`, `reasoning`, `tool_call`, `tool_return`, `summary` or `event`
    text: str  # the text, the arguments of a call, or the result of a tool
    tool: str | None = None  # the tool's name, for calls and results
    failed: bool = False
    images: int = 0  # how many images a message of the user has


@dataclass(frozen=True)
class HistoryPage:
    """A page of the history."""

    entries: tuple[HistoryEntry, ...]  # its entries, oldest first
    before: str | None  # the argument for the page before this one; None if this is the first page
    after: str | None = None  # the argument for the page after this one; None if this is the last page


class History:
    """The conversations of agents. Every method raises `LettaError`."""

    def __init__(self, letta: LettaClient) -> None:
        self._letta = letta

    async def page(
        self, agent_id: str, *, limit: int = 50, before: str | None = None, conversation: str | None = None
    ) -> HistoryPage:
        """Return the newest messages, or those before the message `before`, which is `MemoryUnknown` if absent.

        `conversation` is the id of a conversation other than the default one.
        """
        within = conversation or DEFAULT
        rows = await unless_unknown(
            self._letta.messages.page(agent_id, limit=limit, order="desc", before=before, conversation_id=within),
            english("There is no message %(before)s in this agent's history.", before=repr(before)),
        )
        # 0.16 returns every page oldest first: `order` says only from which end it is taken.
        ids = list(dict.fromkeys(row["id"] for row in rows))
        return HistoryPage(_entries(rows), ids[0] if len(ids) >= limit else None)

    async def following(
        self, agent_id: str, after: str | None, *, limit: int = 50, conversation: str | None = None
    ) -> HistoryPage:
        """Return the messages after the message `after`, which is `MemoryUnknown` if absent; the first for None."""
        within = conversation or DEFAULT
        # One more says whether there are any; and a release may return the message `after` itself.
        rows = await unless_unknown(
            self._letta.messages.page(agent_id, limit=limit + 2, order="asc", after=after, conversation_id=within),
            english("There is no message %(after)s in this agent's history.", after=repr(after)),
        )
        ids = list(dict.fromkeys(row["id"] for row in rows if row["id"] != after))
        kept = ids[:limit]
        entries = _entries([row for row in rows if row["id"] in kept])
        return HistoryPage(entries, kept[0] if kept else None, kept[-1] if len(ids) > limit else None)

    async def around(
        self, agent_id: str, message_id: str, *, limit: int = 50, conversation: str | None = None
    ) -> HistoryPage:
        """Return about this many messages on both sides of a message, which is `MemoryUnknown` if absent."""
        within = conversation or DEFAULT
        rows = await unless_unknown(
            self._letta.messages.page(agent_id, limit=limit, order="desc", before=message_id, conversation_id=within),
            english("There is no message %(message_id)s in this agent's history.", message_id=repr(message_id)),
        )
        ids = list(dict.fromkeys(row["id"] for row in rows))
        later = await self.following(agent_id, ids[-1] if ids else None, limit=limit, conversation=conversation)
        return HistoryPage((*_entries(rows), *later.entries), ids[0] if len(ids) >= limit else None, later.after)

    async def message(
        self, agent_id: str, message_id: str, *, conversation: str | None = None
    ) -> Sequence[HistoryEntry]:
        """Return the entries of one message; raise `MemoryUnknown` if there is none.

        `GET /v1/messages/{id}` of 0.16.8 calls the text of an answer reasoning, so it is read as a page.
        """
        page = await self.around(agent_id, message_id, limit=1, conversation=conversation)
        return [entry for entry in page.entries if entry.id == message_id]

    async def images(self, message_id: str) -> tuple[Image, ...]:
        """Return the images of one message; raise `MemoryUnknown` if there is no such message."""
        return tuple(image for row in await self._message(message_id) for image in images_of(row.get("content")))

    async def _message(self, message_id: str) -> Sequence[Mapping[str, Any]]:
        return await unless_unknown(
            self._letta.messages.get(message_id),
            english("There is no message %(message_id)s.", message_id=repr(message_id)),
        )

    async def in_context(self, agent_id: str, *, conversation: str | None = None) -> frozenset[str]:
        """Return the ids of the messages that the agent's model sees."""
        return frozenset(await context_ids(self._letta, agent_id, conversation))

    async def since(
        self, agent_id: str, message_id: str | None, *, conversation: str | None = None
    ) -> tuple[Sequence[HistoryEntry], str | None]:
        """Return everything after a message, oldest first, and the id of the last message.

        Without a `conversation` the messages of all of them come; `DEFAULT` is the name of the default one.
        """
        rows: list[dict[str, Any]] = []
        after, deleted = message_id, False
        while True:
            try:
                page = await self._letta.messages.page(
                    agent_id, limit=PAGE_SIZE, order="asc", after=after, conversation_id=conversation
                )
            except LettaRefused:
                if deleted or after is None:
                    raise
                # The message was deleted: begin with the first one.
                after, deleted = None, True
                continue
            fresh = [row for row in page if row["id"] != after]
            rows += fresh
            if len({row["id"] for row in page}) < PAGE_SIZE or not fresh:
                break
            after = page[-1]["id"]
        return _entries(rows), rows[-1]["id"] if rows else message_id

    async def find_message(self, agent_id: str, text: str) -> str | None:
        """Return the id of the last message of the user with this text, if it is one of the newest."""
        page = await self.page(agent_id, limit=PAGE_SIZE)
        return next(
            (entry.id for entry in reversed(page.entries) if entry.kind == "user" and entry.text == text), None
        )

    async def search(
        self, agent_id: str, query: str, *, limit: int = 10, conversation: str | None = None
    ) -> list[HistoryEntry]:
        """Return the messages and summaries that have all words of a query, newest first. See `check_text`.

        `conversation` is the id of a conversation other than the default one.
        """
        check_text(query)
        words = query.casefold().split()
        if not words:
            return []
        matches: list[HistoryEntry] = []
        before: str | None = None
        for _ in range(_PAGES_SEARCHED):
            page = await self.page(agent_id, limit=PAGE_SIZE, before=before, conversation=conversation)
            matches += [entry for entry in reversed(page.entries) if _matches(entry, words)]
            before = page.before
            if before is None or len(matches) >= limit:
                break
        return matches[:limit]


def _matches(entry: HistoryEntry, words: Sequence[str]) -> bool:
    text = entry.text.casefold()
    return entry.kind in ("user", "assistant", "summary") and all(word in text for word in words)


def _entries(rows: Sequence[Mapping[str, Any]]) -> tuple[HistoryEntry, ...]:
    return tuple(entry for row in rows if (entry := _entry(row)))


def _entry(row: Mapping[str, Any]) -> HistoryEntry | None:
    """Return the entry of a message; None for messages that are not shown, such as the system prompt."""
    kind, field = _KINDS.get(row.get("message_type", ""), (None, ""))
    if kind is None:
        return None
    entry = HistoryEntry(
        row["id"], row.get("date") or "", kind, text_of(row.get(field)), images=len(images_of(row.get(field)))
    )
    match kind:
        case "tool_call":
            call = row.get("tool_call") or {}
            return replace(entry, text=call.get("arguments") or "", tool=call.get("name"))
        case "tool_return":
            return replace(entry, tool=row.get("name"), failed=row.get("status") == "error")
        case "user":
            return _user_entry(entry)
    return entry


def _user_entry(entry: HistoryEntry) -> HistoryEntry | None:
    """Return the entry of a user message. Letta wraps some in JSON, and adds its own summaries and heartbeats."""
    match unwrapped(entry.text):
        case {"type": "user_message", "message": str(message)}:
            return replace(entry, text=message)
        case {"type": "system_alert", "message": str(message)}:
            return replace(entry, kind="summary", text=message)
        case {"type": "heartbeat" | "login"}:
            return None
    return entry


def unwrapped(text: str) -> Any:
    """Return the JSON in which Letta wraps some messages of the user; None if a text is not JSON."""
    try:
        return json.loads(text) if text.startswith("{") else None
    except ValueError:
        return None


def images_of(content: Any) -> list[Image]:
    """Return the images in the content of a message. Letta keeps them as base64, under a separate source."""
    found = []
    for part in content if isinstance(content, list) else ():
        source = part.get("source") if isinstance(part, dict) and part.get("type") == "image" else None
        match source:
            case {"media_type": str(media_type), "data": str(data)}:
                found.append(Image(media_type, data))
    return found


def text_of(content: Any) -> str:
    """Return the text in the content of a message."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = (str(part.get("text", "")) for part in content if isinstance(part, dict))
        return "\n".join(text for text in texts if text)
    return "" if content is None else json.dumps(content, ensure_ascii=False)
