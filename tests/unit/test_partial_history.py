"""What is added to the history of a turn that is over: never a tool's result without an answer behind it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from isabella.turns import partial_history

USER, CALL, RESULT = ("u", "user_message"), ("c", "tool_call_message"), ("r", "tool_return_message")
ANSWER = ("a", "assistant_message")


class Letta:
    """A run with these messages, all in the agent's context; what is captured gets the next ids."""

    def __init__(self, *stored: tuple[str, str]) -> None:
        self.rows = [{"id": id, "message_type": kind, "content": ""} for id, kind in stored]
        self.context = ["system", *(id for id, _ in stored)]
        self._run = [*self.rows]

    async def get(self, path: str, **_query: Any) -> Any:
        """The messages of the run, or the latest ones of the agent."""
        return self._run if path.startswith("/v1/runs/") else self.rows

    async def agent(self, _agent_id: str) -> dict[str, Any]:
        """The agent."""
        return {"message_ids": self.context}

    async def post(self, _path: str, body: dict[str, Any]) -> None:
        """Capture."""
        said = [("user_message", one["content"]) for one in body["request_messages"]]
        for kind, text in [*said, ("assistant_message", body["response_dict"]["content"])]:
            self.rows.append({"id": f"new-{len(self.rows)}", "message_type": kind, "content": text})

    async def patch(self, _path: str, body: dict[str, Any]) -> None:
        """Show messages to the agent."""
        self.context = body["message_ids"]


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
