"""Output on standard output and standard error, without control characters from elsewhere.

Answers, memory, names, logs and errors come from models, vendors, agent files and other people. A terminal would obey
an escape sequence in one of them: it can write the clipboard (OSC 52), move the cursor, or hide text.

`guard_output` replaces `sys.stdout` and `sys.stderr` by streams that write no control character but newline and tab.
Coloured text goes through `console`, which cleans the text and adds its own sequences. `print_message` writes the
messages of commands on standard error, in the format of the log lines, so that text and JSON are never mixed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import IO, TYPE_CHECKING, Any, TextIO

from isabella.system.redaction import redact_event

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment

# C0 but tab and newline, DEL, C1, the overrides and isolates of writing direction (they make text look like another
# text), and lone surrogates (they cannot be encoded).
_UNSAFE = re.compile("\r\n|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WIDTH_IF_PIPED = 200

_json_messages = False


class LogFormat(StrEnum):
    """Format of the lines on standard error."""

    AUTO = "auto"  # text on a terminal, otherwise JSON
    TEXT = "text"
    JSON = "json"


def clean(text: str) -> str:
    r"""Return the text with every unsafe character written as `\u001b`, its escape in a JSON string."""
    return _UNSAFE.sub(_escaped, text)


def guard_output() -> None:
    """Make standard output and standard error print clean text only."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _CleanStream):
            setattr(sys, name, _CleanStream(stream))


def unguarded(stream: Any) -> Any:
    """Return the stream behind a guarded one, for text that is clean already and coloured."""
    return stream.behind if isinstance(stream, _CleanStream) else stream


def console(*, stderr: bool = False, **options: Any) -> Console:
    """Return a rich console that prints every text as it is: without control characters, and not read as markup.

    It colours only terminals, and does not wrap the lines of tables if its output is piped. `options` are further
    options of `rich.console.Console`.
    """
    guarded: Console = _console_class()(stderr=stderr, highlight=False, markup=False, emoji=False, **options)
    if not guarded.is_terminal:
        guarded.width = _WIDTH_IF_PIPED
    return guarded


def set_message_format(*, as_json: bool) -> None:
    """Set whether `print_message` prints JSON objects. The default is text."""
    global _json_messages
    _json_messages = as_json


def is_json(log_format: LogFormat, auto: LogFormat) -> bool:
    """Return whether a format means JSON objects here; `AUTO` means `auto` if standard error is not a terminal."""
    if log_format is LogFormat.AUTO:
        log_format = LogFormat.TEXT if sys.stderr.isatty() else auto
    return log_format is LogFormat.JSON


def messages_are_json() -> bool:
    """Return whether `print_message` prints JSON objects."""
    return _json_messages


def print_message(text: str, *, level: str = "info", **fields: Any) -> None:
    """Print a message of a command on standard error: a line of text, or a JSON object like those of the logs.

    `fields` are further fields of the JSON object. The text of a warning begins with "warning: ".
    """
    if _json_messages:
        event = {"event": text, **fields, "level": level, "timestamp": datetime.now(UTC).isoformat()}
        line = json.dumps(redact_event(None, level, event), default=str)
    else:
        line = f"warning: {text}" if level == "warning" else text
    print(clean(line), file=sys.stderr, flush=True)


@cache
def _console_class() -> Any:
    # `isabella --help` must not import rich.
    import rich.console

    class GuardedConsole(rich.console.Console):
        # Not in `print`: a table or a traceback that rich renders can hold texts from elsewhere, too.
        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            return super()._render_buffer(_cleaned(segment) for segment in buffer)

        @property
        def file(self) -> IO[str]:
            """The stream behind the guard, which would print the sequences of our colours as text."""
            stream: IO[str] = unguarded(super().file)
            return stream

        @file.setter
        def file(self, new: IO[str]) -> None:
            self._file = new

    return GuardedConsole


def _cleaned(segment: Segment) -> Segment:
    # Only rich makes control segments: they move the cursor of a progress display.
    return segment if segment.control else segment._replace(text=clean(segment.text))


def _escaped(match: re.Match[str]) -> str:
    text = match.group()
    return "\n" if text == "\r\n" else f"\\u{ord(text):04x}"


class _CleanStream:
    """A text stream that cleans what is written to it.

    It has no `buffer`, which would be a way around it: Typer writes to the buffer if the encoding is not UTF-8.
    """

    def __init__(self, stream: TextIO) -> None:
        self.behind = stream

    def write(self, text: str) -> int:
        self.behind.write(clean(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name in ("behind", "buffer", "detach"):
            raise AttributeError(name)
        return getattr(self.behind, name)
