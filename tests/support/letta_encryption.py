"""Sealing keys as Letta does (fact P2), written anew for the tests, so that they do not trust what they test."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from isabella.letta import encryption

#: A master key of the right form, that no server uses.
MASTER_KEY = "5eed" * 16
OTHER_MASTER_KEY = "0dd5" * 16

#: Letta's own number of rounds. A fake Letta that has to be fast takes fewer, and so does what reads it back.
ROUNDS = 100_000


def seal(
    key: str, master_key: str, *, salt: bytes | None = None, iv: bytes | None = None, rounds: int = ROUNDS
) -> str:
    """The key as Letta would store it under this master key."""
    salt = os.urandom(16) if salt is None else salt
    iv = os.urandom(12) if iv is None else iv
    derived = _derive(master_key, salt, rounds)
    return base64.b64encode(salt + iv + AESGCM(derived).encrypt(iv, key.encode(), None)).decode()


def unseal(text: str, master_key: str, *, rounds: int = ROUNDS) -> str | None:
    """The key in a stored text; None where this master key does not open it."""
    try:
        raw = base64.b64decode(text)
    except (binascii.Error, ValueError):
        return None
    if len(raw) < 44:
        return None
    derived = _derive(master_key, raw[:16], rounds)
    try:
        return AESGCM(derived).decrypt(raw[16:28], raw[28:], None).decode()
    except InvalidTag:
        return None


@lru_cache(maxsize=1000)
def _derive(master_key: str, salt: bytes, rounds: int) -> bytes:
    """Derive an AES key; the walks open the same texts again and again."""
    # The OpenSSL of `cryptography` takes a third of the time of Python's.
    return PBKDF2HMAC(hashes.SHA256(), 32, salt, rounds).derive(master_key.encode())


@contextmanager
def derived_once() -> Iterator[None]:
    """Have Isabella keep derived keys, where the same values are decrypted again and again: each takes 15 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encryption, "_derived", lru_cache(maxsize=1000)(encryption._derived))
        yield
