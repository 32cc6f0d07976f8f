"""A configuration read again: what has changed in it, and what that means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from isabella.config.settings import load_settings
from isabella.config.sources import ConfigValue
from isabella.errors import ConfigurationError
from isabella.practice.overlay import ConfigSnapshot
from isabella.watch.config_changes import ConfigDiff, apply_live_settings, diff_config, file_stamps

TOML = """
[[providers]]
name = "nearby"
base_url = "http://127.0.0.1:9/v1"
api_key_env = "NEARBY_API_KEY"
"""


class Folder:
    """A configuration that is changed."""

    def __init__(self, path: Path) -> None:
        self.env, self.toml = path / ".env", path / "isabella.toml"
        self.write("GROQ_API_KEY=gsk_first-fake\nNEARBY_API_KEY=near-fake\n")
        self.toml.write_text(TOML)
        self.first = ConfigSnapshot.of(load_settings(self.env, environment={"ISABELLA_CONFIG_FILE": str(self.toml)}))

    def write(self, text: str) -> None:
        self.env.write_text(text)

    def different(self) -> ConfigDiff:
        return diff_config(self.first, self.first.again(), self.first.settings)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """One with a vendor of the catalog and a declared one."""
    return Folder(tmp_path)


def test_nothing_is_different_in_a_file_that_only_looks_different(folder: Folder) -> None:
    """Comments, order and quotes do not matter."""
    folder.write("# hello\nNEARBY_API_KEY='near-fake'\nGROQ_API_KEY=gsk_first-fake\n")
    assert folder.different() == ConfigDiff()


def test_only_providers_that_are_asked_for_otherwise_are_named(folder: Folder) -> None:
    """A new key, a new address, a new vendor, a key that cannot be used any more: each is that provider's matter."""
    folder.write("GROQ_API_KEY=gsk_second-fake\nNEARBY_API_KEY=near-fake\n")
    assert folder.different() == ConfigDiff(providers=("byok-groq",))
    folder.write("GROQ_API_KEY=gsk_first-fake\nGROQ_BASE_URL=http://127.0.0.1:9/v1\nNEARBY_API_KEY=near-fake\n")
    assert folder.different() == ConfigDiff(providers=("byok-groq",))
    folder.write("GROQ_API_KEY=gsk_first-fake\nNEARBY_API_KEY=near-fake\nCEREBRAS_API_KEY=csk-fake\n")
    assert folder.different() == ConfigDiff(providers=("cerebras",))
    folder.write("GROQ_API_KEY=\nNEARBY_API_KEY=near-fake\n")
    assert folder.different() == ConfigDiff(providers=("byok-groq",))


def test_what_is_not_wanted_any_more_is_told(folder: Folder) -> None:
    """A key that was taken out leaves its provider alone; so does a declaration, which is no longer even known."""
    folder.write("NEARBY_API_KEY=near-fake\n")
    assert folder.different() == ConfigDiff(providers=("byok-groq",), gone=("byok-groq",))
    folder.write("GROQ_API_KEY=gsk_first-fake\nNEARBY_API_KEY=near-fake\n")
    folder.toml.write_text("")
    assert folder.different() == ConfigDiff(gone=("nearby",), undeclared=("nearby",))


def test_a_key_file_is_read_again(folder: Folder, tmp_path: Path) -> None:
    """It is one of the files to be watched, and its new content is a new key."""
    key_file = tmp_path / "secret"
    key_file.write_text("near-fake")
    folder.write(f"GROQ_API_KEY=gsk_first-fake\nNEARBY_API_KEY_FILE={key_file}\n")
    before = folder.first.again()
    assert set(before.files) == {folder.env, folder.toml, key_file}
    key_file.write_text("near-another-fake\n")
    assert diff_config(before, before.again(), before.settings).providers == ("nearby",)


@pytest.mark.parametrize("text", ['GROQ_API_KEY="half', "GROQ_API_KEY", "ISABELLA_PORT=eight\n"])
def test_what_cannot_be_read_is_an_error_and_no_empty_configuration(folder: Folder, text: str) -> None:
    """Half a line, no value, a malformed setting: nobody concludes that there are no keys."""
    folder.write(text)
    with pytest.raises(ConfigurationError):
        folder.first.again()


def test_a_file_that_has_vanished_is_an_error(folder: Folder) -> None:
    """It is being replaced, or was moved by mistake; one that never was may go on missing."""
    folder.env.unlink()
    with pytest.raises(ConfigurationError):
        folder.first.again()
    folder.toml.unlink()


