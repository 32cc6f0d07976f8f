"""Templates, and how answers are made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup, escape
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from isabella.errors import IsabellaError
from isabella.server.auth import FormRefused
from isabella.server.errors import status_of
from isabella.server.web.context import ConsoleContext
from isabella.system.redaction import redact

#: What is shown of a text at once; the whole of it is behind a link.
SHOWN = 6000
_LONGEST_MARKDOWN = 20_000


class _Renderer(RendererHTML):
    """Pictures would be fetched from other hosts: they become their description. Links open elsewhere, unseen."""

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return str(escape(tokens[idx].content))

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        tokens[idx].attrSet("rel", "noopener noreferrer")
        tokens[idx].attrSet("target", "_blank")
        return self.renderToken(tokens, idx, options, env)

    def table_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        # Wide tables scroll by themselves, with the keyboard as well.
        return '<div class="scrolls" tabindex="0" role="region" aria-label="Table"><table>'

    def table_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return "</table></div>"


_MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True}, renderer_cls=_Renderer).enable("table")
# Headings of an answer are no headings of the page, and inline styles are not allowed on it.
_MARKDOWN.disable(["html_block", "html_inline", "lheading"])


def render_markdown(text: str) -> Markup:
    """What an agent says: Markdown, without raw HTML, pictures, or anything that reaches another host by itself."""
    text = redact(text)
    if len(text) > _LONGEST_MARKDOWN:
        return render_text(text)
    tokens = _MARKDOWN.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = "p"
            if token.type == "heading_open":
                token.attrSet("class", "heading")
        # An alignment would be an inline style.
        token.attrs.pop("style", None)
    html = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    return Markup(html)  # noqa: S704 - made by the renderer, which escapes; raw HTML is off


def render_text(text: str) -> Markup:
    """Text as it was written."""
    return Markup('<div class="plain">{}</div>').format(redact(text))


def format_arguments(text: str) -> str:
    """The arguments of a tool for people: one a line, where they are JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    if not isinstance(found, dict):
        return text
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in found.items()
        if name not in ("request_heartbeat", "inner_thoughts")
    )


def format_time(at: datetime | str | None) -> Markup:
    """A time: as UTC, which the page's script puts into the reader's own."""
    if isinstance(at, str):
        try:
            at = datetime.fromisoformat(at)
        except ValueError:
            return escape(at)
    if at is None:
        return Markup("")
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="seconds"), at.strftime("%d %b, %H:%M")
    )


def format_duration(value: float | None) -> str:
    """A duration for people."""
    if value is None:
        return ""
    if value < 10:
        return f"{value:.1f} s"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"


#: Where the console is mounted.
ROOT = "/console"
THEME = "isabella_theme"
THEMES = ("auto", "light", "dark")

_PING_SECONDS = 15


def _digest(value: str) -> str:
    """A name that may stand in an id, for one that may be anything."""
    return hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:10]


@cache
def static_version(name: str) -> str:
    """Changes whenever a static file does."""
    content = resources.files(__package__).joinpath("static", *name.split("/")).read_bytes()
    return hashlib.sha256(content).hexdigest()[:10]


def _static(name: str) -> str:
    return f"{ROOT}/static/{name}?v={static_version(name)}"


def template_environment() -> Environment:
    """The templates; everything is escaped."""
    made = Environment(
        loader=PackageLoader("isabella.server.web"),
        autoescape=True,
        undefined=StrictUndefined,
        # A process goes on with the templates that it was written for, also while a newer version is installed.
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "digest": _digest,
        "redact": redact,
        "prose": render_markdown,
        "plain": render_text,
        "arguments": format_arguments,
        "moment": format_time,
        "seconds": format_duration,
        "segment": lambda value: quote(value, safe=""),
        "capitalize_first": lambda value: value[:1].upper() + value[1:],
        "thousands": lambda value: f"{value:,}",
    }
    made.globals |= {"root": ROOT, "static": _static, "SHOWN": SHOWN}
    return made


class Renderer:
    """Makes answers of templates.

    Args:
        context: the backend.
    """

    def __init__(self, context: ConsoleContext) -> None:
        self._premises = context
        self._environment = template_environment()

    def text(self, template: str, **values: Any) -> str:
        """A fragment."""
        return self._environment.get_template(template).render(values)

    def part(self, template: str, part: str, /, **values: Any) -> str:
        """What one macro of a template makes."""
        return str(getattr(self._environment.get_template(template).module, part)(**values))

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        """A whole page."""
        theme = request.cookies.get(THEME, "auto")
        html = self.text(
            template,
            theme=theme if theme in THEMES else "auto",
            themes=THEMES,
            csrf=self._premises.csrf,
            path=request.url.path,
            **values,
        )
        return HTMLResponse(html, status)

    def fragment(self, html: str, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """A fragment for the page that asked."""
        return HTMLResponse(html, status, headers)

    def failure(self, request: Request, error: IsabellaError) -> Response:
        """What went wrong: as a page of its own, or as a notice on the one that asked."""
        status = 403 if isinstance(error, FormRefused) else status_of(error)
        return self.refusal(request, status, error.what, error.remedy)

    def refusal(self, request: Request, status: int, what: str, remedy: str | None = None) -> Response:
        """The same for a status of HTTP that no error of ours stands for."""
        words = {"what": redact(what), "remedy": redact(remedy) if remedy else None}
        if "hx-request" in request.headers:
            html = self.text("notice.html", **words)
            return self.fragment(html, status=status, headers={"HX-Retarget": "#notice", "HX-Reswap": "innerHTML"})
        return self.page(request, "failure.html", status=status, here="", **words)


def stream(fragments: AsyncGenerator[str, None]) -> Response:
    """Fragments as they come, each to be put where its ids say."""

    async def events() -> AsyncIterator[ServerSentEvent]:
        # Closed at once when the page is, so that nothing is looked at for nobody.
        async with aclosing(fragments):
            async for html in fragments:
                yield ServerSentEvent(html.replace("\r", ""), event="put")

    return EventSourceResponse(events(), ping=_PING_SECONDS, send_timeout=30.0, sep="\n")
