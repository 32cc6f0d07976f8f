"""What the real vendors are publicly known to refuse in a chat request, beyond a wrong key or model.

Collected from public bug reports of 2025 and 2026, not from runs against the vendors. A practice vendor refuses what
many reports confirm, unless it is told to be lenient. Everything else is only noted in the request log, unless it is
told to be strict.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Mistral answers 422 `extra_forbidden` to every field that is not in its schema. `user` and `stream_options` are
# not in the schema either, but no recent report says that they are refused.
_MISTRAL_FIELDS_TEXT = """
model messages temperature top_p max_tokens stream stop random_seed response_format tools tool_choice
presence_penalty frequency_penalty n prediction parallel_tool_calls prompt_mode safe_prompt metadata
reasoning_effort prompt_cache_key guardrails user stream_options
"""
_MISTRAL_FIELDS = frozenset(_MISTRAL_FIELDS_TEXT.split())
_MISTRAL_MESSAGE_FIELDS = {
    "assistant": frozenset({"role", "content", "tool_calls", "prefix"}),
    "tool": frozenset({"role", "content", "tool_call_id", "name"}),
}
_MISTRAL_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
# Cerebras and Groq answer 400. They send reasoning as `reasoning`, and do not take it back as `reasoning_content`.
_REFUSED_IN_MESSAGES = ("reasoning_content", "reasoning_content_signature", "redacted_reasoning_content", "metadata")
_CEREBRAS_REFUSED = ("enable_thinking", "reasoning", "store")
_GROQ_REFUSED = ("store", "reasoning")


@dataclass(frozen=True)
class Objection:
    """A part of a request that a vendor is known to refuse.

    Attributes:
        text: the vendor's message.
        refusal: the key of its refusal in `vendors.toml`.
        certain: whether it is refused unless the vendor is told to be lenient.
    """

    text: str
    refusal: str = "bad_request"
    certain: bool = False


def objections(vendor: str, body: Mapping[str, Any]) -> tuple[Objection, ...]:
    """Return everything in a request that this vendor is known to refuse."""
    check = {"mistral": _mistral, "cerebras": _cerebras, "groq": _groq}.get(vendor)
    return () if check is None else tuple(check(body))


def _mistral(body: Mapping[str, Any]) -> Iterator[Objection]:
    for name in body:
        if name not in _MISTRAL_FIELDS:
            yield Objection(f"body.{name}: Extra inputs are not permitted")
    previous_role = ""
    for index, message in _messages(body):
        role = str(message.get("role"))
        if (previous_role, role) == ("tool", "user"):
            yield Objection("Unexpected role 'user' after role 'tool'", "bad_order", certain=True)
        previous_role = role
        for name in message:
            if name not in _MISTRAL_MESSAGE_FIELDS.get(role, ("role", "content")):
                yield Objection(f"body.messages.{index}.{role}.{name}: Extra inputs are not permitted")
        for call_id in _call_ids(message):
            if not _MISTRAL_CALL_ID.fullmatch(call_id):
                text = f"Tool call id was {call_id} but must be a-z, A-Z, 0-9, with a length of 9."
                yield Objection(text, "bad_call_id", certain=True)


def _cerebras(body: Mapping[str, Any]) -> Iterator[Objection]:
    paths = [name for name in _CEREBRAS_REFUSED if name in body]
    paths += [f"messages.{index}.{role}.{name}" for index, role, name in _refused_in_messages(body)]
    for path in paths:
        yield Objection(f"{path}: property '{path}' is unsupported")


def _groq(body: Mapping[str, Any]) -> Iterator[Objection]:
    for name in _GROQ_REFUSED:
        if name in body:
            yield Objection(f"property '{name}' is unsupported")
    for index, role, name in _refused_in_messages(body):
        place = f"'messages.{index}' : for 'role:{role}'"
        unmet = f"('messages.{index}' : property '{name}' is unsupported)"
        yield Objection(f"{place} the following must be satisfied[{unmet}]")


def _refused_in_messages(body: Mapping[str, Any]) -> Iterator[tuple[int, object, str]]:
    """Yield the fields of messages that Cerebras and Groq refuse: index and role of the message, and field name."""
    for index, message in _messages(body):
        for name in _REFUSED_IN_MESSAGES:
            if name in message:
                yield index, message.get("role"), name


def _messages(body: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    messages = body.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            yield index, message


def _call_ids(message: Mapping[str, Any]) -> Iterator[str]:
    """Yield the ids of the tool calls in a message, or the id of the call whose result it is."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        yield str(call.get("id")) if isinstance(call, dict) else ""
    if message.get("role") == "tool":
        yield str(message.get("tool_call_id"))
