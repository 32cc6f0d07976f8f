"""Answers as HTML: the marks that people expect, and a text that grows without being rendered twice."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isabella.server.web import markdown
from isabella.server.web.markdown import Block, MarkdownStream


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("~~gone~~", "<s>gone</s>"),
        ("see https://example.org/a_b_c.", 'href="https://example.org/a_b_c"'),
        ("edit main.rs and docs.py", "<p>edit main.rs and docs.py</p>"),
        ("| a | b |\n|:-:|--:|\n| 1 | 2 |", '<td class="center">1</td>\n<td class="right">2</td>'),
        ("$a_1 * b_1 * c_1$", "$a_1 * b_1 * c_1$"),
        (r"\(a_1\) and \[b_1\]", r'\(a_1\)</span> and <span class="formula">\[b_1\]'),
        ("$$\nx_1 < y_1\n$$", "$$\nx_1 &lt; y_1\n$$"),
        ("costs $5, or **$6**", "<p>costs $5, or <strong>$6</strong></p>"),
        ("[a][1]\n\n[1]: https://example.org", '<a href="https://example.org"'),
    ],
)
def test_marks(text: str, html: str) -> None:
    """Strike-through, addresses, aligned tables, formulas as text, and links that are defined below."""
    assert html in markdown.render(text)


def test_code_is_highlighted_with_classes_alone() -> None:
    """Code has its language, a button, and classes that the style sheet knows; nothing inline."""
    html = markdown.render("```python\ndef f(x):  # why\n    return 'a' + 1\n```")
    assert '<span class="hk">def</span> <span class="hf">f</span>' in html
    assert '<span class="hc"># why</span>' in html
    assert 'data-copy="code"' in html
    assert "<span>python</span>" in html
    assert "style=" not in html
    assert re.sub("<[^>]+>", "", html).endswith("def f(x):  # why\n    return &#39;a&#39; + 1\n")


@pytest.mark.parametrize("fence", ["```nothing-known\n", "```\n", "```html\n", "```<b>\n", "    "])
def test_code_is_only_text(fence: str) -> None:
    """Code of any language, or of none, makes no markup."""
    html = markdown.render(f"{fence}<script>alert(1)</script>")
    assert "<script" not in html
    assert "alert" in html


_EXAMPLES = (
    "a word/**bold**/***/- item/  more/1. one/> said/```python/x = 1/```/| a | b |/|---|:-:|/| 1 | 2 |//# head/$$/"
    "    four/-/=/~~~/\r/\t/\\[/é ✓"
)
_LINES = st.sampled_from(_EXAMPLES.split("/"))


@settings(deadline=None, max_examples=300)
@given(st.lists(_LINES, max_size=14).map("\n".join), st.lists(st.integers(1, 9), max_size=60))
def test_a_growing_text_becomes_what_it_is_as_a_whole(text: str, sizes: list[int]) -> None:
    """However a text arrives, its blocks are those of the whole, and complete ones have never changed."""
    stream, at = MarkdownStream(), 0
    complete: tuple[Block, ...] = ()
    for size in sizes:
        at += size
        stream.write(text[:at])
        assert stream.blocks[: len(complete)] == complete
        complete = stream.blocks[: stream.complete]
    stream.write(text, ended=True)
    assert stream.blocks[: len(complete)] == complete
    assert stream.blocks == tuple(markdown.blocks(text))
    assert stream.complete == len(stream.blocks)


def test_a_block_is_told_to_screen_readers_as_text() -> None:
    """What is spoken has no marks, and one block is one message."""
    spoken = [block.spoken for block in markdown.blocks("**Rex** is `a` dog.\n\n- one\n- two\n\n```sh\nls\n```")]
    assert spoken == ["Rex is a dog.", "one\ntwo", "Code: ls"]


def test_an_element_gets_its_id() -> None:
    """Each block is one element, which carries the id that updates are addressed to."""
    for block in markdown.blocks("text\n\n- a\n\n| a |\n|---|\n\n```\nx\n```\n\n***\n\n> b\n\n# c"):
        html = block.with_id("x1-0-2", swap="true")
        assert re.match(r'<\w+ id="x1-0-2" hx-swap-oob="true"', html)
        assert html.count("x1-0-2") == 1


def test_a_long_text_costs_each_update_little() -> None:
    """What is complete is not rendered again: 2,000 updates of a long text take less than 30 whole renderings do."""
    text = "\n\n".join(f"Paragraph {number} with **bold** words and `code`." for number in range(400))
    began = time.process_time()
    for _ in range(30):
        markdown.render(text)
    whole, stream = time.process_time() - began, MarkdownStream()
    began = time.process_time()
    for end in range(0, len(text), len(text) // 2000):
        stream.write(text[:end])
    assert time.process_time() - began < whole
