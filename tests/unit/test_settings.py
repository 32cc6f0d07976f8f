"""Settings: defaults, layers, origins, overrides, and refusals that name variable, place and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from isabella.config.choices import Strategy
from isabella.config.settings import MAKE_MASTER_KEY, ProviderTypes, Settings, http_address, load_settings, variable
from isabella.config.sources import DEFAULT, ENVIRONMENT
from isabella.errors import ConfigurationError
from isabella.system.redaction import redact

MASTER_KEY = "5eed" * 16


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_defaults_are_as_documented() -> None:
    """With nothing configured: the embedded Letta, loopback, port 8000, strategy auto, native types."""
    settings = load_settings(environment={})
    assert settings.letta_base_url is None
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.strategy is Strategy.AUTO
    assert settings.strict is False
    assert settings.provider_types is ProviderTypes.NATIVE
    assert settings.config_file == Path("isabella.toml")
    assert settings.home.name == "isabella"


def test_every_field_has_a_variable_that_is_documented() -> None:
    """Each setting can be given by a variable of its own, which docs/configuration.md explains."""
    documented = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    for name in Settings.model_fields:
        if name == "sources":
            continue
        assert variable(name).startswith(("ISABELLA_", "LETTA_")), name
        assert f"`{variable(name)}`" in documented, name


def test_layers_and_origins(tmp_path: Path) -> None:
    """An argument wins over the environment, that over `.env`, that over the default; each is told as such."""
    (tmp_path / ".env").write_text("ISABELLA_PORT=1\nISABELLA_HOST=::1\nISABELLA_STRATEGY=recreate\n")
    settings = load_settings(environment={"ISABELLA_PORT": "2", "ISABELLA_HOST": "localhost"}, port=3)
    assert (settings.port, settings.host, settings.strategy) == (3, "localhost", Strategy.RECREATE)
    assert settings.origin("port") == "argument"
    assert settings.origin("host") == ENVIRONMENT
    assert settings.origin("strategy") == ".env"
    assert settings.origin("strict") == DEFAULT


def test_an_override_silences_a_malformed_variable() -> None:
    """What an argument replaces is not read at all, and None means not given."""
    assert load_settings(environment={"ISABELLA_PORT": "many"}, port=3).port == 3
    assert load_settings(environment={"ISABELLA_PORT": "4"}, port=None).port == 4


def test_settings_alone_reads_environment_and_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Settings()` reads what `load_settings()` reads."""
    (tmp_path / ".env").write_text("ISABELLA_PORT=9\n")
    monkeypatch.setenv("ISABELLA_STRICT", "true")
    settings = Settings()
    assert (settings.port, settings.strict) == (9, True)


def test_white_space_around_values_is_no_part_of_them(tmp_path: Path) -> None:
    """Values are stripped, a trailing newline of the shell's included."""
    settings = load_settings(environment={"LETTA_ENCRYPTION_KEY": f" {MASTER_KEY}\n", "ISABELLA_PORT": " 7 "})
    assert settings.letta_encryption_key == SecretStr(MASTER_KEY)
    assert settings.port == 7


@pytest.mark.parametrize("name", ["LETTA_BASE_URL", "LETTA_API_KEY", "ISABELLA_DATABASE_URL"])
def test_an_empty_optional_value_is_unset(name: str) -> None:
    """`NAME=` in a `.env` means that there is none."""
    settings = load_settings(environment={name: "  "})
    assert (settings.letta_base_url, settings.letta_api_key, settings.database_url) == (None, None, None)


