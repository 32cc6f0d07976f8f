"""How each vendor answers: models, refusals, headers, completions, streams, embeddings (data in `vendors.toml`)."""

from __future__ import annotations

import base64
import json
import math
import re
import secrets
import string
import struct
import sys
import time
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import chain, cycle
from typing import Any, Literal

from isabella.errors import PracticeError
from isabella.practice.limits import go_duration
from isabella.practice.prompt import Reply

#: The vendors' names, in the order in which they are shown.
NAMES = ("cerebras", "groq", "mistral", "longcat")

_ALPHANUMERIC = string.ascii_letters + string.digits
_KEY_ALPHABET = string.ascii_lowercase + string.digits
#: The last event of a stream.
END_OF_STREAM = b"data: [DONE]\n\n"
#: What a token of a prompt is taken to be.
CHARACTERS_PER_TOKEN = 4
_ARGUMENT_PIECE = 16
_STREAM_PIECE = re.compile(r"\s*\S+\s*?(?=\s|$)|\s+$")

_WORD = re.compile(r"[^\W_]+")
_COMMON_WORDS_TEXT = "a an the and or of to in on at is are was were be it that this for with what which who"
_COMMON_WORDS = frozenset(_COMMON_WORDS_TEXT.split())


@dataclass(frozen=True)
class PracticeModel:
    """A model on a vendor's list; `item` is its entry there, `dimensions` the length of its embedding vectors.

    `window` and `max_output` are in tokens; `openrouter` is its entry in a list in the format of OpenRouter.
    """

    item: Mapping[str, Any]
    window: int
    max_output: int | None = None
    chat: bool = True
    reasons: bool = False
    dimensions: int | None = None
    openrouter: Mapping[str, Any] | None = None

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

    def filled(self, **values: object) -> bytes:
        """Return the body with its placeholders filled in: texts are escaped as in JSON strings, the rest is JSON."""
        text = self.body
        for name, value in values.items():
            filler = json.dumps(value, ensure_ascii=False)
            text = text.replace(f"%{name}%", filler[1:-1] if isinstance(value, str) else filler)
        return text.encode("utf-8", "replace")


