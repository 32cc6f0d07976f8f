"""The last line of defence: every secret this process knows is taken out of texts that came from elsewhere.

Keys are kept out of logs and errors by type (`SecretStr`). But Letta and the vendors quote requests in their
errors (a 422 of Letta repeats the whole body), so what they say passes through `redact` before anybody sees it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from isabella.config.api_keys import mask

_SHORTEST = 6

_known: dict[str, str] = {}
_lock = threading.Lock()


def remember(*secrets: str | None) -> None:
    """From now on, take these out of every text that passes through `redact`."""
    with _lock:
        for secret in secrets:
            # A secret of a few characters would also blot out innocent words.
            if secret is not None and len(secret) >= _SHORTEST and secret not in _known:
                shown = _known[secret] = mask(secret)
                # As it stands in a URL, and between the quotes of a JSON document.
                _known[quote(secret, safe="")] = shown
                _known[json.dumps(secret)[1:-1]] = shown


def unforeseen(error: Exception) -> str:
    """What is said of an error that nobody has written words for."""
    return f"{type(error).__name__}: {redact(str(error))}"


def redact(text: str) -> str:
    """The text with every known secret replaced by its masked form."""
    with _lock:
        # Longest first: one secret may be part of another.
        for secret in sorted(_known, key=len, reverse=True):
            if secret in text:
                text = text.replace(secret, _known[secret])
    return text


def redact_event(_logger: Any, _method: str, event: Mapping[str, Any]) -> dict[str, Any]:
    """A structlog processor that redacts every text in a log event, however deep."""
    return {key: _redact_value(value) for key, value in event.items()}


def _redact_value(value: Any) -> Any:
    match value:
        case str():
            return redact(value)
        case Mapping():
            return {key: _redact_value(item) for key, item in value.items()}
        case list() | tuple():
            return [_redact_value(item) for item in value]
        case BaseException():
            return redact(repr(value))
        case _:
            return value