@pytest.mark.parametrize("value", ["abc", "5eed" * 15, "5eed" * 17, "xyz!" * 16, "5eed" * 15 + "5e d"])
@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_master_key_of_another_form_is_refused(tmp_path: Path, value: str, place: str) -> None:
    """What is not 64 hexadecimal characters is refused with place and command, and is not shown."""
    (tmp_path / ".env").write_text(f"# one\n\nLETTA_ENCRYPTION_KEY={value}\n" if place == "file" else "")
    with pytest.raises(ConfigurationError) as error:
        load_settings(environment={"LETTA_ENCRYPTION_KEY": value} if place == "environment" else {})
    assert f"LETTA_ENCRYPTION_KEY ({'.env, line 3' if place == 'file' else 'environment'}):" in error.value.what
    assert MAKE_MASTER_KEY in error.value.what
    assert value not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LETTA_BASE_URL", "127.0.0.1:8283"),
        ("LETTA_BASE_URL", "ftp://127.0.0.1"),
        ("LETTA_BASE_URL", "http://"),
        ("LETTA_BASE_URL", "http://user:canary@127.0.0.1:8283"),
        ("LETTA_BASE_URL", "http://127.0.0.1:8283/?key=canary"),
        ("LETTA_BASE_URL", "http://127.0.0.1:99999"),
        ("LETTA_API_KEY", "pässwort-canary"),
        ("LETTA_API_KEY", "pass\x07word-canary"),
        ("ISABELLA_PORT", "http"),
        ("ISABELLA_PORT", "65536"),
        ("ISABELLA_PORT", "-1"),
        ("ISABELLA_STRATEGY", "fast"),
        ("ISABELLA_STRICT", "perhaps"),
        ("ISABELLA_PROVIDER_TYPES", "cerebras"),
        ("ISABELLA_TIMEOUT", "0"),
        ("ISABELLA_TIMEOUT", "nan"),
    ],
)
def test_a_malformed_value_is_refused_by_name_and_line(tmp_path: Path, name: str, value: str) -> None:
    """The message names the variable, its file and line; a value that may hold a secret is not quoted."""
    (tmp_path / ".env").write_text(f"# comment\n{name}={value}\n")
    with pytest.raises(ConfigurationError) as error:
        load_settings(environment={})
    assert error.value.what.startswith(f"{name} (.env, line 2): ")
    assert "canary" not in str(error.value)


def test_several_mistakes_are_told_at_once() -> None:
    """Nobody has to mend one mistake to be told the next."""
    with pytest.raises(ConfigurationError) as error:
        load_settings(environment={"ISABELLA_PORT": "x", "ISABELLA_STRATEGY": "y"})
    assert "ISABELLA_PORT" in error.value.what
    assert "ISABELLA_STRATEGY" in error.value.what


def test_a_malformed_argument_is_refused_too() -> None:
    """An argument goes through the same checks."""
    with pytest.raises((ConfigurationError, ValidationError)):
        load_settings(environment={}, port=-1)


def test_contradictions_name_variable_file_and_line_but_no_value(tmp_path: Path) -> None:
    """A stale shell variable is told loudly: which one, where the other stands, how to get rid of it."""
    (tmp_path / ".env").write_text("\nGROQ_API_KEY=gsk_canary-in-file\nISABELLA_PORT=1\nGROQ_BASE_URL=http://a\n")
    settings = load_settings(
        environment={"GROQ_API_KEY": "gsk_canary-in-shell", "ISABELLA_PORT": "1", "GROQ_BASE_URL": "http://b"}
    )
    notices = settings.contradictions()
    assert len(notices) == 2
    assert notices[0].startswith("GROQ_API_KEY is set in the environment and, differently, in .env (line 2)")
    assert "unset GROQ_API_KEY" in notices[0]
    assert "GROQ_BASE_URL" in notices[1]
    assert "canary" not in " ".join(notices)


def test_an_argument_is_no_contradiction(tmp_path: Path) -> None:
    """What was given on the command line is meant; the layers below it are not compared."""
    (tmp_path / ".env").write_text("ISABELLA_PORT=1\n")
    assert load_settings(environment={"ISABELLA_PORT": "2"}, port=3).contradictions() == []


