"""What an open chat page is sent while an answer arrives, without a browser."""

from __future__ import annotations

import re

from isabella.server.web import markdown, rendering
from isabella.server.web.conversations import Exchange, ExchangePhase
from isabella.server.web.pages_chat import SentExchange, exchange_updates
from isabella.turns.events import AnswerText, Ended, EndReason, ToolCalled, ToolReturned

_RENDERER = rendering.Renderer("secret")
_ANSWER = (
    "First **bold** words.\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n```python\nx = 1\n```\n\n- one\n- two\n\nThe end."
)


class OpenPage:
    """The blocks of the answer that a page shows, and what it has announced."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.sent = SentExchange.of(exchange)
        self.blocks: dict[str, str] = {}
        self.drawn: list[str] = []
        self.announced: list[str] = []

    def update(self) -> None:
        """Place what has changed, as the page's script does."""
        for html in exchange_updates(_RENDERER, self.exchange, self.sent, "agent-1"):
            self._put(html.strip())
        self.sent = SentExchange.of(self.exchange)

    def _put(self, html: str) -> None:
        if html.startswith('<div hx-swap-oob="beforeend:#announcer">'):
            self.announced.append(re.sub("<[^>]+>", "", html))
        elif 'hx-swap-oob="delete"' in html:
            del self.blocks[_id(html)]
        elif html.startswith('<div hx-swap-oob="beforeend:#x1-0">'):
            self._draw(html.partition(">")[2].removesuffix("</div>"))
        elif ' hx-swap-oob="true"' in html and "-state" not in html:
            self._draw(html.replace(' hx-swap-oob="true"', ""))

    def _draw(self, block: str) -> None:
        self.blocks[_id(block)] = block
        self.drawn.append(_id(block))


def _id(html: str) -> str:
    return str(re.findall(r'id="([^"]+)"', html)[0])


def test_a_page_is_sent_each_block_until_it_is_complete() -> None:
    """The page ends with the whole answer, has drawn no complete block again, and has announced each block once."""
    exchange = Exchange(1, "Hello", phase=ExchangePhase.RUNNING)
    exchange.apply(AnswerText("", "message-1"))
    page = OpenPage(exchange)
    for piece in re.findall(r"(?s).{1,3}", _ANSWER):
        exchange.apply(AnswerText(piece, "message-1"))
        complete = exchange.parts[0].rendered.complete
        before = len(page.drawn)
        page.update()
        fresh = {int(id.rpartition("-")[2]) for id in page.drawn[before:]}
        assert all(index >= complete - 1 for index in fresh)
    exchange.apply(Ended(EndReason.COMPLETED, "cerebras/gpt-oss-120b", True, 1.0, 0.5))
    page.update()
    assert [re.sub(r' id="x1-0-\d+"', "", html) for html in page.blocks.values()] == [
        str(block.html) for block in markdown.blocks(_ANSWER)
    ]
    assert page.announced == ["First bold words.", "a\nb\n1\n2", "Code: x = 1", "one\ntwo", "The end."]


def test_an_answer_with_a_tool_between_its_texts() -> None:
    """A text before a tool call is complete when the call begins; the text after it is another part."""
    exchange = Exchange(1, "Hello", phase=ExchangePhase.RUNNING)
    page = OpenPage(exchange)
    exchange.apply(AnswerText("I look it up.", "message-1"))
    page.update()
    assert page.announced == []
    exchange.apply(ToolCalled("call-1", "conversation_search", "{}"))
    exchange.apply(ToolReturned("call-1", "conversation_search", True, "Rex"))
    exchange.apply(AnswerText("It is Rex.", "message-2"))
    page.update()
    assert page.announced == ["I look it up."]
    exchange.apply(Ended(EndReason.COMPLETED, "cerebras/gpt-oss-120b", True, 1.0, 0.5))
    page.update()
    assert page.announced == ["I look it up.", "It is Rex."]
