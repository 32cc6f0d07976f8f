"""Chat requests of Letta, changed so that a vendor accepts them.

Letta sends every vendor what OpenAI accepts, with the tool calls and reasoning of the vendors that answered before.
Each rule here is for one difference in a vendor's `Quirks`. A request that no rule understands stays as it is, and
the vendor refuses it.
"""

from __future__ import annotations

import hashlib
import re
import string
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeGuard

from isabella.config.quirks import Quirks
from isabella.gateway.answers import ReasoningMemory

Message = dict[str, Any]
Messages = list[Message]

#: The result of a tool call that got none.
NO_RESULT = "[No result: the turn ended before this tool returned one.]"
#: The assistant's message between a tool's result and a user's message.
RECEIVED = "[The tool's result was received.]"
#: An image that a model cannot take.
IMAGE = "[An image, which this model cannot see.]"
#: The user's message after an assistant's message that would be the last one.
CONTINUE = "[Continue.]"

_HEARTBEAT = re.compile(r'\s*\{\s*"type":\s*"heartbeat"')
_ALPHANUMERIC = string.ascii_letters + string.digits
_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens")


def adapt_request(
    body: Mapping[str, Any], quirks: Quirks, reasoning: ReasoningMemory, *, provider: str
) -> dict[str, Any]:
    """Return the body of a chat request in the form that a vendor accepts.

    Args:
        body: the body as Letta sent it. It is not changed.
        quirks: the differences of the vendor.
        reasoning: the reasoning of earlier answers.
        provider: whose answers these were: the provider's name, or any text that is the same for one conversation.
    """
    adapted = {name: value for name, value in body.items() if (name, value) != ("user", "")}
    if "tools" in adapted:
        adapted["tools"] = with_short_descriptions(adapted["tools"])
    adapted = with_output_limit(adapted, quirks)
    adapted = with_tool_fields(with_known_fields(adapted, quirks), quirks)
    messages = adapted.get("messages")
    if not is_well_formed(messages):
        return adapted
    if quirks.takes_images(str(body.get("model"))) is False:
        messages = without_images(messages)
    messages = with_accepted_order(messages, quirks)
    if quirks.reasoning_required:
        complete = with_reasoning(messages, reasoning, provider)
        adapted |= quirks.no_thinking if complete is None else {}
        messages = messages if complete is None else complete
    if quirks.tool_call_id_length is not None:
        messages = with_short_ids(messages, quirks.tool_call_id_length)
    if quirks.tool_call_fields:
        messages = with_call_fields(messages, quirks.tool_call_fields)
    return adapted | {"messages": with_known_message_fields(messages, quirks)}


def with_output_limit(body: dict[str, Any], quirks: Quirks) -> dict[str, Any]:
    """Lower a limit of output tokens that is too high for the vendor, and add its default if there is none."""
    highest, default = quirks.max_output_tokens, quirks.default_output_tokens
    if highest is None and default is None:
        return body
    given = {name: body[name] for name in _OUTPUT_LIMITS if body.get(name) is not None}
    if not given and default is not None:
        given = {_OUTPUT_LIMITS[0]: default}
    lowered = {
        name: min(limit, highest) if isinstance(limit, int) and highest is not None else limit
        for name, limit in given.items()
    }
    return {name: value for name, value in body.items() if name not in _OUTPUT_LIMITS} | lowered


def with_known_fields(body: dict[str, Any], quirks: Quirks) -> dict[str, Any]:
    """Rename fields that the vendor knows by another name, and drop those that it refuses."""
    renamed = {quirks.rename_fields.get(name, name): value for name, value in body.items()}
    return _selected([renamed], quirks.only_fields, quirks.drop_fields)[0]


def with_tool_fields(body: dict[str, Any], quirks: Quirks) -> dict[str, Any]:
    """Set the fields that the vendor requires of a request with tools, for models of this kind."""
    if not body.get("tools"):
        return body
    if quirks.named_tool_refused:
        body = with_any_tool(body)
    fields = [
        fields for model, fields in quirks.fields_with_tools.items() if re.fullmatch(model, str(body.get("model")))
    ]
    return {**body, **{name: value for each in fields for name, value in each.items()}}


