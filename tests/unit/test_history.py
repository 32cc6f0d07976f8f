"""Pages of an agent's history, on a Letta that pages as 0.16.8 does."""

from __future__ import annotations

from typing import Any

import pytest

from isabella.agents.history import History, HistoryPage
from isabella.errors import LettaRefused, MemoryUnknown

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the backend runs on."""
    return "asyncio"


class Letta:
    """An agent with this many messages, every third of which is two rows."""

    def __init__(self, count: int) -> None:
        self.messages = self
        self._ids = [f"message-{number:04}" for number in range(count)]

    async def page(
        self,
        _agent_id: str,
        *,
        conversation_id: str,
        limit: int,
        order: str,
        before: str | None = None,
        after: str | None = None,
    ) -> list[dict[str, Any]]:
        """Rows of the messages before or behind a message, oldest first."""
        assert conversation_id == "default"
        if not {before, after} <= {None, *self._ids}:
            raise LettaRefused("Letta refused.", status=404, detail="not found")
        ids = self._ids
        ids = ids if before is None else ids[: ids.index(before)]
        ids = ids if after is None else ids[ids.index(after) + 1 :]
        return [row for id in (ids[-limit:] if order == "desc" else ids[:limit]) for row in _rows(id)]


def _rows(id: str) -> list[dict[str, Any]]:
    rows = [{"id": id, "message_type": "assistant_message", "content": id, "date": "2026-11-01T10:00:00+00:00"}]
    return (
        [{**rows[0], "message_type": "reasoning_message", "reasoning": "so"}, *rows]
        if int(id[-4:]) % 3 == 0
        else rows
    )


def _ids(page: HistoryPage) -> list[int]:
    return list(dict.fromkeys(int(entry.id[-4:]) for entry in page.entries))


@pytest.mark.parametrize("place", [0, 1, 7, 30, 59])
async def test_a_page_around_a_message(place: int) -> None:
    """The message is on it, with what is on both sides, and both ends lead on to the rest without a gap."""
    history: Any = History(Letta(60))  # type: ignore[arg-type]
    page = await history.around("agent", f"message-{place:04}", limit=10)
    first, *_, last = found = _ids(page)
    assert found == [*range(max(place - 10, 0), min(place + 10, 60))]
    assert (page.before is not None, page.after is not None) == (first > 0, last < 59)
    if page.before:
        assert _ids(await history.page("agent", limit=10, before=page.before))[-1] == first - 1
    while page.after:
        page = await history.following("agent", page.after, limit=10)
        assert _ids(page)[0] == last + 1
        last = _ids(page)[-1]
    assert last == 59


async def test_no_page_around_a_message_that_is_not_there() -> None:
    """A message of another agent, or a deleted one, is unknown."""
    history: Any = History(Letta(3))  # type: ignore[arg-type]
    with pytest.raises(MemoryUnknown):
        await history.around("agent", "message-9999")
    with pytest.raises(MemoryUnknown):
        await history.message("agent", "message-9999")


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_one_message(place: int) -> None:
    """All entries of one message, and of no other."""
    history: Any = History(Letta(3))  # type: ignore[arg-type]
    entries = await history.message("agent", f"message-{place:04}")
    assert [entry.kind for entry in entries] == (["reasoning", "assistant"] if place == 0 else ["assistant"])
    assert {entry.text for entry in entries if entry.kind == "assistant"} == {f"message-{place:04}"}
