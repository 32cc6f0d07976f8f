"""The form of API keys: what is accepted, and what is removed around them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from isabella.system.english import english
from isabella.system.redaction import known_prefix

_PLACEHOLDERS = re.compile(
    r"""^(
        <.*> | \{\{?.*\}?\} | \$\{.*\} | \$\(.*\) | \$\w+ | \[.*\]
      | x{3,} | \.{3,} | \*{3,} | -{3,} | …
      | (your|my|the|an?|insert|put|enter|add|paste|replace)[-_ ]?(.*[-_ ])?(api[-_ ]?)?(key|token|secret)([-_ ].*)?
      | (change|replace|fix|fill)[-_ ]?(me|this|it|in)
      | (api[-_ ]?)?(key|token|secret)([-_ ]?here)?
      | todo | tbd | none | null | undefined | placeholder | dummy | dummy_api_key | example | secret | password
    )$""",
    re.IGNORECASE | re.VERBOSE,
)
_BEARER = re.compile(r"bearer(\s|$)", re.IGNORECASE)
#: What is stored and sent for a vendor that needs no key. It is not a secret.
NO_KEY = "no-key-needed"
_HEXADECIMAL_64 = re.compile(r"[0-9a-fA-F]{64}")


class KeyRefused(ValueError):
    """The value cannot be an API key. The message says why, without the value."""


class KeyEmpty(KeyRefused):
    """The value is empty."""


class KeyPlaceholder(KeyRefused):
    """The value is a placeholder."""


@dataclass(frozen=True)
class CleanKey:
    """A key without the characters that were copied along with it; `notes` tell the operator what was removed."""

    value: str
    notes: tuple[str, ...] = ()


def clean_key(raw: str) -> CleanKey:
    """Remove what copying leaves around a key, and refuse what cannot be one with `KeyRefused`."""
    notes: dict[str, None] = {}
    value = raw.strip()
    if value != raw:
        what = english("a trailing newline") if raw.rstrip("\r\n") == value else english("surrounding white space")
        notes[english("%(what)s was removed", what=what)] = None
    wrapped = ""
    while value != wrapped:
        wrapped = value
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"`":
            value = value[1:-1].strip()
            notes[english("surrounding quotes were removed")] = None
        if _BEARER.match(value):
            value = value[6:].strip()
            notes[english("the word Bearer was removed")] = None
    if not value:
        raise KeyEmpty(english("it is empty"))
    prefix = known_prefix(value)
    if value == prefix or _PLACEHOLDERS.match(value.removeprefix(prefix)):
        raise KeyPlaceholder(english("it is a placeholder, not a key"))
    if len(value.split()) > 1:
        raise KeyRefused(english("it contains white space"))
    if not value.isascii():
        raise KeyRefused(english("it contains a character that is not ASCII"))
    if not value.isprintable():
        raise KeyRefused(english("it contains a control character"))
    return CleanKey(value, tuple(notes))


def is_master_key(value: str) -> bool:
    """Return whether this is a valid `LETTA_ENCRYPTION_KEY`: 64 hexadecimal characters (32 bytes)."""
    return _HEXADECIMAL_64.fullmatch(value) is not None
