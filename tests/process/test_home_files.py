"""Every file of the home with every damage: what becomes of it, as `docs/home.md` says.

`python -m tests.support.home_files` writes the tables of the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from isabella.embedded.instance import InstancePaths
from tests.support import home_files
from tests.support.home_files import DAMAGES, DATABASE_FILES, DOCUMENT, FILES, Home, HomeFile, outcome


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """A home in which every file is as it should be."""
    with home_files.prepared_home() as prepared:
        yield prepared


def documented() -> dict[str, list[str]]:
    """The rows of the second table: a word for each damage, by file."""
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    return {path: words.split(" | ") for path, words in rows if words.count(" | ") == len(DAMAGES) - 1}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.path)
def test_a_damaged_file_of_isabellas(home: Home, file: HomeFile) -> None:
    """It is made anew, or named and left as it is; no other file is changed, and no link is written through."""
    assert [outcome(home, file, damage).word for damage in DAMAGES] == documented()[file.path]


def test_damaged_files_of_the_database() -> None:
    """The real Postgres starts, or the error quotes its log and says what to restore."""
    with home_files.prepared_database() as database:
        for file in DATABASE_FILES:
            found = [outcome(database, file, damage).word for damage in DAMAGES]
            assert found == documented()[file.path], file.path


def test_only_what_cannot_be_made_anew_stays_damaged() -> None:
    """The two tables agree: whatever the damage of such a file is, it is refused; another one is, if it is locked."""
    for file in (*FILES, *DATABASE_FILES):
        refused = [damage for damage, word in zip(DAMAGES, documented()[file.path], strict=True) if word == "refused"]
        if file.anew:
            assert refused in ([], ["unreadable"] if "lock" in file.path else []), file.path
        else:
            assert {"other text", "not UTF-8", "1 TiB", "a directory", "unreadable"} <= set(refused), file.path


def test_no_file_is_forgotten(home: Home) -> None:
    """The tables have every file that is in a home after everything was started."""
    paths = InstancePaths(home.path)
    found = {path for path in home.path.rglob("*") if path.is_file()}
    others = {paths.python, paths.folder / "postgres-18" / "PG_VERSION"}
    assert {str(path.relative_to(home.path)) for path in found - others} == {file.path for file in FILES}


def test_a_lost_master_key_is_told_with_what_it_encrypts(home: Home) -> None:
    """The error says where the key was, what depends on it, and both ways to go on."""
    master_key = next(file for file in FILES if file.path.endswith("master-key"))
    said = outcome(home, master_key, "missing").said
    assert "holds no master key, and 1 values in Letta's database are encrypted with one" in said
    assert "providers.api_key_enc of groq" in said
    assert "Restore the file from a backup" in said
    assert "To give those values up" in said
