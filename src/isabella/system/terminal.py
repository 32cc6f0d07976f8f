"""Output without control characters, so that no text from elsewhere can drive the terminal it is printed on.

Answers, memory, names, logs and errors come from models, vendors, agent files and other people. An escape sequence in
one of them would be carried out by the terminal: it can write the clipboard (OSC 52), move the cursor, or hide text.

`guard_output` replaces `sys.stdout` and `sys.stderr` by streams that write no control character but newline and tab,
whatever is printed and by whom. Text with colours goes through `isabella.system.console.GuardedConsole`, which cleans
the text and adds its own sequences; it, and the handler of the logs, are the only users of `unguarded`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

# C0 but tab and newline, DEL, C1, the overrides and isolates of writing direction (they make text look like another
# text), and lone surrogates (they cannot be encoded).
_UNSAFE = re.compile("\r\n|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    r"""The text with every unsafe character written as `\u001b`, which means the same within a JSON string."""
    return _UNSAFE.sub(_escaped, text)


def guard_output() -> None:
    """From now on, print only clean text on standard output and standard error."""
    if sys.stdout is not None:
        sys.stdout = _guarded(sys.stdout)
    if sys.stderr is not None:
        sys.stderr = _guarded(sys.stderr)


def unguarded(stream: Any) -> Any:
    """The stream behind a guarded one, for text that is clean already and has colours."""
    return stream.behind if isinstance(stream, _CleanStream) else stream


def _escaped(found: re.Match[str]) -> str:
    text = found.group()
    return "\n" if text == "\r\n" else f"\\u{ord(text):04x}"


def _guarded(stream: TextIO) -> TextIO:
    return stream if isinstance(stream, _CleanStream) else cast(TextIO, _CleanStream(stream))


class _CleanStream:
    """A text stream that cleans what is written to it.

    It has no `buffer`: that would be a way around it, and Typer takes it where the encoding is not UTF-8.

    Attributes:
        behind: the stream that is written to.
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
