"""Recent events of turns, syncs and the watcher, in memory, for the console's activity page."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio

from isabella.providers.plan import Action
from isabella.providers.report import Proof, ProviderReport, Report
from isabella.system.redaction import redact
from isabella.turns.events import AnswerText, Ended, Event, Failover, TurnFailed
from isabella.turns.turn import Turn
from isabella.watch.events import Synced, WatchEvent, log_sentences

_EVENTS_KEPT = 400
_SAMPLES_KEPT = 5000
_MESSAGES_KEPT = 2000

_DONE = {Action.CREATE: "created", Action.UPDATE: "updated in place", Action.RECREATE: "recreated"}


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
    """An event as the activity page shows it.

    Attributes:
        kind: `sync`, `failover`, `refusal` or `notice`.
        subject: the provider, handle or agent it is about.
        cause: why a sync ran.
        proof: the proof of the provider after a sync.
        seconds: the duration of a sync.
        warning: whether it needs attention.
    """

    at: datetime
    kind: str
    subject: str
    text: str
    cause: str = ""
    proof: str = ""
    seconds: float | None = None
    warning: bool = False


@dataclass(frozen=True)
class TurnSample:
    """The result of one vendor in one turn.

    Attributes:
        at: seconds since the epoch.
        provider: the provider's name in Letta.
        first_token: seconds until the answer began; None if the vendor did not answer.
    """

    at: float
    provider: str
    first_token: float | None


@dataclass
class MessageModel:
    """The model that wrote a message, and the failovers before it. Letta does not store them."""

    handle: str | None = None
    failovers: tuple[Failover, ...] = ()


class EventLog:
    """A bounded log of recent events.

    Attributes:
        notifier: is notified of every change.
        entries: the events, newest first.
        last_turn_at: by agent id: when its last turn ended, in seconds since the epoch.
    """

    def __init__(self) -> None:
        self.notifier = Notifier()
        self.entries: deque[LoggedEvent] = deque(maxlen=_EVENTS_KEPT)
        self.last_turn_at: dict[str, float] = {}
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
                self._add_sample(handle, None)
                text = f"did not answer {agent.name} ({event.code.value.replace('_', ' ')}): {redact(event.message)}"
                self._add("failover", handle, text, warning=True)
            case TurnFailed():
                self._add("refusal", agent.name, redact(event.message), warning=True)
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
            refused = entry.action is Action.REFUSE
            done = _DONE.get(entry.action, "refused" if refused else "out of sync")
            self._add(
                "refusal" if refused else "sync",
                entry.name,
                f"{done}: {redact(entry.reason)}",
                cause,
                entry.proof.value,
                seconds,
                warning=entry.proof is not Proof.PROVEN,
            )
        if not entries:
            count = len(report.configured)
            text = f"{count} provider{'s' if count != 1 else ''} as configured; nothing to do"
            self._add("sync", "all", text, cause, "proven", seconds)
        self.notifier.notify()

    def on_watch_event(self, event: WatchEvent) -> None:
        """Record an event of the watcher."""
        if isinstance(event, Synced):
            # A check every five minutes that finds nothing would displace everything else.
            if any(_is_notable(entry) for entry in event.part.configured):
                self.add_sync(event.part, event.cause.value, event.seconds)
        else:
            for sentence in log_sentences(event):
                self._add("notice", "", redact(sentence.text), warning=sentence.warning)
        self.notifier.notify()

    def add_notice(self, text: str, subject: str = "", *, warning: bool = False) -> None:
        """Record a notice."""
        self._add("notice", subject, redact(text), warning=warning)
        self.notifier.notify()

    def notices(self, seconds: float) -> Sequence[LoggedEvent]:
        """Return the notices of the last seconds, newest first."""
        since = time.time() - seconds
        return [entry for entry in self.entries if entry.kind == "notice" and entry.at.timestamp() >= since]

    def _add_sample(self, handle: str, first_token: float | None) -> None:
        self._samples.append(TurnSample(time.time(), handle.partition("/")[0], first_token))

    def _add(
        self,
        kind: str,
        subject: str,
        text: str,
        cause: str = "",
        proof: str = "",
        seconds: float | None = None,
        *,
        warning: bool = False,
    ) -> None:
        event = LoggedEvent(datetime.now(UTC), kind, subject, text, cause, proof, seconds, warning)
        self.entries.appendleft(event)


def _is_notable(entry: ProviderReport) -> bool:
    return entry.action in _DONE or entry.proof is not Proof.PROVEN
