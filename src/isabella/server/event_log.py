"""Recent events of turns, syncs and the watcher, in memory, for the console's activity page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

import anyio

from isabella.providers.plan import DONE, Action
from isabella.providers.report import Proof, ProviderReport, Report
from isabella.server.answer_log import AnswerLog, AnswerRecord
from isabella.system.english import English, english
from isabella.system.redaction import redact
from isabella.turns.events import AnswerText, Ended, Event, Failover, TurnFailed, Usage
from isabella.turns.stream import is_of_vendor
from isabella.turns.turn import Turn
from isabella.watch.events import SyncCause, Synced, WatchEvent, log_sentences

_EVENTS_KEPT = 400
_SAMPLES_KEPT = 5000


class Notifier:
    """A broadcast event with a counter, so that late waiters miss nothing."""

    def __init__(self) -> None:
        self.count = 0
        self._event = anyio.Event()

    def notify(self) -> None:
        """Count one event and wake all waiters."""
        self.count += 1
        self._event.set()
        self._event = anyio.Event()

    async def wait(self, count: int, seconds: float) -> None:
        """Wait until the counter exceeds `count`, at most this many seconds."""
        with anyio.move_on_after(seconds):
            while self.count <= count:
                await self._event.wait()


class SyncKind(StrEnum):
    """Why a sync changed a provider."""

    #: The configuration asked for another key or another base URL.
    ROTATED = "rotated"
    #: Letta held something else than the configuration, which had not changed.
    HEALED = "healed"
    #: It was done at the start, or by hand.
    SYNCED = "synced"
    REFUSED = "refused"


@dataclass(frozen=True)
class LoggedEvent:
    """An event as the activity page shows it."""

    kind: str  #: `sync`, `failover`, `refusal` or `notice`
    subject: str  #: the provider, handle or agent it is about
    text: str
    cause: str = ""  #: why a sync ran
    proof: str = ""  #: the proof of the provider after a sync
    seconds: float | None = None
    warning: bool = False
    sync: SyncKind | None = None  #: for a sync that changed the provider, or could not
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class TurnSample:
    """The result of one vendor in one turn."""

    at: float  #: seconds since the epoch
    handle: str
    first_token: float | None = None  #: seconds until the answer began; None if the vendor did not answer
    status: int | None = None  #: the status of a refusal; None if no answer came
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def provider(self) -> str:
        """The name of the provider."""
        return self.handle.partition("/")[0]

    @property
    def answered(self) -> bool:
        """Whether the vendor answered."""
        return self.first_token is not None


class EventLog:
    """A bounded log of recent events."""

    def __init__(self) -> None:
        self.notifier = Notifier()  #: is notified of every change
        self.entries: deque[LoggedEvent] = deque(maxlen=_EVENTS_KEPT)  #: the events, newest first
        self.last_turn_at: dict[str, float] = {}  #: by agent id: when its last turn ended, in seconds since the epoch
        self._samples: deque[TurnSample] = deque(maxlen=_SAMPLES_KEPT)
        self.answers = AnswerLog()
        self._by_turn: dict[str, AnswerRecord] = {}

    def on_turn_event(self, turn: Turn, event: Event) -> None:
        """Record an event of a turn."""
        agent = turn.agent_ref
        record = self._by_turn.setdefault(turn.id, AnswerRecord())
        record.apply(event)
        match event:
            case AnswerText(message_id=id):
                self.answers.add(agent.id, id, record)
                return
            case Failover(handle=handle):
                of_vendor = is_of_vendor(event.code, event.status)
                if of_vendor:
                    self._samples.append(TurnSample(time.time(), handle, status=event.status))
                self.entries.appendleft(
                    LoggedEvent("failover", handle, _why_not(agent.name, event, of_vendor), warning=True)
                )
            case TurnFailed():
                self.entries.appendleft(LoggedEvent("refusal", agent.name, redact(event.message), warning=True))
            case Ended(handle=handle):
                self.last_turn_at[agent.id] = time.time()
                self._by_turn.pop(turn.id, None)
                if record.last_message:
                    self.answers.save(agent.id)
                if handle is not None:
                    self._add_answer(handle, event, record.usage)
            case _:
                return
        self.notifier.notify()

    def samples_of_last(self, seconds: float) -> Iterator[TurnSample]:
        """Yield the results of vendors in the last seconds, oldest first."""
        since = time.time() - seconds
        return (sample for sample in self._samples if sample.at >= since)

    def add_sync(self, report: Report, cause: str, seconds: float | None) -> None:
        """Record a sync: one event per provider that it changed or could not prove."""
        entries = [entry for entry in report.configured if _is_notable(entry)]
        for entry in entries:
            refused, proven = entry.action is Action.REFUSE, entry.proof is Proof.PROVEN
            outcome = english("refused") if refused else english("out of sync")
            outcome = english(DONE[entry.action]) if entry.action in DONE else outcome
            text = english("%(done)s: %(reason)s", done=outcome, reason=redact(entry.reason))
            kind, proof = "refusal" if refused else "sync", entry.proof.value
            done = _sync_kind(entry, cause)
            event = LoggedEvent(kind, entry.name, text, cause, proof, seconds, warning=not proven, sync=done)
            self.entries.appendleft(event)
        if not entries:
            count = len(report.configured)
            if count == 1:
                text = english("1 provider as configured; nothing to do")
            else:
                text = english("%(count)s providers as configured; nothing to do", count=count)
            self.entries.appendleft(LoggedEvent("sync", "all", text, cause, "proven", seconds))
        self.notifier.notify()

    def on_watch_event(self, event: WatchEvent) -> None:
        """Record an event of the watcher."""
        if isinstance(event, Synced):
            # A check every five minutes that finds nothing would displace everything else.
            if any(_is_notable(entry) for entry in event.part.configured):
                self.add_sync(event.part, event.cause.value, event.seconds)
        else:
            for sentence in log_sentences(event):
                self.add_notice(sentence.text, warning=sentence.warning)
        self.notifier.notify()

    def add_notice(self, text: str, subject: str = "", *, warning: bool = False) -> None:
        """Record a notice."""
        self.entries.appendleft(
            LoggedEvent("notice", subject, text if isinstance(text, English) else redact(text), warning=warning)
        )
        self.notifier.notify()

    def notices(self, seconds: float) -> Sequence[LoggedEvent]:
        """Return the notices of the last seconds, newest first."""
        since = time.time() - seconds
        return [entry for entry in self.entries if entry.kind == "notice" and entry.at.timestamp() >= since]

    def _add_answer(self, handle: str, ended: Ended, usage: Usage | None) -> None:
        prompt, completion = (0, 0) if usage is None else (usage.prompt_tokens, usage.completion_tokens)
        sample = TurnSample(
            time.time(), handle, ended.first_token, prompt_tokens=prompt, completion_tokens=completion
        )
        self._samples.append(sample)


def _why_not(agent: str, event: Failover, of_vendor: bool) -> str:
    values = {"agent": agent, "code": event.code.value.replace("_", " "), "reason": redact(event.message)}
    if of_vendor:
        return english("did not answer %(agent)s (%(code)s): %(reason)s", **values)
    return english("was not used by %(agent)s (%(code)s): %(reason)s", **values)


def _sync_kind(entry: ProviderReport, cause: str) -> SyncKind | None:
    if entry.action is Action.REFUSE or entry.proof is not Proof.PROVEN:
        return SyncKind.REFUSED
    if entry.action not in DONE:
        return None
    if cause == SyncCause.CHANGE:
        return SyncKind.ROTATED
    return SyncKind.HEALED if cause in (SyncCause.RESYNC, SyncCause.RETRY) else SyncKind.SYNCED


def _is_notable(entry: ProviderReport) -> bool:
    return entry.action in DONE or entry.proof is not Proof.PROVEN
