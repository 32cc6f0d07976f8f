"""The context of an agent: the messages that its model sees, changed so that its vendor accepts them.

Mistral accepts only tool call ids of nine letters and digits, and no user message directly after a tool's result
(facts M27, M28). Letta sends the ids that another vendor made, and a turn that broke off ends with a tool's result.
Its REST API changes neither ids nor messages, but selects the messages of the context and adds messages (M29). So
calls with other ids leave the context, and an unanswered result gets an answer. The history stays complete.

The functions that send requests raise `LettaError`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from isabella.config.vendors import known_vendors
from isabella.errors import MessageGone
from isabella.letta.client import LettaClient
from isabella.letta.conversations import DEFAULT
from isabella.letta.http import PAGE_SIZE
from isabella.letta.llm_config import Binding, is_older
from isabella.system.english import english
from isabella.system.urls import is_gateway_url

STRICTEST = re.compile(r"[a-zA-Z0-9]{9}")  # the strictest known form of ids; every vendor accepts it
UNANSWERED = "[broken off]"  # the answer that is added after an unanswered tool result

_LATEST = 4
_PAGES = 20  # how many pages back the messages of a context are searched for
_OF_THE_USER = ("user_message", "summary_message", "event_message")
_OF_A_CALL = ("tool_call_message", "approval_request_message")


@dataclass(frozen=True)
class FittedContext:
    """A context that was changed for a vendor."""

    whole: tuple[str, ...]  # the ids of all messages, added ones included
    now: tuple[str, ...]  # the ids of the messages that are in the context now
    calls: int  # the number of messages with tool calls that left it

    @property
    def note(self) -> str:
        """A sentence for the agent's owner."""
        if not self.calls:
            return english(
                "A tool's result without an answer is marked as broken off: this vendor insists on an answer."
            )
        calls = english("1 tool call") if self.calls == 1 else english("%(count)s tool calls", count=self.calls)
        return english(
            "%(calls)s made through other vendors left the agent's context, with the results: this vendor does "
            "not accept their ids. The words stay in the context, and everything stays in the history.",
            calls=calls,
        )


@dataclass(frozen=True)
class ContextMessage:
    """A message in an agent's context."""

    id: str
    calls: frozenset[str] = frozenset()  # the ids of its tool calls
    results: frozenset[str] = frozenset()  # the ids of the tool calls whose results it holds
    by_user: bool = False  # whether a vendor receives it as a user message


def required_id_form(binding: Binding) -> re.Pattern[str] | None:
    """Return the form of tool call ids that the vendor of a binding requires; None if it accepts any."""
    if is_gateway_url(binding.base_url):
        # The gateway adapts the requests.
        return None
    for vendor in known_vendors():
        here = binding.provider == vendor.provider or _host(binding.base_url) == _host(vendor.base_url)
        if vendor.call_id is not None and here:
            return re.compile(vendor.call_id)
    return None


def foreign_calls(context: Sequence[ContextMessage], form: re.Pattern[str]) -> frozenset[str]:
    """Return the ids of messages with calls or results of another form, except calls that wait for a result."""
    odd: set[str] = set()
    for message in context:
        if not all(map(form.fullmatch, message.calls | message.results)):
            # All calls of a message leave together: no result may stay without its call.
            odd |= message.calls | message.results
    if context:
        odd -= context[-1].calls
    return frozenset(message.id for message in context if odd & (message.calls | message.results))


def unanswered_results(context: Sequence[ContextMessage]) -> tuple[str, ...]:
    """Return the ids of tool results that are followed by a user message or by the next turn."""
    following = [*context[1:], ContextMessage("", by_user=True)]
    return tuple(
        message.id for message, after in zip(context, following, strict=True) if message.results and after.by_user
    )


async def context_ids(letta: LettaClient, agent_id: str, conversation: str | None = None) -> list[str]:
    """Return the ids of the messages in an agent's context, in the default conversation or in another one."""
    if conversation is None:
        return (await letta.agents.get(agent_id)).message_ids or []
    return (await letta.conversations.get(conversation)).in_context_message_ids


async def set_context(letta: LettaClient, agent_id: str, ids: Sequence[str], conversation: str | None = None) -> None:
    """Select the messages in an agent's context. Raises `DatabaseUnusable` if that takes a database, and it fails."""
    if conversation is None:
        await letta.agents.update(agent_id, {"message_ids": list(ids)})
    else:
        await letta.conversations.set_context(conversation, ids)


async def fit(
    letta: LettaClient, agent_id: str, form: re.Pattern[str] = STRICTEST, *, conversation: str | None = None
) -> FittedContext | None:
    """Change an agent's context so that a vendor that requires this form of ids accepts it. No turn may run.

    Return the changes; None if no change was needed, or none is possible: an agent of an older type has a user
    message after every tool.
    """
    row = await letta.agents.get(agent_id)
    if is_older(row.agent_type):
        return None
    ids = (row.message_ids or []) if conversation is None else await context_ids(letta, agent_id, conversation)
    context = await _context(letta, agent_id, ids, conversation)
    out = foreign_calls(context, form)
    kept = [message for message in context if message.id not in out]
    unanswered = unanswered_results(kept)
    if not out and not unanswered:
        return None
    answers: dict[str, str] = {}
    for result in unanswered:
        added = await add(letta, agent_id, "", UNANSWERED, known=[*ids, *answers.values()], conversation=conversation)
        answers |= dict.fromkeys([result], added[-1]) if added else {}
    if await context_ids(letta, agent_id, conversation) != ids:
        # A turn runs after all: what Letta has just stored would be lost from the context.
        return None
    whole = tuple(each for id in ids for each in (id, answers.get(id)) if each is not None)
    now = tuple(id for id in whole if id not in out)
    await set_context(letta, agent_id, now, conversation)
    return FittedContext(whole, now, sum(bool(message.calls) for message in context if message.id in out))