def test_secrets_do_not_show_and_are_taken_out_of_texts() -> None:
    """Password, master key and database URL are not in a repr, and are redacted from then on."""
    database_url = "postgresql://u:canary-in-url@127.0.0.1/db"
    settings = load_settings(
        environment={
            "LETTA_API_KEY": "canary-password-0001",
            "LETTA_ENCRYPTION_KEY": MASTER_KEY,
            "ISABELLA_DATABASE_URL": database_url,
            "GROQ_API_KEY": "gsk_canary-0002",
        }
    )
    assert "canary" not in repr(settings)
    assert MASTER_KEY not in repr(settings)
    assert "canary" not in settings.model_dump_json()
    said = redact(f"canary-password-0001 {MASTER_KEY} {database_url}")
    assert "canary" not in said
    assert MASTER_KEY not in said


def test_the_password_inside_a_database_url_is_redacted_by_itself() -> None:
    """A driver may quote the password without the address around it."""
    load_settings(environment={"ISABELLA_DATABASE_URL": "postgresql://u:pass%2Fcanary-0003@127.0.0.1/db"})
    assert "canary-0003" not in redact("password pass/canary-0003 is wrong")
    assert "canary-0003" not in redact("password pass%2Fcanary-0003 is wrong")


def test_paths_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`~` in a path is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load_settings(environment={"ISABELLA_HOME": "~/h", "ISABELLA_CONFIG_FILE": "~/c.toml"})
    assert settings.home == tmp_path / "h"
    assert settings.config_file == tmp_path / "c.toml"


@pytest.mark.parametrize("name", ["ISABELLA_HOME", "ISABELLA_CONFIG_FILE", "ISABELLA_AGENTS_FILE"])
def test_the_home_folder_of_nobody_is_refused_by_name(name: str) -> None:
    """`~somebody` of whom this machine knows nothing is told with its variable, and with what to write."""
    with pytest.raises(ConfigurationError) as error:
        load_settings(environment={name: "~no-such-user-here/x"})
    assert error.value.what.startswith(f"{name} (environment): ")
    assert "write the whole path" in error.value.what


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("http://127.0.0.1:8283", "http://127.0.0.1:8283"),
        ("http://127.0.0.1:8283/", "http://127.0.0.1:8283"),
        (" https://letta.example/base// ", "https://letta.example/base"),
        ("http://[::1]:8283", "http://[::1]:8283"),
    ],
)
def test_addresses_lose_trailing_slashes(value: str, address: str) -> None:
    """An address is kept as it was given, without white space and trailing slashes."""
    assert http_address(value) == address


def test_settings_are_frozen() -> None:
    """Nobody changes settings behind another's back."""
    settings = load_settings(environment={})
    with pytest.raises(ValidationError):
        settings.port = 1


def test_secrets_in_files(tmp_path: Path) -> None:
    """A file stands for a secret; the variable itself wins, and an error names the variable and the file."""
    file = tmp_path / "secret"
    file.write_text(f"{MASTER_KEY}\n")
    named = {f"{name}_FILE": str(file) for name in ("LETTA_API_KEY", "LETTA_ENCRYPTION_KEY", "ISABELLA_TOKEN")}
    settings = load_settings(environment=named)
    for field in ("letta_api_key", "letta_encryption_key", "token"):
        assert getattr(settings, field).get_secret_value() == MASTER_KEY
        assert settings.origin(field) == str(file)
    assert MASTER_KEY not in redact(f"key {MASTER_KEY}")
    both = load_settings(environment={**named, "ISABELLA_TOKEN": "of-the-variable"})
    assert both.token == SecretStr("of-the-variable")
    file.write_text("too short for a master key")
    with pytest.raises(ConfigurationError, match=f"LETTA_ENCRYPTION_KEY .{file}.: it must be 64") as malformed:
        load_settings(environment=named)
    assert "too short" not in str(malformed.value)
    file.write_text("\n")
    with pytest.raises(ConfigurationError, match=r"LETTA_API_KEY_FILE .environment. names .*, which is empty"):
        load_settings(environment=named)
    file.unlink()
    with pytest.raises(ConfigurationError, match=r"LETTA_API_KEY_FILE .* cannot be read"):
        load_settings(environment=named)
