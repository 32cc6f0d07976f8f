"""The secrets of an instance: made once, kept in files that only their owner can read."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from secrets import token_hex

from pydantic import SecretStr

from isabella.system import redaction
from isabella.system.files import write_private

NO_KEY = "none"


def load_secret(path: Path) -> SecretStr | None:
    """The secret in a file; None where there is none."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    if not text:
        return None
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    redaction.remember(text)
    return SecretStr(text)


def load_or_create_secret(path: Path) -> SecretStr:
    """The secret in a file, which is made, with a new secret of 32 random bytes, where there is none."""
    found = load_secret(path)
    if found is not None:
        return found
    text = token_hex(32)
    write_private(path, text + "\n")
    redaction.remember(text)
    return SecretStr(text)


def fingerprint(key: SecretStr | None) -> str:
    """What may be kept of a master key to know it again: a salted hash, useless for opening anything."""
    return NO_KEY if key is None else _fingerprint(key, token_hex(16))


def matches_fingerprint(key: SecretStr | None, kept_fingerprint: str) -> bool:
    """Whether this is the key, or the absence of one, of which the fingerprint was kept."""
    if key is None:
        return kept_fingerprint == NO_KEY
    salt = kept_fingerprint.partition(":")[0]
    return hmac.compare_digest(_fingerprint(key, salt), kept_fingerprint)


def _fingerprint(key: SecretStr, salt: str) -> str:
    digest = hmac.new(salt.encode(), key.get_secret_value().encode(), hashlib.sha256).hexdigest()
    return f"{salt}:{digest}"
