"""The answers of vendors, read while they pass: usage, the reason for the end, errors inside a stream, and reasoning.

No answer is kept. Only the reasoning of vendors that require it back is remembered, in memory and bounded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from isabella.gateway.refusals import error_of

#: The longest line of a stream and the longest whole answer, in bytes, and the longest reasoning or text, in
#: characters, that are read. Anything longer still passes.
_LONGEST_LINE = 1024 * 1024
_LONGEST_BODY = 16 * 1024 * 1024
_LONGEST_TEXT = 512 * 1024
#: Letta cuts longer tool-call ids to this length.
_ID_LENGTH = 29
#: What a line contains that is worth parsing. Inside a text of the model these quotes would be escaped.
_TELLING = re.compile(rb'"usage"\s*:\s*\{|"finish_reason"\s*:\s*"|"error"\s*:\s*["{]|"object"\s*:\s*"error"')

_Key = tuple[str, ...]


@dataclass
class Spoken:
    """The parts of an answer by which its reasoning is found again.

    Attributes:
        calls: the names of the called tools by the id of the call.
        text: the pieces of its text.
        reasoning: the pieces of its reasoning.
    """

    calls: dict[str, str] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)


class AnswerReader:
    """Reads an answer to a chat request, streamed or whole, in chunks of any size. It never raises.

    Attributes:
        prompt_tokens, completion_tokens: the usage; None if the answer does not report it.
        finish_reason: the reason for its end; None if it has not ended.
        error: the error that the vendor sent instead of, or inside, the answer, in the form of an OpenAI error.
        spoken: by what the reasoning is found again; None if it is not read, or too long.
    """

    def __init__(self, *, keep_reasoning: bool = False) -> None:
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.finish_reason: str | None = None
        self.error: Mapping[str, Any] | None = None
        self.spoken = Spoken() if keep_reasoning else None
        self._spoken_length = 0
        self._streamed: bool | None = None
        self._rest = bytearray()
        self._skips = False

    def feed(self, chunk: bytes) -> None:
        """Read the next chunk."""
        if self._streamed is None:
            start = chunk.lstrip()
            self._streamed = None if not start else not start.startswith((b"{", b"["))
        if not self._streamed:
            self._keep(chunk, _LONGEST_BODY)
            return
        first, *others = chunk.split(b"\n")
        self._keep(first, _LONGEST_LINE)
        for line in others:
            self._end_line()
            self._keep(line, _LONGEST_LINE)

    def close(self) -> None:
        """Read what is left, when the answer has ended or its connection was closed."""
        if self._streamed:
            self._end_line()
        elif not self._skips:
            self._read(bytes(self._rest))
        self._rest.clear()

    def _keep(self, piece: bytes, longest: int) -> None:
        self._skips = self._skips or len(self._rest) + len(piece) > longest
        if self._skips:
            self._rest.clear()
        else:
            self._rest += piece

    def _end_line(self) -> None:
        line = b"" if self._skips else bytes(self._rest)
        self._rest.clear()
        self._skips = False
        payload = line[5:].strip() if line.startswith(b"data:") else b""
        if not payload or payload == b"[DONE]":
            return
        if self.spoken is not None or _TELLING.search(payload):
            self._read(payload)

    def _read(self, payload: bytes) -> None:
        """Read a whole answer or an event of a streamed one."""
        try:
            event = json.loads(payload)
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        choices = event.get("choices")
        if not isinstance(choices, list):
            self.error = self.error or error_of(event)
            return
        extension = event.get("x_groq")
        self._read_usage(event.get("usage") or (extension.get("usage") if isinstance(extension, dict) else None))
        for choice in choices:
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                self._read_choice(choice)

    def _read_usage(self, usage: object) -> None:
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
            self.completion_tokens = _count(usage.get("completion_tokens"), self.completion_tokens)

    def _read_choice(self, choice: Mapping[str, Any]) -> None:
        if isinstance(reason := choice.get("finish_reason"), str):
            self.finish_reason = reason
        part = choice.get("delta") or choice.get("message")
        if self.spoken is None or not isinstance(part, dict):
            return
        for pieces, piece in (
            (self.spoken.reasoning, part.get("reasoning_content") or part.get("reasoning")),
            (self.spoken.text, part.get("content")),
        ):
            if isinstance(piece, str) and piece:
                pieces.append(piece)
                self._spoken_length += len(piece)
        self.spoken.calls |= _called(part)
        if self._spoken_length > _LONGEST_TEXT:
            self.spoken = None


class CallNumbers:
    """Numbers the tool calls in a streamed answer, in chunks of any size: pieces with the same id have one number.

    Everything else passes as it is. A piece without an id belongs to the call before it.
    """

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._last = 0
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return the lines that are complete with this chunk."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        passed = b"".join(self._numbered(line) + b"\n" for line in lines)
        return passed + self.close() if len(self._rest) > _LONGEST_LINE else passed

    def close(self) -> bytes:
        """Return what is left, when the answer has ended."""
        rest, self._rest = self._rest, b""
        return self._numbered(rest)

    def _numbered(self, line: bytes) -> bytes:
        if not line.startswith(b"data:") or b'"tool_calls"' not in line:
            return line
        try:
            event = json.loads(line[5:])
        except (ValueError, RecursionError):
            return line
        pieces = list(_call_pieces(event))
        for piece in pieces:
            if id := piece.get("id"):
                self._last = self._ids.setdefault(str(id), len(self._ids))
            piece["index"] = self._last
        return b"data: " + json.dumps(event).encode() if pieces else line


async def with_numbered_calls(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield an answer with its tool calls numbered."""
    numbers = CallNumbers()
    async for chunk in content:
        if passed := numbers.feed(chunk):
            yield passed
    if rest := numbers.close():
        yield rest


