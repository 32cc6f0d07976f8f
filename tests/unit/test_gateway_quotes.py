"""Errors of vendors without the parts of a request that they quote."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isabella.gateway.quotes import LONGEST, without_quotes

PROMPT = "My sister lives in Bergen, at the third house behind the old harbour."


def request(*contents: Any, **fields: Any) -> dict[str, Any]:
    """A chat request."""
    return {
        "model": "openai/gpt-oss-120b",
        "messages": [{"role": "user", "content": one} for one in contents],
    } | fields


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (f"Bad message: {PROMPT}", "Bad message: […]"),
        (f"{PROMPT} {PROMPT}", "[…] […]"),
        (f"Near '{PROMPT[10:40]}'.", "Near '[…]'."),
        (f"x{PROMPT[:24]}y", "x[…]y"),
        ("Near 'my pin is 1234'.", "Near '[…]'."),
        ("The model `openai/gpt-oss-120b` does not exist.", "The model `openai/gpt-oss-120b` does not exist."),
        ("Rate limit reached, at the third attempt.", "Rate limit reached, at the third attempt."),
        ("", ""),
    ],
)
def test_quotes_are_omitted(words: str, expected: str) -> None:
    """Whole messages and long parts of them, and nothing else."""
    assert without_quotes(words, request(PROMPT, "my pin is 1234")) == expected


@pytest.mark.parametrize(
    "quoted",
    [
        request([{"type": "text", "text": PROMPT}]),
        {"input": [PROMPT]},
        {"prompt": PROMPT},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": PROMPT}}]}]},
    ],
)
def test_every_text_of_a_request_counts(quoted: dict[str, Any]) -> None:
    """Parts of messages, calls of tools, and the inputs of embeddings."""
    assert PROMPT[5:40] not in without_quotes(f"Refused: {PROMPT}", quoted)


@pytest.mark.parametrize(
    "odd", [None, {}, {"messages": 1}, {"messages": [None, 1, {"content": None}]}, {"input": {}}]
)
def test_odd_requests_quote_nothing(odd: dict[str, Any] | None) -> None:
    """The words stay as they are."""
    assert without_quotes("Bad request.", odd) == "Bad request."


@given(st.text("ab ", min_size=24, max_size=60), st.text("ab ", max_size=60), st.integers(0, 30), st.integers(24, 60))
def test_no_part_of_24_characters_is_left(prompt: str, before: str, start: int, length: int) -> None:
    """Wherever it begins in the message and in the words."""
    part = prompt[start : start + length]
    left = without_quotes(f"{before}{part}", request(prompt))
    assert not any(prompt[at : at + 24] in left for at in range(len(prompt) - 23))


def test_it_is_bounded() -> None:
    """Of a huge error the start is kept."""
    assert len(without_quotes("x" * 1_000_000, request("lorem ipsum " * 100_000))) == LONGEST
