"""How each vendor answers: models, refusals, headers, completions, streams, embeddings (data in `vendors.toml`)."""

from __future__ import annotations

import base64
import json
import math
import re
import secrets
import string
import struct
import time
import tomllib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

from isabella.errors import PracticeError
from isabella.practice.prompt import Reply

#: The vendors' names, in the order in which they are shown.
NAMES = ("cerebras", "groq", "mistral", "longcat")

_ALPHANUMERIC = string.ascii_letters + string.digits
_CHARACTERS_PER_TOKEN = 4
_ARGUMENT_PIECE = 16
_STREAM_PIECE = re.compile(r"\s*\S+\s*?(?=\s|$)|\s+$")

_WORD = re.compile(r"[^\W_]+")
_COMMON_WORDS_TEXT = "a an the and or of to in on at is are was were be it that this for with what which who"
_COMMON_WORDS = frozenset(_COMMON_WORDS_TEXT.split())


@dataclass(frozen=True)
class ListedModel:
    """A model on a vendor's list; `item` is its entry there, `dimensions` the length of its embedding vectors."""

    item: Mapping[str, Any]
    window: int
    chat: bool = True
    reasons: bool = False
    dimensions: int | None = None

    @property
    def id(self) -> str:
        """The name by which requests call it."""
        return str(self.item["id"])


@dataclass(frozen=True)
class RefusalShape:
    """A vendor's error answer: `body` is JSON with placeholders such as `%model%`, `retry_after` is in seconds."""

    status: int
    body: str
    retry_after: float | None = None

    def filled(self, **values: str) -> bytes:
        """Return the body with its placeholders filled in; values are escaped as JSON strings are."""
        text = self.body
        for name, value in values.items():
            text = text.replace(f"%{name}%", json.dumps(value, ensure_ascii=False)[1:-1])
        return text.encode()


@dataclass(frozen=True)
class Profile:
    """A vendor as data; `title` is its name for people, `path` that of its base URL.

    Attributes:
        key_form, completion_id, call_id: the forms of its keys and ids; `%` stands for random characters.
        reasoning: whether a model's reasoning is a field beside the content, a part of it, or not shown.
        extra_fields: fields that it adds to each answer, to the usage, and to a whole completion.
        limit_headers: the rate-limit headers of an answer; their values do not change.
        models: its models by id and by alias.
        listed: the entries of its model list.
        refusals: its error answers, by reason; `refusal_of_status` has the reasons.
        usage_extension: an extra field that carries the usage at the end of a stream.
        correlation_header: an extra header that carries the request id.
    """

    name: str
    title: str
    path: str
    key_form: str
    completion_id: str
    call_id: str
    call_id_length: int
    reasoning: Literal["field", "parts", "none"]
    limit_headers: Mapping[str, str]
    models: Mapping[str, ListedModel]
    listed: tuple[Mapping[str, Any], ...]
    refusals: Mapping[str, RefusalShape] = field(repr=False)
    refusal_of_status: Mapping[str, str] = field(repr=False)
    extra_fields: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    usage_extension: str | None = None
    correlation_header: str | None = None

    def refusal_of(self, status: int) -> RefusalShape:
        """Return the refusal with this status; if the vendor has none, the most similar one with this status."""
        reason = self.refusal_of_status.get(str(status), "broken" if status >= 500 else "bad_request")
        refusal = self.refusals[reason]
        return refusal if refusal.status == status else RefusalShape(status, refusal.body, refusal.retry_after)


@cache
def profiles() -> Mapping[str, Profile]:
    """Return all vendors by name."""
    data = tomllib.loads(resources.files(__package__).joinpath("vendors.toml").read_text(encoding="utf-8"))
    return {name: _profile(name, data[name], data["refusal_of_status"]) for name in NAMES}


def profile(name: str) -> Profile:
    """Return a vendor.

    Raises:
        PracticeError: there is no practice vendor of that name.
    """
    if name not in NAMES:
        raise PracticeError(f"There is no practice vendor {name!r}.", remedy=f"There are {', '.join(NAMES)}.")
    return profiles()[name]


