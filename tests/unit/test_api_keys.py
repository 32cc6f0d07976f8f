"""API keys: what copying leaves around them is taken off, what cannot be one is refused, none is shown whole."""

from __future__ import annotations

import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from isabella.config.api_keys import KeyRefused, clean_key, is_master_key
from isabella.system.redaction import KNOWN_PREFIXES, mask

ALPHABET = string.ascii_letters + string.digits
GOOD = "csk-not-a-real-key-0123456789"


@pytest.mark.parametrize(
    ("raw", "note"),
    [
        (f"{GOOD}\n", "a trailing newline was removed"),
        (f"{GOOD}\r\n", "a trailing newline was removed"),
        (f"  {GOOD}", "surrounding white space was removed"),
        (f"{GOOD}\t", "surrounding white space was removed"),
        (f" {GOOD}\n", "surrounding white space was removed"),
        (f'"{GOOD}"', "surrounding quotes were removed"),
        (f"'{GOOD}'", "surrounding quotes were removed"),
        (f"`{GOOD}`", "surrounding quotes were removed"),
        (f"\"'{GOOD}'\"", "surrounding quotes were removed"),
        (f"Bearer {GOOD}", "the word Bearer was removed"),
    ],
)
def test_what_copying_leaves_is_taken_off_with_a_note(raw: str, note: str) -> None:
    """White space, quotes and a trailing newline around a key are taken off, and it is said."""
    cleaned = clean_key(raw)
    assert cleaned.value == GOOD
    assert cleaned.notes == (note,)


def test_quotes_behind_the_word_bearer_are_taken_off_too() -> None:
    """A header copied whole, quotes and all, gives the bare key."""
    assert clean_key(f"Bearer '{GOOD}'").value == GOOD
    assert clean_key(f'"Bearer {GOOD}"').value == GOOD


def test_a_clean_key_is_left_alone() -> None:
    """A key without anything around it stays as it is, without a note."""
    cleaned = clean_key(GOOD)
    assert (cleaned.value, cleaned.notes) == (GOOD, ())


@pytest.mark.parametrize("raw", ["", "   ", "\n", '""', "''", '" "', "Bearer ", '"Bearer "'])
def test_an_empty_key_is_refused(raw: str) -> None:
    """Nothing at all, whatever stands around it, is called empty."""
    with pytest.raises(KeyRefused, match="empty"):
        clean_key(raw)


@pytest.mark.parametrize(
    "raw",
    [
        "your-key-here",
        "your_api_key",
        "YOUR_API_KEY_HERE",
        "your-groq-api-key",
        "my-key",
        "insert-your-key",
        "put-key-here",
        "changeme",
        "change-me",
        "change_this",
        "replace-me",
        "xxx",
        "XXXXXXXXXXXX",
        "...",
        "****",
        "---",
        "…",
        "<key>",
        "<your key here>",
        "${GROQ_API_KEY}",
        "$GROQ_API_KEY",
        "gsk_$KEY",
        "$(pass-groq)",
        "{{ key }}",
        "[key]",
        "api-key",
        "api_key_here",
        "key",
        "todo",
        "TBD",
        "none",
        "null",
        "dummy",
        "DUMMY_API_KEY",
        "example",
        "secret",
        "password",
        "placeholder",
        "csk-xxx",
        "csk-...",
        "gsk_your_key_here",
        "sk-your-api-key",
        "ak_<key>",
        "csk-",
        "gsk_",
    ],
)
def test_a_placeholder_is_refused(raw: str) -> None:
    """What stands in examples in a key's place is no key, with a vendor's prefix before it or without."""
    with pytest.raises(KeyRefused, match="placeholder"):
        clean_key(raw)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("abc def-0123456789", "white space"),
        ("abc\tdef0123456789", "white space"),
        ("abc\ndef0123456789", "white space"),
        ("csk-ключ0123456789", "not ASCII"),
        ("abc\u200bdef0123456789", "not ASCII"),
        ("“abcdef0123456789”", "not ASCII"),
        ("abc\x00def0123456789", "control character"),
        ("abc\x7fdef0123456789", "control character"),
        ("abc\x1bdef0123456789", "control character"),
    ],
)
def test_characters_that_no_key_has_are_refused(raw: str, why: str) -> None:
    """Inner white space, control and non-ASCII characters are refused, and the message never quotes the value."""
    with pytest.raises(KeyRefused, match=why) as refused:
        clean_key(raw)
    assert "0123456789" not in str(refused.value)


@given(st.sampled_from(["", *KNOWN_PREFIXES]), st.text(ALPHABET, min_size=20, max_size=80))
def test_a_key_as_vendors_make_them_is_accepted_unchanged(prefix: str, body: str) -> None:
    """No key of letters and digits, as vendors make them, is taken for a placeholder or changed."""
    assume(set(body.lower()) != {"x"})
    assert clean_key(prefix + body).value == prefix + body


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_cleaning_twice_is_cleaning_once(raw: str) -> None:
    """A cleaned key is clean: cleaning it again changes nothing and has nothing to remark."""
    try:
        once = clean_key(raw).value
    except KeyRefused:
        return
    again = clean_key(once)
    assert (again.value, again.notes) == (once, ())


@given(
    st.lists(st.sampled_from(["'", '"', "`", " ", "\n", "Bearer ", "bearer ", "k", "key-0123", "csk-"]), max_size=9)
)
def test_cleaning_is_stable_in_every_wrapping(parts: list[str]) -> None:
    """However quotes, white space and the word Bearer are nested, what comes out is clean or refused."""
    try:
        once = clean_key("".join(parts)).value
    except KeyRefused:
        return
    assert clean_key(once).value == once


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=120))
def test_a_mask_shows_prefix_and_four_characters_at_most(key: str) -> None:
    """A mask is a known prefix, an ellipsis and at most the last four characters, which are a small part."""
    shown = mask(key)
    before, _, after = shown.partition("…")
    assert before in ("", *KNOWN_PREFIXES)
    assert len(after) <= 4
    assert key.startswith(before)
    assert key.endswith(after)
    assert after == "" or len(key) - len(before) >= 16


@given(st.sampled_from(["", *KNOWN_PREFIXES]), st.text(ALPHABET, min_size=16, max_size=60))
def test_a_mask_never_holds_the_key(prefix: str, body: str) -> None:
    """What is hidden by a mask cannot be read in it."""
    shown = mask(prefix + body)
    assert body not in shown
    assert shown.count("…") == 1


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("csk-0123456789abcdef", "csk-…cdef"),
        ("sk-proj-0123456789abcdef", "sk-proj-…cdef"),
        ("0123456789abcdef", "…cdef"),
        ("csk-0123456789abcde", "csk-…"),
        ("short", "…"),
        ("", "…"),
    ],
)
def test_masks_are_as_documented(key: str, shown: str) -> None:
    """Vendor prefix and last four characters, and less of a short value."""
    assert mask(key) == shown


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ("0a" * 32, True),
        ("0A" * 32, True),
        ("0a" * 31, False),
        ("0a" * 33, False),
        ("0g" * 32, False),
        ("0a" * 32 + "\n", False),
        ("", False),
        ("٠" * 64, False),
    ],
)
def test_a_master_key_is_64_hexadecimal_characters(value: str, right: bool) -> None:
    """Nothing else is taken for a master key."""
    assert is_master_key(value) is right