def with_any_tool(body: dict[str, Any]) -> dict[str, Any]:
    """Require any tool where one is named, and offer only that one."""
    match body:
        case {"tools": list(tools), "tool_choice": {"function": {"name": str(name)}}}:
            named = [tool for tool in tools if isinstance(tool, dict) and _name_of(tool) == name]
            return {**body, "tools": named, "tool_choice": "required"}
    return body


def _name_of(tool: Mapping[str, Any]) -> object:
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else None


def with_call_fields(messages: Messages, fields: Mapping[str, Any]) -> Messages:
    """Add these fields to every tool call that does not have them."""
    return [
        {**message, "tool_calls": [{**fields, **call} for call in calls]} if (calls := _calls(message)) else message
        for message in messages
    ]


def with_known_message_fields(messages: Messages, quirks: Quirks) -> Messages:
    """Drop the fields of messages that the vendor refuses."""
    return _selected(messages, quirks.only_message_fields, quirks.drop_message_fields)


def without_images(messages: Messages) -> Messages:
    """Put a text in the place of each image. A model that took it, or a person, has left it in the conversation."""
    return [
        {**message, "content": _as_text(message["content"])} if _has_image(message) else message
        for message in messages
    ]


def _has_image(message: Message) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "image_url" for part in content
    )


def _as_text(parts: Sequence[Any]) -> str:
    """Return the text of a message's parts. Models without images often accept no list of parts either."""
    texts = (part.get("text", IMAGE) if isinstance(part, dict) else part for part in parts)
    return "\n".join(map(str, texts))


def with_accepted_order(messages: Messages, quirks: Quirks) -> Messages:
    """Apply the vendor's rules for the order of messages."""
    rules: tuple[tuple[bool, Callable[[Messages], Messages]], ...] = (
        (quirks.empty_assistant_refused, without_empty_answers),
        (quirks.paired_results, with_paired_results),
        (quirks.user_after_tool_refused, with_answered_results),
        (quirks.assistant_last_refused, with_user_last),
    )
    for applies, rule in rules:
        messages = rule(messages) if applies else messages
    return messages


def without_empty_answers(messages: Messages) -> Messages:
    """Leave out assistant messages with neither content nor tool calls."""
    return [
        message
        for message in messages
        if message.get("role") != "assistant" or message.get("content") or message.get("tool_calls")
    ]


def with_paired_results(messages: Messages) -> Messages:
    """Put each tool result behind its call, give a result to calls without one, and leave out results without a call.

    A turn that was stopped leaves calls without a result. A summary that replaces the oldest messages, or a context
    that someone edited, leaves results without a call.
    """
    results: dict[int, Messages] = {}
    waiting: dict[str, list[int]] = {}
    for index, message in enumerate(messages):
        for call in _calls(message):
            results.setdefault(index, [])
            waiting.setdefault(call["id"], []).append(index)
        if message.get("role") == "tool" and (callers := waiting.get(message["tool_call_id"])):
            results[callers.pop()].append(message)
    paired: Messages = []
    for index, message in enumerate(messages):
        if message.get("role") != "tool":
            paired.append(message)
        if index in results:
            missing = Counter(call["id"] for call in _calls(message))
            missing.subtract(result["tool_call_id"] for result in results[index])
            paired += results[index]
            paired += [{"role": "tool", "tool_call_id": id, "content": NO_RESULT} for id in missing.elements()]
    return paired


def with_answered_results(messages: Messages) -> Messages:
    """Put an assistant message between a tool result and a user message.

    A heartbeat, which Letta puts there for older types of agents (fact M28), is left out: it only says go on.
    """
    answered: Messages = []
    for message in messages:
        if message.get("role") == "user" and answered and answered[-1].get("role") == "tool":
            if _HEARTBEAT.match(str(message.get("content"))):
                continue
            answered.append({"role": "assistant", "content": RECEIVED})
        answered.append(message)
    return answered


