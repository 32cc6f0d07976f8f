"""What is added to the history of a turn that is over: never a tool's result without an answer behind it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from isabella.letta.agents import AgentRow
from isabella.turns import partial_history

USER, CALL, RESULT = ("u", "user_message"), ("c", "tool_call_message"), ("r", "tool_return_message")
ANSWER = ("a", "assistant_message")


class Letta:
    """A run with these messages, all in the agent's context; what is captured gets the next ids."""

    def __init__(self, *stored: tuple[str, str]) -> None:
        self.rows = [{"id": id, "message_type": kind, "content": ""} for id, kind in stored]
        self.context = ["system", *(id for id, _ in stored)]
        self._run = [*self.rows]
        self.agents = self.messages = self

    async def of_run(self, _run_id: str) -> list[dict[str, Any]]:
        """The messages of the run."""
        return self._run

    async def page(self, _agent_id: str, **_query: Any) -> list[dict[str, Any]]:
        """The latest messages of the agent."""
        return self.rows

    async def get(self, agent_id: str) -> AgentRow:
        """The agent."""
        return AgentRow(id=agent_id, message_ids=self.context)

    async def capture(self, _agent_id: str, user_text: str, answer: str, *, model: str) -> None:
        """Capture."""
        said = [("user_message", user_text)] if user_text else []
        for kind, text in [*said, ("assistant_message", answer)]:
            self.rows.append({"id": f"new-{len(self.rows)}", "message_type": kind, "content": text})

    async def update(self, _agent_id: str, fields: dict[str, Any]) -> None:
        """Show messages to the agent."""
        self.context = fields["message_ids"]


@pytest.mark.parametrize(
    ("stored", "said", "mark", "added"),
    [
        ((USER, CALL, RESULT), {}, "[broken off]", ["[broken off]"]),
        ((USER, CALL, RESULT), {}, "[step limit reached]", ["[step limit reached]"]),
        ((USER, CALL, RESULT), {"b": "Well, "}, "[stopped]", ["Well, [stopped]"]),
        ((USER, CALL, RESULT, ANSWER), {"a": "Done."}, "[stopped]", []),
        ((USER, CALL), {}, "[stopped]", []),
        ((), {"b": "Hel"}, "[broken off]", ["Hello?", "Hel [broken off]"]),
    ],
)
def test_what_is_kept_ends_with_an_answer(
    stored: tuple[tuple[str, str], ...], said: dict[str, str], mark: str, added: list[str]
) -> None:
    """A result that nobody answered is answered by the mark; what Letta has stored is not stored again."""
    letta = Letta(*stored)

    async def keep() -> bool:
        return await partial_history.store_partial(
            letta,  # type: ignore[arg-type]
            "a",
            run_id="run-1",
            asked="Hello?",
            said=said,
            mark=mark,
            model="m",
        )

    assert anyio.run(keep)
    news = {row["id"]: row["content"] for row in letta.rows[len(stored) :]}
    assert [*news.values()] == added
    assert letta.context == ["system", *(id for id, _ in stored), *news]
