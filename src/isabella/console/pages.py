"""Templates, and how answers are made of them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from isabella.backend.errors import status_of
from isabella.console import writing
from isabella.console.door import FormRefused
from isabella.console.premises import ConsoleContext
from isabella.errors import IsabellaError
from isabella.redaction import redact

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
        loader=PackageLoader("isabella.console"),
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
        "prose": writing.render_markdown,
        "plain": writing.render_text,
        "arguments": writing.format_arguments,
        "moment": writing.format_time,
        "seconds": writing.format_duration,
        "segment": lambda value: quote(value, safe=""),
        "capitalize_first": lambda value: value[:1].upper() + value[1:],
        "thousands": lambda value: f"{value:,}",
    }
    made.globals |= {"root": ROOT, "static": _static, "SHOWN": writing.SHOWN}
    return made


class Renderer:
    """Makes answers of templates.

    Args:
        premises: the backend.
    """

    def __init__(self, premises: ConsoleContext) -> None:
        self._premises = premises
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
