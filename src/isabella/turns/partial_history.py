"""Store the partial answer of a turn that broke off.

Letta stores a step when it is complete (measured on 0.16.8). Of a turn that ends in its first step, neither the
message nor the partial answer is in the history. Both are added, marked, so that the agent knows them.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from isabella.agents.context import add, context_ids, find_added, set_context
from isabella.errors import IsabellaError
from isabella.letta.client import LettaClient

log = structlog.get_logger()

#: Stored after an answer that reached its limit.
CUT_OFF = "[cut off]"
#: How many characters of such an answer stay in the agent's context. Most of them are repetitions.
_KEPT_CHARACTERS = 2_000


async def is_stored(letta: LettaClient, run_id: str | None) -> bool:
    """Return whether the message of a run that was cut off is in the history. Raises `LettaError`.

    Letta names a run before it asks the vendor, so a run without a name has stored nothing.
    """
    rows = [] if run_id is None else await letta.messages.of_run(run_id)
    return any(row.get("message_type") == "user_message" for row in rows)


async def store_partial(
    letta: LettaClient,
    agent_id: str,
    *,
    run_id: str,
    asked: str,
    said: Mapping[str, str],
    mark: str,
    model: str,
    known: set[str] | None = None,
    conversation: str | None = None,
) -> bool | None:
    """Add to the history what Letta has not stored of a turn that is over; no other turn of the agent may run.

    The partial answer, `said` by message id, is followed by `mark`, which says how the turn ended. `conversation` is
    the id of a conversation other than the default one; without Letta's database nothing is added to it.

    Return whether the user's message is in the history now; None if that is not known, because Letta does not answer.
    Then the call may be repeated with the same `known`, an empty set at first: nothing is stored twice.
    """
    known = set() if known is None else known
    repeated = bool(known)
    try:
        rows = await letta.messages.of_run(run_id)
        stored = {str(row.get("id")): str(row.get("message_type")) for row in rows}
        asked_is_stored = "user_message" in stored.values()
        came = "".join(text for id, text in said.items() if id not in stored).strip()
        if conversation is not None and letta.conversations.database_url is None:
            return asked_is_stored
        in_context = await context_ids(letta, agent_id, conversation)
        if not repeated:
            known.update(in_context)
        # Some vendors refuse the next message if the result of a tool was never answered (fact M28).
        unanswered = bool(in_context) and stored.get(in_context[-1]) == "tool_return_message"
        if asked_is_stored and not came and not unanswered:
            return True
        answer, missing = f"{came} {mark}".strip(), "" if asked_is_stored else asked
        added = await find_added(letta, agent_id, missing, answer, known=known) if repeated else []
        if not added:
            added = await add(letta, agent_id, missing, answer, known=known, model=model, conversation=conversation)
        kept = [id for id in in_context if id not in added]
        await set_context(letta, agent_id, [*kept, *added], conversation)
        if mark == CUT_OFF and len(came) > _KEPT_CHARACTERS:
            await _keep_beginning(letta, agent_id, added[-1], came, conversation)
    except IsabellaError as error:
        log.warning("partial answer not stored", agent=agent_id, run=run_id, error=error.what)
        return None
    return asked_is_stored or len(added) == 2


async def reached_limit(letta: LettaClient, agent_id: str, run_id: str, tokens: int) -> bool:
    """Return whether the last answer of a run has as many tokens as an answer may have. Raises `LettaError`.

    `tokens` are those that the whole run has generated.
    """
    llm = (await letta.agents.current(agent_id)).llm
    limit = None if llm is None else llm.max_tokens
    if limit is None or tokens < limit:
        return False
    step = await letta.messages.last_step_of_run(run_id)
    return step is not None and int(step.get("completion_tokens") or 0) >= limit


async def shorten(letta: LettaClient, agent_id: str, run_id: str, *, conversation: str | None = None) -> None:
    """Put the beginning of an answer that reached its limit, and a mark, into the context in its place.

    The history keeps the whole answer. No other turn of the agent may run.
    """
    try:
        rows = [row for row in await letta.messages.of_run(run_id) if row.get("message_type") == "assistant_message"]
        if not rows:
            return
        cut, text = str(rows[-1].get("id")), str(rows[-1].get("content"))
        if conversation is not None and letta.conversations.database_url is None:
            return
        await _keep_beginning(letta, agent_id, cut, text, conversation)
    except IsabellaError as error:
        log.warning("answer not shortened", agent=agent_id, run=run_id, error=error.what)


async def _keep_beginning(
    letta: LettaClient, agent_id: str, cut: str, text: str, conversation: str | None = None
) -> None:
    """Put the beginning of a message into the context in its place, if it is there."""
    ids = await context_ids(letta, agent_id, conversation)
    if cut in ids:
        beginning = f"{text[:_KEPT_CHARACTERS].strip()} {CUT_OFF}"
        added = await add(letta, agent_id, "", beginning, known=ids, conversation=conversation)
        new = [each for id in ids for each in (added if id == cut else [id])]
        await set_context(letta, agent_id, new, conversation)
