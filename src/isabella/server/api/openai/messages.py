"""The message to the agent in a request: the last one of the client's conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from isabella.errors import MessageRefused
from isabella.server.api.openai.errors import Unsupported
from isabella.turns.service import has_text

_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image_url", "input_image")
#: Clients put notes of their own behind the user's message, too.
_NOTES = ("system", "developer")


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


def message_to_agent(messages: Sequence[ChatMessage], param: str) -> str:
    """Return the text of the last message, which has to be the user's; `param` is where the messages come from.

    Raises:
        Unsupported: the last message is not the user's, or has parts that an agent does not take.
        MessageRefused: it has no text.
    """
    last = next((message for message in reversed(messages) if message.role not in _NOTES), None)
    if last is None:
        raise MessageRefused("The request has no message of the user.", remedy="Add one with the role `user`.")
    if last.role != "user":
        raise _not_the_users(last.role, param)
    for part in last.parts:
        if part.type not in _TEXT_PARTS:
            raise _not_taken(part, param)
    if not has_text(last.text):
        raise MessageRefused("The last message has no text.", remedy="Send at least one visible character.")
    return last.text


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


def _not_taken(part: ContentPart, param: str) -> Unsupported:
    if part.type in _IMAGE_PARTS:
        return Unsupported("Agents take no images here.", param=param, code="image_not_supported")
    return Unsupported(f"An agent takes no parts of the type {part.type[:40]!r}.", param=param, remedy="Send text.")


def refuse_forced_tool(choice: Any) -> None:
    """Raise `Unsupported` if a request forces a call of a tool of the client's. An agent calls its own tools only."""
    forced = choice in ("required", "any") or (isinstance(choice, dict) and choice.get("type") != "auto")
    if forced and not (isinstance(choice, dict) and choice.get("type") in ("none", "allowed_tools")):
        raise Unsupported(
            "The request forces a call of a client's tool, and an agent calls only its own tools.",
            param="tool_choice",
            remedy="For an answer in JSON, use `response_format`, or the model `NAME:aside`.",
        )
