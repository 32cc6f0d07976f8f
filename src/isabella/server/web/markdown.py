"""Markdown of agents as HTML: no raw HTML, images or inline styles. Growing texts are rendered block by block."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from linkify_it import LinkifyIt
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup, escape
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Token as Code
from pygments.token import _TokenType

from isabella.server.web.languages import gettext
from isabella.system.redaction import redact

#: Longer texts are shown as plain text.
LONGEST = 100_000
#: Longer code is not highlighted.
_LONGEST_CODE = 12_000
#: Of longer code, screen readers are told the number of lines.
_SPOKEN_LINES = 10
#: The languages that are highlighted, by the names that models give them. A lexer is a set of regular expressions
#: that runs on the model's text, so only common ones are used.
_NAMES = """
bash c c++ cpp cs csharp css diff docker dockerfile elixir go graphql haskell html ini java javascript js json jsx
julia kotlin lua make makefile nginx patch perl php powershell proto protobuf py python python3 r rb ruby rs rust
scala scss sh shell sql swift toml ts tsx typescript xml yaml yml zsh
"""
_LANGUAGES = frozenset(_NAMES.split())
#: The class in the page's style sheet, by kind of code. The most special kind that is listed decides.
_CLASSES = {
    Code.Comment: "hc",
    Code.Keyword: "hk",
    Code.Operator.Word: "hk",
    Code.Name.Function: "hf",
    Code.Name.Class: "hf",
    Code.Name.Decorator: "hf",
    Code.Name.Tag: "hk",
    Code.Name.Attribute: "hf",
    Code.Literal.String: "hs",
    Code.Literal.Number: "hn",
    Code.Generic.Inserted: "hs",
    Code.Generic.Deleted: "hd",
}
#: A formula with its delimiters. Its underscores and asterisks are not emphasis.
_FORMULA = re.compile(
    r"\\\(.{1,1000}?\\\)|\\\[.{1,1000}?\\\]|\$\$.{1,1000}?\$\$|\$(?![\s$])[^$\n]{1,1000}?(?<!\s)\$(?!\d)", re.DOTALL
)
_ALIGNMENT = re.compile(r"text-align:(left|center|right)")
_TAG = re.compile(r"<\w+")


@dataclass(frozen=True)
class Block:
    """A top-level block of a text, such as a paragraph, a list or a table."""

    html: Markup  # one element
    spoken: str  # its text for a screen reader

    def with_id(self, id: str, swap: str = "") -> Markup:
        """Return its HTML with an id and, if it is to replace another element, with htmx's attribute."""
        attributes = f' id="{escape(id)}"' + (f' hx-swap-oob="{escape(swap)}"' if swap else "")
        html = _TAG.sub(lambda tag: tag[0] + attributes, str(self.html), count=1)
        return Markup(html)  # noqa: S704 - all of it is escaped


