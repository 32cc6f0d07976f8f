"""Rendering of pages and fragments: templates, their filters, and streams of fragments."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any, ClassVar
from urllib.parse import quote

import anyio
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from isabella.agents.conversations import ConversationRecord
from isabella.doctor.log_messages import scrub
from isabella.errors import IsabellaError, NotReady
from isabella.letta.conversations import DEFAULT
from isabella.providers.health import Level, current_health, level_of, stored_level, vendor_level, vendor_words
from isabella.server import ROOT
from isabella.server.auth import LOGIN, FormRefused, read_form
from isabella.server.errors import status_of
from isabella.server.event_log import Notifier
from isabella.server.runtime import Runtime
from isabella.server.static_files import static_url
from isabella.server.web import languages, markdown
from isabella.server.web.attachments import split_files
from isabella.server.web.installable import COLORS, Installable
from isabella.system.http_server import end_at_shutdown
from isabella.system.redaction import redact

#: Longer texts are cut to this many characters; a link leads to the whole text.
SHOWN = 6000
#: The same for answers, which are Markdown.
SHOWN_ANSWER = 20_000
_PING_SECONDS = 15
_SNIPPET = 200
_REFRESH_SECONDS, _STARTING_SECONDS = 20.0, 1.0

#: The header that htmx adds to its requests.
_HTMX = "hx-request"

THEME = "isabella_theme"
THEMES = ("auto", "light", "dark")

_TONES = {Level.OK: "good", Level.UNKNOWN: "idle", Level.WARNING: "warn", Level.PROBLEM: "bad"}


def render_text(text: str) -> Markup:
    """Return plain text as HTML, with its line breaks."""
    return Markup('<div class="plain">{}</div>').format(redact(text))


def render_snippet(text: str, query: str) -> Markup:
    """Return the part of a text around the first word of a query, with its words marked."""
    text = " ".join(redact(text).split())
    words = re.compile("|".join(re.escape(word) for word in query.split()) or "$^", re.IGNORECASE)
    first = words.search(text)
    begin = max(first.start() - _SNIPPET // 4, 0) if first else 0
    shown = text[begin : begin + _SNIPPET]
    pieces = [Markup("<mark>{}</mark>").format(one[0]) for one in words.finditer(shown)]
    between = [escape(one) for one in words.split(shown)]
    html = Markup("").join(piece for pair in zip_longest(between, pieces, fillvalue=Markup("")) for piece in pair)
    return Markup("{}{}{}").format("… " * (begin > 0), html, " …" * (begin + _SNIPPET < len(text)))


def format_arguments(text: str) -> str:
    """Return the arguments of a tool call one per line; unchanged if they are not a JSON object."""
    try:
        arguments = json.loads(text)
    except ValueError:
        return text
    if not isinstance(arguments, dict):
        return text
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in arguments.items()
        if name not in ("request_heartbeat", "inner_thoughts")
    )


def format_time(at: datetime | str | None) -> Markup:
    """Return a `time` element in UTC, which the page's script converts to local time."""
    if isinstance(at, str):
        try:
            at = datetime.fromisoformat(at)
        except ValueError:
            return escape(at)
    if at is None:
        return Markup("")
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="seconds"), at.strftime(languages.current().time)
    )


def format_duration(value: float | None) -> str:
    """Return a duration with its unit; the empty string for None."""
    if value is None:
        return ""
    if value < 10:
        return f"{languages.decimal(value, 1)} s"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"


def format_scale(value: float) -> str:
    """Return the seconds at an end of a scale, without a fraction if there is none."""
    return f"{languages.decimal(value, 0 if value == int(value) else 1)} s"


def conversation_name(record: ConversationRecord) -> str:
    """Return the name of a conversation; that of the default one in the current language."""
    return languages.gettext(record.name) if record.id == DEFAULT else redact(record.name)


def template_environment() -> Environment:
    """Return the environment of the templates, which escapes every value."""
    environment = Environment(
        loader=PackageLoader("isabella.server.web"),
        autoescape=True,
        undefined=StrictUndefined,
        extensions=["jinja2.ext.i18n"],
        # A running process keeps its templates while a newer version is installed.
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["ext.i18n.trimmed"] = True
    # The extension makes calls with the values as arguments, as these functions take them.
    environment.newstyle_gettext = True  # type: ignore[attr-defined]
    environment.globals |= {
        "_": languages.template_gettext,
        "gettext": languages.template_gettext,
        "ngettext": languages.template_ngettext,
        "pgettext": languages.template_pgettext,
    }
    environment.filters |= {
        # Short, and valid in an element id.
        "digest": lambda value: hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:10],
        "redact": redact,
        "markdown": markdown.render,
        "plain": render_text,
        "snippet": render_snippet,
        "arguments": format_arguments,
        "files": split_files,
        "time": format_time,
        "minute": lambda at: format_time(at.replace(second=0, microsecond=0)),
        "timestamp": lambda seconds: datetime.fromtimestamp(seconds, UTC),
        "seconds": format_duration,
        "segment": lambda value: quote(value, safe=""),
        "capitalize_first": lambda value: value[:1].upper() + value[1:],
        "thousands": languages.separated,
        "decimal": languages.decimal,
        "scale": format_scale,
        "say": languages.say,
        "scrub": scrub,
        "word": languages.word,
        "conversation_name": conversation_name,
        "condition": lambda entry: current_health(entry).value,
        "level": level_of,
        "stored_level": stored_level,
        "vendor_level": vendor_level,
        "vendor_words": vendor_words,
        "tone": _TONES.__getitem__,
    }
    environment.globals |= {
        "root": ROOT,
        "static": static_url,
        "SHOWN": SHOWN,
        "SHOWN_ANSWER": SHOWN_ANSWER,
        "login": LOGIN,
        "script_texts": languages.script_texts,
        "languages": languages.LANGUAGES.values(),
    }
    return environment


