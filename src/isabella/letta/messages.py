"""Messages in the form in which Letta takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Image:
    """An image in a message: its media type, such as `image/png`, and its bytes in base64."""

    media_type: str
    data: str = field(repr=False)


def by_user(text: str, images: Sequence[Image] = (), request_id: str | None = None) -> dict[str, Any]:
    """Return a message of the user in the form that Letta takes; `request_id` is stored with it, as its `otid`."""
    if request_id is not None:
        return {**by_user(text, images), "otid": request_id}
    if not images:
        return {"role": "user", "content": text}
    parts = [
        {"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": image.data}}
        for image in images
    ]
    return {"role": "user", "content": [{"type": "text", "text": text}, *parts]}
