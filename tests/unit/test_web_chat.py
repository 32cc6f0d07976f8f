"""What an open chat page is sent while an answer arrives, without a browser."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from isabella.agents.history import HistoryEntry
from isabella.errors import LettaUnreachable
from isabella.server.runtime import Runtime
from isabella.server.web import markdown, pages_chat, rendering
from isabella.server.web.conversations import Exchange, ExchangePhase
from isabella.server.web.pages_chat import SentExchange, exchange_updates
from isabella.turns.events import AnswerText, Ended, EndReason, ToolCalled, ToolReturned, Usage

_RENDERER = rendering.Renderer(Runtime())
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


ENTRIES = [
    HistoryEntry("message-1", "2026-11-01T10:00:00+00:00", "user", "one"),
    HistoryEntry("message-2", "2026-11-01T10:00:05+00:00", "assistant", "two"),
    HistoryEntry("message-3", "2026-11-01T12:00:00+01:00", "user", "three"),
]


def _unsent(seq: int, at: str, after: str | None) -> Exchange:
    return Exchange(seq, "lost", at=datetime.fromisoformat(at), after=after, phase=ExchangePhase.ENDED)


@pytest.mark.parametrize(
    ("at", "after", "newest", "place"),
    [
        ("2026-11-01T09:00:00+00:00", "message-2", True, "message-2"),  # what came before it is known
        ("2026-11-01T10:30:00+00:00", None, True, "message-2"),  # by its time, whatever the time zone
        ("2026-11-01T09:00:00+00:00", None, True, ""),  # before everything
        ("2026-11-01T09:00:00+00:00", "message-0", True, None),  # among older messages, which are not loaded
        ("2026-11-01T10:30:00+00:00", None, False, None),  # only the newest page takes one without a place
    ],
)
def test_an_unsent_message_stays_in_its_order(at: str, after: str | None, newest: bool, place: str | None) -> None:
    """A message that nobody answered is shown behind the one before it, not below everything that came since."""
    exchange = _unsent(1, at, after)
    placed = pages_chat.placed([exchange], ENTRIES, newest=newest)
    assert placed == ({} if place is None else {place: [exchange]})


def test_the_line_under_an_answer_is_the_same_live_and_in_the_history() -> None:
    """Model, time to the first token, tokens and tools, in one line, from one record."""
    exchange = Exchange(1, "Hello", phase=ExchangePhase.RUNNING)
    for event in (
        ToolCalled("call-1", "memory_insert", "{}"),
        AnswerText("Done.", "message-2"),
        Usage(3170, 44, 3214, 2),
        Ended(EndReason.COMPLETED, "cerebras/gpt-oss-120b", True, 1.44, 0.41),
    ):
        exchange.apply(event)
    exchange.phase, exchange.message_id, exchange.answer_ids = ExchangePhase.ENDED, "message-1", ("message-2",)
    line = (
        "cerebras/gpt-oss-120b, first token after 0.4 s, 1.4 s in total, 3,170 tokens read, 44 written, 1 tool call"
    )
    live = _RENDERER.part("chat_parts.html", "state", exchange=exchange, agent_id="agent-1")
    told = pages_chat.ChatLine(ENTRIES[1], exchange.record, answers="message-1")
    history = _RENDERER.part("chat_parts.html", "history_line", line=told, agent_id="agent-1")
    assert f'<p class="facts quiet">{line}</p>' in live
    assert f'<p class="facts quiet">{line}</p>' in history
    earlier = pages_chat.ChatLine(ENTRIES[0], exchange.record)
    assert "facts" not in _RENDERER.part("chat_parts.html", "history_line", line=earlier, agent_id="agent-1")


def test_why_there_is_no_answer_is_announced() -> None:
    """A failure and a stop are told once, when the exchange ends, with what to do next."""
    failed = Exchange(1, "Hello", phase=ExchangePhase.RUNNING)
    page = OpenPage(failed)
    failed.fail(LettaUnreachable("Letta does not answer.", remedy="Start it."))
    page.update()
    page.update()
    assert page.announced == ["Letta does not answer. Start it."]


@pytest.mark.parametrize(
    ("text", "query", "html"),
    [
        ("My dog is called Rex.", "rex DOG", "My <mark>dog</mark> is called <mark>Rex</mark>."),
        ("<b>Rex</b>", "rex", "&lt;b&gt;<mark>Rex</mark>&lt;/b&gt;"),
        ("a" * 500 + " Rex " + "b" * 500, "rex", "<mark>Rex</mark>"),
        ("Costs $5 (each)", "(each) $5", "Costs <mark>$5</mark> <mark>(each)</mark>"),
    ],
)
def test_a_hit_shows_its_words(text: str, query: str, html: str) -> None:
    """The found words are marked, markup stays text, and a long text is shown around the first word."""
    snippet = rendering.render_snippet(text, query)
    assert html in snippet
    assert len(snippet) < 300
