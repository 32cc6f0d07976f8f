"""A user's message to an agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isabella.letta.messages import Image

_MIB = 1024 * 1024
#: Of all images of a message, in characters of base64. Every later request of the agent repeats an image as long as
#: it is in the context.
LARGEST_IMAGES = 8 * _MIB
#: The media types of images that models take.
IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")


def too_large(images: Sequence[Image]) -> str | None:
    """Return the problem with the images of a message if they are too large together."""
    if sum(len(image.data) for image in images) <= LARGEST_IMAGES:
        return None
    return f"The images have more than {LARGEST_IMAGES // _MIB} MiB."


@dataclass(frozen=True)
class UserMessage:
    """A message of a user: its text, and the images beside it.

    With `replaces`, the id of an earlier message of the user, that message and everything after it leave the agent's
    context; they stay in the history. `handle` is the model that is asked first, in this turn only. `request_id` is
    the same in each repeat of a request.
    """

    text: str
    images: tuple[Image, ...] = ()
    replaces: str | None = None
    handle: str | None = None
    request_id: str | None = None

    @classmethod
    def of(cls, message: str | UserMessage) -> UserMessage:
        """Return a message that may be given as its text."""
        return cls(message) if isinstance(message, str) else message
