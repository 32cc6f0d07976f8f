"""What messages mean: a table of patterns, kept as data in `log_messages.toml`."""

from __future__ import annotations

import re
import tomllib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

from isabella.doctor.sanitize import scrub

_SHOWN = 240
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_SAME = str.maketrans(
    {"–": "-", "—": "-", "−": "-", "‐": "-", "‑": "-", "“": '"', "”": '"', "‘": "'", "’": "'", "`": "'"}
)
#: A message that was pasted may be broken over so many lines; in a log each stands on one.
_TOGETHER = 3


@dataclass(frozen=True)
class KnownMessage:
    """A message that people meet.

    Attributes:
        id: a stable name.
        title: the message in short.
        patterns: what recognises it; named groups fill places of the same name in meaning and remedy.
        meaning: what it means.
        releases: which releases print it.
        remedy: what to do about it.
        facts: the facts about Letta that say so.
        examples: the message as it was seen, for the tests and the documentation.
        seed: whether the mission's own document quotes it.
        correction: what holds where a statement of that document does not.
        unless: symptoms beside which this one adds nothing.
    """

    id: str
    title: str
    patterns: tuple[re.Pattern[str], ...]
    meaning: str
    releases: str
    remedy: str
    facts: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    seed: bool = False
    correction: str | None = None
    unless: frozenset[str] = frozenset()

    def search(self, text: str) -> re.Match[str] | None:
        """Where the message stands in a text."""
        return next((found for pattern in self.patterns if (found := pattern.search(text))), None)


@dataclass(frozen=True)
class RecognisedMessage:
    """A symptom in a text.

    Attributes:
        symptom: which one.
        line: where it stood, without keys.
        places: what the message named: a provider, a type, an address.
        count: how often it was met.
    """

    symptom: KnownMessage
    line: str
    places: Mapping[str, str] = field(default_factory=dict)
    count: int = 1

    @property
    def meaning(self) -> str:
        """What it means here."""
        return _filled(self.symptom.meaning, self.places)

    @property
    def remedy(self) -> str:
        """What to do here."""
        return _filled(self.symptom.remedy, self.places)

    def as_json(self) -> dict[str, Any]:
        """The form that `--json` shows."""
        return {
            "id": self.symptom.id,
            "title": self.symptom.title,
            "line": self.line,
            "count": self.count,
            "meaning": self.meaning,
            "releases": self.symptom.releases,
            "remedy": self.remedy,
            "correction": self.symptom.correction,
            "facts": list(self.symptom.facts),
        }


@cache
def known_messages() -> tuple[KnownMessage, ...]:
    """The table, the more special messages first."""
    document = tomllib.loads(resources.files(__package__).joinpath("log_messages.toml").read_text("utf-8"))
    return tuple(_symptom(**entry) for entry in document["symptoms"])


def recognise(text: str) -> list[RecognisedMessage]:
    """What is recognised in a text that somebody pasted, in the order of the table."""
    found = recognise_in(text.splitlines(), together=_TOGETHER)
    # What was recognised before its second half had been read.
    there = {one.symptom.id for one in found}
    return [one for one in found if not one.symptom.unless & there]


def recognise_in(lines: Iterable[str], *, together: int = 1) -> list[RecognisedMessage]:
    """What is recognised in a log, in the order of the table.

    Args:
        lines: the log; as long as it likes to be.
        together: so many lines may belong to one message.
    """
    found: dict[str, RecognisedMessage] = {}
    for text, fresh in _windows(lines, together):
        here: set[str] = set()
        for symptom in known_messages():
            match = None if here & symptom.unless else symptom.search(text)
            # What ends before the newest line was met already.
            if match is None or match.end() <= len(text) - fresh:
                continue
            here.add(symptom.id)
            before = found.get(symptom.id)
            if before is not None:
                found[symptom.id] = replace(before, count=before.count + 1)
                continue
            places = {name: scrub(value) for name, value in match.groupdict().items() if value}
            found[symptom.id] = RecognisedMessage(symptom, _around(text, match), places)
    order = {symptom.id: index for index, symptom in enumerate(known_messages())}
    return sorted(found.values(), key=lambda one: order[one.symptom.id])


def normalise_line(text: str) -> str:
    """A line without colours, with plain dashes and quotes and single spaces."""
    return " ".join(_ANSI.sub("", text).translate(_SAME).split())


def _windows(lines: Iterable[str], together: int) -> Iterator[tuple[str, int]]:
    """Each line with the few before it, and the length of the line itself."""
    recent: deque[str] = deque(maxlen=together)
    for line in lines:
        plain = normalise_line(line)
        if plain:
            recent.append(plain)
            yield " ".join(recent), len(plain)


def _around(text: str, match: re.Match[str]) -> str:
    start = max(0, match.start() - 40)
    cut = text[start : max(match.end(), start + _SHOWN)][:_SHOWN]
    return scrub(("…" if start else "") + cut)


def _filled(text: str, places: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)(?:\|([^}]*))?\}", lambda place: places.get(place[1]) or place[2] or "…", text)


def _symptom(
    *,
    patterns: list[str],
    facts: Iterable[str] = (),
    examples: Iterable[str] = (),
    unless: Iterable[str] = (),
    **entry: Any,
) -> KnownMessage:
    return KnownMessage(
        patterns=tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns),
        facts=tuple(facts),
        examples=tuple(examples),
        unless=frozenset(unless),
        **entry,
    )
