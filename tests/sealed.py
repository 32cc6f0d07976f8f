"""Sealing keys as Letta does (fact P2), written anew for the tests, so that they do not trust what they test."""

from __future__ import annotations

import base64
import hashlib
import os

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: A master key of the right form, that no server uses.
MASTER_KEY = "5eed" * 16
OTHER_MASTER_KEY = "0dd5" * 16


def seal(key: str, master_key: str, *, salt: bytes | None = None, iv: bytes | None = None) -> str:
    """The key as Letta would store it under this master key."""
    salt = os.urandom(16) if salt is None else salt
    iv = os.urandom(12) if iv is None else iv
    derived = hashlib.pbkdf2_hmac("sha256", master_key.encode(), salt, 100_000, dklen=32)
    return base64.b64encode(salt + iv + AESGCM(derived).encrypt(iv, key.encode(), None)).decode()
