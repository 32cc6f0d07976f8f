"""A reply as a vendor sends it: a chat completion, or the pieces of a stream of one."""

from __future__ import annotations

import json
import re
import secrets
import string
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from isabella.practice.assistant import Reply
from isabella.practice.profiles import ListedModel, Profile

_ALPHANUMERIC = string.ascii_letters + string.digits
_CHARACTERS_PER_TOKEN = 4
_ARGUMENT_PIECE = 16
_WORDS = re.compile(r"\s*\S+\s*?(?=\s|$)")


@dataclass(frozen=True)
class ModelCompletion:
    """A reply, and what a vendor tells about it.

    Attributes:
        profile: the vendor.
        model: the model that speaks.
        called: the name by which the request called the model.
        reply: what it says or does.
        prompt_tokens: an estimate of what was sent.
        id: the completion's id.
        created: when it was made, seconds since the epoch.
        call_ids: the ids of the tool calls, in order.
    """

    profile: Profile
    model: ListedModel
    called: str
    reply: Reply
    prompt_tokens: int
    id: str
    created: int
    call_ids: tuple[str, ...]

    @classmethod
    def of(
        cls, profile: Profile, model: ListedModel, called: str, reply: Reply, *, prompt_characters: int
    ) -> ModelCompletion:
        """The completion of a request with so many characters."""
        form, length = profile.call_id
        return cls(
            profile=profile,
            model=model,
            called=called,
            reply=reply,
            prompt_tokens=max(1, prompt_characters // _CHARACTERS_PER_TOKEN),
            id=profile.completion_id.replace("%", secrets.token_hex(16)),
            created=int(time.time()),
            call_ids=tuple(form.replace("%", _random(length)) for _ in reply.calls),
        )

    @property
    def completion_tokens(self) -> int:
        """An estimate of what the reply costs."""
        spoken = len(self.reply.text) + sum(len(_arguments(call.arguments)) + 20 for call in self.reply.calls)
        return max(1, spoken // _CHARACTERS_PER_TOKEN) + self._reasoning_tokens

    @property
    def usage(self) -> dict[str, Any]:
        """The tokens, as the vendor counts them up."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        if self.profile.name == "groq":
            usage |= {"queue_time": 0.001, "prompt_time": 0.002, "completion_time": 0.003, "total_time": 0.005}
        if self.profile.name != "mistral":
            usage["prompt_tokens_details"] = {"cached_tokens": 0}
            if self._shows_reasoning:
                usage["completion_tokens_details"] = {"reasoning_tokens": self._reasoning_tokens}
        return usage

    def whole(self) -> bytes:
        """The completion in one piece."""
        message: dict[str, Any] = {"role": "assistant", "content": self.reply.text or None}
        if self._shows_reasoning:
            if self.profile.reasoning == "field":
                message["reasoning"] = self.reply.reasoning
            else:
                message["content"] = [_thinking(self.reply.reasoning), {"type": "text", "text": self.reply.text}]
        if self.reply.calls:
            message["tool_calls"] = [
                _tool_call(identity, call.name, _arguments(call.arguments))
                for identity, call in zip(self.call_ids, self.reply.calls, strict=True)
            ]
        elif self.profile.name == "mistral":
            message["tool_calls"] = None
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        body = self._head("chat.completion") | {"choices": [choice], "usage": self.usage}
        if self.profile.name == "cerebras":
            body["time_info"] = {
                "queue_time": 0.001,
                "prompt_time": 0.002,
                "completion_time": 0.003,
                "total_time": 0.006,
            }
        if self.profile.usage_extension:
            body[self.profile.usage_extension] = {"id": f"req_{self.id[-26:]}"}
        return _json(body)

    def pieces(self, *, include_usage: bool) -> Iterator[bytes]:
        """The completion as server-sent events, the end mark included."""
        for delta in self._deltas():
            yield self._event({"index": 0, "delta": delta, "finish_reason": None})
        last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": self._finish_reason}
        if self.profile.name == "mistral":
            # Sends the usage along with the last piece, whether asked for or not.
            last["delta"] = {"content": ""}
            yield self._event(last, usage=self.usage)
        elif self.profile.usage_extension:
            yield self._event(last, **{self.profile.usage_extension: {"id": self.id, "usage": self.usage}})
        else:
            yield self._event(last)
        if include_usage and self.profile.name != "mistral":
            yield (
                b"data: "
                + _json(self._head("chat.completion.chunk") | {"choices": [], "usage": self.usage})
                + b"\n\n"
            )
        yield b"data: [DONE]\n\n"

    def _deltas(self) -> Iterator[dict[str, Any]]:
        yield {"role": "assistant", "content": ""}
        if self._shows_reasoning:
            for words in _in_words(self.reply.reasoning):
                if self.profile.reasoning == "field":
                    yield {"reasoning": words}
                else:
                    yield {"content": [_thinking(words)]}
        for words in _in_words(self.reply.text):
            yield {"content": words}
        for index, (identity, call) in enumerate(zip(self.call_ids, self.reply.calls, strict=True)):
            arguments = _arguments(call.arguments)
            if self.profile.name == "mistral":
                # Sends each call in one piece.
                yield {"content": "", "tool_calls": [_tool_call(identity, call.name, arguments) | {"index": index}]}
                continue
            yield {"tool_calls": [_tool_call(identity, call.name, "") | {"index": index}]}
            for start in range(0, len(arguments), _ARGUMENT_PIECE):
                piece = arguments[start : start + _ARGUMENT_PIECE]
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}

    def _event(self, choice: Mapping[str, Any], **extra: Any) -> bytes:
        return b"data: " + _json(self._head("chat.completion.chunk") | {"choices": [choice]} | extra) + b"\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        head: dict[str, Any] = {"id": self.id, "object": kind, "created": self.created, "model": self.called}
        if self.profile.name in ("cerebras", "groq"):
            head["system_fingerprint"] = "fp_practice"
        return head

    @property
    def _shows_reasoning(self) -> bool:
        return self.model.reasons and self.profile.reasoning != "none" and bool(self.reply.reasoning)

    @property
    def _reasoning_tokens(self) -> int:
        return len(self.reply.reasoning) // _CHARACTERS_PER_TOKEN if self._shows_reasoning else 0

    @property
    def _finish_reason(self) -> str:
        return "tool_calls" if self.reply.calls else "stop"


def _in_words(text: str) -> list[str]:
    """A text in pieces of about a word, which joined give the text."""
    pieces = _WORDS.findall(text)
    rest = text[sum(map(len, pieces)) :]
    return [*pieces, rest] if rest else pieces


def _tool_call(identity: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


def _arguments(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(length))