def test_without_any_file_reading_again_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything may come from the environment."""
    monkeypatch.chdir(tmp_path)
    first = ConfigSnapshot.of(load_settings(environment={"GROQ_API_KEY": "gsk_first-fake"}))
    assert diff_config(first, first.again(), first.settings) == ConfigDiff()
    (tmp_path / ".env").write_text("MISTRAL_API_KEY=fake-mistral-key\n")
    assert diff_config(first, first.again(), first.settings).providers == ("byok-mistral",)


def test_what_takes_a_restart_is_named_once_and_not_put_in_force(folder: Folder) -> None:
    """A later change of something else does not name it again; going back to what is in force names nothing."""
    keys = "GROQ_API_KEY=gsk_first-fake\nNEARBY_API_KEY=near-fake\n"
    folder.write(keys + "ISABELLA_PORT=8123\nISABELLA_RESYNC=10\n")
    second = folder.first.again()
    found = diff_config(folder.first, second, folder.first.settings)
    assert (found.restart, found.timing, found.providers) == (("ISABELLA_PORT",), True, ())
    kept = apply_live_settings(second.settings, folder.first.settings)
    assert (kept.port, kept.resync) == (8000, 10)
    folder.write(keys + "ISABELLA_PORT=8123\nISABELLA_RESYNC=20\n")
    third = second.again()
    assert diff_config(second, third, folder.first.settings).restart == ()
    folder.write(keys)
    assert diff_config(third, third.again(), folder.first.settings).restart == ()


def test_practice_vendors_stay_in_place_and_a_real_key_is_told_to_wait(folder: Folder) -> None:
    """While they stand in, a key in the file takes a restart: otherwise it would go to a stand-in."""
    sources = folder.first.settings.sources
    overlaid = ConfigSnapshot.of(
        folder.first.settings.model_copy(
            update={
                "sources": type(sources)(
                    sources.environment,
                    sources.file,
                    sources.dotenv,
                    sources.lines,
                    {"CEREBRAS_API_KEY": ConfigValue("csk-practice", "practice vendors")},
                )
            }
        )
    )
    folder.write("GROQ_API_KEY=gsk_first-fake\nNEARBY_API_KEY=near-fake\nCEREBRAS_API_KEY=csk-real-fake\n")
    fresh = overlaid.again()
    assert diff_config(overlaid, fresh, overlaid.settings) == ConfigDiff(restart=("CEREBRAS_API_KEY",))


def test_a_usable_key_ends_practice_vendors_that_stand_in_only_until_then(folder: Folder) -> None:
    """One that cannot be used ends nothing; with a real one the practice vendors of all other vendors go, too."""
    folder.write("# no key yet\n")
    folder.toml.write_text("")
    sources = folder.first.again().settings.sources
    overlay = {
        "CEREBRAS_API_KEY": ConfigValue("csk-practice", "practice vendors"),
        "CEREBRAS_BASE_URL": ConfigValue("http://127.0.0.1:9/v1", "practice vendors"),
        "GROQ_API_KEY": ConfigValue("gsk_practice", "practice vendors"),
    }
    settings = folder.first.settings.model_copy(
        update={"sources": replace(sources, overlay=overlay, overlay_until_key=True)}
    )
    practice = ConfigSnapshot.of(settings)
    folder.write("CEREBRAS_API_KEY=your-key-here\n")
    assert diff_config(practice, practice.again(), settings) == ConfigDiff()
    folder.write("CEREBRAS_API_KEY=csk-real-fake\n")
    real = practice.again()
    assert diff_config(practice, real, settings) == ConfigDiff(
        providers=("cerebras", "byok-groq"), gone=("byok-groq",)
    )
    (cerebras,) = [one for one in real.desired if one.name == "cerebras"]
    assert cerebras.base_url == "https://api.cerebras.ai/v1"
    # There is no way back while it runs: nobody wants a stand-in in place of a key that was removed.
    folder.write("# no key\n")
    assert not any(one.configured for one in real.again().desired)


def test_options_of_the_command_line_go_on_winning(folder: Folder) -> None:
    """What was given as an argument is not taken from the file the next time."""
    settings = load_settings(folder.env, environment={}, port=9000, config_file=folder.toml)
    first = ConfigSnapshot.of(settings)
    folder.write("ISABELLA_PORT=8123\nGROQ_API_KEY=gsk_first-fake\n")
    assert first.again().settings.port == 9000


@pytest.mark.parametrize(
    ("named", "why"),
    [("~no-such-user-here/key", "home folder"), ("/keys/half\0key", "no file can have that name")],
)
def test_a_key_file_that_cannot_even_be_named_is_its_provider_s_problem(named: str, why: str, tmp_path: Path) -> None:
    """It is among the files to be watched, whose folder is asked for in vain, and nothing is thrown."""
    environment = {"CEREBRAS_API_KEY_FILE": named, "ISABELLA_CONFIG_FILE": str(tmp_path / "isabella.toml")}
    (tmp_path / ".env").write_text("GROQ_API_KEY=gsk_first-fake\n")
    first = ConfigSnapshot.of(load_settings(tmp_path / ".env", environment=environment))
    assert {path.name for path in first.files} == {".env", "isabella.toml", named.rpartition("/")[2]}
    assert set(file_stamps(first.files)) == set(first.files)
    (problem,) = [one.problem for one in first.desired if one.problem is not None]
    assert why in problem
    assert diff_config(first, first.again(), first.settings) == ConfigDiff()


def test_a_file_that_became_a_link_to_nowhere_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, and cannot be read: nobody concludes that there are no keys."""
    monkeypatch.chdir(tmp_path)
    first = ConfigSnapshot.of(load_settings(environment={}))
    (tmp_path / ".env").symlink_to(tmp_path / "not-there-yet")
    with pytest.raises(ConfigurationError, match="no such file"):
        first.again()
