"""The catalogues of the console's texts: what the templates and the code contain, and the translations.

`python -m tests.support.catalogues` adds texts that are missing in each catalogue, drops those that are gone, and
compiles it. An empty `texts/LANGUAGE.po` becomes a new catalogue. A test fails if a catalogue is not complete.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from babel.messages import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from isabella.doctor import findings
from isabella.server.web.languages import TEXTS
from isabella.turns import stream

_SOURCE = Path(__file__).parents[2] / "src" / "isabella"
_METHODS = [("server/web/templates/**.html", "jinja2.ext:babel_extract"), ("**.py", "python")]
_OPTIONS = {"server/web/templates/**.html": {"trimmed": "true", "trim_blocks": "true", "lstrip_blocks": "true"}}
_KEYWORDS = {
    "_": None,
    "gettext": None,
    "ngettext": (1, 2),
    "pgettext": ((1, "c"), 2),
    "N_": None,
    "english": None,
    "English": None,
}
#: Tables with texts of the core, and what yields these texts.
_TABLES = {"doctor/findings.toml": findings.texts_for_people, "turns/refusals.toml": stream.texts_for_people}
#: Lines of a header that say nothing, or something else at each run.
_IDLE = tuple(
    f'"{name}'.encode()
    for name in ("Project-Id", "Report-", "POT-", "PO-", "Last-", "Language-Team", "Generated-By", "MIME-Version")
)
_VALUE = re.compile(r"%\(\w+\)s|\{\w+\}|<")
_MADE = datetime(2026, 1, 1, tzinfo=UTC)


def extracted() -> Catalog:
    """Return all texts, each with the files that have it."""
    catalogue = Catalog(project="Isabella", charset="utf-8", header_comment="# All texts of the console, in English.")
    found = extract_from_dir(str(_SOURCE), _METHODS, _OPTIONS, keywords=_KEYWORDS)
    for file, _line, text, _comments, context in sorted(found, key=lambda one: (one[0], one[1])):
        catalogue.add(text, locations=[(file, 0)], context=context)
    for file, texts_of in _TABLES.items():
        for text in texts_of():
            catalogue.add(text, locations=[(file, 0)])
    return catalogue


def translations() -> Iterator[Path]:
    """Yield the catalogues of other languages."""
    yield from sorted(TEXTS.glob("*.po"))


def read(path: Path) -> Catalog:
    """Return a catalogue."""
    with path.open("rb") as file:
        return read_po(file, locale=path.stem)


def texts(tag: str) -> Iterator[tuple[str, str]]:
    """Yield the texts of a catalogue without values, each with its translation."""
    for message in read(TEXTS / f"{tag}.po"):
        if isinstance(message.id, str) and message.id and not _VALUE.search(message.id):
            yield message.id, str(message.string)


def compiled(catalogue: Catalog) -> bytes:
    """Return a catalogue in the form that the console reads."""
    content = io.BytesIO()
    catalogue.creation_date = catalogue.revision_date = _MADE
    write_mo(content, catalogue)
    return content.getvalue()


def written(catalogue: Catalog) -> bytes:
    """Return a catalogue as a text file, with the lines of its header that mean something."""
    content = io.BytesIO()
    write_po(
        content,
        catalogue,
        width=110,
        sort_output=True,
        ignore_obsolete=True,
        include_lineno=False,
    )
    lines = content.getvalue().splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(_IDLE))


def main() -> None:
    """Bring all catalogues up to date."""
    template = extracted()
    for path in translations():
        catalogue = read(path)
        catalogue.update(template, no_fuzzy_matching=True)
        path.write_bytes(written(catalogue))
        path.with_suffix(".mo").write_bytes(compiled(catalogue))
        missing = [one.id for one in catalogue if one.id and not is_translated(one)]
        print(f"{path.name}: {len(catalogue)} texts, {len(missing)} without a translation")


def is_translated(message: Message) -> bool:
    """Return whether a message has a translation in each of its forms."""
    return all(message.string) if isinstance(message.string, (list, tuple)) else bool(message.string)


if __name__ == "__main__":
    main()
