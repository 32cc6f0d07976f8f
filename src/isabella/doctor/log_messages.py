"""Messages of Letta and the vendors, recognised by the table in `log_messages.toml`; texts without secrets."""

from __future__ import annotations

import os
import re
import tomllib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter

from isabella.doctor.layers import Layer
from isabella.system.redaction import KNOWN_PREFIXES, mask, redact
from isabella.vendors.wordings import Reason, wordings

_SHOWN = 240
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PLAIN = str.maketrans(
    {"–": "-", "—": "-", "−": "-", "‐": "-", "‑": "-", "“": '"', "”": '"', "‘": "'", "’": "'", "`": "'"}
)
_LINES_OF_PASTE = 3  # a pasted message may be broken over this many lines; in a log each message is on one line
_PLACEHOLDER = re.compile(r"\{(\w+)(?:\|([^}]*))?\}")

_PREFIXES = "|".join(re.escape(prefix) for prefix in KNOWN_PREFIXES)
#: What looks like a key, although this process does not know it: by its prefix, after "Bearer", or by its length.
_KEY = re.compile(
    rf"(?<![\w/-])(?:(?:{_PREFIXES})[\w-]{{6,}}"
    r"|(?<=Bearer )[\w.+/=-]{8,}"
    r"|(?=[A-Za-z_-]*\d)(?=[\d_-]*[A-Za-z])[A-Za-z0-9+/]{40,}={0,2})(?![\w-])"
)
_PASSWORD_IN_URL = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]+@")


@dataclass(frozen=True)
class KnownMessage:
    """An entry of the table."""

    id: str
    layer: Layer  # where the fault lies
    title: str
    meaning: str
    releases: str  # which releases of Letta print it
    remedy: str
    #: recognise it; a named group fills the placeholder of the same name in meaning and remedy
    patterns: tuple[
        Annotated[re.Pattern[str], BeforeValidator(lambda text: re.compile(text, re.IGNORECASE))], ...
    ] = ()
    facts: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()  # the message as printed, for tests and documentation
    reason: Reason | None = None  # the refusal whose wordings recognise it, too
    correction: str | None = None  # what is true if a statement there is not
    unless: frozenset[str] = frozenset()  # ids of messages that make this one redundant on the same line

    def search(self, text: str) -> re.Match[str] | None:
        """Return the first match in a text."""
        patterns = (*self.patterns, *(wordings()[self.reason] if self.reason else ()))
        return next((match for pattern in patterns if (match := pattern.search(text))), None)


@dataclass(frozen=True)
class RecognisedMessage:
    """A known message in a text."""

    message: KnownMessage
    line: str  # the line of its first occurrence, without secrets
    values: Mapping[str, str] = field(default_factory=dict)  # what the message named: a provider, a type, a model
    count: int = 1

    @property
    def meaning(self) -> str:
        """The meaning of the message in this place."""
        return _filled(self.message.meaning, self.values)

    @property
    def remedy(self) -> str:
        """The remedy in this place."""
        return _filled(self.message.remedy, self.values)

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--json` shows."""
        of_message = {
            name: getattr(self.message, name) for name in ("id", "layer", "title", "releases", "correction", "facts")
        }
        return of_message | {name: getattr(self, name) for name in ("line", "count", "meaning", "remedy")}


@cache
def known_messages() -> tuple[KnownMessage, ...]:
    """Return the table, more specific messages first."""
    document = tomllib.loads(resources.files(__package__).joinpath("log_messages.toml").read_text("utf-8"))
    return TypeAdapter(tuple[KnownMessage, ...]).validate_python(document["messages"])


def recognise(text: str) -> list[RecognisedMessage]:
    """Return the known messages in a pasted text, in the order of the table."""
    recognised = recognise_in(text.splitlines(), lines_per_message=_LINES_OF_PASTE)
    # A message can be recognised before the line that makes it redundant is read.
    ids = {one.message.id for one in recognised}
    return [one for one in recognised if not one.message.unless & ids]


def recognise_in(lines: Iterable[str], *, lines_per_message: int = 1) -> list[RecognisedMessage]:
    """Return the known messages in a log, which is read once, in the order of the table."""
    recognised: dict[str, RecognisedMessage] = {}
    for text, newest in _windows(lines, lines_per_message):
        ids: set[str] = set()
        for message in known_messages():
            match = None if ids & message.unless else message.search(text)
            # A match that ends before the newest line was counted already.
            if match is None or match.end() <= len(text) - newest:
                continue
            ids.add(message.id)
            before = recognised.get(message.id)
            if before is not None:
                recognised[message.id] = replace(before, count=before.count + 1)
                continue
            values = {name: scrub(value) for name, value in match.groupdict().items() if value}
            recognised[message.id] = RecognisedMessage(message, _excerpt(text, match), values)
    order = {message.id: index for index, message in enumerate(known_messages())}
    return sorted(recognised.values(), key=lambda one: order[one.message.id])


def normalise_line(text: str) -> str:
    """Return a line without colours, with plain dashes and quotes and single spaces."""
    return " ".join(_ANSI.sub("", text).translate(_PLAIN).split())


def _windows(lines: Iterable[str], size: int) -> Iterator[tuple[str, int]]:
    """Yield each line joined to the few before it, and the length of the line itself."""
    recent: deque[str] = deque(maxlen=size)
    for line in lines:
        plain = normalise_line(line)
        if plain:
            recent.append(plain)
            yield " ".join(recent), len(plain)


def _excerpt(text: str, match: re.Match[str]) -> str:
    start = max(0, match.start() - 40)
    excerpt = text[start : max(match.end(), start + _SHOWN)][:_SHOWN]
    return scrub(("…" if start else "") + excerpt)


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda placeholder: values.get(placeholder[1]) or placeholder[2] or "…", text)


def scrub(text: str) -> str:
    """Return a text that may be pasted into a public issue: no keys, passwords in URLs, or home folders."""
    text = _PASSWORD_IN_URL.sub(r"\1:…@", redact(text))
    text = _KEY.sub(lambda match: mask(match.group()), text)
    home = os.environ.get("HOME") or str(Path.home())
    return text if len(home) < 2 else re.sub(rf"{re.escape(home.rstrip('/'))}(?=[/\s'\"`),;:]|$)", "~", text)


def scrub_document(value: Any) -> Any:
    """Return a JSON document with every text in it scrubbed."""
    match value:
        case str():
            return scrub(value)
        case Mapping():
            return {key: scrub_document(item) for key, item in value.items()}
        case list() | tuple():
            return [scrub_document(item) for item in value]
        case _:
            return value
