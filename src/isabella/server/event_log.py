"""Recent events of turns, syncs and the watcher, in memory, for the console's activity page."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio

from isabella.providers.plan import DONE, Action
from isabella.providers.report import Proof, ProviderReport, Report
from isabella.system.redaction import redact
from isabella.turns.events import AnswerText, Ended, Event, Failover, TurnFailed
from isabella.turns.stream import is_of_vendor
from isabella.turns.turn import Turn
from isabella.watch.events import Synced, WatchEvent, log_sentences

_EVENTS_KEPT = 400
_SAMPLES_KEPT = 5000
_MESSAGES_KEPT = 2000


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
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class TurnSample:
    """The result of one vendor in one turn."""

    at: float  #: seconds since the epoch
    provider: str
    first_token: float | None  #: seconds until the answer began; None if the vendor did not answer


@dataclass
class MessageModel:
    """The model that wrote a message, and the failovers before it. Letta does not store them."""

    handle: str | None = None
    failovers: tuple[Failover, ...] = ()


class EventLog:
    """A bounded log of recent events."""

    def __init__(self) -> None:
        self.notifier = Notifier()  #: is notified of every change
        self.entries: deque[LoggedEvent] = deque(maxlen=_EVENTS_KEPT)  #: the events, newest first
        self.last_turn_at: dict[str, float] = {}  #: by agent id: when its last turn ended, in seconds since the epoch
        self._samples: deque[TurnSample] = deque(maxlen=_SAMPLES_KEPT)
        self._by_message: OrderedDict[str, MessageModel] = OrderedDict()
        self._by_turn: dict[str, MessageModel] = {}

    def on_turn_event(self, turn: Turn, event: Event) -> None:
        """Record an event of a turn."""
        agent = turn.agent_ref
        match event:
            case AnswerText(message_id=id):
                if id not in self._by_message:
                    self._by_message[id] = self._by_turn.setdefault(turn.id, MessageModel())
                    while len(self._by_message) > _MESSAGES_KEPT:
                        self._by_message.popitem(last=False)
                return
            case Failover(handle=handle):
                model = self._by_turn.setdefault(turn.id, MessageModel())
                model.failovers = (*model.failovers, event)
                of_vendor = is_of_vendor(event.code, event.status)
                if of_vendor:
                    self._add_sample(handle, None)
                done = "did not answer" if of_vendor else "was not used by"
                text = f"{done} {agent.name} ({event.code.value.replace('_', ' ')}): {redact(event.message)}"
                self.entries.appendleft(LoggedEvent("failover", handle, text, warning=True))
            case TurnFailed():
                self.entries.appendleft(LoggedEvent("refusal", agent.name, redact(event.message), warning=True))
            case Ended(handle=handle):
                self.last_turn_at[agent.id] = time.time()
                model = self._by_turn.pop(turn.id, MessageModel())
                if handle is not None:
                    model.handle = handle
                    self._add_sample(handle, event.first_token)
            case _:
                return
        self.notifier.notify()

    def message_model(self, message_id: str) -> MessageModel | None:
        """Return the model that wrote a message; None if it was written before this process started."""
        return self._by_message.get(message_id)

    def samples_of_last(self, seconds: float) -> Iterator[TurnSample]:
        """Yield the results of vendors in the last seconds, oldest first."""
        since = time.time() - seconds
        return (sample for sample in self._samples if sample.at >= since)

    def add_sync(self, report: Report, cause: str, seconds: float | None) -> None:
        """Record a sync: one event per provider that it changed or could not prove."""
        entries = [entry for entry in report.configured if _is_notable(entry)]
        for entry in entries:
            refused, proven = entry.action is Action.REFUSE, entry.proof is Proof.PROVEN
            text = f"{DONE.get(entry.action, 'refused' if refused else 'out of sync')}: {redact(entry.reason)}"
            kind, proof = "refusal" if refused else "sync", entry.proof.value
            event = LoggedEvent(kind, entry.name, text, cause, proof, seconds, warning=not proven)
            self.entries.appendleft(event)
        if not entries:
            count = len(report.configured)
            text = f"{count} provider{'s' if count != 1 else ''} as configured; nothing to do"
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
        self.entries.appendleft(LoggedEvent("notice", subject, redact(text), warning=warning))
        self.notifier.notify()

    def notices(self, seconds: float) -> Sequence[LoggedEvent]:
        """Return the notices of the last seconds, newest first."""
        since = time.time() - seconds
        return [entry for entry in self.entries if entry.kind == "notice" and entry.at.timestamp() >= since]

    def _add_sample(self, handle: str, first_token: float | None) -> None:
        self._samples.append(TurnSample(time.time(), handle.partition("/")[0], first_token))


def _is_notable(entry: ProviderReport) -> bool:
    return entry.action in DONE or entry.proof is not Proof.PROVEN
