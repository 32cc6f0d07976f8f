"""Refusals and messages as people published them: `tests/data/recorded_messages.toml`."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLE = tomllib.loads((Path(__file__).parents[1] / "data" / "recorded_messages.toml").read_text("utf-8"))


@dataclass(frozen=True)
class RecordedRefusal:
    """A refusal of a vendor. The table explains the fields."""

    server: str
    source: str
    status: int
    body: str
    message: str
    code: str = "request_refused"
    window: int | None = None

    @property
    def document(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def quoted(self) -> str:
        """The text of the exception that the client in Letta raises for it."""
        return f"Error code: {self.status} - {self.document}"


@dataclass(frozen=True)
class RecordedMessage:
    """A text in which one known message is."""

    source: str
    text: str
    message: str


REFUSALS = {row["server"]: RecordedRefusal(**row) for row in _TABLE["refusals"]}
OVERFLOWS = {name: one for name, one in REFUSALS.items() if one.message == "context-overflow"}
MESSAGES = [RecordedMessage(**row) for row in _TABLE["messages"]]
