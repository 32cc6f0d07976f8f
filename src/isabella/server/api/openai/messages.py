"""The message to the agent in a request: the last one of the client's conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from isabella.errors import MessageRefused
from isabella.letta.messages import Image
from isabella.server.api.openai.errors import Unsupported
from isabella.server.api.turns import CONVERSATION, CONVERSATION_PATTERN
from isabella.turns.message import IMAGE_TYPES, UserMessage, too_large
from isabella.turns.service import has_text

_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image_url", "input_image")
#: Clients put their own notes behind the user's message, too.
_NOTES = ("system", "developer")


_DATA_URL = re.compile(rf"data:({'|'.join(IMAGE_TYPES)});base64,([A-Za-z0-9+/]+={{0,2}})", re.IGNORECASE)


#: OpenAI gives its id, or an object with it.
ConversationParam = Annotated[
    Annotated[str, Field(pattern=CONVERSATION_PATTERN)] | None,
    BeforeValidator(lambda given: given.get("id") if isinstance(given, dict) else given),
    Field(description=CONVERSATION),
]


class ContentPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """A message of the client's conversation."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[ContentPart] | None = None

    @property
    def text(self) -> str:
        """Its text."""
        if isinstance(self.content, list):
            return "\n".join(part.text or "" for part in self.content if part.type in _TEXT_PARTS)
        return self.content or ""

    @property
    def parts(self) -> Sequence[ContentPart]:
        """Its parts; none if it is a text."""
        return self.content if isinstance(self.content, list) else ()


def message_to_agent(messages: Sequence[ChatMessage], param: str) -> UserMessage:
    """Return the last message, which must be the user's; `param` is where the messages come from.

    Raises:
        Unsupported: the last message is not the user's, or has parts that an agent does not take.
        MessageRefused: it has no text.
    """
    last = next((message for message in reversed(messages) if message.role not in _NOTES), None)
    if last is None:
        raise MessageRefused("The request has no user message.", remedy="Add one with the role `user`.")
    if last.role != "user":
        raise _not_the_users(last.role, param)
    images = tuple(_image(part, param) for part in last.parts if part.type not in _TEXT_PARTS)
    if (problem := too_large(images)) is not None:
        raise Unsupported(problem, param=param, remedy="Send smaller ones.")
    if not has_text(last.text):
        raise MessageRefused("The last message has no text.", remedy="Send at least one visible character.")
    return UserMessage(last.text, images)


def _not_the_users(role: str, param: str) -> Unsupported:
    """Return the error for a request whose last message is not the user's."""
    if role == "assistant":
        what = "The last message is the assistant's, and an agent does not continue an answer of a client's copy."
        remedy = 'Send a message with the role `user`, such as "Go on.": the agent knows what it has said.'
    elif role in ("tool", "function"):
        what = "The last message is the result of a client's tool, and an agent calls only its own tools."
        remedy = "Send the result as a message with the role `user`, or give the tool to the agent in Letta."
    else:
        what, remedy = f"The last message has the role {role[:40]!r}.", "Send one with the role `user`."
    return Unsupported(what, param=param, remedy=remedy)


def _image(part: ContentPart, param: str) -> Image:
    """Return the image in a part; raise `Unsupported` for any other part, and for an image that is elsewhere."""
    if part.type not in _IMAGE_PARTS:
        raise Unsupported(
            f"An agent takes no parts of the type {part.type[:40]!r}.", param=param, remedy="Send text or images."
        )
    given = (part.model_extra or {}).get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    match = _DATA_URL.fullmatch(url) if isinstance(url, str) else None
    if match is None:
        raise Unsupported(
            "An image must be in the request; neither Isabella nor Letta fetches one.",
            param=param,
            code="image_not_supported",
            remedy="Send it as a data URL with base64: image/png, image/jpeg, image/gif or image/webp.",
        )
    return Image(match[1].lower(), match[2])


def refuse_forced_tool(choice: Any) -> None:
    """Raise `Unsupported` if a `tool_choice` forces a call of a client's tool."""
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind not in (None, "auto", "none", "allowed_tools"):
        raise Unsupported(
            "The request forces a call of a client's tool, and an agent calls only its own tools.",
            param="tool_choice",
            remedy="For an answer in JSON, use `response_format`, or the model `NAME:aside`.",
        )