def _profile(name: str, data: dict[str, Any], refusal_of_status: Mapping[str, str]) -> Profile:
    null_fields = dict.fromkeys(data.pop("null_fields", ()))
    listed = [ListedModel(**entry | {"item": entry["item"] | null_fields}) for entry in data.pop("models")]
    refusals = data.pop("refusals")
    return Profile(
        name=name,
        models={alias: model for model in listed for alias in (model.id, *model.item.get("aliases", ()))},
        listed=tuple(model.item for model in listed),
        refusals={reason: RefusalShape(**fields) for reason, fields in refusals.items()},
        refusal_of_status=refusal_of_status,
        **data,
    )


@dataclass(frozen=True)
class ModelCompletion:
    """A reply in a vendor's format: `whole` is a chat completion, `pieces` a stream of one.

    `requested_model` is the name of the model in the request, which may be an alias.
    """

    profile: Profile
    model: ListedModel
    requested_model: str
    reply: Reply
    prompt_tokens: int
    id: str
    created: int
    call_ids: tuple[str, ...]

    @classmethod
    def of(
        cls, profile: Profile, model: ListedModel, requested_model: str, reply: Reply, *, prompt_characters: int
    ) -> ModelCompletion:
        """Return the completion of a request with so many characters, with new ids."""
        return cls(
            profile=profile,
            model=model,
            requested_model=requested_model,
            reply=reply,
            prompt_tokens=max(1, prompt_characters // _CHARACTERS_PER_TOKEN),
            id=profile.completion_id.replace("%", secrets.token_hex(16)),
            created=int(time.time()),
            call_ids=tuple(profile.call_id.replace("%", _random(profile.call_id_length)) for _ in reply.calls),
        )

    @property
    def usage(self) -> dict[str, Any]:
        """The token counts, with the extra fields of the vendor."""
        calls = sum(len(arguments) + 20 for _, _, arguments in self._calls)
        completion_tokens = max(1, (len(self.reply.text) + calls) // _CHARACTERS_PER_TOKEN) + self._reasoning_tokens
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }
        usage |= self.profile.extra_fields.get("usage", {})
        if self._shows_reasoning and self.profile.name != "mistral":
            usage["completion_tokens_details"] = {"reasoning_tokens": self._reasoning_tokens}
        return usage

    def whole(self) -> dict[str, Any]:
        """Return the completion as one JSON object."""
        message: dict[str, Any] = {"role": "assistant", "content": self.reply.text or None}
        if self._shows_reasoning and self.profile.reasoning == "field":
            message["reasoning"] = self.reply.reasoning
        elif self._shows_reasoning:
            message["content"] = [_thinking(self.reply.reasoning), {"type": "text", "text": self.reply.text}]
        if self.reply.calls:
            message["tool_calls"] = [_tool_call(*call) for call in self._calls]
        elif self.profile.name == "mistral":
            message["tool_calls"] = None
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        body = self._head("chat.completion") | {"choices": [choice], "usage": self.usage}
        body |= self.profile.extra_fields.get("completion", {})
        if self.profile.usage_extension:
            body[self.profile.usage_extension] = {"id": f"req_{self.id[-26:]}"}
        return body

    def pieces(self, *, include_usage: bool) -> Iterator[bytes]:
        """Yield the completion as server-sent events, `[DONE]` included."""
        for delta in self._deltas():
            yield self._event([{"index": 0, "delta": delta, "finish_reason": None}])
        last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": self._finish_reason}
        if self.profile.name == "mistral":
            # Mistral sends the usage with the last piece, whether the request asks for it or not.
            yield self._event([last | {"delta": {"content": ""}}], usage=self.usage)
        elif self.profile.usage_extension:
            yield self._event([last], **{self.profile.usage_extension: {"id": self.id, "usage": self.usage}})
        else:
            yield self._event([last])
        if include_usage and self.profile.name != "mistral":
            yield self._event([], usage=self.usage)
        yield b"data: [DONE]\n\n"

    def _deltas(self) -> Iterator[dict[str, Any]]:
        yield {"role": "assistant", "content": ""}
        for words in _STREAM_PIECE.findall(self.reply.reasoning) if self._shows_reasoning else ():
            yield {"reasoning": words} if self.profile.reasoning == "field" else {"content": [_thinking(words)]}
        for words in _STREAM_PIECE.findall(self.reply.text):
            yield {"content": words}
        for index, (call_id, name, arguments) in enumerate(self._calls):
            if self.profile.name == "mistral":
                # Mistral sends each call in one piece.
                yield {"content": "", "tool_calls": [_tool_call(call_id, name, arguments) | {"index": index}]}
                continue
            yield {"tool_calls": [_tool_call(call_id, name, "") | {"index": index}]}
            for start in range(0, len(arguments), _ARGUMENT_PIECE):
                piece = arguments[start : start + _ARGUMENT_PIECE]
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}

    def _event(self, choices: list[Mapping[str, Any]], **extra: Any) -> bytes:
        return b"data: " + to_json(self._head("chat.completion.chunk") | {"choices": choices} | extra) + b"\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        head: dict[str, Any] = {"id": self.id, "object": kind, "created": self.created, "model": self.requested_model}
        return head | self.profile.extra_fields.get("answer", {})

    @property
    def _calls(self) -> list[tuple[str, str, str]]:
        """The id, the name and the arguments as JSON of each tool call."""
        return [
            (call_id, call.name, json.dumps(call.arguments, ensure_ascii=False))
            for call_id, call in zip(self.call_ids, self.reply.calls, strict=True)
        ]

    @property
    def _shows_reasoning(self) -> bool:
        return self.model.reasons and self.profile.reasoning != "none" and bool(self.reply.reasoning)

    @property
    def _reasoning_tokens(self) -> int:
        return len(self.reply.reasoning) // _CHARACTERS_PER_TOKEN if self._shows_reasoning else 0

    @property
    def _finish_reason(self) -> str:
        return "tool_calls" if self.reply.calls else "stop"


