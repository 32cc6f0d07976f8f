"""The form of an answer that a request asks for: JSON, or an end at a sequence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jsonschema_rs

from isabella.server.api.openai.errors import FormatNotMet, Unsupported
from isabella.turns.message import UserMessage

_FENCED = re.compile(r"```(?:\w+)?\s*\n(.*?)```", re.DOTALL)
_BEGIN = re.compile(r"[{\[]")
_SHOWN = 200
#: Positions in an answer at which JSON is looked for.
_MOST_STARTS = 32
#: Steps of the search for one match of a `pattern`.
_BACKTRACKS = 100_000


class JsonFormat:
    """An answer in JSON: any object, or what a JSON schema describes.

    Args:
        schema: the schema; None for any object.
        param: the part of the request that has it.

    Raises:
        Unsupported: the schema is not one, or refers to others.
    """

    def __init__(self, schema: dict[str, Any] | None = None, param: str = "response_format") -> None:
        self._schema = schema
        try:
            self._validator = jsonschema_rs.validator_for(
                {"type": "object"} if schema is None else schema,
                offline=True,
                pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS),
            )
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            reason = str(error).splitlines()[0][:_SHOWN]
            raise Unsupported(f"The JSON schema cannot be used: {reason}.", param=param) from None

    def told(self, message: UserMessage) -> UserMessage:
        """Return a message that tells the agent the format behind its text."""
        instruction = "[Answer with one JSON object and nothing else.]"
        if self._schema is not None:
            schema = json.dumps(self._schema, ensure_ascii=False, separators=(",", ":"))
            instruction = f"[Answer with JSON that matches this schema, and nothing else: {schema}]"
        return replace(message, text=f"{message.text}\n\n{instruction}")

    def extract(self, text: str) -> str:
        """Return the JSON in an answer.

        Raises:
            FormatNotMet: it has none that matches.
        """
        problem = "it is not JSON"
        for candidate in _candidates(text):
            try:
                value = json.loads(candidate)
            except (ValueError, RecursionError):
                continue
            error = next(iter(self._validator.iter_errors(value)), None)
            if error is None:
                return candidate
            place = "/".join(map(str, error.instance_path)) or "the whole"
            problem = f"{place}: {error.message[:_SHOWN]}"
        raise FormatNotMet(
            f"The agent's answer does not have the requested format ({problem}).",
            remedy="The answer is in the agent's history. Ask again, or use a larger model.",
        )


def _candidates(text: str) -> Iterator[str]:
    """Yield what may be the JSON of an answer, the likeliest first."""
    yield text.strip()
    for match in _FENCED.finditer(text):
        yield match[1].strip()
    decoder, end = json.JSONDecoder(), 0
    for match, _ in zip(_BEGIN.finditer(text), range(_MOST_STARTS), strict=False):
        if match.start() < end:
            continue
        try:
            _, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        yield text[match.start() : end]


def json_format(wanted: Any, param: str = "response_format") -> JsonFormat | None:
    """Return the format that a part of a request asks for; None for text."""
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    match kind:
        case None | "text":
            return None
        case "json_object":
            return JsonFormat(param=param)
        case "json_schema":
            inner = wanted.get("json_schema", wanted)
            schema = inner.get("schema") if isinstance(inner, dict) else None
            if isinstance(schema, dict):
                return JsonFormat(schema, param)
            raise Unsupported("The format has no `schema`.", param=param, code="invalid_request")
        case _:
            raise Unsupported(
                f"An agent has no format {str(kind)[:40]!r}.",
                param=param,
                remedy="There are text, json_object and json_schema.",
            )


class Pieces:
    """The text of an answer as a client gets it, piece by piece.

    Args:
        stop: sequences before which it ends.
        format: its format. It is checked at its end, so all of it comes then.
    """

    def __init__(self, stop: Sequence[str] = (), format: JsonFormat | None = None) -> None:
        self._stop = stop
        self._format = format
        self._held = ""
        self._over = False

    def feed(self, text: str) -> str:
        """Add a piece of the agent's answer, and return the chunks to send now."""
        if self._over:
            return ""
        self._held += text
        ends = [at for sequence in self._stop if (at := self._held.find(sequence)) >= 0]
        if ends:
            self._held, self._over = self._held[: min(ends)], True
        if self._format is not None:
            return ""
        return self._release(0 if self._over else self._open_end())

    def end(self) -> str:
        """Return the rest of the answer.

        Raises:
            FormatNotMet: it does not have its format.
        """
        rest = self._release(0)
        return rest if self._format is None else self._format.extract(rest)

    def _open_end(self) -> int:
        """Return how many of the last characters may be the beginning of a sequence."""
        return max(
            (
                length
                for sequence in self._stop
                for length in range(1, min(len(sequence), len(self._held) + 1))
                if self._held.endswith(sequence[:length])
            ),
            default=0,
        )

    def _release(self, kept: int) -> str:
        at = len(self._held) - kept
        released, self._held = self._held[:at], self._held[at:]
        return released