class Renderer:
    """Renders the templates for one backend, with its status line and the secret of its forms."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._environment = template_environment()
        self.installable = Installable(self._environment)
        self._environment.globals |= {"worker_url": self.installable.worker_url, "colors": COLORS}

    def status_parts(self) -> dict[str, str]:
        """Return the HTML of the parts of the status line, by id."""
        lead = self._runtime.status_line
        return {
            "status": self.part("status_parts.html", "line", lead=lead),
            "status-seen": self.part("status_parts.html", "seen", at=lead.seen),
        }

    def part(self, template: str, macro: str, /, **values: Any) -> str:
        """Return the HTML of one macro of a template."""
        return str(getattr(self._environment.get_template(template).module, macro)(**values))

    def page(
        self, request: Request, template: str, *, status: int = 200, anonymous: bool = False, **values: Any
    ) -> Response:
        """Return a page. One for anonymous readers has neither the secret of forms nor links to other pages."""
        theme = request.cookies.get(THEME, "auto")
        html = self._environment.get_template(template).render(
            theme=theme if theme in THEMES else "auto",
            themes=THEMES,
            csrf="" if anonymous else self._runtime.csrf,
            anonymous=anonymous,
            status={} if anonymous else self.status_parts(),
            path=request.url.path,
            language=languages.current(),
            **values,
        )
        return HTMLResponse(html, status)

    def error(self, request: Request, error: IsabellaError) -> Response:
        """Return an error, as a page or as a notice on the page that sent the request."""
        if isinstance(error, NotReady) and request.method == "GET" and _HTMX not in request.headers:
            # This page reloads itself when the backend has started.
            return self.page(request, "starting.html", status=503, here=request.url.path.split("/")[2])
        status = 403 if isinstance(error, FormRefused) else status_of(error)
        return self.error_message(request, status, error.what, error.remedy)

    def error_message(
        self, request: Request, status: int, what: str, remedy: str | None = None, *, anonymous: bool = False
    ) -> Response:
        """Return an error message, as a page or as a notice on the page that sent the request."""
        values = {"what": what, "remedy": remedy}
        if _HTMX in request.headers:
            html = self._environment.get_template("notice.html").render(values)
            return HTMLResponse(html, status, {"HX-Retarget": "#notice", "HX-Reswap": "innerHTML"})
        return self.page(request, "error.html", status=status, anonymous=anonymous, here="", **values)


class Page:
    """A page of the console, whose fragments are macros of `parts_template`."""

    parts_template: ClassVar[str]

    def __init__(self, runtime: Runtime, renderer: Renderer) -> None:
        self._runtime = runtime
        self._renderer = renderer

    def _part(self, macro: str, /, **values: Any) -> str:
        return self._renderer.part(self.parts_template, macro, **values)

    def _fragment(self, macro: str, /, **values: Any) -> Response:
        return HTMLResponse(self._part(macro, **values))

    async def _form(self, request: Request) -> dict[str, str]:
        return await read_form(request, self._runtime.csrf)

    def _stream(self, fragments: AsyncGenerator[str, None]) -> Response:
        """Return a stream of fragments and of the status line; the page places each by the ids in it."""
        return stream(_merged(fragments, status_changes(self._runtime, self._renderer)))


async def status_changes(runtime: Runtime, renderer: Renderer) -> AsyncGenerator[str, None]:
    """Yield the parts of the status line, and then those that change, while the providers are polled."""
    notifiers = (runtime.monitor.notifier, runtime.event_log.notifier)
    sent: dict[str, str] = {}
    with runtime.monitor.viewing():
        while True:
            counts = {notifier: notifier.count for notifier in notifiers}
            parts = renderer.status_parts()
            if changed := [html for id, html in parts.items() if sent.get(id) != html]:
                yield "\n".join(changed)
            sent = parts
            await wait_for_any(counts, _REFRESH_SECONDS if runtime.up else _STARTING_SECONDS)


async def wait_for_any(counts: dict[Notifier, int], seconds: float) -> None:
    """Wait until a notifier exceeds its count, at most this many seconds."""
    async with anyio.create_task_group() as tasks:

        async def wait(notifier: Notifier, count: int) -> None:
            await notifier.wait(count, seconds)
            tasks.cancel_scope.cancel()

        for notifier, count in counts.items():
            tasks.start_soon(wait, notifier, count)


async def _merged(*sources: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Yield what the sources yield, as it comes, until one of them ends; then close all."""
    waiting = {asyncio.ensure_future(anext(source)): source for source in sources}
    try:
        while True:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                source = waiting.pop(task)
                try:
                    html = task.result()
                except StopAsyncIteration:
                    return
                waiting[asyncio.ensure_future(anext(source))] = source
                yield html
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for source in sources:
            await source.aclose()


def stream(fragments: AsyncGenerator[str, None]) -> Response:
    """Return a stream of fragments; the page places each by the ids in it."""

    async def events() -> AsyncIterator[ServerSentEvent]:
        # Closes the generator at once when the client disconnects.
        async with aclosing(fragments):
            async for html in fragments:
                yield ServerSentEvent(html.replace("\r", ""), event="put")

    return _PageStream(events(), ping=_PING_SECONDS, send_timeout=30.0, sep="\n")


class _PageStream(EventSourceResponse):
    """An event stream that ends with its page, its session or the server."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        end_at_shutdown(scope)
        await super().__call__(scope, receive, send)
