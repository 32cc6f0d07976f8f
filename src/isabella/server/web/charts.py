"""The charts of the activity page: what the templates draw, and the tables behind it. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from isabella.gateway.traffic import VendorTraffic
from isabella.server.event_log import LoggedEvent, SyncKind, TurnSample
from isabella.server.gateway_metrics import NamedAllowance, allowances
from isabella.server.web.languages import decimal
from isabella.system.english import english
from isabella.vendors.model_lists import ListedModel

#: Seconds at the top of a scale.
_SCALES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
#: The names of rate limits, by unit and period.
_LIMITS = {
    ("requests", "minute"): english("requests per minute"),
    ("requests", "day"): english("requests per day"),
    ("tokens", "minute"): english("tokens per minute"),
    ("tokens", "day"): english("tokens per day"),
}
_TOKENS_PER_PRICE = 1_000_000
#: The shortest time axis of the changes, in seconds, and the part of it that is left empty at its left.
_LEAST_SPAN, _MARGIN = 3600.0, 0.02


@dataclass(frozen=True)
class Dot:
    """A mark: its place from 0 (left, bottom) to 1, what it stands for, and its kind."""

    x: float
    y: float
    title: str
    kind: str = "answered"


@dataclass(frozen=True)
class FirstTokenChart:
    """The times to the first token of one vendor.

    Attributes:
        ceiling: the seconds at the top of the scale, which all vendors share.
        median, slowest: in seconds.
        samples: the answers behind it, newest first.
    """

    provider: str
    dots: tuple[Dot, ...]
    ceiling: float
    median: float
    slowest: float
    samples: tuple[TurnSample, ...]


def first_token_charts(samples: Iterable[TurnSample], now: float, span: float) -> list[FirstTokenChart]:
    """Return a chart for each vendor that answered in the `span` seconds before `now`, by name."""
    times: dict[str, list[tuple[TurnSample, float]]] = defaultdict(list)
    for sample in samples:
        if sample.first_token is not None:
            times[sample.provider].append((sample, sample.first_token))
    longest = max((seconds for answers in times.values() for _, seconds in answers), default=0.0)
    ceiling = next((scale for scale in _SCALES if longest <= scale), longest)
    return [_first_tokens(name, times[name], ceiling, now, span) for name in sorted(times)]


def _first_tokens(
    provider: str, answers: Sequence[tuple[TurnSample, float]], ceiling: float, now: float, span: float
) -> FirstTokenChart:
    dots = tuple(
        Dot(_place(sample.at, now, span), seconds / ceiling, f"{decimal(seconds, 2)} s")
        for sample, seconds in answers
    )
    in_order = sorted(seconds for _, seconds in answers)
    newest = tuple(sample for sample, _ in reversed(answers))
    return FirstTokenChart(provider, dots, ceiling, in_order[len(in_order) // 2], in_order[-1], newest)


@dataclass(frozen=True)
class Bar:
    """A part of a row of bars: its start and its width from 0 to 1, and its kind."""

    x: float
    width: float
    kind: str


@dataclass(frozen=True)
class AnswerRow:
    """The answers of one vendor to the requests of turns."""

    provider: str
    answered: int
    refused: int  #: with a status
    failed: int  #: without one
    bars: tuple[Bar, ...]


def answer_rows(samples: Iterable[TurnSample]) -> list[AnswerRow]:
    """Return the answers, refusals and failures of each vendor, by name; the longest row fills the chart."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for sample in samples:
        kind = 0 if sample.answered else 1 if sample.status is not None else 2
        counts[sample.provider][kind] += 1
    most = max((sum(numbers) for numbers in counts.values()), default=1)
    kinds = ("answered", "refused", "failed")
    return [
        AnswerRow(name, answered, refused, failed, _bars((answered, refused, failed), kinds, most))
        for name, (answered, refused, failed) in sorted(counts.items())
    ]


@dataclass(frozen=True)
class TokenRow:
    """The tokens of one model in turns, and what they cost in US dollars, if its vendor lists the prices."""

    handle: str
    turns: int
    prompt: int
    completion: int
    cost: float | None
    bars: tuple[Bar, ...]


