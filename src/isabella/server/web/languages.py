"""The languages of the console: catalogues of gettext, and how times and numbers are written.

English texts are in the templates and the code. A catalogue, such as `texts/de.po`, has them in another language;
`python -m tests.support.catalogues` brings it up to date.
"""

from __future__ import annotations

import gettext as catalogues
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup, escape
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from isabella.system.english import English
from isabella.system.redaction import redact

#: The folder of the catalogues.
TEXTS = Path(__file__).parent / "texts"
#: The name of the cookie with the language that a person has chosen.
COOKIE = "isabella_language"

_RANGE = re.compile(r"([a-z]{1,8})(?:-[a-z0-9-]{1,35})?\s*(?:;\s*q=([01](?:\.\d{1,3})?))?", re.IGNORECASE)


@dataclass(frozen=True)
class Language:
    """A language of the console."""

    tag: str  #: such as `en`
    name: str  #: in the language itself
    thousands: str  #: what separates groups of digits
    decimal: str  #: what comes before the fraction
    time: str  #: day and time, in the form of `strftime`
    catalogue: catalogues.NullTranslations


def _read(tag: str) -> catalogues.NullTranslations:
    with (TEXTS / f"{tag}.mo").open("rb") as file:
        return catalogues.GNUTranslations(file)


ENGLISH = Language("en", "English", ",", ".", "%d %b, %H:%M", catalogues.NullTranslations())
GERMAN = Language("de", "Deutsch", ".", ",", "%d.%m., %H:%M", _read("de"))
LANGUAGES: Mapping[str, Language] = {one.tag: one for one in (ENGLISH, GERMAN)}

_current: ContextVar[Language] = ContextVar("language", default=ENGLISH)


def current() -> Language:
    """Return the language of the request that is being answered."""
    return _current.get()


@contextmanager
def speaking(language: Language) -> Iterator[None]:
    """Use a language while the block runs, also in tasks that are started in it."""
    token = _current.set(language)
    try:
        yield
    finally:
        _current.reset(token)


def language_of(connection: HTTPConnection) -> Language:
    """Return the language that a person has chosen, or else the one that the browser prefers."""
    chosen = LANGUAGES.get(connection.cookies.get(COOKIE, ""))
    return chosen or preferred(connection.headers.get("accept-language", ""))


def preferred(accepted: str) -> Language:
    """Return the best language of an `Accept-Language` header; English if none is known."""
    ranges = [found for part in accepted.split(",")[:20] if (found := _RANGE.fullmatch(part.strip()))]
    ordered = sorted(ranges, key=lambda one: -float(one[2] or 1))
    tags = (one[1].lower() for one in ordered if float(one[2] or 1) > 0)
    return next((LANGUAGES[tag] for tag in tags if tag in LANGUAGES), ENGLISH)


