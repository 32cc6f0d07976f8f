"""Sealed keys (fact P2): what opens, what does not, what is remembered of a proof, and what that gives away."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from isabella.letta import encryption
from isabella.letta.encryption import (
    KeyMatch,
    ProofMemo,
    decrypt,
    looks_encrypted,
    mistaken_for_encrypted,
    read_back,
)
from tests.support.letta_encryption import MASTER_KEY, OTHER_MASTER_KEY, seal

KEY = "csk-canary-sealed-0001"
OURS = SecretStr(MASTER_KEY)


@given(st.text(st.characters(codec="utf-8"), min_size=0, max_size=80))
@settings(max_examples=15, deadline=None)
def test_what_letta_seals_opens(key: str) -> None:
    """A value sealed by Letta's recipe opens under its master key, whatever the key, the empty one included."""
    text = seal(key, MASTER_KEY)
    assert looks_encrypted(text)
    assert decrypt(text, MASTER_KEY) == key


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        ("5eed" * 16, True),
        (seal("csk-canary", MASTER_KEY, salt=b"s" * 16, iv=b"i" * 12), True),
        ("csk-" + "c0ffee5eed" * 6 + "1", True),
        ("csk-" + "c0ffee5eed" * 6, False),
        ("sk-" + "5eed" * 16, False),
        ("csk-canary-sealed-0001", False),
        ("", False),
    ],
)
def test_letta_takes_long_keys_for_sealed_ones(key: str, taken: bool) -> None:
    """What counts for Letta is the length of what is base64 in it, unless it begins as a known kind of key (O7)."""
    assert mistaken_for_encrypted(key) is taken


def test_another_master_key_does_not_open_it() -> None:
    """Under another master key there is no key, and no error either."""
    assert decrypt(seal(KEY, OTHER_MASTER_KEY), MASTER_KEY) is None


@pytest.mark.parametrize("where", [0, 16, 28, -1])
def test_a_damaged_value_does_not_open(where: int) -> None:
    """A changed bit in salt, iv, ciphertext or tag gives no key, never a wrong one."""
    raw = bytearray(base64.b64decode(seal(KEY, MASTER_KEY)))
    raw[where] ^= 1
    assert decrypt(base64.b64encode(bytes(raw)).decode(), MASTER_KEY) is None


@pytest.mark.parametrize(
    "text", ["", KEY, "not base64!", "YWJj", "a" * 32, base64.b64encode(b"x" * 43).decode(), "é" * 80]
)
def test_plaintext_does_not_look_sealed(text: str) -> None:
    """Keys as vendors make them, and values too short to hold salt, iv and tag, are plaintext."""
    assert not looks_encrypted(text)
    assert decrypt(text, MASTER_KEY) is None


def test_a_sealed_value_is_equal_or_different() -> None:
    """A value that opens is compared with the desired key, and what was read is kept, out of sight."""
    equal = read_back(seal(KEY, MASTER_KEY), KEY, OURS, None)
    assert (equal.match, equal.sealed) == (KeyMatch.EQUAL, True)
    stale = read_back(seal("csk-old", MASTER_KEY), KEY, OURS, None)
    assert (stale.match, stale.sealed, stale.key) == (KeyMatch.DIFFERENT, True, SecretStr("csk-old"))
    assert "csk-" not in repr(equal) + repr(stale)


def test_a_value_under_another_master_key_is_unreadable() -> None:
    """What our master key does not open is neither equal nor different."""
    reading = read_back(seal(KEY, OTHER_MASTER_KEY), KEY, OURS, None)
    assert (reading.match, reading.sealed, reading.key) == (KeyMatch.UNREADABLE, True, None)


def test_without_a_master_key_a_sealed_value_is_hidden() -> None:
    """Who has no master key cannot tell what is sealed."""
    assert read_back(seal(KEY, MASTER_KEY), KEY, None, None).match is KeyMatch.HIDDEN


def test_a_server_that_does_not_show_the_value_hides_it() -> None:
    """Where the server leaves the value out, nothing is known; this is not the same as no key."""
    assert read_back(None, KEY, OURS, None, shown=False).match is KeyMatch.HIDDEN


