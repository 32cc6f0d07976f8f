"""Which line of a conversation caused what is remembered: found by what the agent's memory tools wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from isabella.agents.history import History, HistoryEntry

#: How far back the conversation is read for it, in messages.
_DEPTH = 1000
_PAGE = 200
_SHORTEST = 4


@dataclass(frozen=True)
class Provenance:
    """What caused something to be remembered.

    Attributes:
        said: the line of the conversation.
        written: what a memory tool wrote because of it.
    """

    said: HistoryEntry
    written: tuple[str, ...]


async def list_provenance(history: History, agent_id: str) -> list[Provenance]:
    """What an agent has written into its memory, newest first, as far back as is reasonable.

    Raises:
        LettaError: the history cannot be read.
    """
    entries: list[HistoryEntry] = []
    before: str | None = None
    while len(entries) < _DEPTH:
        page = await history.page(agent_id, limit=_PAGE, before=before)
        entries = [*page.entries, *entries]
        before = page.before
        if before is None:
            break
    return provenance_in(entries)


def provenance_in(entries: Sequence[HistoryEntry]) -> list[Provenance]:
    """The same, in entries that are there; oldest first, as the history has them."""
    found: list[Provenance] = []
    said: HistoryEntry | None = None
    for entry in entries:
        if entry.kind == "user":
            said = entry
        elif entry.kind == "tool_call" and said is not None and _writes(entry.tool or ""):
            found.append(Provenance(said, tuple(_texts(entry.text))))
    return found[::-1]


def provenance_of(text: str, known: Sequence[Provenance]) -> Provenance | None:
    """What caused a line of memory, or a passage; None where that is not known."""
    wanted = text.strip().lstrip("-*• ").strip()
    if len(wanted) < _SHORTEST:
        return None
    return next((one for one in known if any(wanted in written for written in one.written)), None)


def _writes(tool: str) -> bool:
    return "memory" in tool and "search" not in tool


def _texts(arguments: str) -> list[str]:
    try:
        found = json.loads(arguments)
    except ValueError:
        return []
    if not isinstance(found, dict):
        return []
    return [value for name, value in found.items() if isinstance(value, str) and not name.startswith("old")]
