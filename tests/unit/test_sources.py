"""The environment and `.env`: which value counts, where it came from, and what is wrong with a malformed file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from isabella.config.sources import DEFAULT, ENVIRONMENT, ConfigValue, Sources
from isabella.errors import ConfigurationError


def read(tmp_path: Path, text: str | bytes, environment: dict[str, str] | None = None) -> Sources:
    """Read a `.env` with this content."""
    path = tmp_path / ".env"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Sources.read(path, environment or {})


def test_the_environment_wins_and_origins_are_kept(tmp_path: Path) -> None:
    """What stands in both comes from the environment; each value knows where it came from."""
    sources = read(tmp_path, "A=file\nB=file\n", {"A": "shell"})
    assert sources.get("A") == ConfigValue("shell", ENVIRONMENT)
    assert sources.get("B") == ConfigValue("file", str(tmp_path / ".env"))
    assert sources.get("C") is None
    assert [sources.origin(name) for name in "ABC"] == [ENVIRONMENT, str(tmp_path / ".env"), DEFAULT]


def test_an_overlay_wins_over_both(tmp_path: Path) -> None:
    """Values laid over, such as those of the practice vendors, win and bring an origin of their own."""
    sources = read(tmp_path, "A=file\n", {"A": "shell"})
    laid_over = Sources(
        sources.environment,
        sources.file,
        sources.dotenv,
        sources.lines,
        {"A": ConfigValue("practice", "practice vendors")},
    )
    assert laid_over.get("A") == ConfigValue("practice", "practice vendors")


def test_without_forgets_a_variable_everywhere(tmp_path: Path) -> None:
    """A variable left out is set nowhere; the others stay."""
    sources = read(tmp_path, "A=file\nB=file\n", {"A": "shell"}).without(["A"])
    assert sources.get("A") is None
    assert sources.get("B") is not None


def test_contradictions_are_those_that_differ_beyond_white_space(tmp_path: Path) -> None:
    """Only variables set in both places to really different values are named."""
    environment = {"SAME": "x", "SPACED": " x ", "OTHER": "y", "SHELL": "z"}
    sources = read(tmp_path, "SAME=x\nSPACED=x\nOTHER=x\nFILE=x\n", environment)
    assert sources.contradictions(["SAME", "SPACED", "OTHER", "SHELL", "FILE", "NOWHERE"]) == ["OTHER"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("A=1\nB 2\n", 2),
        ("A=1\n\n\nB 2\n", 4),
        ("# comment\nA='unclosed\n", 2),
        ('A=1\nB="unclosed\nC=3\n', 2),
        ("=value\n", 1),
        ("A=1\nB\nC=3\n", 2),
        ("A=1\r\nB\r\n", 2),
        ("\ufeffA 1\n", 1),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, text: str, line: int) -> None:
    """A line that is not NAME=value is refused with the file and its number, and without what stands there."""
    with pytest.raises(ConfigurationError) as error:
        read(tmp_path, text)
    assert f"{tmp_path / '.env'}, line {line}:" in error.value.what
    assert error.value.remedy
    assert "unclosed\n" not in str(error.value)


def test_a_value_on_a_malformed_line_is_not_shown(tmp_path: Path) -> None:
    """A key that stands on the malformed line does not get into the message."""
    with pytest.raises(ConfigurationError) as error:
        read(tmp_path, "CEREBRAS_API_KEY csk-canary-on-a-bad-line\n")
    assert "canary" not in str(error.value)


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    """A file saved with a BOM, as on Windows, reads like any other."""
    assert read(tmp_path, "\ufeffA=1\r\nB=2\r\n").dotenv == {"A": "1", "B": "2"}


def test_comments_export_quotes_and_empty_values_are_understood(tmp_path: Path) -> None:
    """What people write into `.env` files is read as they mean it, with the line of each name."""
    text = "# comment\nexport A=1\nB='two words' # why\nC=\n\nD=\"x#y\"\nA=3\n"
    sources = read(tmp_path, text)
    assert sources.dotenv == {"A": "3", "B": "two words", "C": "", "D": "x#y"}
    assert sources.lines == {"A": 7, "B": 3, "C": 4, "D": 6}


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """A file that is not UTF-8 is named, with what to do."""
    with pytest.raises(ConfigurationError, match="not UTF-8") as error:
        read(tmp_path, b"A=\xff\xfe\n")
    assert str(tmp_path) in error.value.what


def test_a_named_file_has_to_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file given with --env-file must be there; the default one need not."""
    with pytest.raises(ConfigurationError, match="no such file"):
        Sources.read(tmp_path / "absent.env", {})
    monkeypatch.chdir(tmp_path)
    assert Sources.read(None, {"A": "1"}).get("A") == ConfigValue("1", ENVIRONMENT)


def test_a_folder_in_the_file_s_place_is_a_configuration_error(tmp_path: Path) -> None:
    """What cannot be opened is told, not thrown."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Sources.read(tmp_path, {})


@pytest.mark.parametrize("named", [True, False])
def test_a_file_that_may_not_even_be_looked_for_is_a_configuration_error(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that may not be searched, `.env` is not taken for absent, and its keys for none."""
    path = tmp_path / ".env" if named else Path(".env")

    def denied(asked: Path, *_arguments: object, **_options: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(asked))

    # Permissions do not hold where the tests are run by root.
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ConfigurationError, match="cannot be read: Permission denied"):
        Sources.read(path if named else None, {})


def test_the_default_file_is_the_one_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a file named, `.env` in the working directory counts."""
    (tmp_path / ".env").write_text("A=1\n")
    monkeypatch.chdir(tmp_path)
    assert Sources.read(None, {}).get("A") == ConfigValue("1", ".env")


def test_values_do_not_show_in_a_repr(tmp_path: Path) -> None:
    """Neither sources nor values print what they hold."""
    sources = read(tmp_path, "A=csk-canary-in-file\n", {"B": "csk-canary-in-shell"})
    assert "canary" not in repr(sources)
    assert "canary" not in repr(sources.get("A"))
