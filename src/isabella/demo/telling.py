"""How the story is told: a line for each thing that happens, and a note of what did not go as told."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

import rich.console
from rich.text import Text

_LABEL = 15
_WIDEST = 118


@dataclass
class Narrator:
    """Prints the story, and keeps what differed from it.

    Attributes:
        console: where it is printed; colours only a terminal.
        differences: what did not go as the story says, a sentence each.
    """

    console: rich.console.Console
    differences: list[str] = field(default_factory=list)

    def act(self, title: str) -> None:
        """A new act begins."""
        self.console.print()
        self.console.print(Text(title, style="bold"))

    def tell(self, who: str, what: str, *, style: str = "") -> None:
        """Something that happened."""
        width = min(self.console.width, _WIDEST) - _LABEL - 2
        lines = textwrap.wrap(what, width, break_long_words=False, break_on_hyphens=False) or [""]
        for label, line in zip([who, *[""] * len(lines)], lines, strict=False):
            self.console.print(Text.assemble("  ", (label.ljust(_LABEL), "dim"), (line, style)), soft_wrap=True)

    def expect(self, who: str, what: str, *, told: str, held: bool, style: str = "") -> None:
        """Something that happened, and of which the story says how it goes.

        Args:
            who: whose doing it is.
            what: what really happened.
            told: what should have happened, for the case that it did not.
            held: whether it did.
            style: how it looks where it went as told.
        """
        self.tell(who, what, style=style if held else "bold red")
        if not held:
            self.differences.append(f"{who}: {what!r}, where the story says: {told}")

    def end(self) -> bool:
        """Say how it went. Returns whether the story went as told."""
        self.console.print()
        for difference in self.differences:
            self.console.print(Text(f"not as told: {difference}", style="bold red"))
        if not self.differences:
            self.console.print(Text("It went as told: every line above is what was asked and answered just now."))
        return not self.differences
