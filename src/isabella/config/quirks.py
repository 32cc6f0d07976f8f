"""Differences between a vendor's chat API and OpenAI's."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, field_validator

from isabella.system.english import english

_Names = tuple[StrictStr, ...]
_Tokens = Annotated[StrictInt, Field(gt=0)]


class Quirks(BaseModel):
    """The differences of a vendor's chat API from OpenAI's. The default is none.

    Attributes:
        only_fields: the only fields that it accepts in a request; empty if it accepts any.
        drop_fields: fields of a request that it refuses.
        rename_fields: fields of a request that it knows by another name.
        only_message_fields: the only fields that it accepts in a message; empty if it accepts any.
        drop_message_fields: fields of a message that it refuses.
        tool_call_id_length: the length of tool-call ids, all letters and digits; None if it accepts any id.
        paired_results: whether it refuses a tool call without a result, and a result without a call.
        user_after_tool_refused: whether it refuses a user message directly after a tool result.
        empty_assistant_refused: whether it refuses an assistant message with neither content nor tool calls.
        assistant_last_refused: whether it refuses an assistant message as the last one.
        reasoning_required: whether it refuses its own tool calls without their `reasoning_content`.
        no_thinking: fields of a request that switch reasoning off.
        named_tool_refused: whether it refuses a `tool_choice` that names a tool.
        fields_with_tools: fields of a request that has tools, by a regular expression for the ids of the models.
        tool_call_fields: fields of a tool call that it requires, for calls that do not have them.
        unnumbered_calls: whether the tool calls in its streams have no number, or all the same one.
        max_output_tokens: the largest limit of output tokens that it accepts.
        default_output_tokens: the limit of output tokens for requests that have none; None to send none.
        image_models: the models that take images, as patterns such as `mistral-*`; None if that is not known.
        request_limit_period: the period of `x-ratelimit-limit-requests` without a suffix.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    only_fields: _Names = ()
    drop_fields: _Names = ()
    rename_fields: dict[StrictStr, StrictStr] = Field(default_factory=dict)
    only_message_fields: _Names = ()
    drop_message_fields: _Names = ()
    tool_call_id_length: Annotated[StrictInt, Field(ge=8, le=64)] | None = None
    paired_results: StrictBool = False
    user_after_tool_refused: StrictBool = False
    empty_assistant_refused: StrictBool = False
    assistant_last_refused: StrictBool = False
    reasoning_required: StrictBool = False
    no_thinking: dict[StrictStr, Any] = Field(default_factory=dict)
    named_tool_refused: StrictBool = False
    fields_with_tools: dict[StrictStr, dict[StrictStr, Any]] = Field(default_factory=dict)
    tool_call_fields: dict[StrictStr, Any] = Field(default_factory=dict)
    unnumbered_calls: StrictBool = False
    max_output_tokens: _Tokens | None = None
    default_output_tokens: _Tokens | None = None
    image_models: _Names | None = None
    request_limit_period: Literal["minute", "day"] = "minute"

    def takes_images(self, model: str) -> bool | None:
        """Return whether a model takes images; None if that is not known."""
        if self.image_models is None:
            return None
        return any(fnmatchcase(model, pattern) for pattern in self.image_models)

    @field_validator("fields_with_tools")
    @classmethod
    def _are_patterns(cls, value: dict[str, Any]) -> dict[str, Any]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    english("%(text)s is not a regular expression: %(why)s", text=repr(pattern), why=error)
                ) from None
        return value
