"""Reading back the key that Letta stores: how it is sealed, and whether it is the one that is wanted (fact P2).

Letta seals a key with AES-256-GCM under a key derived from the master key by PBKDF2, with a salt of its own for
every row. So whoever holds the master key can open what is stored, and prove what it is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
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

from isabella.system.files import write_private

_SALT, _IV, _TAG = 16, 12, 16
_ROUNDS = 100_000
# An empty key is sealed as readily as any other.
_SHORTEST = _SALT + _IV + _TAG
#: Memos of another version were made in another way.
_MEMO_VERSION = 3
_KNOWN_AS_KEYS = ("sk-", "pk-", "api-", "key-", "token-")


class KeyMatch(StrEnum):
    """What reading a stored key back has shown."""

    #: The stored key is the desired one.
    EQUAL = "equal"
    #: The stored key is another one.
    DIFFERENT = "different"
    #: There is no key in the row, or an empty one.
    NOTHING = "nothing"
    #: It is sealed, and our master key does not open it.
    UNREADABLE = "unreadable"
    #: It is sealed and we have no master key, or the server does not show it.
    HIDDEN = "hidden"


@dataclass(frozen=True)
class KeyReading:
    """What became of reading a stored key back.

    Attributes:
        match: how it compares to the desired key.
        sealed: whether it stands there encrypted; in plaintext otherwise.
        key: the stored key itself, where it was read; see `stored_key`.
    """

    match: KeyMatch
    sealed: bool = False
    key: SecretStr | None = field(default=None, repr=False)


def looks_encrypted(text: str) -> bool:
    """Whether a stored value has the form of a sealed one: base64 of salt, iv, ciphertext and tag."""
    return _parts(text) is not None


def mistaken_for_encrypted(key: str) -> bool:
    """Whether Letta takes a key in plaintext for a sealed one (fact O7).

    It leaves out whatever is no base64 and looks at the length of the rest, unless the key begins as a few known
    ones do. So this is wider than `looks_sealed`.
    """
    if key.startswith(_KNOWN_AS_KEYS):
        return False
    try:
        return len(base64.b64decode(key)) > _SHORTEST
    except (binascii.Error, ValueError):
        return False


def decrypt(text: str, master_key: str) -> str | None:
    """The key inside a sealed value; None where this master key does not open it. About 15 ms."""
    parts = _parts(text)
    if parts is None:
        return None
    salt, iv, ciphertext = parts
    try:
        return AESGCM(_derived(master_key, salt)).decrypt(iv, ciphertext, None).decode()
    except (InvalidTag, UnicodeDecodeError):
        return None


def encrypt(text: str, master_key: str) -> str:
    """The text as Letta stores it under this master key. About 15 ms."""
    salt, iv = os.urandom(_SALT), os.urandom(_IV)
    return base64.b64encode(salt + iv + AESGCM(_derived(master_key, salt)).encrypt(iv, text.encode(), None)).decode()


def _derived(master_key: str, salt: bytes) -> bytes:
    # The OpenSSL that comes with cryptography takes half the time of the one that Python is linked with.
    return PBKDF2HMAC(hashes.SHA256(), 32, salt, _ROUNDS).derive(master_key.encode())


def _parts(text: str) -> tuple[bytes, bytes, bytes] | None:
    with suppress(binascii.Error, ValueError):
        raw = base64.b64decode(text, validate=True)
        if len(raw) >= _SHORTEST:
            return raw[:_SALT], raw[_SALT : _SALT + _IV], raw[_SALT + _IV :]
    return None


class ProofMemo:
    """Remembers which key each sealed value was found to hold, so that no derivation is made twice.

    What is remembered are MACs under the master key: of the sealed value, and of it together with the key in it. To
    somebody without the master key they are random numbers; whoever has the master key can open the sealed value
    itself, and learns nothing more here. The whole is sealed by a MAC as well: without the master key it can be
    neither added to nor put together anew.

    Args:
        path: where it is kept; None keeps it in memory only.
        master_key: the one under which the values are sealed.
    """

    _LIMIT = 10_000

    def __init__(self, path: Path | None, master_key: SecretStr) -> None:
        self._path = path
        secret = hashlib.sha256(b"isabella proof memo\0" + master_key.get_secret_value().encode()).digest()
        # Keyed BLAKE2b: as good a MAC as HMAC-SHA256 in a third of the time. There may be a thousand providers.
        self._mac = hashlib.blake2b(key=secret, digest_size=16)
        #: By the tag of a sealed value, the tag of it together with its key.
        self._found = self._load()
        #: The latter, where most questions are answered.
        self._proofs = set(self._found.values())
        self._changed = False

    @classmethod
    def of(cls, home: Path, base_url: str, master_key: SecretStr) -> Self:
        """The memo of one Letta, kept in Isabella's home."""
        name = hashlib.sha256(base_url.encode()).hexdigest()[:16]
        return cls(home / "proofs" / f"{name}.json", master_key)

    def holds(self, sealed: str, key: str) -> bool | None:
        """Whether this sealed value holds this key; None where it has not been opened yet."""
        proof = self._proof(sealed, key)
        if proof in self._proofs:
            return True
        return False if self._tag(sealed) in self._found else None

    def add(self, sealed: str, key: str) -> None:
        """Remember that this sealed value was opened and holds this key."""
        proof = self._proof(sealed, key)
        if proof not in self._proofs:
            self._found[self._tag(sealed)] = proof
            self._proofs.add(proof)
            self._changed = True

    def save(self) -> None:
        """Write it down. A memo that cannot be written costs time at the next start, nothing else."""
        if self._path is None or not self._changed:
            return
        found = dict([*self._found.items()][-self._LIMIT :])
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            document = {"version": _MEMO_VERSION, "mac": self._over(found), "found": found}
            write_private(self._path, json.dumps(document))
            self._changed = False

    def _load(self) -> dict[str, str]:
        if self._path is None:
            return {}
        try:
            document = json.loads(self._path.read_text())
            found = document["found"]
            genuine = document["version"] == _MEMO_VERSION and hmac.compare_digest(document["mac"], self._over(found))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return found if genuine else {}

    def _over(self, found: Mapping[str, str]) -> str:
        return self._mac_of("memo:" + "".join(f"{tag}{proof}" for tag, proof in found.items()))

    def _tag(self, sealed: str) -> str:
        return self._mac_of(f"value:{sealed}")

    def _proof(self, sealed: str, key: str) -> str:
        return self._mac_of(f"{len(sealed)}:{sealed}{key}")

    def _mac_of(self, text: str) -> str:
        mac = self._mac.copy()
        mac.update(text.encode())
        return mac.hexdigest()


