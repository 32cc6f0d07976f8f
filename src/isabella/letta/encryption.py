"""The keys that Letta stores: how they are encrypted, and how a stored key is read back and compared (fact P2).

Letta encrypts a key with AES-256-GCM. The AES key is derived from the master key by PBKDF2, with a salt for each row.
With the master key, a stored key can therefore be decrypted and compared with the configured one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from pydantic import SecretStr

from isabella.system import state

_SALT, _IV, _TAG = 16, 12, 16
_ROUNDS = 100_000
# Letta encrypts an empty key like any other.
_SHORTEST = _SALT + _IV + _TAG
_MEMO_VERSION = 3  # a memo of another version was made in another way
_MEMO_LIMIT = 10_000
_KEY_PREFIXES = ("sk-", "pk-", "api-", "key-", "token-")


class KeyMatch(StrEnum):
    """The result of comparing a stored key with the desired one."""

    EQUAL = "equal"
    DIFFERENT = "different"
    NOTHING = "nothing"  # the row has no key, or an empty one
    UNREADABLE = "unreadable"  # the key is encrypted under another master key
    HIDDEN = "hidden"  # the key is encrypted and there is no master key, or the server does not show it


@dataclass(frozen=True)
class KeyReading:
    """The result of reading a stored key back."""

    match: KeyMatch  # how it compares with the desired key
    sealed: bool = False  # whether it is stored encrypted; in plaintext otherwise
    key: SecretStr | None = field(default=None, repr=False)  # the stored key, if it was read


def looks_encrypted(text: str) -> bool:
    """Return whether a stored value has the form of an encrypted one: base64 of salt, iv, ciphertext and tag."""
    return _parts(text) is not None


def mistaken_for_encrypted(key: str) -> bool:
    """Return whether Letta takes a key in plaintext for an encrypted one (fact O7).

    Letta looks at the length of the base64 in it, unless the key has one of a few prefixes.
    """
    if key.startswith(_KEY_PREFIXES):
        return False
    try:
        return len(base64.b64decode(key)) > _SHORTEST
    except (binascii.Error, ValueError):
        return False


def decrypt(text: str, master_key: str) -> str | None:
    """Return the key in an encrypted value; None if this master key does not decrypt it. It takes about 15 ms."""
    parts = _parts(text)
    if parts is None:
        return None
    salt, iv, ciphertext = parts
    try:
        return AESGCM(_derived(master_key, salt)).decrypt(iv, ciphertext, None).decode()
    except (InvalidTag, UnicodeDecodeError):
        return None


def encrypt(text: str, master_key: str) -> str:
    """Return a text encrypted as Letta does it. It takes about 15 ms."""
    salt, iv = os.urandom(_SALT), os.urandom(_IV)
    return base64.b64encode(salt + iv + AESGCM(_derived(master_key, salt)).encrypt(iv, text.encode(), None)).decode()


def _derived(master_key: str, salt: bytes) -> bytes:
    # The OpenSSL in cryptography takes half the time of the one that Python is linked with.
    return PBKDF2HMAC(hashes.SHA256(), 32, salt, _ROUNDS).derive(master_key.encode())


def _parts(text: str) -> tuple[bytes, bytes, bytes] | None:
    with suppress(binascii.Error, ValueError):
        raw = base64.b64decode(text, validate=True)
        if len(raw) >= _SHORTEST:
            return raw[:_SALT], raw[_SALT : _SALT + _IV], raw[_SALT + _IV :]
    return None


class ProofMemo:
    """A cache of which key each encrypted value holds, so that no value is decrypted twice.

    It holds MACs under the master key: of an encrypted value, and of the value together with its key. Without the
    master key they are random numbers, and the file, which has its own MAC, cannot be changed or forged. Without
    a path, the memo is kept in memory only.
    """

    def __init__(self, path: Path | None, master_key: SecretStr) -> None:
        self._path = path
        secret = hashlib.sha256(b"isabella proof memo\0" + master_key.get_secret_value().encode()).digest()
        # Keyed BLAKE2b is as good a MAC as HMAC-SHA256 in a third of the time.
        self._mac = hashlib.blake2b(key=secret, digest_size=16)
        self._tags = self._load()  # by the tag of an encrypted value, the tag of that value with its key
        self._changed = False

    @classmethod
    def of(cls, home: Path, base_url: str, master_key: SecretStr) -> Self:
        """Return the memo of one Letta, in Isabella's home."""
        name = hashlib.sha256(base_url.encode()).hexdigest()[:16]
        return cls(home / "proofs" / f"{name}.json", master_key)

    def holds(self, sealed: str, key: str) -> bool | None:
        """Return whether an encrypted value holds this key; None if it was never decrypted."""
        known = self._tags.get(self._tag(sealed))
        return None if known is None else known == self._proof(sealed, key)

    def add(self, sealed: str, key: str) -> None:
        """Note that an encrypted value was decrypted and holds this key."""
        if self.holds(sealed, key) is not True:
            self._tags[self._tag(sealed)] = self._proof(sealed, key)
            self._changed = True

    def save(self) -> None:
        """Write the file. A memo that cannot be written costs time at the next start, nothing else."""
        if self._path is None or not self._changed:
            return
        tags = dict([*self._tags.items()][-_MEMO_LIMIT:])
        document = {"version": _MEMO_VERSION, "mac": self._over(tags), "found": tags}
        self._changed = not state.keep(self._path, document)

    def _load(self) -> dict[str, str]:
        if self._path is None:
            return {}
        document = state.load(self._path)
        try:
            tags = dict(document["found"])
            genuine = document["version"] == _MEMO_VERSION and hmac.compare_digest(document["mac"], self._over(tags))
        except (ValueError, KeyError, TypeError, AttributeError):
            if document:
                state.report_fields(self._path)
            return {}
        return tags if genuine else {}

    def _over(self, tags: Mapping[str, str]) -> str:
        return self._mac_of("memo:" + "".join(f"{tag}{proof}" for tag, proof in tags.items()))

    def _tag(self, sealed: str) -> str:
        return self._mac_of(f"value:{sealed}")

    def _proof(self, sealed: str, key: str) -> str:
        return self._mac_of(f"{len(sealed)}:{sealed}{key}")

    def _mac_of(self, text: str) -> str:
        mac = self._mac.copy()
        mac.update(text.encode())
        return mac.hexdigest()


