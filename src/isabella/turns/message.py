"""What a user sends to an agent."""

from __future__ import annotations

from dataclasses import dataclass

from isabella.letta.client import Image


@dataclass(frozen=True)
class UserMessage:
    """A message of a user: its text, and the images beside it.

    With `replaces`, the id of an earlier message of the user, that message and everything after it leave the agent's
    context; they stay in the history. `handle` is the model that is asked first, in this turn only.
    """

    text: str
    images: tuple[Image, ...] = ()
    replaces: str | None = None
    handle: str | None = None

    @classmethod
    def of(cls, message: str | UserMessage) -> UserMessage:
        """Return a message that may be given as its text."""
        return cls(message) if isinstance(message, str) else message
