"""What happened lately: a ring of events in memory, for the page of activity."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio

from isabella.config.settings import Settings
from isabella.providers.plan import Action
from isabella.providers.report import Proof, ProviderReport, Report
from isabella.system.redaction import redact
from isabella.turns.events import Ended, Event, Failover, Said, TurnFailed
from isabella.turns.turn import Turn
from isabella.watch import events as watched
from isabella.watch.events import sentences
from isabella.watch.model_refresh import ModelRefresh
from isabella.watch.watcher import WatchActions


class Notifier:
    """Rings for everybody who listens; who comes too late learns it from the count.

    Attributes:
        count: how often it has rung.
    """

    def __init__(self) -> None:
        self.count = 0
        self._rung = anyio.Event()

    def ring(self) -> None:
        """Wake all who wait."""
        self.count += 1
        self._rung.set()
        self._rung = anyio.Event()

    async def after(self, count: int, seconds: float) -> None:
        """Wait until it has rung more often than this, at most so many seconds."""
        with anyio.move_on_after(seconds):
            while self.count <= count:
                await self._rung.wait()


_KEPT = 400
_MARKS_KEPT = 5000
_ANSWERS_KEPT = 2000

_DONE = {Action.CREATE: "created", Action.UPDATE: "updated in place", Action.RECREATE: "deleted and made anew"}


@dataclass(frozen=True)
class LoggedEvent:
    """One thing that happened.

    Attributes:
        at: when.
        kind: `sync`, `failover`, `refusal` or `notice`.
        subject: whom it befell: a provider, a handle, an agent.
        text: what happened.
        cause: why it was done.
        proof: what is proven since.
        seconds: how long it took.
        warning: whether somebody should look at it.
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
    """How one vendor did in one turn.

    Attributes:
        at: when; seconds since the epoch.
        provider: the provider's name in Letta.
        first_token: seconds until its answer began; None where none did.
    """

    at: float
    provider: str
    first_token: float | None


@dataclass
class MessageModel:
    """Who spoke a message: what Letta does not keep.

    Attributes:
        handle: the model that answered.
        failovers: who did not, before, and why.
    """

    handle: str | None = None
    failovers: tuple[Failover, ...] = ()


class EventLog:
    """Takes note of what happens; keeps the last of it, in memory only."""

    def __init__(self) -> None:
        self.notifier = Notifier()
        self.happenings: deque[LoggedEvent] = deque(maxlen=_KEPT)
        self.samples: deque[TurnSample] = deque(maxlen=_MARKS_KEPT)
        self.spoke_at: dict[str, float] = {}
        self._voices: OrderedDict[str, MessageModel] = OrderedDict()
        self._turns: dict[str, MessageModel] = {}
        self._seconds: float | None = None

    # --- turns ----------------------------------------------------------------------------------------------------

    def see(self, turn: Turn, event: Event) -> None:
        """Take note of an event of a turn."""
        match event:
            case Failover():
                self._failover(turn, event)
            case Said(message_id=id):
                if id not in self._voices:
                    self._voices[id] = self._turns.setdefault(turn.id, MessageModel())
                    while len(self._voices) > _ANSWERS_KEPT:
                        self._voices.popitem(last=False)
                return
            case TurnFailed():
                self._add(LoggedEvent(_now(), "refusal", turn.agent_ref.name, redact(event.message), warning=True))
            case Ended():
                self._ended(turn, event)
            case _:
                return
        self.notifier.ring()

    def message_model(self, message_id: str) -> MessageModel | None:
        """Who spoke a message; None where this process does not know."""
        return self._voices.get(message_id)

    def _failover(self, turn: Turn, event: Failover) -> None:
        message_model = self._turns.setdefault(turn.id, MessageModel())
        message_model.failovers = (*message_model.failovers, event)
        provider = event.handle.partition("/")[0]
        said = redact(event.message)
        self.samples.append(TurnSample(time.time(), provider, None))
        text = f"did not answer {turn.agent_ref.name} ({event.code.value.replace('_', ' ')}): {said}"
        self._add(LoggedEvent(_now(), "failover", event.handle, text, warning=True))

    def _ended(self, turn: Turn, event: Ended) -> None:
        self.spoke_at[turn.agent_ref.id] = time.time()
        message_model = self._turns.pop(turn.id, None)
        if event.handle is None:
            return
        if message_model is not None:
            message_model.handle = event.handle
        provider = event.handle.partition("/")[0]
        self.samples.append(TurnSample(time.time(), provider, event.first_token))

    # --- providers ------------------------------------------------------------------------------------------------

    def synced(self, report: Report, cause: str, seconds: float | None) -> None:
        """Take note of a sync: of what it did, and of what it could not do."""
        entries = [entry for entry in report.ours if entry.action in _DONE or entry.proof is not Proof.PROVEN]
        for entry in entries:
            self._add(_of_entry(entry, cause, seconds))
        if not entries:
            proven = len(report.ours)
            text = f"{proven} provider{'s' if proven != 1 else ''} as configured; nothing to do"
            self._add(LoggedEvent(_now(), "sync", "all", text, cause, "proven", seconds))
        self.notifier.ring()

    def on_event(self, event: watched.WatchEvent) -> None:
        """Take note of what the keeper tells."""
        if isinstance(event, watched.Synced):
            changed = any(one.action in _DONE or one.proof is not Proof.PROVEN for one in event.part.ours)
            # A look every five minutes that finds nothing would push out everything else.
            if changed:
                self.synced(event.part, event.cause.value, self._seconds)
        else:
            for said in sentences(event):
                self._add(LoggedEvent(_now(), "notice", "", redact(said.text), warning=said.warning))
        self.notifier.ring()

    def notices(self, seconds: float) -> Sequence[LoggedEvent]:
        """What was told in the last so many seconds about the configuration, newest first."""
        since = _now().timestamp() - seconds
        return [one for one in self.happenings if one.kind == "notice" and one.at.timestamp() >= since]

    def timed(self, work: WatchActions) -> WatchActions:
        """The same work; how long a sync takes is noted."""
        return _Timed(work, self)

    def took(self, seconds: float) -> None:
        """How long the last sync of the keeper took."""
        self._seconds = seconds

    def recent(self, seconds: float) -> Iterator[TurnSample]:
        """How vendors did in the last so many seconds, oldest first."""
        since = time.time() - seconds
        return (mark for mark in self.samples if mark.at >= since)

    def _add(self, happening: LoggedEvent) -> None:
        self.happenings.appendleft(happening)


class _Timed:
    def __init__(self, work: WatchActions, event_log: EventLog) -> None:
        self._work = work
        self._chronicle = event_log

    async def ensure(self, settings: Settings, only: Sequence[str]) -> Report:
        began = time.monotonic()
        try:
            return await self._work.ensure(settings, only)
        finally:
            self._chronicle.took(time.monotonic() - began)

    async def count(self, settings: Settings) -> ModelRefresh:
        return await self._work.count(settings)


def _of_entry(entry: ProviderReport, cause: str, seconds: float | None) -> LoggedEvent:
    good = entry.proof is Proof.PROVEN
    done = _DONE.get(entry.action, "refused" if entry.action is Action.REFUSE else "not in line")
    kind = "refusal" if entry.action is Action.REFUSE else "sync"
    text = f"{done}: {redact(entry.reason)}"
    return LoggedEvent(_now(), kind, entry.name, text, cause, entry.proof.value, seconds, warning=not good)


def _now() -> datetime:
    return datetime.now(UTC)
