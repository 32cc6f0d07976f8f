"""The keys of backups, in the formats of `age`: who can open a backup, and with what.

Backups are encrypted to the configured recipients. If there are none, to the home's own key, which is made at the
first backup. A copy of it that is encrypted with a passphrase can lie beside the backups: with both, they can be
opened on another machine, also by `age -d -i`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from isabella.embedded.instance import make_home
from isabella.errors import BackupRefused, ConfigurationError, EmbeddedError, FileAbsent
from isabella.system import audit, files, redaction, state

if TYPE_CHECKING:
    from pyrage import x25519

KEY_FILE = "backup-key"  # in the home
SEALED_KEYS = "key-*.age"  # beside the backups: copies of such keys, encrypted with a passphrase
_SECRET_PREFIX = "AGE-SECRET-KEY-1"  # noqa: S105 - not a secret
_AGE, _ARMOR = b"age-encryption.org/v1", b"-----BEGIN AGE"


def parse_recipients(texts: Iterable[str]) -> list[x25519.Recipient]:
    """Return public keys. Raises `ConfigurationError` for anything else."""
    from pyrage import RecipientError, x25519

    found = []
    for text in texts:
        try:
            found.append(x25519.Recipient.from_str(text))
        except RecipientError:
            raise ConfigurationError(
                f"{redaction.redact(text)[:24]!r} is not an age public key.",
                remedy="A public key begins with age1; `age-keygen` or `isabella backup key` shows it.",
            ) from None
    return found


def own_key(home: Path) -> x25519.Identity | None:
    """Return the home's own key; None if it has none.

    Raises:
        EmbeddedError: the file is damaged. It is left as it is, for the backups that it opens.
    """
    path = home / KEY_FILE
    try:
        (identity,) = _parse(path, files.read(path).text)
    except FileAbsent:
        return None
    except (ValueError, BackupRefused):
        raise EmbeddedError(
            f"{path} is damaged: it should hold one age secret key.",
            remedy="Restore it from a copy, or move it away: a new one is then made, which opens only later backups.",
        ) from None
    return identity


def own_key_or_new(home: Path) -> x25519.Identity:
    """Return the home's own key, which is made if there is none."""
    from pyrage import x25519

    identity = own_key(home)
    if identity is None:
        identity = x25519.Identity.generate()
        make_home(home)
        state.write(home / KEY_FILE, _key_text(identity))
        identity = own_key(home) or identity
    return identity


def seal_key(home: Path, folder: Path, passphrase: SecretStr) -> Path:
    """Write the home's own key, encrypted with a passphrase, beside the backups, and return the path."""
    from pyrage import passphrase as sealing

    identity = own_key_or_new(home)
    path = sealed_key(folder, identity)
    with audit.change("backup.key_sealed", str(path), home=home):
        _write_sealed(path, sealing.encrypt(_key_text(identity).encode(), passphrase.get_secret_value()))
    return path


def _write_sealed(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    temporary.write_bytes(data)
    temporary.rename(path)


def sealed_key(folder: Path, identity: x25519.Identity) -> Path:
    """Return the path of the encrypted copy of a key. Each key has one of its own, so that none replaces another."""
    return folder / SEALED_KEYS.replace("*", str(identity.to_public()).removeprefix("age1")[:12])


def is_sealed(path: Path) -> bool:
    """Return whether a file with keys is encrypted with a passphrase."""
    return files.read(path).data.startswith((_AGE, _ARMOR))


def load_keys(path: Path, passphrase: SecretStr | None) -> Sequence[x25519.Identity]:
    """Return the keys in a file, which may be encrypted with a passphrase.

    Raises:
        BackupRefused: it holds no key, or the passphrase is missing or wrong.
    """
    if not is_sealed(path):
        return _parse(path, files.read(path).text)
    if passphrase is None:
        raise BackupRefused(
            f"{path} is encrypted with a passphrase.", remedy="Pass a file with the passphrase as --passphrase-file."
        )
    from pyrage import DecryptError
    from pyrage import passphrase as sealing

    try:
        return _parse(path, sealing.decrypt(files.read(path).data, passphrase.get_secret_value()).decode())
    except (DecryptError, UnicodeDecodeError):
        raise BackupRefused(
            f"The passphrase does not open {path}, or the file is damaged.", remedy="Enter the right one."
        ) from None


def _parse(path: Path, text: str) -> list[x25519.Identity]:
    from pyrage import IdentityError, x25519

    lines = [line.strip() for line in text.splitlines() if line.strip().startswith(_SECRET_PREFIX)]
    redaction.remember(*lines)
    try:
        found = [x25519.Identity.from_str(line) for line in lines]
    except IdentityError:
        found = []
    if not found:
        raise BackupRefused(f"{path} holds no age secret key.", remedy="Name a file written by `age-keygen`.")
    return found


def _key_text(identity: x25519.Identity) -> str:
    secret = str(identity)
    redaction.remember(secret)
    return f"# public key: {identity.to_public()}\n{secret}\n"