class MarkdownStream:
    """The blocks of a Markdown text that grows.

    A block that is complete is not rendered again: only the definition of a link changes it.
    """

    def __init__(self) -> None:
        self._complete: list[Block] = []
        self._open: list[Block] = []
        self._text = ""
        self._from = 0  # where the first block that is not complete begins
        self._ended = False

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the text so far."""
        return (*self._complete, *self._open)

    @property
    def complete(self) -> int:
        """The number of its first blocks that no longer change."""
        return len(self._complete)

    def write(self, text: str, *, ended: bool = False) -> None:
        """Take the text so far, which begins with the one before; with `ended` nothing follows."""
        if (text, ended) == (self._text, self._ended):
            return
        self._text, self._ended = text, ended
        if len(text) > LONGEST:
            self._complete, self._open, self._from = [], [_plain(text)], 0
        elif ended and "]:" in text:
            # A link may be defined after its use.
            self._complete, self._open, self._from = [], [block for _, block in _parse(_lines(text))], 0
        else:
            self._advance(_lines(text)[self._from :])
        if ended:
            self._complete, self._open = [*self._complete, *self._open], []

    def _advance(self, rest: str) -> None:
        parsed = list(_parse(rest))
        # The last line may yet become anything, so a block is complete when another one begins in a line before it.
        lines = rest.count("\n")
        kept = max((index for index, (line, _) in enumerate(parsed) if line < lines), default=0)
        self._complete += [block for _, block in parsed[:kept]]
        self._open = [block for _, block in parsed[kept:]]
        if kept:
            self._from += sum(len(line) + 1 for line in rest.split("\n")[: parsed[kept][0]])


def render(text: str) -> Markup:
    """Return a Markdown text as HTML that loads nothing from other hosts."""
    return Markup("").join(block.html for block in blocks(text))


def blocks(text: str) -> Sequence[Block]:
    """Return the blocks of a Markdown text."""
    stream = MarkdownStream()
    stream.write(text, ended=True)
    return stream.blocks


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _plain(text: str) -> Block:
    text = redact(text)
    return Block(Markup('<div class="plain">{}</div>').format(text), "")


def _parse(text: str) -> Iterator[tuple[int, Block]]:
    """Yield the blocks of a text, each with the number of its first line."""
    tokens = _MARKDOWN.parse(redact(text))
    begin = 0
    for index, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            # Headings of an answer are not headings of the page.
            token.tag = "p"
            if token.type == "heading_open":
                token.attrSet("class", "heading")
        if style := token.attrs.pop("style", None):
            # The policy forbids inline styles.
            alignment = _ALIGNMENT.match(str(style))
            token.attrSet("class", alignment[1] if alignment else "left")
        if token.level == 0 and token.nesting <= 0:
            own = tokens[begin : index + 1]
            html = Markup(_MARKDOWN.renderer.render(own, _MARKDOWN.options, {}).strip())  # noqa: S704 - it escapes
            yield (own[0].map or [0])[0], Block(html, _spoken(own))
            begin = index + 1


def _spoken(tokens: Sequence[Token]) -> str:
    pieces: list[str] = []
    for token in tokens:
        if token.type in ("fence", "code_block"):
            lines = token.content.strip().count("\n") + 1
            code = token.content.strip()
            pieces.append(
                f"{gettext('Code:')} {code}"
                if lines <= _SPOKEN_LINES
                else gettext("Code of %(lines)s lines.") % {"lines": lines}
            )
        elif token.type == "inline":
            pieces.append(
                "".join(child.content or " " * (child.type == "softbreak") for child in token.children or ())
            )
    return "\n".join(piece for piece in pieces if piece)


class _Renderer(RendererHTML):
    """Renders images as their description, because they would be fetched from other hosts. Links open a new tab."""

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return str(escape(tokens[idx].content))

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        tokens[idx].attrSet("rel", "noopener noreferrer")
        tokens[idx].attrSet("target", "_blank")
        return self.renderToken(tokens, idx, options, env)

    def table_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        # A wide table scrolls by itself, also with the keyboard.
        return f'<div class="scrolls" tabindex="0" role="region" aria-label="{escape(gettext("Table"))}"><table>'

    def table_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return "</table></div>"

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        language = tokens[idx].info.split()[0] if tokens[idx].info.strip() else ""
        return str(
            Markup(
                '<div class="code"><p class="code-bar"><span>{}</span>'
                '<button type="button" class="slight" data-copy="code" aria-label="{}">{}</button></p>'
                '<pre tabindex="0"><code>{}</code></pre></div>'
            ).format(
                language or gettext("Code"),
                gettext("Copy the code"),
                gettext("Copy"),
                _highlighted(tokens[idx].content, language),
            )
        )

    def code_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return self.fence(tokens, idx, options, env)

    def formula(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return str(Markup('<span class="formula">{}</span>').format(tokens[idx].content))


def _formula(state: StateInline, silent: bool) -> bool:
    """Take a formula as it is: the rule of the parser."""
    if state.src[state.pos] not in "\\$":
        return False
    found = _FORMULA.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    if not silent:
        state.push("formula", "", 0).content = found[0]
    state.pos = found.end()
    return True


def _highlighted(code: str, language: str) -> Markup:
    """Return code as HTML, with classes for its highlighting."""
    language = language.lower()
    if language not in _LANGUAGES or len(code) > _LONGEST_CODE:
        return escape(code)
    pieces: list[tuple[str, list[str]]] = []
    for kind, text in _lexer(language).get_tokens(code):
        css = _class(kind) if text.strip() else ""
        if not pieces or pieces[-1][0] != css:
            pieces.append((css, []))
        pieces[-1][1].append(text)
    span = Markup('<span class="{}">{}</span>')
    return Markup("").join(
        span.format(css, "".join(texts)) if css else escape("".join(texts)) for css, texts in pieces
    )


@cache
def _lexer(language: str) -> Lexer:
    return get_lexer_by_name(language, stripnl=False, ensurenl=False)


@cache
def _class(kind: _TokenType) -> str:
    return next((_CLASSES[each] for each in reversed(kind.split()) if each in _CLASSES), "")


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "linkify": True}, renderer_cls=_Renderer)
    parser.enable(["table", "strikethrough", "linkify"]).disable(["html_block", "html_inline", "lheading"])
    # Only what says that it is an address: a file's name, such as main.rs, is none.
    parser.linkify = LinkifyIt(options={"fuzzy_link": False, "fuzzy_email": False, "fuzzy_ip": False})
    parser.inline.ruler.before("escape", "formula", _formula)
    return parser


_MARKDOWN = _parser()
