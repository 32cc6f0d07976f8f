"""isabella.toml: what it declares, and every kind of mistake, told with file and line and without a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from isabella.config.custom_vendors import declared_vendors
from isabella.config.quirks import Quirks
from isabella.errors import ConfigurationError

GOOD = """\
# Two more vendors.
[[providers]]
name = "my-proxy"
base_url = "http://127.0.0.1:4000/v1/"
api_key_env = "MY_PROXY_API_KEY"

[[providers]]
name = "other.vendor_2"
title = "Other"
base_url = "https://api.example/v1"
api_key_env = "OTHER_API_KEY"
type = "mistral"
key_prefix = "ot-"
default_model = "big"
default_window = 4096
models = { small = 1024, big = 2048 }
"""


def declared(tmp_path: Path, text: str | bytes) -> tuple[object, ...]:
    """What a file with this content declares."""
    path = tmp_path / "isabella.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return declared_vendors(path)


def test_vendors_are_read_with_their_defaults(tmp_path: Path) -> None:
    """Each table is a vendor; what it does not say has a default."""
    path = tmp_path / "isabella.toml"
    path.write_text(GOOD)
    first, second = declared_vendors(path)
    assert (first.name, first.provider, first.title, first.type) == ("my-proxy", "my-proxy", "my-proxy", "openai")
    assert (first.base_url, first.api_key_env) == ("http://127.0.0.1:4000/v1", "MY_PROXY_API_KEY")
    assert (first.default_model, first.default_window, first.models) == (None, 32_768, {})
    assert (first.base_url_env, first.type_env) == (None, None)
    assert first.api_key_file_env == "MY_PROXY_API_KEY_FILE"
    assert (second.title, second.type, second.key_prefix) == ("Other", "mistral", "ot-")
    assert (second.default_model, second.default_window) == ("big", 4096)
    assert second.models == {"small": 1024, "big": 2048}


def test_quirks_are_declared_below_their_vendor(tmp_path: Path) -> None:
    """The same fields as in the catalog; a vendor without them has none."""
    path = tmp_path / "isabella.toml"
    quirks = (
        '[providers.quirks]\ndrop_fields = ["user"]\nrename_fields = { a = "b" }\nmax_output_tokens = 9\n'
        'no_thinking = { thinking = { type = "disabled" } }\n'
    )
    path.write_text(GOOD + quirks)
    first, second = declared_vendors(path)
    assert (first.quirks, first.call_id) == (Quirks(), None)
    assert second.quirks == Quirks(
        drop_fields=("user",),
        rename_fields={"a": "b"},
        max_output_tokens=9,
        no_thinking={"thinking": {"type": "disabled"}},
    )
    path.write_text(GOOD + "quirks = { tool_call_id_length = 9 }")
    assert declared_vendors(path)[1].call_id == "[a-zA-Z0-9]{9}"


@pytest.mark.parametrize(
    ("quirk", "told"),
    [
        ('drop_fields = "user"', "quirks.drop_fields: Input should be a valid tuple"),
        ('max_output_tokens = "9"', "quirks.max_output_tokens: Input should be a valid integer"),
        ("default_output_tokens = 0", "quirks.default_output_tokens: Input should be greater than 0"),
        ("paired_results = 1", "quirks.paired_results: Input should be a valid boolean"),
        ("tool_call_id_length = 3", "quirks.tool_call_id_length: Input should be greater than or equal to 8"),
        ('request_limit_period = "year"', "quirks.request_limit_period: Input should be 'minute' or 'day'"),
        ("unheard_of = true", "quirks.unheard_of: Extra inputs are not permitted"),
    ],
)
def test_a_mistake_in_quirks_is_named(tmp_path: Path, quirk: str, told: str) -> None:
    """With the line of the vendor's table."""
    with pytest.raises(ConfigurationError) as error:
        declared(tmp_path, f"{GOOD}[providers.quirks]\n{quirk}\n")
    assert "[[providers]] in line 7: " + told in str(error.value)


def test_a_plain_list_of_models_gets_the_default_window(tmp_path: Path) -> None:
    """Models may be listed by name alone; the first is the default."""
    path = tmp_path / "isabella.toml"
    path.write_text(
        '[[providers]]\nname = "a"\nbase_url = "http://a"\napi_key_env = "A"\ndefault_window = 9\nmodels = ["x", "y"]'
    )
    (vendor,) = declared_vendors(path)
    assert (vendor.default_model, vendor.models) == ("x", {"x": 9, "y": 9})