def read_back(
    text: str | None,
    desired: str,
    master_key: SecretStr | None,
    memo: ProofMemo | None,
    *,
    shown: bool = True,
) -> KeyReading:
    """Compare a stored value with the desired key.

    Args:
        text: the value of `api_key_enc`.
        desired: the key that should be in it.
        master_key: the one to open it with, if there is one.
        memo: what has been proven before.
        shown: whether the server shows the value at all.
    """
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
    found = decrypt(text, master_key.get_secret_value())
    if found is None:
        return KeyReading(KeyMatch.UNREADABLE, sealed=True)
    if memo is not None and found:
        memo.add(text, found)
    if not hmac.compare_digest(found.encode(), desired.encode()):
        # An empty key is stored as readily as any other (facts P10, O9).
        return KeyReading(KeyMatch.DIFFERENT if found else KeyMatch.NOTHING, sealed=True, key=SecretStr(found))
    return KeyReading(KeyMatch.EQUAL, sealed=True, key=SecretStr(found))


def recall_reading(text: str | None, desired: SecretStr, memo: ProofMemo | None) -> KeyReading | None:
    """What is remembered of a stored value, without opening it; None where it has to be opened.

    Args:
        text: the value of `api_key_enc`.
        desired: the key that should be in it.
        memo: what has been found before.
    """
    if memo is None or not text:
        return None
    match memo.holds(text, desired.get_secret_value()):
        case True:
            return KeyReading(KeyMatch.EQUAL, sealed=True, key=desired)
        case False:
            return KeyReading(KeyMatch.DIFFERENT, sealed=True)
        case None:
            return None


def stored_key(reading: KeyReading | None, text: str | None, master_key: SecretStr | None) -> SecretStr | None:
    """The stored key itself, opened now where nobody had to before; None where it cannot be read. Up to 15 ms.

    Args:
        reading: what became of reading it back; None where nobody has.
        text: the value of `api_key_enc`.
        master_key: the one to open it with, if there is one.
    """
    if reading is None:
        return None
    # Only what was recalled is known to be another key without having been opened.
    if reading.key is not None or reading.match is not KeyMatch.DIFFERENT or text is None or master_key is None:
        return reading.key
    found = decrypt(text, master_key.get_secret_value())
    return None if found is None else SecretStr(found)
