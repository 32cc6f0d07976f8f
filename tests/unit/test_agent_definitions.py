"""The file that defines agents."""

from __future__ import annotations

from pathlib import Path

import pytest

from isabella.agents.definitions import load_definitions, parse
from isabella.config.settings import load_settings
from isabella.errors import ConfigurationError

GOOD = """
[[agents]]
id = "ada"
name = "Ada"
persona = "You are Ada."
handles = ["cerebras/gpt-oss-120b", "longcat"]

[[agents.blocks]]
label = "human"
description = "About the user."
shared = true

[[agents]]
id = "echo"
name = "Echo"
persona = "You reflect."
reflects_on = "ada"
"""


def test_the_package_brings_isabella_and_one_that_reflects_on_her() -> None:
    """Without a file of the operator's there are two agents, on all four vendors, sharing blocks."""
    isabella, reflection = load_definitions(load_settings(environment={}))
    assert (isabella.id, isabella.name, reflection.reflects_on) == ("isabella", "Isabella", "isabella")
    assert [handle.partition("/")[0] for handle in isabella.handles] == [
        "cerebras",
        "byok-groq",
        "byok-mistral",
        "longcat",
    ]
    assert set(isabella.shared_labels) == {"human", "threads", "self"}
    assert all(block.value == "" for block in isabella.blocks)


def test_a_file_of_the_operators_is_read_instead(tmp_path: Path) -> None:
    """The file that the setting names is the only one that counts."""
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    ada, echo = load_definitions(load_settings(environment={}, agents_file=path))
    assert ada.blocks[0].shared
    assert ada.handles == ("cerebras/gpt-oss-120b", "longcat")
    assert echo.reflects_on == "ada"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The message names the file and the setting."""
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml") as refused:
        load_definitions(load_settings(environment={}, agents_file=tmp_path / "nowhere.toml"))
    assert "ISABELLA_AGENTS_FILE" in (refused.value.remedy or "")


@pytest.mark.parametrize(
    ("damage", "line", "said"),
    [
        (("[[agents]]", "[[agents"), 2, "TOML"),
        (('name = "Ada"', 'name = "A/da"'), 4, "name"),
        (('persona = "You are Ada."', "persona = 3"), 5, "persona"),
        (('persona = "You are Ada."', ""), 2, "persona"),
        (('"longcat"]', '"long cat"]'), 6, "not a handle"),
        (('label = "human"', 'label = "hu man"'), 9, "label"),
        (("shared = true", "shared = true\nlimit = 0"), 12, "limit"),
        (("shared = true", "shared = 1"), 11, "shared"),
        (("shared = true", "colour = 'red'"), 11, "colour"),
        (('id = "echo"', 'id = "ada"'), 13, "two agents have the id"),
        (('name = "Echo"', 'name = "ADA"'), 13, "two agents have the name"),
        (('reflects_on = "ada"', 'reflects_on = "nobody"'), 13, "not another agent"),
        (('reflects_on = "ada"', 'reflects_on = "echo"'), 13, "not another agent"),
        (("shared = true", ""), 13, "shares no block"),
        (("shared = true", "value = 'too long'\nlimit = 3"), 2, "more characters"),
        (('id = "ada"', 'id = "ada"\n[top]\nx = 1\n[[agents]]\nid = "b"'), 4, "unknown entry"),
    ],
)
def test_what_is_malformed_is_named_with_its_line(damage: tuple[str, str], line: int, said: str) -> None:
    """The operator is told the file, the line, and what is wrong there."""
    with pytest.raises(ConfigurationError) as refused:
        parse(GOOD.replace(*damage, 1), "agents.toml")
    assert f"line {line}" in refused.value.what
    assert said in refused.value.what
    assert refused.value.what.startswith("agents.toml")
