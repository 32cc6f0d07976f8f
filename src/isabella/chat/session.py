"""The chat session: reads messages and commands, sends them, and shows the events of each turn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.text import Text

from isabella.chat.client import BackendClient, TurnEvent
from isabella.errors import IsabellaError
from isabella.system.files import write_private
from isabella.system.terminal import console, print_message

_HELP = """\
/model [HANDLE]       list the models that would work, or switch to one
/memory               show the agent's core memory
/remember TEXT        add a passage to its archival memory
/conversation [NAME]  list its conversations, or go to one; `new` begins one
/search WORDS         search its archival memory and this conversation
/export [FILE]        write the agent to a file, without any key
/quit                 leave (Ctrl-D does, too); Ctrl-C stops an answer"""
_PROMPT = "> "
_RESULT_LIMIT = 200


class Screen:
    """The display of a chat: colours and reasoning on a terminal, only the answers if the output is piped."""

    def __init__(self) -> None:
        self._out = console(soft_wrap=True)
        self._streaming = ""
        self._handle = ""

    @property
    def interactive(self) -> bool:
        """Whether both input and output are a terminal."""
        return sys.stdin.isatty() and self._out.is_terminal

    def print(self, text: str) -> None:
        """Print a line of output."""
        self._out.print(Text(text))

    def note(self, text: str) -> None:
        """Print a dimmed line; on standard error if the output is piped."""
        if self._out.is_terminal:
            self._out.print(Text(text, style="dim"))
        else:
            print_message(text)

    def error(self, text: str) -> None:
        """Print an error on standard error."""
        print_message(text, level="error")

    def show(self, events: Iterable[TurnEvent]) -> bool:
        """Show the events of a turn as they arrive. Returns whether it was completed, or stopped by the user."""
        answered = False
        for event in events:
            self._show_event(event.kind, event.data)
            answered = answered or (
                event.kind == "end" and event.data["reason"] in ("completed", "stopped", "length")
            )
        return answered

    def _show_event(self, kind: str, data: dict[str, Any]) -> None:
        match kind:
            case "text":
                self._stream("text", data["text"])
            case "reasoning" if self._out.is_terminal:
                self._stream("reasoning", data["text"])
            case "queued":
                self._step("waiting for another turn of this agent …")
            case "held":
                self._step(f"waiting: {data['reason']}")
            case "vendor":
                self._handle = data["handle"]
            case "failover":
                self._step(f"{data['handle']} does not answer: {data['message']}")
            case "tool_call":
                self._step(f"→ {data['name']} {data['arguments']}")
            case "tool_result":
                sign = "←" if data["ok"] else "✗"
                self._step(f"{sign} {' '.join(data['text'].split())[:_RESULT_LIMIT]}")
            case "condensed":
                self._step("older messages were summarised")
            case "error":
                self._end_line()
                self.error(f"{data['message']} {data.get('remedy') or ''}".strip())
            case "end":
                self._end_line()
                self._show_end(data)

    def _show_end(self, data: dict[str, Any]) -> None:
        if data["reason"] == "stopped":
            self.note("stopped" if data["stored"] else "stopped; nothing was stored")
        elif data["reason"] == "completed" and self._out.is_terminal:
            self.note(f"{data.get('handle', self._handle)}, {data['seconds']:.1f} s")
        elif data["reason"] == "length":
            self.note("cut off: the answer reached its limit (ISABELLA_ANSWER_TOKENS, ISABELLA_TURN_TIMEOUT)")
        elif data["reason"] == "needs_approval":
            self.note("a tool call needs approval, which is given in Letta")

    def _stream(self, kind: str, text: str) -> None:
        """Print a fragment of text or reasoning, without waiting for the end of its line."""
        if self._streaming != kind:
            self._end_line()
            self._streaming = kind
        self._out.print(Text(text, style="dim" if kind == "reasoning" else ""), end="")
        self._out.file.flush()

    def _step(self, text: str) -> None:
        self._end_line()
        self.note(text)

    def _end_line(self) -> None:
        if self._streaming:
            self._out.print()
            self._streaming = ""


class ChatSession:
    """One chat, from its first input to the end of the input."""

    def __init__(self, client: BackendClient, screen: Screen) -> None:
        self._client = client
        self._screen = screen
        self._failed = False
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _argument: screen.print(_HELP),
            "model": self._model,
            "memory": self._memory,
            "remember": self._remember,
            "search": self._search,
            "conversation": self._conversation,
            "export": self._export,
        }

    def run(self) -> bool:
        """Chat until the input ends. Returns whether every message was answered."""
        about = self._client.about()
        if self._screen.interactive:
            self._screen.note(f"{about['name']} on {about['model']['handle']}. /help lists the commands.")
        for line in self._lines():
            if line in ("/quit", "/exit"):
                break
            try:
                self._handle(line)
            except IsabellaError as error:
                self._failed = True
                self._screen.error(str(error))
            except KeyboardInterrupt:
                self._screen.note("interrupted")
        return not self._failed

    def _lines(self) -> Iterator[str]:
        if not self._screen.interactive:
            yield from (line.strip() for line in sys.stdin if line.strip())
            return
        with suppress(ImportError):
            # Adds history and editing to `input`.
            import readline  # noqa: F401
        while True:
            try:
                line = input(_PROMPT).strip()
            except EOFError:
                self._screen.print("")
                return
            except KeyboardInterrupt:
                self._screen.note("\n/quit or Ctrl-D leaves")
                continue
            if line:
                yield line

    def _handle(self, line: str) -> None:
        if not line.startswith("/"):
            self._send(line)
            return
        name, _, argument = line[1:].partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise IsabellaError(f"There is no command /{name}.", remedy="/help lists the commands.")
        command(argument.strip())

    def _send(self, message: str) -> None:
        turn = self._client.send(message)
        events = iter(turn)
        while True:
            try:
                if not self._screen.show(events):
                    self._failed = True
                return
            except KeyboardInterrupt:
                # The turn is cancelled and the chat continues; the events up to the end are still shown.
                turn.stop()
                events = iter(turn)

    def _model(self, handle: str) -> None:
        if handle:
            switched, notes = self._client.switch(handle)
            self._screen.print(f"The agent now uses {switched}.")
            for note in notes:
                self._screen.note(note)
            return
        current = self._client.about()["model"]["handle"]
        for known in self._client.handles():
            self._screen.print(f"{'*' if known == current else ' '} {known}")

    def _conversation(self, name: str) -> None:
        if name:
            self._screen.print(f"Now in: {self._client.use_conversation(name)}")
            return
        current = self._client.conversation or "default"
        for id, known in self._client.conversations():
            self._screen.print(f"{'*' if id == current else ' '} {known}  {id}")

    def _memory(self, _argument: str) -> None:
        for label, value in self._client.blocks():
            self._screen.print(f"{label}:")
            for line in value.strip().splitlines() or ["(empty)"]:
                self._screen.print(f"  {line}")

    def _remember(self, text: str) -> None:
        if not text:
            raise IsabellaError("/remember needs a text.", remedy="For example: /remember My dog is called Rex.")
        self._client.remember(text)
        self._screen.print("Added to archival memory.")

    def _search(self, words: str) -> None:
        if not words:
            raise IsabellaError("/search needs words to search for.", remedy="For example: /search dog")
        for line in self._client.search(words) or ["Nothing was found."]:
            self._screen.print(line)

    def _export(self, name: str) -> None:
        path = Path(name or f"{self._client.agent}.af").expanduser()
        try:
            write_private(path, self._client.export().decode())
        except OSError as error:
            raise IsabellaError(
                f"{path}: cannot be written: {error.strerror}.", remedy="Name another file."
            ) from None
        self._screen.print(f"Wrote {path}")
