"""Records of agents' answers, without their text: model, times, tokens, tool calls and failovers.

Letta does not store it with the message, so it is kept here: in memory, and in a file for each agent.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from isabella.system import state
from isabella.turns.events import AnswerText, Ended, Event, Failover, ToolCalled, Usage

#: Of each agent.
_MESSAGES_KEPT = 500
#: In memory; the others are read again from their files.
_AGENTS_KEPT = 50
_AGENT_ID = re.compile(r"agent-[0-9a-f-]{36}")


@dataclass
class AnswerRecord:
    """The record of an answer, without its text."""

    failovers: tuple[Failover, ...] = ()  #: the vendors that did not answer before
    usage: Usage | None = None
    tools: int = 0  #: the number of tool calls
    ended: Ended | None = None  #: how it ended; None while it arrives
    first_message: str = ""  #: the id of the first message of the answer
    last_message: str = ""

    @property
    def handle(self) -> str | None:
        """The model that answered."""
        return None if self.ended is None else self.ended.handle

    def apply(self, event: Event) -> None:
        """Apply an event of its turn."""
        match event:
            case AnswerText(message_id=id):
                self.first_message, self.last_message = self.first_message or id, id
            case Failover():
                self.failovers = (*self.failovers, event)
            case ToolCalled():
                self.tools += 1
            case Usage():
                self.usage = event
            case Ended():
                self.ended = event


@dataclass
class _Kept:
    """An answer as its file has it."""

    messages: list[str] = field(default_factory=list)  #: the ids of its messages
    record: AnswerRecord = field(default_factory=AnswerRecord)


_KEPT = TypeAdapter(_Kept)


class AnswerLog:
    """The records of answers, by agent and message. Without a folder, they are kept in memory only."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._by_agent: OrderedDict[str, OrderedDict[str, AnswerRecord]] = OrderedDict()
        #: By agent: the answers in its file as JSON, by the identity of the record and its number of messages. The
        #: record is there so that no other one gets its identity.
        self._written: dict[str, dict[tuple[int, int], tuple[AnswerRecord, str]]] = {}

    def find(self, agent_id: str, message_id: str) -> AnswerRecord | None:
        """Return the record of the answer that a message belongs to; None if it is not known."""
        return self._of(agent_id).get(message_id)

    def add(self, agent_id: str, message_id: str, record: AnswerRecord) -> None:
        """Note the record of the answer that a message belongs to."""
        records = self._of(agent_id)
        if records.get(message_id) is not record:
            records[message_id] = record
            while len(records) > _MESSAGES_KEPT:
                records.popitem(last=False)

    def save(self, agent_id: str) -> None:
        """Write the records of answers that have ended. A failure is reported, and loses only them."""
        path = self._path(agent_id)
        if path is not None:
            former, now = self._written.get(agent_id, {}), {}
            for kept in _grouped(self._of(agent_id)):
                key = id(kept.record), len(kept.messages)
                now[key] = former.get(key) or (kept.record, _KEPT.dump_json(kept).decode())
            self._written[agent_id] = now
            state.keep_text(path, f'{{"answers": [{", ".join(text for _, text in now.values())}]}}')

    def forget(self, agent_id: str) -> None:
        """Delete the records of an agent."""
        self._by_agent.pop(agent_id, None)
        self._written.pop(agent_id, None)
        if (path := self._path(agent_id)) is not None:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                state.report(path, f"it cannot be deleted ({state.why(error)})")

    def _of(self, agent_id: str) -> OrderedDict[str, AnswerRecord]:
        if agent_id not in self._by_agent:
            self._by_agent[agent_id] = self._read(agent_id)
            while len(self._by_agent) > _AGENTS_KEPT:
                former, _ = self._by_agent.popitem(last=False)
                self._written.pop(former, None)
        self._by_agent.move_to_end(agent_id)
        return self._by_agent[agent_id]

    def _read(self, agent_id: str) -> OrderedDict[str, AnswerRecord]:
        path = self._path(agent_id)
        if path is None:
            return OrderedDict()
        entries = state.load(path).get("answers", [])
        kept = list(_valid(entries if isinstance(entries, list) else []))
        if not isinstance(entries, list) or len(kept) != len(entries):
            state.report_fields(path)
        return OrderedDict((message, one.record) for one in kept for message in one.messages)

    def _path(self, agent_id: str) -> Path | None:
        if self._folder is None or not _AGENT_ID.fullmatch(agent_id):
            return None
        return self._folder / f"{agent_id}.json"


def _grouped(records: OrderedDict[str, AnswerRecord]) -> Iterable[_Kept]:
    """Return the answers that have ended, each with the ids of its messages, oldest first."""
    found: dict[int, _Kept] = {}
    for message, record in records.items():
        if record.ended is not None:
            found.setdefault(id(record), _Kept(record=record)).messages.append(message)
    return found.values()


def _valid(entries: list[Any]) -> Iterator[_Kept]:
    for entry in entries:
        with suppress(ValidationError):
            yield _KEPT.validate_python(entry)