def embed(text: str, dimensions: int) -> list[float]:
    """Return the vector of a text, of length 1, from hashed words and parts of words.

    Similar texts get vectors that are near each other, the same in every run and on every machine.
    """
    vector = [0.0] * dimensions
    for word in _WORD.findall(text.lower()):
        weight = 0.1 if word in _COMMON_WORDS else 1.0
        framed = f"<{word}>"
        parts = [(framed[start : start + 3], weight) for start in range(len(framed) - 2)]
        for part, part_weight in [(word, 2 * weight), *parts]:
            # The sign keeps parts with the same position from adding up to a similarity.
            code = zlib.crc32(part.encode())
            vector[code % dimensions] += part_weight if code & 0x8000_0000 else -part_weight
    norm = math.sqrt(sum(value * value for value in vector))
    if norm == 0.0:
        # A zero vector breaks cosine distance, so an empty text gets a direction, too.
        vector[0] = norm = 1.0
    return [value / norm for value in vector]


def embeddings_answer(model: ListedModel, body: Mapping[str, Any], *, id: str) -> dict[str, Any]:
    """Return the answer to an embeddings request."""
    given = body["input"]
    texts = [given] if isinstance(given, str) else [str(text) for text in given]
    dimensions = model.dimensions or 0
    data = []
    for index, text in enumerate(texts):
        vector: Any = embed(text, dimensions)
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode("ascii")
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(max(1, len(text) // _CHARACTERS_PER_TOKEN) for text in texts)
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    return {"id": id, "object": "list", "data": data, "model": body["model"], "usage": usage}


def to_json(value: object) -> bytes:
    """Return a value as compact JSON; characters that UTF-8 cannot hold are replaced."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _tool_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(length))
