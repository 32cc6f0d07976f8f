"""Foreign words made into HTML: nothing that a model, a vendor or a person writes is ever taken for markup."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup, escape

from isabella.redaction import redact

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