@dataclass(frozen=True)
class Profile:
    """A vendor as data; `title` is its name for people, `path` that of its base URL.

    Attributes:
        key_form, completion_id, call_id: the forms of its keys and ids; `%` stands for random characters.
        key_optional: whether it accepts any request as long as it has no key itself, as a server of one's own.
        reasoning: where a model's reasoning is: the name of a field beside the content, or parts of the content.
        thinking_field: the field of a request by which reasoning is switched off: `{"type": "disabled"}`.
        output_limit_fields: the fields of a request by which it limits the tokens of the answer.
        extra_fields: fields that it adds to each answer, to the usage, to a tool call, to its further pieces, and to
            a whole completion.
        limit_headers: the rate-limit headers of an answer; their values are placeholders, or do not change.
        allowance: what it allows per minute and per day, as the fields of `VendorAllowance`.
        reserved, most_reserved: the tokens of an answer that it counts at once when a request sets no limit for the
            answer, and at most.
        tells_retry_after: whether a request above the limits is told how long to wait.
        durations: how its headers tell times: as Go writes them, or in seconds.
        models: its models by id and by alias.
        listed: its models as it lists them.
        refusals: its error answers, by reason; `refusal_of_status` has the reasons.
        usage_extension: an extra field that carries the usage at the end of a stream.
        correlation_header: an extra header that carries the request id.
        bare_list: whether its list of models is an array without an object around it.
        open_list: whether it lists its models without a key.
        routes: what it answers elsewhere, by method and path below its name, and by the model in the body if there is
            one: `POST /api/show qwen3:8b`.
        whole_calls: whether a stream has each tool call in one piece.
        unnumbered_calls: whether a tool call in a stream has no index.
        stream_usage: where a stream has the usage: in a piece of its own if the request asks for it, in one of its
            own always, or in the last piece of the answer.
        stream_comment: a comment with which a stream begins.
        finish_reasons: its own words for reasons to end an answer.
        refuses: what it is known to refuse, for a vendor without rules of its own in `strictness`.
    """

    name: str
    title: str
    path: str
    key_form: str
    completion_id: str
    call_id: str
    call_id_length: int
    reasoning: Literal["reasoning", "reasoning_content", "parts"]
    limit_headers: Mapping[str, str]
    allowance: Mapping[str, int]
    output_limit_fields: tuple[str, ...]
    models: Mapping[str, PracticeModel]
    listed: tuple[PracticeModel, ...]
    refusals: Mapping[str, RefusalShape] = field(repr=False)
    refusal_of_status: Mapping[str, str] = field(repr=False)
    extra_fields: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    reserved: int = 0
    most_reserved: int = sys.maxsize
    tells_retry_after: bool = False
    durations: Literal["go", "seconds"] = "seconds"
    thinking_field: str | None = None
    usage_extension: str | None = None
    correlation_header: str | None = None
    bare_list: bool = False
    open_list: bool = False
    key_optional: bool = False
    routes: Mapping[str, Any] = field(default_factory=dict)
    whole_calls: bool = False
    unnumbered_calls: bool = False
    stream_usage: Literal["asked", "always", "last"] = "asked"
    stream_comment: str | None = None
    finish_reasons: Mapping[str, str] = field(default_factory=dict)
    refuses: Mapping[str, Any] = field(default_factory=dict)

    def output_limit(self, body: Mapping[str, Any]) -> object:
        """Return a request's limit of tokens for the answer; None if it has none."""
        given = (body.get(name) for name in self.output_limit_fields)
        return next((limit for limit in given if limit is not None), None)

    def new_key(self) -> str:
        """Return a key in the form of the vendor's, which only the practice vendor accepts."""
        characters = "".join(secrets.choice(_KEY_ALPHABET) for _ in range(32))
        return self.key_form.replace("%", characters)

    def told_duration(self, seconds: float) -> str:
        """Return a time as its headers tell it."""
        return go_duration(seconds) if self.durations == "go" else str(seconds)

    def wants_reasoning(self, body: Mapping[str, Any]) -> bool:
        """Whether a request leaves reasoning switched on."""
        thinking = None if self.thinking_field is None else body.get(self.thinking_field)
        return not (isinstance(thinking, dict) and thinking.get("type") == "disabled")

    def refusal_of(self, status: int) -> RefusalShape:
        """Return the refusal with this status; if the vendor has none, the most similar one with this status."""
        reason = self.refusal_of_status.get(str(status), "broken" if status >= 500 else "bad_request")
        refusal = self.refusals[reason]
        return refusal if refusal.status == status else RefusalShape(status, refusal.body, refusal.retry_after)


@cache
def profiles() -> Mapping[str, Profile]:
    """Return the vendors by name."""
    data = _vendors_toml()
    return profiles_of({name: data[name] for name in NAMES})


def profiles_of(data: Mapping[str, dict[str, Any]]) -> Mapping[str, Profile]:
    """Return vendors from tables such as those of `vendors.toml`, by name."""
    refusal_of_status = _vendors_toml()["refusal_of_status"]
    return {name: _profile(name, table, refusal_of_status) for name, table in data.items()}


def profile(name: str) -> Profile:
    """Return a vendor.

    Raises:
        PracticeError: there is no practice vendor of that name.
    """
    if name not in profiles():
        raise PracticeError(f"There is no practice vendor {name!r}.", remedy=f"There are {', '.join(NAMES)}.")
    return profiles()[name]


@cache
def overflow_wordings() -> Mapping[str, RefusalShape]:
    """Return the refusals of prompts that are larger than the window, by model server or vendor."""
    servers = {name: RefusalShape(**fields) for name, fields in _vendors_toml()["overflow"].items()}
    return servers | {name: profiles()[name].refusals["too_long"] for name in NAMES}


def _vendors_toml() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("vendors.toml").read_text(encoding="utf-8"))


def _profile(name: str, data: dict[str, Any], refusal_of_status: Mapping[str, str]) -> Profile:
    common = dict.fromkeys(data.pop("null_fields", ())) | data.pop("common_fields", {})
    listed = [PracticeModel(**entry | {"item": common | entry["item"]}) for entry in data.pop("models")]
    refusals = data.pop("refusals")
    return Profile(
        name=name,
        models={
            alias: model
            for model in listed
            for alias in (model.id, model.id.removeprefix("models/"), *model.item.get("aliases", ()))
        },
        listed=tuple(listed),
        refusals={reason: RefusalShape(**fields) for reason, fields in refusals.items()},
        refusal_of_status=refusal_of_status,
        output_limit_fields=tuple(data.pop("output_limit_fields")),
        **data,
    )