async def restore(
    letta: LettaClient, agent_id: str, fitted: FittedContext, *, conversation: str | None = None
) -> None:
    """Put the messages that `fit` removed into the context again, unless they were summarised meanwhile."""
    ids = await context_ids(letta, agent_id, conversation)
    length = len(fitted.now)
    # The first message is the system prompt, which Letta compiles again.
    if fitted.whole != fitted.now and tuple(ids[1:length]) == fitted.now[1:]:
        await set_context(letta, agent_id, [*ids[:1], *fitted.whole[1:], *ids[length:]], conversation)


async def rewind(
    letta: LettaClient, agent_id: str, message_id: str, *, conversation: str | None = None
) -> tuple[str, ...]:
    """Take a message and everything after it out of an agent's context. No turn may run.

    Return the context as it was. The messages stay in the history. Raises `MessageGone` if the message is not in it.
    """
    ids = await context_ids(letta, agent_id, conversation)
    if message_id not in ids[1:]:
        raise MessageGone(
            english("The message is no longer in the agent's context: it was summarised or replaced."),
            remedy=english("Send the text as a new message."),
        )
    await set_context(letta, agent_id, ids[: ids.index(message_id)], conversation)
    return tuple(ids)


async def reinstate(
    letta: LettaClient, agent_id: str, whole: Sequence[str], *, conversation: str | None = None
) -> None:
    """Put what `rewind` took out into the context again, before everything that came since."""
    ids = await context_ids(letta, agent_id, conversation)
    # The first message is the system prompt, which Letta compiles again.
    added = [id for id in ids[1:] if id not in whole]
    await set_context(letta, agent_id, [*ids[:1], *whole[1:], *added], conversation)


async def add(
    letta: LettaClient,
    agent_id: str,
    asked: str,
    answer: str,
    *,
    known: Collection[str],
    model: str = "-",
    conversation: str | None = None,
) -> list[str]:
    """Add a user message, unless it is empty, and its answer to an agent's history, and not to its context.

    They belong to the default conversation until `set_context` puts them into the context of `conversation`. `known`
    are the ids of messages that were there before. Return the ids of the added ones, oldest first.
    """
    if conversation is not None:
        # Changes nothing. If it fails, the messages would stay in the default conversation.
        await set_context(letta, agent_id, await context_ids(letta, agent_id, conversation), conversation)
    await letta.messages.capture(agent_id, asked, answer, model=model)
    return await find_added(letta, agent_id, asked, answer, known=known)


async def find_added(
    letta: LettaClient, agent_id: str, asked: str, answer: str, *, known: Collection[str]
) -> list[str]:
    """Return the ids of a captured message, unless it is empty, and of its answer, oldest first.

    Letta does not name them. `known` are the ids of messages that were there before.
    """
    latest = await letta.messages.page(agent_id, limit=_LATEST, order="desc")
    expected = [("user_message", asked)] if asked else []
    added = []
    for kind, text in [*expected, ("assistant_message", answer)]:
        same = (row for row in latest if row.get("message_type") == kind and row.get("content") == text)
        added += [str(row["id"]) for row in same if row["id"] not in known][-1:]
    return added


async def _context(
    letta: LettaClient, agent_id: str, ids: Sequence[str], conversation: str | None
) -> list[ContextMessage]:
    """Return the messages with these ids, in this order, as far as they are found."""
    rows = await context_rows(letta, agent_id, ids, conversation)
    return [_message(id, rows[id]) for id in ids if id in rows]


async def context_rows(
    letta: LettaClient, agent_id: str, ids: Sequence[str], conversation: str | None = None
) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Return the rows of the messages with these ids, as far as they are found, and perhaps those of others."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    before: str | None = None
    for _ in range(_PAGES):
        # With `use_assistant_message` Letta would hide some tool calls.
        page = await letta.messages.page(
            agent_id,
            limit=PAGE_SIZE,
            order="desc",
            before=before,
            use_assistant_message="false",
            conversation_id=conversation or DEFAULT,
        )
        for row in page:
            rows.setdefault(str(row["id"]), []).append(row)
        # The first message of a context is the system prompt, the oldest message of all.
        if not page or set(ids[1:]) <= rows.keys() or page[0]["id"] == before:
            break
        before = page[0]["id"]
    return rows


def _message(id: str, rows: Sequence[Mapping[str, Any]]) -> ContextMessage:
    calls: set[str] = set()
    results: set[str] = set()
    for row in rows:
        if row.get("message_type") in _OF_A_CALL:
            calls.update(_ids(row.get("tool_call"), row.get("tool_calls")))
        elif row.get("message_type") == "tool_return_message":
            results.update(_ids(row, row.get("tool_returns")))
    by_user = any(row.get("message_type") in _OF_THE_USER for row in rows)
    return ContextMessage(id, frozenset(calls), frozenset(results), by_user)


def _ids(first: Any, others: Any) -> Iterator[str]:
    """Yield the ids of one call, or result, and of several."""
    for item in [first, *(others if isinstance(others, list) else [others])]:
        if isinstance(item, dict) and item.get("tool_call_id"):
            yield str(item["tool_call_id"])


def _host(url: str) -> str | None:
    return urlsplit(url).hostname