@pytest.mark.parametrize("text", [None, "", seal("", MASTER_KEY)], ids=["null", "empty", "sealed empty"])
def test_no_key_and_an_empty_key_are_nothing(text: str | None) -> None:
    """A row without a key holds nothing, sealed or not."""
    assert read_back(text, KEY, OURS, None).match is KeyMatch.NOTHING


@pytest.mark.parametrize("master_key", [OURS, None])
def test_plaintext_is_read_with_and_without_a_master_key(master_key: SecretStr | None) -> None:
    """A plaintext value is compared as it stands, and told to be no sealed one."""
    equal = read_back(KEY, KEY, master_key, None)
    assert (equal.match, equal.sealed) == (KeyMatch.EQUAL, False)
    stale = read_back("csk-old", KEY, master_key, None)
    assert (stale.match, stale.sealed, stale.key) == (KeyMatch.DIFFERENT, False, SecretStr("csk-old"))


@pytest.mark.parametrize("key", ["ab" * 32, base64.b64encode(b"k" * 60).decode()])
@pytest.mark.parametrize("master_key", [OURS, None])
def test_a_plaintext_key_that_looks_like_base64_is_recognised(key: str, master_key: SecretStr | None) -> None:
    """A key of 64 hex digits, or any other that could pass for a sealed value, equals itself in plaintext (O7)."""
    assert looks_encrypted(key)
    reading = read_back(key, key, master_key, None)
    assert (reading.match, reading.sealed) == (KeyMatch.EQUAL, False)


@pytest.mark.parametrize("text", [KEY, seal(KEY, MASTER_KEY)], ids=["plaintext", "sealed"])
def test_keys_that_are_not_ascii_are_compared_without_an_error(text: str) -> None:
    """What stands in the database may be anything; a comparison does not raise."""
    assert read_back(text, "schlüssel", OURS, None).match is KeyMatch.DIFFERENT


# --- the memo ---------------------------------------------------------------------------------------------------


def test_the_memo_knows_what_was_proven_and_nothing_else(tmp_path: Path) -> None:
    """A proof counts for one sealed value and one key, survives a restart, and not another master key."""
    path = tmp_path / "proofs" / "memo.json"
    memo, text = ProofMemo(path, OURS), seal(KEY, MASTER_KEY)
    assert memo.holds(text, KEY) is None
    memo.add(text, KEY)
    memo.save()
    again = ProofMemo(path, OURS)
    assert again.holds(text, KEY) is True
    assert again.holds(text, KEY + "x") is False
    assert again.holds(seal(KEY, MASTER_KEY), KEY) is None
    assert ProofMemo(path, SecretStr(OTHER_MASTER_KEY)).holds(text, KEY) is None


def test_sealed_value_and_key_cannot_be_cut_elsewhere() -> None:
    """A proof for one pair is no proof for another pair that reads the same when written in a row."""
    memo = ProofMemo(None, OURS)
    memo.add("aaaa", "bbbb")
    assert memo.holds("aaaab", "bbb") is None
    assert memo.holds("aaa", "abbbb") is None


