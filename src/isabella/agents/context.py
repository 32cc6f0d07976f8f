"""What an agent sees of its conversation, made such that its vendor takes it. The history itself stays whole.

Mistral takes tool calls only with ids of exactly nine letters and digits, and no message of the user directly after
the result of a tool (facts M27, M28). Letta sends the ids that another vendor made, and a turn that broke off ends
with the result of a tool. Letta's REST API changes neither ids nor messages; it decides which messages an agent sees,
and adds messages (M29). So calls with other ids leave the context, and an unanswered result gets an answer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from isabella.config.vendors import known_vendors
from isabella.letta.client import LettaClient
from isabella.letta.http import PAGE_SIZE
from isabella.letta.llm_config import Binding, is_older

#: The strictest form of ids that is known; every vendor takes it.
STRICTEST = re.compile(r"[a-zA-Z0-9]{9}")
#: Stands in the history for the answer that a tool's result never got.
UNANSWERED = "[broken off]"

_LATEST = 4
#: How far back the messages in a context are looked for.
_PAGES = 20
_OF_THE_USER = ("user_message", "summary_message", "event_message")
_OF_A_CALL = ("tool_call_message", "approval_request_message")


@dataclass(frozen=True)
class FittedContext:
    """A context that was made to fit.

    Attributes:
        whole: the ids of all messages, those that were added among them.
        now: the ids of the messages that the agent sees now.
        calls: how many messages with tool calls it sees no more.
    """

    whole: tuple[str, ...]
    now: tuple[str, ...]
    calls: int

    @property
    def note(self) -> str:
        """What its owner should know, in one sentence."""
        if not self.calls:
            return (
                "A tool's result that was never answered is marked as broken off: this vendor insists on an answer."
            )
        calls = "1 tool call" if self.calls == 1 else f"{self.calls} tool calls"
        return (
            f"{calls} made through other vendors left the agent's context, with the results: this vendor does not "
            "take their ids. What was said stays in the context, and all of it in the history."
        )


@dataclass(frozen=True)
class ContextMessage:
    """A message in an agent's context.

    Attributes:
        id: Letta's id of it.
        calls: the ids of the tool calls in it.
        results: the ids of the tool calls whose results are in it.
        by_user: whether a vendor gets it as a message of the user.
    """

    id: str
    calls: frozenset[str] = frozenset()
    results: frozenset[str] = frozenset()
    by_user: bool = False


def required_id_form(binding: Binding) -> re.Pattern[str] | None:
    """The form of ids that the vendor of a binding insists on; None where it takes any."""
    for vendor in known_vendors():
        here = binding.provider == vendor.provider or _host(binding.base_url) == _host(vendor.base_url)
        if vendor.call_id is not None and here:
            return re.compile(vendor.call_id)
    return None


def foreign_calls(context: Sequence[ContextMessage], form: re.Pattern[str]) -> frozenset[str]:
    """The ids of the messages with tool calls, or results, whose ids have another form.

    A call that still waits for its result, or for somebody's approval, stays.
    """
    odd: set[str] = set()
    for message in context:
        if not all(map(form.fullmatch, message.calls | message.results)):
            # Of several calls in one message, the good ones go with the bad: no result may stay without its call.
            odd |= message.calls | message.results
    if context:
        odd -= context[-1].calls
    return frozenset(message.id for message in context if odd & (message.calls | message.results))


def unanswered_results(context: Sequence[ContextMessage]) -> tuple[str, ...]:
    """The ids of the tool results after which a message of the user comes, or the next turn."""
    following = [*context[1:], ContextMessage("", by_user=True)]
    return tuple(
        message.id for message, after in zip(context, following, strict=True) if message.results and after.by_user
    )


async def fit(letta: LettaClient, agent_id: str, form: re.Pattern[str] = STRICTEST) -> FittedContext | None:
    """Make an agent's context such that a vendor takes it which insists on this form of ids.

    Args:
        letta: the client.
        agent_id: the agent; nothing may be speaking to it.
        form: the ids that the vendor takes.

    Returns:
        What was changed; None where nothing had to be, or nothing can be: an agent of an older type has a message of
        the user after every tool.

    Raises:
        LettaError: Letta refuses or fails.
    """
    row = await letta.agents.get(agent_id)
    if is_older(row.agent_type):
        return None
    ids = row.message_ids or []
    context = await _context(letta, agent_id, ids)
    out = foreign_calls(context, form)
    kept = [message for message in context if message.id not in out]
    gaps = unanswered_results(kept)
    if not out and not gaps:
        return None
    answers: dict[str, str] = {}
    for gap in gaps:
        added = await add(letta, agent_id, "", UNANSWERED, known=[*ids, *answers.values()])
        answers |= dict.fromkeys([gap], added[-1]) if added else {}
    if (await letta.agents.get(agent_id)).message_ids != ids:
        # Somebody speaks to it all the same: what Letta has just put there would be lost from the context.
        return None
    whole = tuple(each for id in ids for each in (id, answers.get(id)) if each is not None)
    now = tuple(id for id in whole if id not in out)
    await letta.agents.update(agent_id, {"message_ids": list(now)})
    return FittedContext(whole, now, sum(bool(message.calls) for message in context if message.id in out))


async def restore(letta: LettaClient, agent_id: str, fitted: FittedContext) -> None:
    """Show an agent again what was taken out of its context, unless that was summed up meanwhile.

    Raises:
        LettaError: Letta refuses or fails.
    """
    ids = (await letta.agents.get(agent_id)).message_ids or []
    length = len(fitted.now)
    # The first one is the system prompt, which Letta makes anew.
    if fitted.whole != fitted.now and tuple(ids[1:length]) == fitted.now[1:]:
        update = {"message_ids": [*ids[:1], *fitted.whole[1:], *ids[length:]]}
        await letta.agents.update(agent_id, update)


async def add(
    letta: LettaClient, agent_id: str, asked: str, answer: str, *, known: Collection[str], model: str = "-"
) -> list[str]:
    """Add what was said and answered to an agent's history, and not to its context.

    Args:
        letta: the client.
        agent_id: Letta's id of it.
        asked: what was said to it; nothing where empty.
        answer: what it answered.
        known: ids of messages that are there already.
        model: who answered.

    Returns:
        The ids of what was added, oldest first.

    Raises:
        LettaError: Letta refuses or fails.
    """
    await letta.messages.capture(agent_id, asked, answer, model=model)
    # Its answer does not tell their ids.
    latest = await letta.messages.page(agent_id, limit=_LATEST, order="desc")
    wanted = [("user_message", asked)] if asked else []
    added = []
    for kind, text in [*wanted, ("assistant_message", answer)]:
        mine = (row for row in latest if row.get("message_type") == kind and row.get("content") == text)
        added += [str(row["id"]) for row in mine if row["id"] not in known][-1:]
    return added


async def _context(letta: LettaClient, agent_id: str, ids: Sequence[str]) -> list[ContextMessage]:
    """The messages with these ids, in their order, as far as they are found."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    before: str | None = None
    for _ in range(_PAGES):
        # With `use_assistant_message` Letta would hide some tool calls.
        page = await letta.messages.page(
            agent_id, limit=PAGE_SIZE, order="desc", before=before, use_assistant_message="false"
        )
        for row in page:
            found.setdefault(str(row["id"]), []).append(row)
        # The first one is the system prompt, which is the oldest of all.
        if not page or set(ids[1:]) <= found.keys() or page[0]["id"] == before:
            break
        before = page[0]["id"]
    return [_seen(id, found[id]) for id in ids if id in found]


def _seen(id: str, rows: Sequence[Mapping[str, Any]]) -> ContextMessage:
    calls = frozenset(each for row in rows if row.get("message_type") in _OF_A_CALL for each in _call_ids(row))
    results = frozenset(
        each for row in rows if row.get("message_type") == "tool_return_message" for each in _result_ids(row)
    )
    by_user = any(row.get("message_type") in _OF_THE_USER for row in rows)
    return ContextMessage(id, calls, results, by_user)


def _call_ids(row: Mapping[str, Any]) -> Iterator[str]:
    several = row.get("tool_calls")
    for call in [row.get("tool_call"), *(several if isinstance(several, list) else [several])]:
        if isinstance(call, dict) and call.get("tool_call_id"):
            yield str(call["tool_call_id"])


def _result_ids(row: Mapping[str, Any]) -> Iterator[str]:
    several = row.get("tool_returns")
    for result in [row, *(several if isinstance(several, list) else [])]:
        if isinstance(result, dict) and result.get("tool_call_id"):
            yield str(result["tool_call_id"])


def _host(url: str) -> str | None:
    return urlsplit(url).hostname
