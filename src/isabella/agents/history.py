"""What was said and done in an agent's conversation, newest last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from isabella.agents.memory import check_text, unless_unknown
from isabella.errors import LettaRefused
from isabella.letta.client import LettaClient
from isabella.letta.http import PAGE_SIZE

#: How far back the history is read where Letta's own search cannot be used.
_PAGES_SEARCHED = 100

_KINDS = {
    "user_message": "user",
    "assistant_message": "assistant",
    "reasoning_message": "reasoning",
    "hidden_reasoning_message": "reasoning",
    "tool_call_message": "tool_call",
    "approval_request_message": "tool_call",
    "tool_return_message": "tool_return",
    "summary_message": "summary",
    "event_message": "event",
}


@dataclass(frozen=True)
class HistoryEntry:
    """One thing that was said or done.

    Attributes:
        id: Letta's id of the message; several entries of one message have the same.
        at: when; ISO 8601.
        kind: `user`, `assistant`, `reasoning`, `tool_call`, `tool_return`, `summary` or `event`.
        text: the words, the arguments of a call, or what a tool gave back.
        tool: the tool's name, for calls and returns.
        failed: whether a tool failed.
    """

    id: str
    at: str
    kind: str
    text: str
    tool: str | None = None
    failed: bool = False


@dataclass(frozen=True)
class HistoryPage:
    """A stretch of history.

    Attributes:
        entries: oldest first.
        before: what to ask with for the stretch before this one; None where it begins here.
    """

    entries: tuple[HistoryEntry, ...]
    before: str | None


class History:
    """The conversations of agents.

    Args:
        letta: a client of their Letta.
    """

    def __init__(self, letta: LettaClient) -> None:
        self._letta = letta

    async def page(self, agent_id: str, *, limit: int = 50, before: str | None = None) -> HistoryPage:
        """The newest messages, or those before one.

        Args:
            agent_id: whose.
            limit: how many messages at most; one message may be several entries.
            before: the `before` of the page after this one.

        Raises:
            MemoryUnknown: there is no message `before`.
            LettaError: they cannot be read.
        """
        rows = await unless_unknown(
            self._letta.messages.page(agent_id, limit=limit, order="desc", before=before),
            f"There is no message {before!r} in this agent's history.",
        )
        # 0.16 gives every page oldest first: `order` only says from which end it is taken.
        ids = list(dict.fromkeys(row["id"] for row in rows))
        entries = [entry for row in rows if (entry := _entry(row))]
        return HistoryPage(tuple(entries), ids[0] if len(ids) >= limit else None)

    async def since(self, agent_id: str, message_id: str | None) -> tuple[list[HistoryEntry], str | None]:
        """Everything after a message, oldest first, and the id of the last message there is.

        Raises:
            LettaError: it cannot be read.
        """
        rows: list[dict[str, Any]] = []
        after, gone = message_id, False
        while True:
            try:
                page = await self._letta.messages.page(agent_id, limit=PAGE_SIZE, order="asc", after=after)
            except LettaRefused:
                if gone or after is None:
                    raise
                # The message that marked the place was deleted: begin at the beginning.
                after, gone = None, True
                continue
            fresh = [row for row in page if row["id"] != after]
            rows += fresh
            if len({row["id"] for row in page}) < PAGE_SIZE or not fresh:
                break
            after = page[-1]["id"]
        entries = [entry for row in rows if (entry := _entry(row))]
        return entries, rows[-1]["id"] if rows else message_id

    async def search(self, agent_id: str, query: str, *, limit: int = 10) -> list[HistoryEntry]:
        """What was said that has the query's words in it, newest first.

        Raises:
            MemoryRefused: the query holds what is no text.
            LettaError: it cannot be read.
        """
        check_text(query)
        words = query.casefold().split()
        if not words:
            return []
        found: list[HistoryEntry] = []
        before: str | None = None
        for _ in range(_PAGES_SEARCHED):
            page = await self.page(agent_id, limit=PAGE_SIZE, before=before)
            found += [entry for entry in reversed(page.entries) if _matches(entry, words)]
            before = page.before
            if before is None or len(found) >= limit:
                break
        return found[:limit]


def _matches(entry: HistoryEntry, words: Sequence[str]) -> bool:
    text = entry.text.casefold()
    return entry.kind in ("user", "assistant", "summary") and all(word in text for word in words)


def _entry(row: dict[str, Any]) -> HistoryEntry | None:
    """The entry of a message; None for what is nobody's words, as the system prompt."""
    kind = _KINDS.get(row.get("message_type", ""))
    if kind is None:
        return None
    entry = HistoryEntry(row["id"], row.get("date") or "", kind, "")
    match kind:
        case "reasoning":
            return replace(entry, text=row.get("reasoning") or "")
        case "tool_call":
            call = row.get("tool_call") or {}
            return replace(entry, text=call.get("arguments") or "", tool=call.get("name"))
        case "tool_return":
            failed = row.get("status") == "error"
            return replace(entry, text=_text(row.get("tool_return")), tool=row.get("name"), failed=failed)
        case "summary":
            return replace(entry, text=_text(row.get("summary")))
        case "event":
            return replace(entry, text=_text(row.get("event_data")))
        case _:
            return _spoken(entry, _text(row.get("content")))


def _spoken(entry: HistoryEntry, text: str) -> HistoryEntry | None:
    """What was said; what Letta itself slips in as a user's message, in JSON, is a summary or no words at all."""
    if entry.kind != "user" or not text.startswith("{"):
        return replace(entry, text=text)
    try:
        wrapped = json.loads(text)
    except ValueError:
        return replace(entry, text=text)
    match wrapped:
        case {"type": "user_message", "message": str(said)}:
            return replace(entry, text=said)
        case {"type": "system_alert", "message": str(said)}:
            return replace(entry, kind="summary", text=said)
        case {"type": "heartbeat" | "login"}:
            return None
        case _:
            return replace(entry, text=text)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else json.dumps(content, ensure_ascii=False)
