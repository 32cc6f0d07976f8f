"""Texts as they may be pasted into a public issue: no key, and no home folder of anybody."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isabella.system.redaction import KNOWN_PREFIXES, mask, redact

_PREFIXES = "|".join(re.escape(prefix) for prefix in KNOWN_PREFIXES)
#: What looks like a key although this process does not know it: by its prefix, after "Bearer", or by sheer length.
_KEY = re.compile(
    rf"(?<![\w/-])(?:(?:{_PREFIXES})[\w-]{{6,}}"
    r"|(?<=Bearer )[\w.+/=-]{8,}"
    r"|(?=[A-Za-z_-]*\d)(?=[\d_-]*[A-Za-z])[A-Za-z0-9+/]{40,}={0,2})(?![\w-])"
)
_PASSWORD_IN_URL = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]+@")


def scrub(text: str) -> str:
    """The text without keys, passwords in addresses, and home folders."""
    text = _PASSWORD_IN_URL.sub(r"\1:…@", redact(text))
    text = _KEY.sub(lambda found: mask(found.group()), text)
    return shorten(text)


def shorten(text: str) -> str:
    """The text with `~` in place of the home folder."""
    home = os.environ.get("HOME") or str(Path.home())
    return text if len(home) < 2 else re.sub(rf"{re.escape(home.rstrip('/'))}(?=[/\s'\"`),;:]|$)", "~", text)


def scrub_document(value: Any) -> Any:
    """A document with every text in it scrubbed."""
    match value:
        case str():
            return scrub(value)
        case Mapping():
            return {key: scrub_document(item) for key, item in value.items()}
        case list() | tuple():
            return [scrub_document(item) for item in value]
        case _:
            return value