class LanguageMiddleware:
    """Sets the language for each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request in its language."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with speaking(language_of(HTTPConnection(scope))):
            await self._app(scope, receive, send)


def gettext(text: str) -> str:
    """Return an English text in the current language."""
    return current().catalogue.gettext(text)


def ngettext(one: str, many: str, count: int) -> str:
    """Return the form for a number, in the current language."""
    return current().catalogue.ngettext(one, many, count)


def pgettext(context: str, text: str) -> str:
    """Return a text whose meaning depends on its context, in the current language."""
    return current().catalogue.pgettext(context, text)


# For templates: jinja2's own functions for newer catalogues do the same, and take five times as long.


def template_gettext(text: str, /, **values: object) -> Markup:
    """Return a text as HTML, with its values escaped."""
    return _as_html(_known(current().tag, text), values) if values else _plain(current().tag, text)


def template_ngettext(one: str, many: str, count: int, /, **values: object) -> Markup:
    """Return the form for a number as HTML, with its values escaped."""
    return _as_html(ngettext(one, many, count), values)


def template_pgettext(context: str, text: str, /, **values: object) -> Markup:
    """Return a text whose meaning depends on its context as HTML, with its values escaped."""
    return _as_html(pgettext(context, text), values)


@cache
def _known(tag: str, text: str) -> str:
    return LANGUAGES[tag].catalogue.gettext(text)


@cache
def _plain(tag: str, text: str) -> Markup:
    return _as_html(_known(tag, text), {})


def _as_html(pattern: str, values: Mapping[str, object]) -> Markup:
    # Texts of templates and catalogues are HTML.
    return Markup(pattern % {name: escape(value) for name, value in values.items()})  # noqa: S704


def say(text: str) -> str:
    """Return a text of the core in the current language if it can be translated, with secrets masked."""
    return redact(text.translated(gettext, current().thousands) if isinstance(text, English) else text)


def separated(number: int) -> str:
    """Return a whole number with separated thousands."""
    return f"{number:,}".replace(",", current().thousands)


def decimal(number: float, digits: int) -> str:
    """Return a number with this many digits after the point."""
    return f"{number:.{digits}f}".replace(".", current().decimal)


def N_(text: str) -> str:  # noqa: N802 - the name that gettext's tools know
    """Return the text as it is: marks a text for the catalogues that is translated where it is shown."""
    return text


#: Words of codes, as pages show them.
_WORDS = {
    # the state of a provider
    "InSync": N_("proven"),
    "Drifted": N_("differs"),
    "Refused": N_("refused"),
    "Misconfigured": N_("misconfigured"),
    "Unproven": N_("unproven"),
    "Failed": N_("failed"),
    "NoKey": N_("no key"),
    "Foreign": N_("not ours"),
    # what Letta holds
    "stored in_sync": N_("the configured key"),
    "stored stale": N_("another key"),
    "stored absent": N_("nothing"),
    "stored unreadable": N_("a key encrypted with another master key"),
    "stored plaintext": N_("the key, in plaintext"),
    "stored mistyped": N_("another provider type"),
    "stored moved": N_("another base URL"),
    "stored foreign": N_("a provider that is not configured here"),
    "stored hidden": N_("a key that cannot be read back"),
    # proofs, receipts, and kinds of changes
    "proven": N_("proven"),
    "unproven": N_("unproven"),
    "failed": N_("failed"),
    "not_asked": N_("not asked"),
    "accepted": N_("accepted"),
    "refused": N_("refused"),
    "rotated": N_("rotated"),
    "healed": N_("healed"),
    "synced": N_("synced"),
    # the last answer of a vendor
    "answers": N_("answers"),
    "refuses the key": N_("refuses the key"),
    "refuses requests": N_("refuses requests"),
    "fails": N_("fails"),
    "cannot be reached": N_("cannot be reached"),
    "not asked": N_("not asked"),
    "not known": N_("not known"),
    # why a sync ran
    "the start": N_("the start"),
    "Sync button": N_("Sync button"),
    "a change of the configuration": N_("a change of the configuration"),
    "a check for drift": N_("a check for drift"),
    "another try": N_("another try"),
    "the nightly refresh": N_("the nightly refresh"),
    # parts of a prompt, and roles of messages
    "persona": N_("persona"),
    "memory blocks": N_("memory blocks"),
    "metadata": N_("metadata"),
    "conversation": N_("conversation"),
    "user": N_("user"),
    "assistant": N_("assistant"),
    "tool": N_("tool"),
    "summary": N_("summary"),
    "system": N_("system"),
    "message": N_("message"),
    # themes
    "auto": N_("auto"),
    "light": N_("light"),
    "dark": N_("dark"),
}


def word(code: str) -> str:
    """Return the word for a code, in the current language; a code without one as it is."""
    return gettext(_WORDS[code]) if code in _WORDS else code


def script_texts() -> dict[str, str]:
    """Return the texts of the page's scripts, in the current language."""
    return {
        "away": gettext("Isabella does not answer. Your text is kept, and the page reconnects by itself."),
        "expired": gettext(
            "Your session has expired. Open the link that `isabella login` prints in this browser, "
            "then continue here. Your text is kept."
        ),
        "proxy": gettext(
            "Isabella was not reached: a proxy answered with {status}. Your text is kept; try again in a moment."
        ),
        "changed": gettext(
            "This block has changed since you opened it. Saving shows both texts and overwrites neither."
        ),
        "characters": gettext("{used} of {limit} characters"),
        "fileAway": gettext("Isabella was not reached. The file is still chosen; try again in a moment."),
        "notLoaded": gettext("Not loaded: try again"),
        "copied": gettext("Copied"),
        "notCopied": gettext("Not copied"),
        "border": gettext("The next messages are no longer in the agent's context."),
        "remove": gettext("Remove"),
        "removeFile": gettext("Remove {name}"),
        "unreadable": gettext("{name} cannot be read."),
        "thePicture": gettext("The picture"),
        "tooMany": gettext("A message may have {most} files; {name} was left out."),
        "empty": gettext("{name} is empty."),
        "largePicture": gettext("{name} ({size}) is too large: the pictures of a message may have 6 MB together."),
        "largeText": gettext("{name} ({size}) is too large: a text file may have {most} characters."),
        "wrongKind": gettext("{name} cannot be attached: PNG, JPEG, GIF and WebP pictures and text files can."),
    }
