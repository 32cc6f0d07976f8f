"""The patched lock of Letta, the file that says how it differs from the original, and what the documentation says."""

from __future__ import annotations

import re

import pytest

from compat import letta_lock

SOURCE = letta_lock.source()
LOCKED = letta_lock.locked(letta_lock.LOCK.read_text())


def numbers(version: str) -> list[int]:
    """The parts of a version that can be compared."""
    return [int(part) for part in re.findall(r"\d+", version)]


def test_the_lock_has_the_versions_of_the_file() -> None:
    """Each replacement is in the lock, and is newer than what it replaces."""
    for entry in (*SOURCE["override"], *SOURCE["follow"]):
        assert LOCKED[entry["package"]] == entry["to"]
        assert numbers(entry["to"]) > numbers(entry["from"]), entry
    assert not {entry["package"] for entry in SOURCE["left_out"]} & LOCKED.keys()


def test_every_override_names_its_reason() -> None:
    """An advisory of a public database, and a day; what only follows says which package it follows."""
    for entry in SOURCE["override"]:
        assert entry["advisories"], entry
        for advisory in entry["advisories"]:
            assert re.fullmatch(r"CVE-\d{4}-\d{4,}|GHSA(-[23456789cfghjmpqrvwx]{4}){3}|PYSEC-\d{4}-\d+", advisory)
        assert entry["date"] <= SOURCE["until"]
    assert all(entry["because"] for entry in (*SOURCE["follow"], *SOURCE["left_out"]))
    packages = [entry["package"] for entry in (*SOURCE["override"], *SOURCE["follow"], *SOURCE["left_out"])]
    assert len(packages) == len(set(packages))


def test_every_file_has_a_hash() -> None:
    """No requirement of the lock could be installed without one."""
    requirements = re.split(r"\n(?=[a-z])", letta_lock.LOCK.read_text().partition("\n")[2])
    assert len(requirements) == len(LOCKED)
    assert all("--hash=sha256:" in requirement for requirement in requirements)


def test_the_documentation_has_the_tables_of_the_file() -> None:
    """`python -m compat.letta_lock` was run after the last change."""
    text = letta_lock.DOCS.read_text()
    assert letta_lock.with_tables(text) == text
    assert "aiohttp" in letta_lock.tables()["overrides"]


def test_a_page_without_a_place_for_the_tables_is_refused() -> None:
    """Otherwise the documentation would silently stay as it was."""
    with pytest.raises(ValueError, match="no place"):
        letta_lock.with_tables("# Security\n")