@dataclass(frozen=True)
class AnswerToken:
    """A piece of a reply that a model generates in one step; `call` is the number of its tool call, from 0."""

    kind: Literal["reasoning", "text", "name", "arguments"]
    text: str
    call: int = 0


def tokens_of(reply: Reply, *, reasons: bool) -> Iterator[AnswerToken]:
    """Yield the tokens of a reply: reasoning and text word by word, tool calls in pieces."""
    for words in _STREAM_PIECE.findall(reply.reasoning) if reasons else ():
        yield AnswerToken("reasoning", words)
    for words in _STREAM_PIECE.findall(reply.text):
        yield AnswerToken("text", words)
    for number, call in enumerate(reply.calls):
        yield AnswerToken("name", call.name, number)
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        for start in range(0, len(arguments), _ARGUMENT_PIECE):
            yield AnswerToken("arguments", arguments[start : start + _ARGUMENT_PIECE], number)


def endless_tokens(reply: Reply, *, reasons: bool) -> Iterator[AnswerToken]:
    """Yield the tokens of a model that repeats itself without end; it calls no tool."""
    words = (reply.text or reply.reasoning).split() or ["on"]
    reasoning = tokens_of(Reply(reply.reasoning), reasons=reasons)
    return chain(reasoning, cycle([AnswerToken("text", f"{word} ") for word in words]))


class Generation:
    """The tokens of a reply as they are generated, up to a limit.

    Attributes:
        tokens, reasoning_tokens: how many have been generated so far.
        calls: the tool calls so far.
        cut: whether the limit came before the end.
    """

    def __init__(self, tokens: Iterable[AnswerToken], limit: int | None = None) -> None:
        self._tokens = tokens
        self._limit = limit
        self.tokens = 0
        self.reasoning_tokens = 0
        self.calls = 0
        self.cut = False

    def __iter__(self) -> Iterator[AnswerToken]:
        for token in self._tokens:
            if self.tokens == self._limit:
                self.cut = True
                return
            self.tokens += 1
            self.reasoning_tokens += token.kind == "reasoning"
            self.calls += token.kind == "name"
            yield token

    @property
    def finish_reason(self) -> str:
        """Why it has ended."""
        if self.cut:
            return "length"
        return "tool_calls" if self.calls else "stop"


