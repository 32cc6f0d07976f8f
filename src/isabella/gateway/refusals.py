"""A vendor's refusals, changed so that Letta understands them, and the gateway's own.

Letta 0.16.8 takes every 413 for a full context, and knows a full context only in the words of a few vendors. Its
client tries again after a rate limit unless it is told not to.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isabella.config.gateway_address import SERVICE
from isabella.config.quirks import Quirks
from isabella.gateway.limits import Allowance, RateLimits, parse_duration, parse_limits
from isabella.system.http_server import Headers
from isabella.vendors.wordings import Reason, match_reason

#: The statuses with which vendors answer that a request exceeds the context window.
_OVERFLOW_STATUSES = (400, 413, 422, 500)
_OVERFLOW_CODE = "context_length_exceeded"
_NUMBER = r"(\d[\d,]*)"
_LIMIT = re.compile(rf"\bLimit:? {_NUMBER}")
_REQUESTED = re.compile(rf"\bRequested:? {_NUMBER}")
_TRY_AGAIN = re.compile(r"(?i)(?:try again|retry) in (\d[\d.]*(?:ms|[dhms])(?:\d[\d.]*(?:ms|[hms]))*)")

#: Seconds to wait if a vendor says that the tokens of a minute are used up, and not for how long.
_A_MINUTE = 60.0
_LONGEST_BODY = 64 * 1024
_LONGEST_WORDS = 2_000
#: The gateway sends the body decoded and with its own length.
_OWN_HEADERS = frozenset({"content-length", "content-encoding", "transfer-encoding", "connection", "keep-alive"})

#: Letta's clients try a refused request twice more unless this header says no, so a failover begins 10 s late.
_NO_RETRY = (b"x-should-retry", b"false")


@dataclass(frozen=True)
class Refusal:
    """A refusal as Letta gets it.

    Attributes:
        status, headers, body: the response. The names of headers are in lower case.
        words: the vendor's own words, bounded. They may quote a key or a part of the request.
        retry_after: seconds until the next request may succeed; None if the vendor does not say so.
        never_fits: the limit of tokens that this request exceeds by itself; None if it may pass later.
        window: the context window in tokens that the vendor states; None if it states none.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    words: str = ""
    retry_after: float | None = None
    never_fits: int | None = None
    window: int | None = None


def adapt_refusal(status: int, headers: Mapping[str, str], body: bytes, quirks: Quirks, *, now: float) -> Refusal:
    """Return a vendor's refusal in the form that Letta understands.

    Args:
        status: the vendor's status, 400 or higher.
        headers: the headers to pass on.
        body: the decoded body; a client should read no more than a few hundred kilobytes of it.
        quirks: the differences of the vendor.
        now: the time, in seconds since 1970.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    kept = {name: value for name, value in lowered.items() if name not in _OWN_HEADERS} | {"x-should-retry": "false"}
    error = _parsed(body)
    words = "" if error is None else words_of(error)
    told = f"{words} {'' if error is None else error.get('code')} {'' if error is None else error.get('type')}"
    if status == 429 or (
        status == 413 and ("rate_limit_exceeded" in told or match_reason(Reason.TOKENS_PER_PERIOD, words))
    ):
        told_limits = lowered | _quoted_headers(error)
        limits = parse_limits(told_limits, now=now, request_period=quirks.request_limit_period)
        wait = _first(limits.retry_after, _said_to_wait(words), limits.exhausted_for, _named_reset(words, limits))
        if wait is None and status == 413:
            wait = _A_MINUTE
        if wait is not None:
            kept.setdefault("retry-after", str(math.ceil(wait)))
        return Refusal(429, kept, body[:_LONGEST_BODY], words, wait, _never_fits(words))
    overflow = match_reason(Reason.CONTEXT_OVERFLOW, told) if status in _OVERFLOW_STATUSES else None
    if error is not None and overflow is not None:
        return _overflow(kept, words, _window(overflow, error))
    return Refusal(status, kept, body[:_LONGEST_BODY], words)


def error_body(code: str, message: str) -> tuple[bytes, Headers]:
    """Return the body of an error of the gateway itself, in OpenAI's shape, and its headers."""
    body, headers = json_body({"error": {"message": message, "type": SERVICE, "param": None, "code": code}})
    return body, [*headers, _NO_RETRY]


def json_body(document: object) -> tuple[bytes, Headers]:
    """Return a JSON document as a body, and its headers."""
    body = json.dumps(document).encode()
    return body, [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]


def refuses_key(status: int, words: str) -> bool:
    """Return whether a vendor refuses the key."""
    return status == 401 or match_reason(Reason.KEY_REFUSED, words) is not None


def refuses_tools(words: str) -> bool:
    """Return whether a vendor says that a model calls no tools."""
    return match_reason(Reason.TOOLS_REFUSED, words) is not None


def error_of(document: object) -> Mapping[str, Any] | None:
    """Return the error in a vendor's answer in the form of an OpenAI error; None if it has none."""
    if isinstance(document, list) and document:
        document = document[0]
    if not isinstance(document, dict):
        return None
    error = document.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str) and error:
        return {"message": error}
    message = document.get("message") or document.get("detail")
    return None if message is None else {**document, "message": message}


def words_of(error: Mapping[str, Any]) -> str:
    """Return the words of an error, with those of the vendor behind a router."""
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    told = [part if isinstance(part, str) else json.dumps(part) for part in (error.get("message"), raw) if part]
    return ": ".join(told)[:_LONGEST_WORDS]


def _quoted_headers(error: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the headers that OpenRouter has in the body of a refusal."""
    metadata = None if error is None else error.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    return {str(name): str(value) for name, value in headers.items()} if isinstance(headers, dict) else {}


def _parsed(body: bytes) -> Mapping[str, Any] | None:
    try:
        return error_of(json.loads(body))
    except (ValueError, RecursionError):
        return None


def _overflow(headers: dict[str, str], words: str, window: int | None) -> Refusal:
    message = f"This request exceeds the context window of the model. The vendor said: {words}"
    error = {"message": message, "type": "invalid_request_error", "param": "messages", "code": _OVERFLOW_CODE}
    body = json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")
    headers = headers | {"content-type": "application/json"}
    return Refusal(400, headers, body, words, window=window)


def _window(overflow: re.Match[str], error: Mapping[str, Any]) -> int | None:
    told = error.get("n_ctx")
    if isinstance(told, int) and not isinstance(told, bool) and told > 0:
        return told
    return _number(overflow.groupdict().get("window"))


def _never_fits(words: str) -> int | None:
    limit, requested = _number_in(_LIMIT, words), _number_in(_REQUESTED, words)
    if limit is None or requested is None or not match_reason(Reason.TOKENS_PER_PERIOD, words):
        return None
    return limit if requested > limit else None


def _said_to_wait(words: str) -> float | None:
    match = _TRY_AGAIN.search(words)
    return None if match is None else parse_duration(match[1])


def _named_reset(words: str, limits: RateLimits) -> float | None:
    """Return the seconds until the limit that the words name comes back: Cerebras reports no more."""
    kind, period = (re.search(pattern, words, re.IGNORECASE) for pattern in (r"token|request", r"minute|day"))
    if kind is None or period is None:
        return None
    allowance: Allowance | None = getattr(limits, f"{kind[0].lower()}s_{period[0].lower()}")
    return None if allowance is None else allowance.reset


def _number_in(pattern: re.Pattern[str], words: str) -> int | None:
    match = pattern.search(words)
    return None if match is None else _number(match[1])


def _number(text: str | None) -> int | None:
    digits = (text or "").replace(",", "")
    return int(digits) if 0 < len(digits) <= 18 else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
