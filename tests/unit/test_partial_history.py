"""What is added to the history of a turn that is over: never a tool's result without an answer behind it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from isabella.errors import DatabaseUnusable, LettaUnreachable
from isabella.letta.agents import AgentRow
from isabella.letta.conversations import ConversationRow
from isabella.turns import partial_history

USER, CALL, RESULT = ("u", "user_message"), ("c", "tool_call_message"), ("r", "tool_return_message")
ANSWER = ("a", "assistant_message")


class Letta:
    """A run with these messages, all in the agent's context; what is captured gets the next ids."""

    def __init__(self, *stored: tuple[str, str]) -> None:
        self.rows = [{"id": id, "message_type": kind, "content": ""} for id, kind in stored]
        self.context = ["system", *(id for id, _ in stored)]
        self._run = [*self.rows]
        self.agents = self.messages = self.conversations = self
        self.database_url: object = None

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


def keep(
    letta: Letta, said: dict[str, str], mark: str, known: set[str] | None = None, conversation: str | None = None
) -> bool | None:
    """Store a partial answer; `known` and `conversation` as in `store_partial`."""

    async def store() -> bool | None:
        return await partial_history.store_partial(
            letta,  # type: ignore[arg-type]
            "a",
            run_id="run-1",
            asked="Hello?",
            said=said,
            mark=mark,
            model="m",
            known=known,
            conversation=conversation,
        )

    return anyio.run(store)


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

    assert keep(letta, said, mark)
    news = {row["id"]: row["content"] for row in letta.rows[len(stored) :]}
    assert [*news.values()] == added
    assert letta.context == ["system", *(id for id, _ in stored), *news]


@pytest.mark.parametrize("fails", ["capture", "page", "update"])
@pytest.mark.parametrize("carried_out", [True, False])
def test_a_repeated_call_stores_nothing_twice(fails: str, carried_out: bool) -> None:
    """Letta ends before or after it has carried out a request; when it is back, all is there, and once."""

    class Mortal(Letta):
        dead = True

        async def _die(self, name: str, *, before: bool) -> None:
            if self.dead and name == fails and before is not carried_out:
                self.dead = False
                raise LettaUnreachable("Letta is gone.", sent=True)

        async def capture(self, agent_id: str, user_text: str, answer: str, *, model: str) -> None:
            await self._die("capture", before=True)
            await super().capture(agent_id, user_text, answer, model=model)
            await self._die("capture", before=False)

        async def page(self, _agent_id: str, **query: Any) -> list[dict[str, Any]]:
            await self._die("page", before=True)
            await self._die("page", before=False)
            return await super().page(_agent_id, **query)

        async def update(self, agent_id: str, fields: dict[str, Any]) -> None:
            await self._die("update", before=True)
            await super().update(agent_id, fields)
            await self._die("update", before=False)

    letta, known = Mortal(), set[str]()

    assert keep(letta, {"b": "Hel"}, "[broken off]", known) is None
    assert keep(letta, {"b": "Hel"}, "[broken off]", known) is True
    assert [row["content"] for row in letta.rows] == ["Hello?", "Hel [broken off]"]
    assert letta.context == ["system", *(row["id"] for row in letta.rows)]


class Elsewhere(Letta):
    """The messages are in the context of a conversation beside the default one."""

    async def get(self, id: str) -> Any:
        """The conversation. The agent's own context is not asked for."""
        assert id == "conv-1"
        return ConversationRow(id=id, agent_id="a", in_context_message_ids=self.context)

    async def set_context(self, conversation_id: str, ids: list[str]) -> None:
        """Select the context of the conversation."""
        assert conversation_id == "conv-1"
        self.context = ids


def test_a_partial_answer_goes_into_its_conversation() -> None:
    """Into its context, and not into that of the default one."""
    letta = Elsewhere()
    letta.database_url = "known"
    assert keep(letta, {"b": "Hel"}, "[stopped]", conversation="conv-1") is True
    assert letta.context == ["system", *(row["id"] for row in letta.rows)]


@pytest.mark.parametrize(("stored", "kept"), [((), False), ((USER, CALL, RESULT), True)])
def test_without_a_database_nothing_is_added_to_a_conversation(
    stored: tuple[tuple[str, str], ...], kept: bool
) -> None:
    """And nothing is added elsewhere: only what Letta itself has stored counts."""
    letta = Elsewhere(*stored)
    assert keep(letta, {"b": "Hel"}, "[stopped]", conversation="conv-1") is kept
    assert len(letta.rows) == len(stored)


def test_nothing_is_added_where_the_context_cannot_be_changed() -> None:
    """Nothing is left in the default conversation."""

    class Unusable(Elsewhere):
        async def set_context(self, conversation_id: str, ids: list[str]) -> None:
            raise DatabaseUnusable("The database is gone.")

    letta = Unusable()
    letta.database_url = "known"
    assert keep(letta, {"b": "Hel"}, "[stopped]", conversation="conv-1") is None
    assert letta.rows == []


@pytest.mark.parametrize("conversation", [None, "conv-1"])
def test_an_answer_that_took_too_long_is_shortened_in_the_context(conversation: str | None) -> None:
    """The context has its beginning, the history all of it."""
    letta: Letta = Letta() if conversation is None else Elsewhere()
    letta.database_url = "known"
    long = "again " * 1000
    assert keep(letta, {"b": long}, "[cut off]", conversation=conversation) is True
    whole, beginning = f"{long.strip()} [cut off]", f"{long[:2000].strip()} [cut off]"
    assert [row["content"] for row in letta.rows] == ["Hello?", whole, beginning]
    assert letta.context == ["system", letta.rows[0]["id"], letta.rows[2]["id"]]


@pytest.mark.parametrize(
    ("limit", "tokens", "last", "cut"),
    [
        (800, 800, 800, True),
        (800, 799, 799, False),
        (800, 1500, 700, False),
        (800, 1500, 800, True),
        (None, 9, 9, False),
    ],
    ids=["all", "fewer", "several steps", "the last of them", "no limit"],
)
def test_an_answer_with_as_many_tokens_as_its_limit_was_cut(
    limit: int | None, tokens: int, last: int, cut: bool
) -> None:
    """The tokens of the last step count, those of all of them only say whether to look."""

    class Counting(Letta):
        async def current(self, agent_id: str) -> AgentRow:
            return AgentRow(id=agent_id, llm_config={"model": "m", "max_tokens": limit})

        async def last_step_of_run(self, _run_id: str) -> dict[str, Any]:
            assert limit is not None
            assert tokens >= limit
            return {"completion_tokens": last}

    letta: Any = Counting()
    assert anyio.run(partial_history.reached_limit, letta, "a", "run-1", tokens) is cut