@dataclass(frozen=True)
class ModelCompletion:
    """The format of a vendor's answer to a chat request: `whole` is a chat completion, `pieces` a stream of one.

    `requested_model` is the name of the model in the request, which may be an alias.
    """

    profile: Profile
    requested_model: str
    prompt_tokens: int
    id: str
    created: int
    call_ids: tuple[str, ...]

    @classmethod
    def of(cls, profile: Profile, requested_model: str, *, prompt_tokens: int, calls: int) -> ModelCompletion:
        """Return the answer to a request with so many tokens, with new ids."""
        return cls(
            profile=profile,
            requested_model=requested_model,
            prompt_tokens=prompt_tokens,
            id=profile.completion_id.replace("%", secrets.token_hex(16)),
            created=int(time.time()),
            call_ids=tuple(profile.call_id.replace("%", _random(profile.call_id_length)) for _ in range(calls)),
        )

    def whole(self, tokens: Iterable[AnswerToken], generation: Generation) -> dict[str, Any]:
        """Return the completion as one JSON object; the tokens are those of the generation."""
        told = list(tokens)
        text, reasoning = _joined(told, "text"), _joined(told, "reasoning")
        message: dict[str, Any] = {"role": "assistant", "content": text or None}
        if reasoning and self.profile.reasoning == "parts":
            message["content"] = [_thinking(reasoning), {"type": "text", "text": text}]
        elif reasoning:
            message[self.profile.reasoning] = reasoning
        if generation.calls:
            message["tool_calls"] = [self._call(told, number) for number in range(generation.calls)]
        elif self.profile.name == "mistral":
            message["tool_calls"] = None
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason(generation)}
        body = self._head("chat.completion") | {"choices": [choice], "usage": self._usage(generation)}
        body |= self.profile.extra_fields.get("completion", {})
        if self.profile.usage_extension:
            body[self.profile.usage_extension] = {"id": f"req_{self.id[-26:]}"}
        return body

    def pieces(self, generation: Generation, *, include_usage: bool) -> Iterator[bytes]:
        """Yield the completion as server-sent events, `[DONE]` included, while the tokens are generated."""
        if self.profile.stream_comment is not None:
            yield f": {self.profile.stream_comment}\n\n".encode()
        for delta in chain([{"role": "assistant", "content": ""}], self._deltas(generation)):
            yield self._event([{"index": 0, "delta": delta, "finish_reason": None}])
        last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": self._finish_reason(generation)}
        usage = self._usage(generation)
        if self.profile.stream_usage == "last":
            yield self._event([last | {"delta": {"content": ""}}], usage=usage)
        elif self.profile.usage_extension:
            yield self._event([last], **{self.profile.usage_extension: {"id": self.id, "usage": usage}})
        else:
            yield self._event([last])
        if self.profile.stream_usage == "always":
            empty = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            yield self._event([empty], usage=usage)
        elif include_usage and self.profile.stream_usage == "asked":
            yield self._event([], usage=usage)
        yield END_OF_STREAM

    def _deltas(self, generation: Generation) -> Iterator[dict[str, Any]]:
        """Yield what each token adds."""
        held_back: list[AnswerToken] = []
        for token in generation:
            if token.kind in ("text", "reasoning"):
                yield self._text_delta(token)
            elif not self.profile.whole_calls:
                yield {"tool_calls": [self._call_piece(token)]}
            else:
                held_back.append(token)
        for number in range(generation.calls if held_back else 0):
            yield {"content": "", "tool_calls": [self._numbered(number) | self._call(held_back, number)]}

    def _text_delta(self, token: AnswerToken) -> dict[str, Any]:
        if token.kind == "text":
            return {"content": token.text}
        if self.profile.reasoning == "parts":
            return {"content": [_thinking(token.text)]}
        return {self.profile.reasoning: token.text}

    def _call_piece(self, token: AnswerToken) -> dict[str, Any]:
        if token.kind == "name":
            return self._numbered(token.call) | self._tool_call(token.call, token.text, "")
        extra = self.profile.extra_fields.get("call_piece", {})
        return self._numbered(token.call) | extra | {"function": {"arguments": token.text}}

    def _numbered(self, call: int) -> dict[str, Any]:
        return {} if self.profile.unnumbered_calls else {"index": call}

    def _call(self, tokens: Iterable[AnswerToken], number: int) -> dict[str, Any]:
        """Return a tool call as far as it was generated."""
        own = [token for token in tokens if token.call == number]
        return self._tool_call(number, _joined(own, "name"), _joined(own, "arguments"))

    def _tool_call(self, number: int, name: str, arguments: str) -> dict[str, Any]:
        call = {"id": self.call_ids[number], "type": "function", "function": {"name": name, "arguments": arguments}}
        return call | self.profile.extra_fields.get("call", {})

    def _finish_reason(self, generation: Generation) -> str:
        return self.profile.finish_reasons.get(generation.finish_reason, generation.finish_reason)

    def _usage(self, generation: Generation) -> dict[str, Any]:
        """Return the token counts, with the extra fields of the vendor."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generation.tokens,
            "total_tokens": self.prompt_tokens + generation.tokens,
        }
        usage |= self.profile.extra_fields.get("usage", {})
        if generation.reasoning_tokens and self.profile.name != "mistral":
            usage["completion_tokens_details"] = {"reasoning_tokens": generation.reasoning_tokens}
        return usage

    def _event(self, choices: list[Mapping[str, Any]], **extra: Any) -> bytes:
        return b"data: " + to_json(self._head("chat.completion.chunk") | {"choices": choices} | extra) + b"\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        head: dict[str, Any] = {"id": self.id, "object": kind, "created": self.created, "model": self.requested_model}
        return head | self.profile.extra_fields.get("answer", {})


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


def embeddings_answer(model: PracticeModel, body: Mapping[str, Any], *, id: str) -> dict[str, Any]:
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
    tokens = sum(max(1, len(text) // CHARACTERS_PER_TOKEN) for text in texts)
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    return {"id": id, "object": "list", "data": data, "model": body["model"], "usage": usage}


def to_json(value: object) -> bytes:
    """Return a value as compact JSON; characters that UTF-8 cannot hold are replaced."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _joined(tokens: Iterable[AnswerToken], kind: str) -> str:
    return "".join(token.text for token in tokens if token.kind == kind)


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(length))