class ReasoningMemory:
    """The reasoning of earlier answers, so that it can be sent back. The oldest is forgotten first.

    Reasoning is found by the tool calls of its answer, or by the text of its answer and the message before it.
    """

    def __init__(self, *, entries: int = 4096, size: int = 32 * 1024 * 1024) -> None:
        self._entries = entries
        self._size = size
        self._used = 0
        self._known: OrderedDict[_Key, str] = OrderedDict()

    def remember(self, provider: str, request: Mapping[str, Any], spoken: Spoken | None) -> None:
        """Remember the reasoning of an answer.

        Args:
            provider: whose answer it was, as given to `adapt_request`.
            request: the adapted body of the request that it answers.
            spoken: what the reader of the answer kept.
        """
        reasoning = "" if spoken is None else "".join(spoken.reasoning)
        if spoken is None or not reasoning:
            return
        messages = request.get("messages")
        before = messages[-1] if isinstance(messages, list) and messages else None
        for key in _keys(provider, spoken.calls, "".join(spoken.text), before):
            self._used += len(reasoning) - len(self._known.pop(key, ""))
            self._known[key] = reasoning
        while self._known and (len(self._known) > self._entries or self._used > self._size):
            self._used -= len(self._known.popitem(last=False)[1])

    def recall(self, provider: str, message: Mapping[str, Any], *, before: Mapping[str, Any]) -> str | None:
        """Return the reasoning of an earlier answer; None if it is not known.

        Args:
            provider: the provider that is asked now; only its own reasoning is returned.
            message: the answer as an assistant message.
            before: the last user message or tool result before it.
        """
        for key in _keys(provider, _called(message), message.get("content"), before):
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        return None


def _keys(provider: str, calls: Mapping[str, str], text: object, before: object) -> Iterator[_Key]:
    for id, name in calls.items():
        yield provider, id[:_ID_LENGTH], name
    if not calls and isinstance(text, str) and isinstance(before, Mapping):
        # The same short text answers many messages.
        told = json.dumps([before.get("content"), text.strip()])
        yield provider, hashlib.sha256(told.encode()).hexdigest()


def _call_pieces(event: object) -> Iterator[dict[str, Any]]:
    """Yield the pieces of tool calls in an event of a stream."""
    choices = event.get("choices") if isinstance(event, dict) else None
    for choice in choices if isinstance(choices, list) else ():
        delta = choice.get("delta") if isinstance(choice, dict) else None
        calls = delta.get("tool_calls") if isinstance(delta, dict) else None
        yield from (call for call in (calls if isinstance(calls, list) else ()) if isinstance(call, dict))


def _called(message: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the called tools by the id of the call."""
    calls = message.get("tool_calls")
    found = {}
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(call.get("id"), str) and call["id"]:
            found[call["id"]] = str(function.get("name"))
    return found


def _count(value: object, otherwise: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise
