"""What a chat looks like: the answer as it comes, and dimmed what the agent thinks and does for it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.text import Text

from isabella.chat.line import TurnEvent
from isabella.system.console import GuardedConsole

_RESULT_LIMIT = 200


class Terminal:
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
