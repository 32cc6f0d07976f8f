"""A chat: lines in, answers out, and commands that begin with a slash."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from isabella.chat.line import BackendClient
from isabella.chat.screen import Terminal
from isabella.errors import IsabellaError
from isabella.system.files import write_private

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

    def __init__(self, line: BackendClient, screen: Terminal) -> None:
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