def with_user_last(messages: Messages) -> Messages:
    """Add a user message if an assistant message is the last one."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or last.get("prefix"):
        return messages
    return [*messages, {"role": "user", "content": CONTINUE}]


def with_reasoning(messages: Messages, reasoning: ReasoningMemory, provider: str) -> Messages | None:
    """Put the reasoning of earlier answers back.

    Returns:
        The messages; None if the reasoning of a tool call is not known.
    """
    complete: Messages = []
    before: Message = {}
    for message in messages:
        if message.get("role") != "assistant":
            before = message
        elif not message.get("reasoning_content"):
            known = reasoning.recall(provider, message, before=before)
            if known is None and _calls(message):
                return None
            message = message if known is None else {**message, "reasoning_content": known}
        complete.append(message)
    return complete


def with_short_ids(messages: Messages, length: int) -> Messages:
    """Replace tool-call ids that are not this many letters and digits; a call and its result keep the same id."""
    ids = dict.fromkeys(id for message in messages for id in _ids(message))
    valid = {id for id in ids if len(id) == length and id.isascii() and id.isalnum()}
    taken, replaced = set(valid), {}
    for id in ids:
        if id not in valid:
            replaced[id] = next(short for short in _short_ids(id, length) if short not in taken)
            taken.add(replaced[id])
    return [_with_ids(message, replaced) for message in messages] if replaced else messages


def is_well_formed(messages: object) -> TypeGuard[Messages]:
    """Whether these are messages whose tool calls and results have ids."""
    return isinstance(messages, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("tool_calls") or [], list)
        and all(
            isinstance(call, dict) and isinstance(call.get("id"), str) for call in message.get("tool_calls") or []
        )
        and (message.get("role") != "tool" or isinstance(message.get("tool_call_id"), str))
        for message in messages
    )


def _calls(message: Message) -> Sequence[dict[str, Any]]:
    return message.get("tool_calls") or () if message.get("role") == "assistant" else ()


def _ids(message: Message) -> Iterator[str]:
    yield from (call["id"] for call in _calls(message))
    if message.get("role") == "tool":
        yield message["tool_call_id"]


def _with_ids(message: Message, replaced: Mapping[str, str]) -> Message:
    if calls := _calls(message):
        return {**message, "tool_calls": [{**call, "id": replaced.get(call["id"], call["id"])} for call in calls]}
    if message.get("role") == "tool":
        return {**message, "tool_call_id": replaced.get(message["tool_call_id"], message["tool_call_id"])}
    return message


def _short_ids(id: str, length: int) -> Iterator[str]:
    """Yield ids of letters and digits that are derived from another one, the same ones each time."""
    attempt = 0
    while True:
        digest = hashlib.sha512(f"{attempt}:{id}".encode("utf-8", "surrogatepass")).digest()
        yield "".join(_ALPHANUMERIC[byte % len(_ALPHANUMERIC)] for byte in digest[:length])
        attempt += 1


def _selected(objects: Sequence[dict[str, Any]], only: Sequence[str], drop: Sequence[str]) -> list[dict[str, Any]]:
    kept, dropped = frozenset(only), frozenset(drop)
    return [
        {name: value for name, value in fields.items() if (not kept or name in kept) and name not in dropped}
        if (kept and not kept.issuperset(fields)) or not dropped.isdisjoint(fields)
        else fields
        for fields in objects
    ]


def with_short_descriptions(tools: object) -> object:
    """Return the tools of a chat request with shorter descriptions of those that are Letta's own; see `tools.toml`.

    Names, types and required parameters stay. Whatever else a request has in place of tools is returned as it is.
    """
    return [_shortened(tool) for tool in tools] if isinstance(tools, list) else tools


def _shortened(tool: Any) -> Any:
    match tool:
        case {"function": {"name": str(name), "description": str(text), "parameters": {"properties": dict(known)}}}:
            short = _descriptions().get(name)
        case _:
            return tool
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    if short is None or not digest.startswith(short["replaces"]) or known.keys() != short["parameters"].keys():
        return tool
    properties = {name: {**known[name], "description": short["parameters"][name]} for name in known}
    parameters = {**tool["function"]["parameters"], "properties": properties}
    return {**tool, "function": {**tool["function"], "description": short["description"], "parameters": parameters}}


@cache
def _descriptions() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(resources.files("isabella.gateway").joinpath("tools.toml").read_text("utf-8"))
