"""A chat: lines in, answers out, and commands that begin with a slash."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.text import Text

from isabella.chat.client import BackendClient, TurnEvent
from isabella.errors import IsabellaError
from isabella.system.console import GuardedConsole
from isabella.system.files import write_private

_RESULT_LIMIT = 200


class Screen:
    """Shows turns on a terminal, and plain answers where the output is piped."""

    def __init__(self) -> None:
        self._out = GuardedConsole(soft_wrap=True)
        self._err = GuardedConsole(stderr=True, soft_wrap=True)
        self._in = ""
        self._vendor = ""

    @property
    def interactive(self) -> bool:
        """Whether somebody types here."""
        return sys.stdin.isatty() and self._out.is_terminal

    def say(self, text: str) -> None:
        """A line of ours."""
        self._out.print(Text(text))

    def note(self, text: str) -> None:
        """A dimmed line of ours; beside the output where that is piped."""
        (self._out if self._out.is_terminal else self._err).print(Text(text, style="dim"))

    def fail(self, text: str) -> None:
        """What went wrong."""
        self._err.print(Text(text, style="red" if self._err.is_terminal else ""))

    def show(self, events: Iterable[TurnEvent]) -> bool:
        """Show a turn as it comes. Returns whether it was answered, or stopped by somebody."""
        answered = False
        for event in events:
            self._one(event.kind, event.data)
            answered = answered or (event.kind == "end" and event.data["reason"] in ("completed", "stopped"))
        return answered

    def _one(self, kind: str, data: dict[str, Any]) -> None:
        match kind:
            case "text":
                self._flow("text", data["text"])
            case "reasoning" if self._out.is_terminal:
                self._flow("reasoning", data["text"])
            case "queued":
                self._step("waiting for another turn of this agent …")
            case "held":
                self._step(f"waiting while {data['provider']} is being changed …")
            case "vendor":
                self._vendor = data["handle"]
            case "failover":
                self._step(f"{data['handle']} does not answer: {data['message']}")
            case "tool_call":
                self._step(f"→ {data['name']} {data['arguments']}")
            case "tool_result":
                sign = "←" if data["ok"] else "✗"
                self._step(f"{sign} {' '.join(data['text'].split())[:_RESULT_LIMIT]}")
            case "condensed":
                self._step("older messages were summed up")
            case "error":
                self._end_of_line()
                self.fail(f"{data['message']} {data.get('remedy') or ''}".strip())
            case "end":
                self._end_of_line()
                self._close(data)

    def _close(self, data: dict[str, Any]) -> None:
        if data["reason"] == "stopped":
            self.note("stopped" if data["stored"] else "stopped; nothing was said")
        elif data["reason"] == "completed" and self._out.is_terminal:
            self.note(f"{data.get('handle', self._vendor)}, {data['seconds']:.1f} s")
        elif data["reason"] == "needs_approval":
            self.note("a tool waits for an approval, which is given in Letta")

    def _flow(self, kind: str, text: str) -> None:
        """Text that comes in pieces."""
        if self._in != kind:
            self._end_of_line()
            self._in = kind
        # Written as it is: a console that wraps lines would have to wait for them.
        style = "dim" if kind == "reasoning" else ""
        self._out.print(Text(text, style=style), end="")
        self._out.file.flush()

    def _step(self, text: str) -> None:
        self._end_of_line()
        self.note(text)

    def _end_of_line(self) -> None:
        if self._in:
            self._out.print()
            self._in = ""


_HELP = """\
/model            the models that would work; with a handle, switch to it
/memory           what the agent has in its memory blocks
/remember TEXT    put something into its archival memory, in your own words
/search WORDS     search its archival memory and what was said
/export [FILE]    write the agent to a file, with no key in it
/quit             leave (Ctrl-D does, too); Ctrl-C stops an answer"""
_PROMPT = "> "


class ChatSession:
    """One chat.

    Args:
        line: to the backend.
        screen: shows it.
    """

    def __init__(self, line: BackendClient, screen: Screen) -> None:
        self._line = line
        self._screen = screen
        self._failed = False
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _rest: screen.say(_HELP),
            "model": self._model,
            "memory": self._memory,
            "remember": self._remember,
            "search": self._search,
            "export": self._export,
        }

    def run(self) -> bool:
        """Chat until the input ends. Returns whether everything was answered."""
        about = self._line.about()
        if self._screen.interactive:
            self._screen.note(f"{about['name']} on {about['model']['handle']}. /help shows what else there is.")
        for text in self._lines():
            if text in ("/quit", "/exit"):
                break
            try:
                self._take(text)
            except IsabellaError as error:
                self._failed = True
                self._screen.fail(str(error))
            except KeyboardInterrupt:
                self._screen.note("interrupted")
        return not self._failed

    def _lines(self) -> Iterator[str]:
        if not self._screen.interactive:
            yield from (line.strip() for line in sys.stdin if line.strip())
            return
        with suppress(ImportError):
            # History and editing, where there are any.
            import readline  # noqa: F401
        while True:
            try:
                text = input(_PROMPT).strip()
            except EOFError:
                self._screen.say("")
                return
            except KeyboardInterrupt:
                self._screen.note("\n/quit or Ctrl-D leaves")
                continue
            if text:
                yield text

    def _take(self, text: str) -> None:
        if not text.startswith("/"):
            self._say(text)
            return
        name, _, rest = text[1:].partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise IsabellaError(f"There is no command /{name}.", remedy="/help shows those there are.")
        command(rest.strip())

    def _say(self, text: str) -> None:
        conversation = self._line.say(text)
        events = iter(conversation)
        while True:
            try:
                if not self._screen.show(events):
                    self._failed = True
                return
            except KeyboardInterrupt:
                # The answer stops, the chat goes on: what still comes is its end.
                conversation.stop()
                events = iter(conversation)

    def _model(self, handle: str) -> None:
        if handle:
            switched, notes = self._line.switch(handle)
            self._screen.say(f"From now on: {switched}")
            for note in notes:
                self._screen.note(note)
            return
        now = self._line.about()["model"]["handle"]
        for known in self._line.handles():
            self._screen.say(f"{'*' if known == now else ' '} {known}")

    def _memory(self, _rest: str) -> None:
        for label, value in self._line.blocks():
            self._screen.say(f"{label}:")
            for row in value.strip().splitlines() or ["(empty)"]:
                self._screen.say(f"  {row}")

    def _remember(self, text: str) -> None:
        if not text:
            raise IsabellaError(
                "What is to be remembered?", remedy="Write it behind: /remember My dog is called Rex."
            )
        self._line.remember(text)
        self._screen.say("It is in the archival memory.")

    def _search(self, words: str) -> None:
        if not words:
            raise IsabellaError("What is to be searched for?", remedy="Write it behind: /search dog")
        found = self._line.search(words)
        for row in found or ["Nothing was found."]:
            self._screen.say(row)

    def _export(self, name: str) -> None:
        path = Path(name or f"{self._line.agent}.af").expanduser()
        try:
            write_private(path, self._line.export().decode())
        except OSError as error:
            raise IsabellaError(f"{path}: cannot be written: {error.strerror}.") from None
        self._screen.say(f"Written to {path}")
