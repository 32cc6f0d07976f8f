"""Foreign words in the console, and what it makes of what it knows, without a browser."""

from __future__ import annotations

import pytest

from isabella.agents.history import HistoryEntry
from isabella.server.web import markdown, pages_memory, rendering
from isabella.system import redaction


@pytest.mark.parametrize(
    ("text", "never"),
    [
        ("<script>alert(1)</script>", "<script"),
        ("<img src=x onerror=alert(1)>", "<img"),
        ("![a picture](http://elsewhere/x.png)", "<img"),
        ("[a link](javascript:alert(1))", "href="),
        ("[a link](data:text/html,x)", "href="),
        ("| a |\n|:-:|\n| b |", "style="),
        ("# Title", "<h1"),
    ],
)
def test_prose_makes_no_markup_of_its_own(text: str, never: str) -> None:
    """Markdown becomes HTML without scripts, pictures, dangerous links, inline styles, or headings of the page."""
    assert never not in markdown.render(text)


def test_prose_is_rendered() -> None:
    """What is harmless is shown as it was meant; links tell nothing of where they were."""
    html = markdown.render("**bold** and `code`, [a page](https://example.org)")
    assert "<strong>bold</strong>" in html
    assert 'rel="noopener noreferrer"' in html


def test_known_secrets_are_masked_in_every_text() -> None:
    """A secret of this process is masked in prose as in plain text."""
    redaction.remember("csk-console0000000000000000abcd")
    assert "console0000" not in markdown.render("it is csk-console0000000000000000abcd")
    assert "console0000" not in rendering.render_text("it is csk-console0000000000000000abcd")


def test_arguments_are_shown_a_line_each() -> None:
    """A tool's arguments are told apart; what is no JSON is shown as it is."""
    assert (
        rendering.format_arguments('{"label": "human", "new_str": "x", "request_heartbeat": true}')
        == "label: human\nnew_str: x"
    )
    assert rendering.format_arguments("{half") == "{half"


def test_what_is_remembered_leads_to_what_was_said() -> None:
    """A line of memory is traced to the user's line before the tool that wrote it; the newest writing counts."""
    entries = [
        HistoryEntry("m1", "2026-01-01T00:00:00+00:00", "user", "My dog is called Rex."),
        HistoryEntry(
            "m2", "", "tool_call", '{"label": "human", "new_str": "The dog is called Rex."}', tool="memory_insert"
        ),
        HistoryEntry("m3", "", "user", "Look it up"),
        HistoryEntry("m4", "", "tool_call", '{"query": "The dog is called Rex."}', tool="archival_memory_search"),
    ]
    found = pages_memory.provenance_in(entries)
    traced = pages_memory.provenance_of("- The dog is called Rex.", found)
    assert traced is not None
    assert traced.message.id == "m1"
    assert pages_memory.provenance_of("The cat is called Miezi.", found) is None
