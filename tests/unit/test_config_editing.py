"""Changes of `.env` and `isabella.toml`: what was there stays, and what is read back is what was set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isabella.config.custom_vendors import declared_vendors
from isabella.config.editing import append_table, set_variables
from isabella.config.sources import Sources
from isabella.errors import ConfigurationError

#: A home that cannot be written: the audit log, which has tests of its own, is left out.
HOME = Path("/dev/null/home")

BEFORE = """\
# Keys, by hand.
export GROQ_API_KEY=gsk_old   # of the family

OTHER='a # b'
#OPENROUTER_API_KEY=sk-or-...
GROQ_API_KEY = "gsk_second"  # wins
LAST=x"""


@pytest.fixture
def env(tmp_path: Path) -> Path:
    """A file with comments, duplicates, and no newline at its end."""
    file = tmp_path / ".env"
    file.write_text(BEFORE)
    return file


def values(env: Path) -> dict[str, str]:
    """What Isabella reads from it."""
    return dict(Sources.read(env, {}).dotenv)


def test_a_variable_keeps_its_place_and_its_comment(env: Path) -> None:
    """Only the value of the line that counts is replaced."""
    set_variables(env, {"GROQ_API_KEY": "gsk_new"}, home=HOME)
    assert env.read_text() == BEFORE.replace('"gsk_second"', "gsk_new").replace("API_KEY = ", "API_KEY=")
    assert values(env) == {"GROQ_API_KEY": "gsk_new", "OTHER": "a # b", "LAST": "x"}


def test_a_new_variable_goes_to_the_end(env: Path) -> None:
    """Behind a newline of its own; the example line with the same name stays a comment."""
    set_variables(env, {"OPENROUTER_API_KEY": "sk-or-new", "OPENROUTER_MODEL": "a/b:free"}, home=HOME)
    assert env.read_text() == f"{BEFORE}\nOPENROUTER_API_KEY=sk-or-new\nOPENROUTER_MODEL=a/b:free\n"


def test_a_variable_is_removed_wherever_it_stands(env: Path) -> None:
    """Every line that sets it is gone, and nothing else."""
    set_variables(env, {"GROQ_API_KEY": None}, home=HOME)
    assert values(env) == {"OTHER": "a # b", "LAST": "x"}
    assert "# Keys, by hand." in env.read_text()
    set_variables(env, {"NEVER_SET": None}, home=HOME)
    assert values(env) == {"OTHER": "a # b", "LAST": "x"}


def test_permissions_and_links_stay(env: Path, tmp_path: Path) -> None:
    """A new file is its owner's; an existing one keeps its permissions, also behind a link."""
    env.chmod(0o640)
    link = tmp_path / "linked"
    link.symlink_to(env)
    set_variables(link, {"A": "1"}, home=HOME)
    assert link.is_symlink()
    assert (env.stat().st_mode & 0o777, values(env)["A"]) == (0o640, "1")
    set_variables(tmp_path / "new", {"A": "1"}, home=HOME)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_ends_of_lines_stay(env: Path) -> None:
    """A file of Windows stays one."""
    env.write_bytes(b"\xef\xbb\xbfA=1\r\n# c\r\n")
    set_variables(env, {"A": "2", "B": "3"}, home=HOME)
    assert env.read_bytes() == b"A=2\r\n# c\r\nB=3\r\n"


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"]), min_size=1).map(str.strip))
def test_every_value_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    """Quotes, backslashes, number signs: the value is written so that it is read as it was."""
    env = tmp_path_factory.mktemp("env") / ".env"
    env.write_text("A=first  # comment\nB=2\n")
    set_variables(env, {"A": value}, home=HOME)
    assert values(env) == {"A": value, "B": "2"}
    assert env.read_text().endswith("  # comment\nB=2\n")


def test_a_file_that_cannot_be_read_right_is_not_touched(env: Path, tmp_path: Path) -> None:
    """An open quote would swallow the new line; a pipe cannot be written to."""
    env.write_text("A='open\n")
    with pytest.raises(ConfigurationError, match="cannot be set"):
        set_variables(env, {"B": "1"}, home=HOME)
    assert env.read_text() == "A='open\n"
    with pytest.raises(ConfigurationError, match="cannot be written"):
        set_variables(tmp_path / "no" / ".env", {"B": "1"}, home=HOME)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError):
        set_variables(tmp_path / "pipe", {"B": "1"}, home=HOME)


def test_a_table_is_added_behind_what_is_there(tmp_path: Path) -> None:
    """Comments stay, and the file declares both."""
    file = tmp_path / "isabella.toml"
    entries: dict[str, str | list[str]] = {"name": "attic", "base_url": "http://10.0.0.9:8080/v1", "models": ["m"]}
    append_table(file, entries, home=HOME)
    file.write_text(f"# Ours.\n{file.read_text()}# End.")
    append_table(file, {"name": "cellar", "base_url": "http://10.0.0.8/v1", "title": 'a "b"'}, home=HOME)
    assert [vendor.provider for vendor in declared_vendors(file)] == ["attic", "cellar"]
    assert declared_vendors(file)[1].title == 'a "b"'
    assert file.read_text().startswith("# Ours.\n[[providers]]\n")
    assert "# End.\n\n[[providers]]\n" in file.read_text()
