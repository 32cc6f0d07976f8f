"""What the real vendors are publicly known to refuse in a chat request, beyond a wrong key or model.

Collected from public bug reports of 2025 and 2026, the vendors' documentation and the types of their SDKs, not from
runs against the vendors. A practice vendor refuses what many reports confirm, unless it is told to be lenient.
Everything else is only noted in the request log, unless it is told to be strict.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from isabella.practice.wire import PracticeModel, Profile

# Mistral answers 422 `extra_forbidden` to every field that is not in its schema, null or not. These are the fields of
# the request and of the messages in its SDK.
_MISTRAL_FIELDS_TEXT = """
model messages temperature top_p max_tokens stream stop random_seed metadata response_format tools tool_choice
presence_penalty frequency_penalty min_tokens repetition_penalty top_k logprobs top_logprobs prompt_logprobs
top_prompt_logprobs n prediction parallel_tool_calls reasoning_effort prompt_mode guardrails prompt_cache_key
service_tier safe_prompt
"""
_MISTRAL_FIELDS = frozenset(_MISTRAL_FIELDS_TEXT.split())
_MISTRAL_MESSAGE_FIELDS = {
    "assistant": frozenset({"role", "content", "tool_calls", "prefix"}),
    "tool": frozenset({"role", "content", "tool_call_id", "name"}),
}
_MISTRAL_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
# Cerebras and Groq answer 400. They send reasoning as `reasoning`, and do not take it back as `reasoning_content`.
_REFUSED_IN_MESSAGES = ("reasoning_content", "reasoning_content_signature", "redacted_reasoning_content", "metadata")
_CEREBRAS_REFUSED = (
    "enable_thinking",
    "reasoning",
    "store",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
)
_GROQ_REFUSED = ("store", "reasoning", "logprobs", "top_logprobs", "logit_bias")
# LongCat knows `thinking` instead of an effort; its clients leave these out.
_LONGCAT_REFUSED = ("reasoning_effort", "store")


@dataclass(frozen=True)
class Objection:
    """A part of a request that a vendor is known to refuse.

    Attributes:
        text: the vendor's message.
        refusal: the key of its refusal in `vendors.toml`.
        certain: whether it is refused unless the vendor is told to be lenient.
        problem: the entry for it in a list of problems, if the vendor answers with one.
    """

    text: str
    refusal: str = "bad_request"
    certain: bool = False
    problem: Mapping[str, Any] | None = None


def objections(vendor: Profile, body: Mapping[str, Any], model: PracticeModel | None = None) -> tuple[Objection, ...]:
    """Return everything in a request to a model that this vendor is known to refuse."""
    checks = {"mistral": _mistral, "cerebras": _cerebras, "groq": _groq, "longcat": _longcat}
    return tuple(checks.get(vendor.name, _by_data)(vendor, body, model))


def _by_data(vendor: Profile, body: Mapping[str, Any], model: PracticeModel | None) -> Iterator[Objection]:
    """Yield the objections of a vendor whose rules are data: `refuses` in its profile."""
    rules = vendor.refuses
    allowed, fields = frozenset(rules.get("fields_but", ())), frozenset(rules.get("fields", ()))
    for name in body:
        if name in fields or (allowed and name not in allowed):
            yield Objection(rules.get("field_words", "Unsupported parameter: %").replace("%", name))
    for name, words in rules.get("only_texts", {}).items():
        if not isinstance(body.get(name, ""), str):
            yield Objection(words, certain=True)
    for index, message in _messages(body):
        for name in rules.get("message_fields", ()):
            if message.get(name) is not None:
                yield Objection(f"Extra inputs are not permitted, field: 'messages[{index}].{name}'")
        if "null_content" in rules and message.get("content") is None and not message.get("tool_calls"):
            yield Objection(rules["null_content"], certain=True)
        calls = message.get("tool_calls") or ()
        if calls and rules.get("reasoning") and vendor.wants_reasoning(body) and _lacks_reasoning(message):
            said = "The `reasoning_content` in the thinking mode must be passed back to the API."
            yield Objection(said, certain=True)
        if calls and "call_needs" in rules and not all(_has(call, rules["call_needs"]) for call in calls):
            yield Objection(f"Function call is missing a {rules['call_needs'].rpartition('.')[2]}", certain=True)
    if rules.get("paired") and not _all_answered(body):
        yield Objection("An assistant message with 'tool_calls' must be followed by a result for each call.")
    for name, value in rules.get("with_tools", {}).items():
        if body.get("tools") and body.get(name) != value:
            yield Objection(f"Function tools with {name} are not supported: set it to {value!r}.", certain=True)


def _has(call: object, path: str) -> bool:
    for key in path.split("."):
        call = call.get(key) if isinstance(call, dict) else None
    return call is not None


def _mistral(vendor: Profile, body: Mapping[str, Any], model: PracticeModel | None) -> Iterator[Objection]:
    for name in body:
        if name not in _MISTRAL_FIELDS:
            yield _extra("body", name, given=body[name])
    previous_role = ""
    for index, message in _messages(body):
        role = str(message.get("role"))
        if (previous_role, role) == ("tool", "user"):
            yield Objection("Unexpected role 'user' after role 'tool'", "bad_order", certain=True)
        previous_role = role
        for name in message:
            if name not in _MISTRAL_MESSAGE_FIELDS.get(role, ("role", "content")):
                yield _extra("body", "messages", index, role, name, given=message[name])
        for call_id in _call_ids(message):
            if not _MISTRAL_CALL_ID.fullmatch(call_id):
                text = f"Tool call id was {call_id} but must be a-z, A-Z, 0-9, with a length of 9."
                yield Objection(text, "bad_call_id", certain=True)
        if role == "assistant" and not message.get("content") and not message.get("tool_calls"):
            yield Objection("Assistant message must have either content or tool_calls, but not none.", "bad_answer")
    if previous_role == "assistant" and not message.get("prefix"):
        text = "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant"
        yield Objection(text, "bad_order")
    if not _all_answered(body):
        yield Objection("Not the same number of function calls and responses", "bad_order")


def _all_answered(body: Mapping[str, Any]) -> bool:
    """Whether every tool call is followed by its result, and every result follows its call."""
    expected: list[str] = []
    for _, message in _messages(body):
        if message.get("role") == "tool" and message.get("tool_call_id") in expected:
            expected.remove(str(message["tool_call_id"]))
        elif expected or message.get("role") == "tool":
            return False
        else:
            expected = list(_call_ids(message))
    return not expected


def _extra(*place: str | int, given: object) -> Objection:
    """Return the objection to a field that is not in Mistral's schema; like the vendor, it repeats what was given."""
    said = "Extra inputs are not permitted"
    problem = {"type": "extra_forbidden", "loc": list(place), "msg": said, "input": given}
    return Objection(f"{'.'.join(map(str, place))}: {said}", problem=problem)


