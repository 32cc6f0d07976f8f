"""Redaction: secrets that this process knows are replaced by their masked form in texts from elsewhere.

Keys are kept out of logs and errors by type (`SecretStr`). Letta and the vendors, however, quote requests in their
errors (a 422 of Letta repeats the whole body), so their texts pass through `redact` before they are shown or logged.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

#: Prefixes that vendors give their keys. A prefix that ends in another one comes before it (`csk-` before `sk-`).
KNOWN_PREFIXES = (
    "sk-or-v1-",
    "sk-proj-",
    "sk-ant-",
    "tgp_v1_",
    "csk-",
    "gsk_",
    "xai-",
    "AIza",
    "sk-",
    "ak_",
    "fw_",
)

_SHORTEST_WITH_ENDING = 16
_SHORTEST_SECRET = 6  # a shorter secret would also replace harmless words

_masked_forms: dict[str, str] = {}
_lock = threading.Lock()


def known_prefix(key: str) -> str:
    """Return the vendor's prefix of a key, or an empty string if it has none of the known ones."""
    return next((prefix for prefix in KNOWN_PREFIXES if key.startswith(prefix)), "")


def mask(key: str) -> str:
    """Return a key as it may be shown: the vendor's prefix and, unless it is short, the last four characters."""
    prefix = known_prefix(key)
    if len(key) - len(prefix) < _SHORTEST_WITH_ENDING:
        return f"{prefix}…"
    return f"{prefix}…{key[-4:]}"


def remember(*secrets: str | None) -> None:
    """Register secrets that `redact` replaces from now on. None and very short secrets are ignored."""
    with _lock:
        for secret in secrets:
            if secret is not None and len(secret) >= _SHORTEST_SECRET and secret not in _masked_forms:
                masked = _masked_forms[secret] = mask(secret)
                # The same secret within a URL, and within a JSON string.
                _masked_forms[quote(secret, safe="")] = masked
                _masked_forms[json.dumps(secret)[1:-1]] = masked


def redact(text: str) -> str:
    """Return the text with every known secret replaced by its masked form."""
    with _lock:
        # Longest first: one secret may be part of another.
        for secret in sorted(_masked_forms, key=len, reverse=True):
            if secret in text:
                text = text.replace(secret, _masked_forms[secret])
    return text


def unforeseen(error: Exception) -> str:
    """Return the type and the redacted message of an error that has no message for users."""
    return f"{type(error).__name__}: {redact(str(error))}"


def redact_event(_logger: Any, _method: str, event: Mapping[str, Any]) -> dict[str, Any]:
    """Redact every text in a log event, at any depth. A structlog processor."""
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