def read_back(
    text: str | None, desired: str, master_key: SecretStr | None, memo: ProofMemo | None, *, shown: bool = True
) -> KeyReading:
    """Compare a stored value (`api_key_enc`) with the desired key. `shown`: whether the server shows the value."""
    if not shown:
        return KeyReading(KeyMatch.HIDDEN)
    if not text:
        return KeyReading(KeyMatch.NOTHING)
    if hmac.compare_digest(text.encode(), desired.encode()):
        return KeyReading(KeyMatch.EQUAL, sealed=False, key=SecretStr(desired))
    if not looks_encrypted(text):
        return KeyReading(KeyMatch.DIFFERENT, sealed=False, key=SecretStr(text))
    if master_key is None:
        return KeyReading(KeyMatch.HIDDEN, sealed=True)
    if memo is not None and memo.holds(text, desired):
        return KeyReading(KeyMatch.EQUAL, sealed=True, key=SecretStr(desired))
    key = decrypt(text, master_key.get_secret_value())
    if key is None:
        return KeyReading(KeyMatch.UNREADABLE, sealed=True)
    if memo is not None and key:
        memo.add(text, key)
    if not hmac.compare_digest(key.encode(), desired.encode()):
        # Letta stores an empty key like any other (facts P10, O9).
        return KeyReading(KeyMatch.DIFFERENT if key else KeyMatch.NOTHING, sealed=True, key=SecretStr(key))
    return KeyReading(KeyMatch.EQUAL, sealed=True, key=SecretStr(key))
