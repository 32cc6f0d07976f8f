"""Changes of `.env` and `isabella.toml` that keep all else in them: order, comments, ends of lines, permissions."""

from __future__ import annotations

import io
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dotenv.parser import parse_stream

from isabella.errors import ConfigurationError, FileAbsent
from isabella.system import audit, files, redaction

_PLAIN = re.compile(r"[\w./:+=@%,~-]*", re.ASCII)


def set_variables(path: Path, values: Mapping[str, str | None], *, home: Path) -> None:
    """Set variables in an `.env` file, which is created if it does not exist; None removes one.

    A variable that is already there keeps its place and the comment behind it. `home` has the audit log. Raises
    `ConfigurationError`.
    """
    file = _File.read(path)
    text = file.text
    for name, value in values.items():
        text = _without(text, name) if value is None else _with(text, name, value)
    bindings = list(parse_stream(io.StringIO(text)))
    found = {one.key: one.value for one in bindings if one.key is not None}
    if any(one.error for one in bindings) or any(found.get(name) != value for name, value in values.items()):
        raise ConfigurationError(
            f"{path}: {', '.join(values)} cannot be set there: the file has a line that is not NAME=value.",
            remedy="Correct it, or write the line yourself.",
        )
    with audit.change("setting.changed", str(path), home=home, variables=shown_variables(values)):
        file.write(text)


def append_table(path: Path, entries: Mapping[str, str | list[str]], *, home: Path) -> None:
    """Add a `[[providers]]` table at the end of `isabella.toml`, which is created if it does not exist."""
    file = _File.read(path)
    table = "\n".join(["[[providers]]", *(f"{name} = {json.dumps(value)}" for name, value in entries.items())])
    before = f"{_complete(file.text)}\n" if file.text.strip() else ""
    with audit.change("setting.changed", str(path), home=home, added=entries.get("name")):
        file.write(f"{before}{table}\n")


def shown_variables(values: Mapping[str, str | None]) -> dict[str, str]:
    """Return variables as the audit log shows them: keys as prefix and last four characters, no other value."""
    return {name: _shown(name, value) for name, value in values.items()}


def _shown(name: str, value: str | None) -> str:
    if value is None:
        return "removed"
    return redaction.mask(value.strip()) if name.endswith("_API_KEY") else "set"


def _with(text: str, name: str, value: str) -> str:
    """Return the text of an `.env` file in which a variable has this value."""
    pieces, last = _pieces(text, name)
    shown = value if _PLAIN.fullmatch(value) else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if last is None:
        return f"{_complete(text)}{name}={shown}\n"
    line = re.fullmatch(
        rf"""(?P<head>\s*(?:export[^\S\n]+)?['"]?{re.escape(name)}['"]?[^\S\n]*)(?:=[^\S\n]*
        (?:'(?:\\'|[^'])*'|"(?:\\"|[^"])*"|[^\n]*?))?(?P<tail>(?:[^\S\n]+\#[^\n]*)?[^\S\n]*\n?)""",
        pieces[last],
        re.DOTALL | re.VERBOSE,
    )
    head, tail = (line["head"], line["tail"]) if line is not None else (name, "\n")
    pieces[last] = f"{head.rstrip(' ')}={shown}{tail}"
    return "".join(pieces)


def _without(text: str, name: str) -> str:
    """Return the text of an `.env` file without a variable."""
    kept = [one.original.string for one in parse_stream(io.StringIO(text)) if one.key != name]
    return "".join(kept)


def _pieces(text: str, name: str) -> tuple[list[str], int | None]:
    """Return the pieces of an `.env` file, and the index of the last one that sets a variable: that one counts."""
    bindings = list(parse_stream(io.StringIO(text)))
    indices = [index for index, one in enumerate(bindings) if one.key == name]
    return [one.original.string for one in bindings], indices[-1] if indices else None


def _complete(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


@dataclass(frozen=True)
class _File:
    """A file with its text, its ends of lines and its permissions; those of a new file if there is none."""

    path: Path
    text: str = field(default="", repr=False)
    newline: str = "\n"
    mode: int = 0o600

    @classmethod
    def read(cls, path: Path) -> _File:
        try:
            content = files.read(path)
        except FileAbsent:
            return cls(path)
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigurationError(f"{path}: it is a pipe, so nothing can be written to it.", remedy="Name a file.")
        return cls(path, content.text, "\r\n" if b"\r\n" in content.data else "\n", content.mode)

    def write(self, text: str) -> None:
        """Replace the file, or the one that a link leads to."""
        try:
            files.write(self.path.resolve(), text.replace("\n", self.newline), mode=self.mode)
        except OSError as error:
            what = f"{self.path}: cannot be written: {error.strerror}."
            raise ConfigurationError(what, remedy="Check the path.") from None