def test_a_known_proof_is_not_derived_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once proven, a sealed value is not opened again; another value is."""
    opened: list[str] = []

    def counting(text: str, master_key: str) -> str | None:
        opened.append(text)
        return decrypt(text, master_key)

    monkeypatch.setattr(encryption, "decrypt", counting)
    memo, text = ProofMemo(None, OURS), seal(KEY, MASTER_KEY)
    assert [read_back(text, KEY, OURS, memo).match for _ in range(3)] == [KeyMatch.EQUAL] * 3
    assert opened == [text]
    read_back(seal(KEY, MASTER_KEY), KEY, OURS, memo)
    assert len(opened) == 2


def test_what_was_found_counts_for_what_was_found_only() -> None:
    """A stale key that was opened is remembered as such: a memo never turns it into a proof of the desired one."""
    memo, text = ProofMemo(None, OURS), seal("csk-old", MASTER_KEY)
    read_back(text, KEY, OURS, memo)
    assert memo.holds(text, KEY) is False
    assert memo.holds(text, "csk-old") is True


def test_an_empty_key_is_opened_every_time() -> None:
    """Whether a row holds another key or none at all cannot be told from a memo that knows it is another."""
    memo, text = ProofMemo(None, OURS), seal("", MASTER_KEY)
    assert read_back(text, KEY, OURS, memo).match is KeyMatch.NOTHING
    assert memo.holds(text, KEY) is None


def test_the_memo_is_private_and_gives_nothing_away(tmp_path: Path) -> None:
    """The file is 0600 and holds neither key nor anything to check a guess with, unless one has the master key."""
    path = tmp_path / "proofs" / "memo.json"
    memo, text = ProofMemo(path, OURS), seal(KEY, MASTER_KEY)
    memo.add(text, KEY)
    memo.save()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    content = path.read_text()
    guesses = [KEY, KEY + text, text + KEY, f"{len(text)}:{text}{KEY}", MASTER_KEY, MASTER_KEY + KEY]
    for guess in guesses:
        assert guess not in content
        for digest in (hashlib.sha256, hashlib.sha512, hashlib.sha1, hashlib.md5):
            assert digest(guess.encode()).hexdigest() not in content
        for known in ("", text, "isabella proof memo"):
            assert hmac.digest(known.encode(), guess.encode(), "sha256").hex() not in content
    elsewhere = ProofMemo(tmp_path / "other.json", SecretStr(secrets.token_hex(32)))
    elsewhere.add(text, KEY)
    elsewhere.save()
    ours, theirs = (json.loads(file.read_text())["found"] for file in (path, tmp_path / "other.json"))
    assert {*ours, *ours.values()}.isdisjoint({*theirs, *theirs.values()})


def test_a_memo_that_was_tampered_with_is_an_empty_one(tmp_path: Path) -> None:
    """Nothing can be added, taken away or put together anew without the master key: nothing of it counts then."""
    path = tmp_path / "memo.json"
    memo, texts = ProofMemo(path, OURS), [seal(KEY, MASTER_KEY), seal("csk-other", MASTER_KEY)]
    memo.add(texts[0], KEY)
    memo.add(texts[1], "csk-other")
    memo.save()
    document = json.loads(path.read_text())
    (one, proof), (other, other_proof) = document["found"].items()
    for found in ({one: other_proof, other: proof}, {one: proof}, {other: other_proof, one: proof}):
        path.write_text(json.dumps(document | {"found": found}))
        assert ProofMemo(path, OURS).holds(texts[0], KEY) is None
    path.write_text(json.dumps(document))
    assert ProofMemo(path, OURS).holds(texts[0], KEY) is True


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 2, "tags": ["a"]}',
        '{"version": 3, "mac": "", "found": {"a": "b"}}',
        '{"version": 3, "mac": 7, "found": {"a": "b"}}',
        '{"version": 3, "mac": "", "found": 7}',
        '{"version": 3, "mac": "\\u00e9", "found": {}}',
    ],
)
def test_a_damaged_memo_is_an_empty_one(tmp_path: Path, content: str) -> None:
    """A memo that cannot be understood costs time, nothing else, and is written anew."""
    path = tmp_path / "memo.json"
    path.write_text(content)
    memo, text = ProofMemo(path, OURS), seal(KEY, MASTER_KEY)
    assert memo.holds(text, KEY) is None
    memo.add(text, KEY)
    memo.save()
    assert ProofMemo(path, OURS).holds(text, KEY) is True


def test_a_memo_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    """A full or read-only home does not stop a sync."""
    (tmp_path / "proofs").write_text("a file in the folder's place")
    memo = ProofMemo(tmp_path / "proofs" / "memo.json", OURS)
    memo.add("text", KEY)
    memo.save()
    assert memo.holds("text", KEY) is True


def test_the_memo_does_not_grow_without_end(tmp_path: Path) -> None:
    """Of very many proofs the oldest are forgotten."""
    path = tmp_path / "memo.json"
    memo = ProofMemo(path, OURS)
    for number in range(10_050):
        memo.add(f"text-{number}", KEY)
    memo.save()
    again = ProofMemo(path, OURS)
    assert again.holds("text-0", KEY) is None
    assert again.holds("text-10049", KEY) is True
    assert len(json.loads(path.read_text())["found"]) == 10_000