def token_rows(samples: Iterable[TurnSample], listed: Mapping[str, Mapping[str, ListedModel]]) -> list[TokenRow]:
    """Return the tokens of each model that answered, most first. `listed` has the models of each provider."""
    used: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for sample in samples:
        if sample.answered and sample.prompt_tokens + sample.completion_tokens:
            for index, more in enumerate((1, sample.prompt_tokens, sample.completion_tokens)):
                used[sample.handle][index] += more
    most = max((prompt + completion for _, prompt, completion in used.values()), default=1)
    rows = [
        TokenRow(
            handle,
            turns,
            prompt,
            completion,
            _cost(_listed(listed, handle), prompt, completion),
            _bars((prompt, completion), ("prompt", "completion"), most),
        )
        for handle, (turns, prompt, completion) in used.items()
    ]
    return sorted(rows, key=lambda row: (-row.prompt - row.completion, row.handle))


def _listed(listed: Mapping[str, Mapping[str, ListedModel]], handle: str) -> ListedModel | None:
    provider, _, model = handle.partition("/")
    return listed.get(provider, {}).get(model)


def _cost(model: ListedModel | None, prompt: int, completion: int) -> float | None:
    if model is None or model.input_price is None or model.output_price is None:
        return None
    return (prompt * model.input_price + completion * model.output_price) / _TOKENS_PER_PRICE


@dataclass(frozen=True)
class LimitRow:
    """The rest of one rate limit, as the vendor last reported it."""

    provider: str
    limit: str  #: such as `tokens per minute`
    left: int
    of: int
    share: float  #: from 0 to 1
    told: datetime | None  #: when the vendor reported it, or answered later without it


def limit_rows(vendors: Mapping[str, VendorTraffic]) -> list[LimitRow]:
    """Return the limits for which both numbers are known."""
    return [
        LimitRow(
            name,
            _LIMITS.get((one.unit, one.period), f"{one.unit} a {one.period}"),
            left,
            of,
            min(1.0, max(0.0, left / of)),
            _told(vendor),
        )
        for name, vendor in sorted(vendors.items())
        for one, left, of in _known(allowances(vendor.limits))
    ]


def _known(named: Iterable[NamedAllowance]) -> Iterator[tuple[NamedAllowance, int, int]]:
    for one in named:
        left, of = one.allowance.remaining, one.allowance.limit
        if left is not None and of:
            yield one, left, of


def _told(vendor: VendorTraffic) -> datetime | None:
    at = max(vendor.accepted_at or 0.0, vendor.refused_at or 0.0)
    return datetime.fromtimestamp(at, UTC) if at else None


@dataclass(frozen=True)
class ChangeRow:
    """The changes of one provider."""

    provider: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class ChangeChart:
    """The changes of all providers on one time axis.

    Attributes:
        began: the time at its left.
        events: the changes behind it, newest first.
    """

    began: datetime
    rows: tuple[ChangeRow, ...]
    events: tuple[LoggedEvent, ...]


def change_chart(events: Iterable[LoggedEvent], now: datetime) -> ChangeChart:
    """Return the chart of the changes among these events, which are the newest first."""
    changes = tuple(event for event in events if event.sync is not None)
    at = now.timestamp()
    oldest = changes[-1].at.timestamp() if changes else at
    span = max(_LEAST_SPAN, (at - oldest) * (1 + _MARGIN))
    rows: dict[str, list[Dot]] = defaultdict(list)
    for event in changes:
        kind = SyncKind.SYNCED if event.sync is None else event.sync
        rows[event.subject].append(Dot(_place(event.at.timestamp(), at, span), 0.5, event.text, kind.value))
    began = datetime.fromtimestamp(at - span, UTC)
    return ChangeChart(began, tuple(ChangeRow(name, tuple(rows[name])) for name in sorted(rows)), changes)


def _place(at: float, now: float, span: float) -> float:
    return min(1.0, max(0.0, 1 - (now - at) / span))


def _bars(numbers: Sequence[int], kinds: Sequence[str], most: int) -> tuple[Bar, ...]:
    """Return one bar after the other, with widths in proportion to the numbers."""
    bars, x = list[Bar](), 0.0
    for number, kind in zip(numbers, kinds, strict=True):
        if number:
            bars.append(Bar(x, number / most, kind))
            x += number / most
    return tuple(bars)