def _cerebras(vendor: Profile, body: Mapping[str, Any], model: PracticeModel | None) -> Iterator[Objection]:
    paths = [name for name in _CEREBRAS_REFUSED if body.get(name) is not None]
    paths += [f"messages.{index}.{role}.{name}" for index, role, name in _refused_in_messages(body)]
    for path in paths:
        yield Objection(f"{path}: property '{path}' is unsupported")


def _groq(vendor: Profile, body: Mapping[str, Any], model: PracticeModel | None) -> Iterator[Objection]:
    for name in _GROQ_REFUSED:
        if body.get(name) is not None:
            yield Objection(f"property '{name}' is unsupported")
    if body.get("n") not in (None, 1):
        yield Objection("'n' : number must be at most 1")
    for index, role, name in _refused_in_messages(body, "name"):
        place = f"'messages.{index}' : for 'role:{role}'"
        unmet = f"('messages.{index}' : property '{name}' is unsupported)"
        yield Objection(f"{place} the following must be satisfied[{unmet}]")
    for index, message in _messages(body):
        # Its models of the catalog take no images.
        if message.get("role") == "user" and _has_image(message):
            unmet = f"('messages.{index}.content' : value must be a string)"
            text = f"'messages.{index}' : for 'role:user' the following must be satisfied[{unmet}]"
            yield Objection(text, certain=True)
    limit = vendor.output_limit(body)
    if model is not None and model.max_output is not None and isinstance(limit, int) and limit > model.max_output:
        yield Objection(
            f"`max_completion_tokens` must be less than or equal to `{model.max_output}`, the maximum value for "
            "`max_completion_tokens` is less than the `context_window` for this model"
        )


def _longcat(vendor: Profile, body: Mapping[str, Any], model: PracticeModel | None) -> Iterator[Objection]:
    for name in _LONGCAT_REFUSED:
        if body.get(name) is not None:
            yield Objection(f"Unsupported parameter: {name}")
    if not vendor.wants_reasoning(body):
        return
    for index, message in _messages(body):
        if message.get("role") == "assistant" and message.get("tool_calls") and _lacks_reasoning(message):
            said = "thinking is enabled but reasoning_content is missing in assistant tool call message"
            yield Objection(f"{said} at index {index}")


def _has_image(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(isinstance(part, dict) and "image_url" in part for part in content)


def _lacks_reasoning(message: Mapping[str, Any]) -> bool:
    # Clients whose history has no reasoning for a call send an empty text, and are answered.
    return not isinstance(message.get("reasoning_content"), str)


def _refused_in_messages(body: Mapping[str, Any], *more: str) -> Iterator[tuple[int, object, str]]:
    """Yield the fields of messages that are refused: index and role of the message, and field name."""
    for index, message in _messages(body):
        for name in (*_REFUSED_IN_MESSAGES, *more):
            if message.get(name) is not None:
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