@pytest.mark.parametrize("text", ["", "# nothing\n", "providers = []\n"])
def test_a_file_that_declares_nothing_is_fine(tmp_path: Path, text: str) -> None:
    """An empty file declares no vendors."""
    assert declared(tmp_path, text) == ()


def test_no_file_declares_nothing(tmp_path: Path) -> None:
    """The file need not exist."""
    assert declared_vendors(tmp_path / "isabella.toml") == ()


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    """A file saved with a BOM, as on Windows, reads like any other."""
    assert len(declared(tmp_path, "\ufeff" + GOOD)) == 2


def table(**entries: str) -> str:
    """A table that is right but for the entries given; they are TOML."""
    lines = {"name": '"a"', "base_url": '"http://a/v1"', "api_key_env": '"A_API_KEY"', **entries}
    return "# first\n\n[[providers]]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items() if value)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a = \n", 1, "not valid TOML"),
        ('\n[[providers]]\nname = "open\n', 3, "not valid TOML"),
        ('\n[[providers]]\nname = "open', 3, "not valid TOML"),
        ("[providers]\n[providers]\n", 2, "not valid TOML"),
        ("# one\nproviderz = 1\n", 2, "unknown entry 'providerz'"),
        ("# one\n[[provider]]\nname = 'a'\n", 2, "unknown entry 'provider'"),
        ("# one\n\n[providers]\nname = 'a'\n", 3, "tables"),
        ("\nproviders = 'a'\n", 2, "tables"),
        ("\nproviders = [1]\n", 2, "tables"),
        ("\n\nproviders = [{ name = 'a/b', base_url = 'http://a', api_key_env = 'A' }]\n", 3, "slash"),
        (table(name=""), 3, "name"),
        (table(base_url=""), 3, "base_url"),
        (table(name='"with/slash"'), 3, "slash"),
        (table(name='""'), 3, "name"),
        (table(name='"-a"'), 3, "name"),
        (table(name='"a b"'), 3, "name"),
        (table(name="7"), 3, "name"),
        (table(base_url='"127.0.0.1:4000"'), 3, "address"),
        (table(base_url='"http://u:canary@a"'), 3, "password"),
        (table(base_url='"http://a/?key=canary"'), 3, "'?'"),
        (table(api_key_env='"A-B"'), 3, "api_key_env"),
        (table(api_key_env='""'), 3, "api_key_env"),
        (table(api_key_env='"csk-canary-in-place-of-a-name"'), 3, "api_key_env"),
        (table(api_key_env='"gsk_canary_in_place_of_a_name"'), 3, "api_key_env"),
        (table(api_key='"csk-canary"'), 3, "this file must not hold a key"),
        (table(key='"csk-canary"'), 3, "this file must not hold a key"),
        (table(type='""'), 3, "type"),
        (table(default_window="0"), 3, "default_window"),
        (table(default_window='"8k"'), 3, "default_window"),
        (table(models='["a", 1]'), 3, "models"),
        (table(models="{ a = -1 }"), 3, "models"),
        (table(colour='"red"'), 3, "colour"),
        (table(name='"cerebras"'), 3, "taken by the catalog"),
        (table() + table(), 9, "taken by the table in line 3"),
        (table() + table(name='"b"', base_url='"b"'), 9, "address"),
    ],
)
def test_every_mistake_is_told_with_file_and_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    """Whatever is wrong: the message names the file, the line and the entry, and holds no key."""
    with pytest.raises(ConfigurationError) as error:
        declared(tmp_path, text)
    said = str(error.value)
    assert str(tmp_path / "isabella.toml") in said
    assert f"line {line}" in said
    assert what in said
    assert "canary" not in said


def test_a_key_in_the_file_comes_with_the_way_out(tmp_path: Path) -> None:
    """Who puts a key into the file is told where it belongs."""
    with pytest.raises(ConfigurationError) as error:
        declared(tmp_path, table(api_key='"csk-canary"'))
    assert error.value.remedy is not None
    assert ".env" in error.value.remedy


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """A file that cannot be read is named."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        declared(tmp_path, b"name = '\xff'")


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    """A folder of the file's name is told, not thrown."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        declared_vendors(tmp_path)
