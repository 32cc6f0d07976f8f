"""What a user sends to an agent."""

from __future__ import annotations

from dataclasses import dataclass

from isabella.letta.client import Image


@dataclass(frozen=True)
class UserMessage:
    """A message of a user: its text, and the images beside it."""

    text: str
    images: tuple[Image, ...] = ()

    @classmethod
    def of(cls, message: str | UserMessage) -> UserMessage:
        """Return a message that may be given as its text."""
        return cls(message) if isinstance(message, str) else message
