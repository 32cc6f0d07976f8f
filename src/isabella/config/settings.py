"""Isabella's settings, from the environment and `.env`: validated, each with its origin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from platformdirs import user_data_path
from pydantic import AnyHttpUrl, Field, SecretStr, TypeAdapter, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from isabella.config.api_keys import is_master_key
from isabella.config.sources import DEFAULT, ENVIRONMENT, Sources
from isabella.config.strategy import Strategy
from isabella.config.vendors import Vendor, known_vendors
from isabella.errors import ConfigurationError
from isabella.system import redaction
from isabella.system.terminal import LogFormat

# Building the adapter takes a hundred times as long as using it.
_ADDRESS = TypeAdapter(AnyHttpUrl)
_GATEWAY_MODES = ("auto", "on", "off")
MAKE_MASTER_KEY = "python3 -c 'import secrets; print(secrets.token_hex(32))'"


class ProviderTypes(StrEnum):
    """The provider types with which the vendors are registered in Letta."""

    NATIVE = "native"
    OPENAI = "openai"


class Embeddings(StrEnum):
    """The source of the vectors of archival memory."""

    #: Mistral if it has a key, otherwise the local model if its extra is installed, otherwise none.
    AUTO = "auto"
    MISTRAL = "mistral"
    LOCAL = "local"
    OFF = "off"


class WatchMode(StrEnum):
    """How a changed configuration is noticed while the backend runs."""

    #: By reports of the file system, and regular checks.
    AUTO = "auto"
    POLL = "poll"
    OFF = "off"


class Settings(BaseSettings):
    """All settings except the vendors' own variables.

    `Settings()` reads the process environment and `.env` in the working directory; `load_settings` can read another
    file, and raises a `ConfigurationError` for invalid values. The vendors' variables (`GROQ_API_KEY`, …) depend on
    the declared vendors; `isabella.providers.desired` reads them from `sources`.
    """

    model_config = SettingsConfigDict(
        # No `env_file`: pydantic-settings would read it without limits of type and size.
        extra="ignore",
        hide_input_in_errors=True,
        populate_by_name=True,
        frozen=True,
    )

    letta_base_url: str | None = Field(
        None, alias="LETTA_BASE_URL", description="Address of a Letta server; unset: the embedded one."
    )
    letta_api_key: SecretStr | None = Field(
        None, alias="LETTA_API_KEY", description="Password of that server, or its cloud token."
    )
    letta_encryption_key: SecretStr | None = Field(
        None,
        alias="LETTA_ENCRYPTION_KEY",
        description="The master key, 64 hexadecimal characters: the same as in Letta's own environment.",
    )
    host: str = Field("127.0.0.1", alias="ISABELLA_HOST", description="Address the backend listens on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8000, alias="ISABELLA_PORT", description="Port the backend listens on; 0 for any that is free."
    )
    token: SecretStr | None = Field(
        None,
        alias="ISABELLA_TOKEN",
        description="What the backend asks of its clients; unset: one that is made at the first start.",
    )
    home: Path = Field(
        default_factory=lambda: user_data_path("isabella"),
        alias="ISABELLA_HOME",
        description="Folder for the embedded Letta, its data, locks and logs.",
    )
    strategy: Strategy = Field(
        Strategy.AUTO,
        alias="ISABELLA_STRATEGY",
        description="How providers are brought in line: auto, recreate or in-place.",
    )
    strict: bool = Field(False, alias="ISABELLA_STRICT", description="Fail the start when a provider is not proven.")
    provider_types: ProviderTypes = Field(
        ProviderTypes.NATIVE,
        alias="ISABELLA_PROVIDER_TYPES",
        description="native: each vendor's own type; openai: every vendor as type openai with its base URL.",
    )
    database_url: SecretStr | None = Field(
        None,
        alias="ISABELLA_DATABASE_URL",
        description="Letta's Postgres, for a lock that holds across machines; unset: a file lock.",
    )
    config_file: Path = Field(
        Path("isabella.toml"),
        alias="ISABELLA_CONFIG_FILE",
        description="File that declares further OpenAI-compatible vendors.",
    )
    agents_file: Path | None = Field(
        None,
        alias="ISABELLA_AGENTS_FILE",
        description="File that defines the agents; unset: the ones that come with the package.",
    )
    embeddings: Embeddings = Field(
        Embeddings.AUTO,
        alias="ISABELLA_EMBEDDINGS",
        description="How archival memory is searched by meaning: auto, mistral, local, or off for text search. "
        "An agent keeps what it was made with.",
    )
    reflect_after: Annotated[float, Field(ge=0, le=86_400)] = Field(
        300.0,
        alias="ISABELLA_REFLECT_AFTER",
        description="Seconds of silence after which what was said is reflected on; 0 for never.",
    )
    timeout: Annotated[float, Field(gt=0, le=3600)] = Field(
        30.0, alias="ISABELLA_TIMEOUT", description="Seconds that Letta or a vendor may take to answer."
    )
    first_token_timeout: Annotated[float, Field(gt=0, le=3600)] = Field(
        20.0,
        alias="ISABELLA_FIRST_TOKEN_TIMEOUT",
        description="Seconds that a vendor may take to begin its answer before the next one is asked.",
    )
    silence_timeout: Annotated[float, Field(gt=0, le=3600)] = Field(
        60.0,
        alias="ISABELLA_SILENCE_TIMEOUT",
        description="Seconds of silence in the middle of an answer, a tool at work included, until it is broken.",
    )
    turn_queue: Annotated[int, Field(ge=0, le=10_000)] = Field(
        8, alias="ISABELLA_TURN_QUEUE", description="How many turns may wait for one agent before others get 429."
    )
    turn_wait: Annotated[float, Field(gt=0, le=3600)] = Field(
        120.0, alias="ISABELLA_TURN_WAIT", description="Seconds that a turn waits for those before it."
    )
    gate_timeout: Annotated[float, Field(gt=0, le=3600)] = Field(
        30.0,
        alias="ISABELLA_GATE_TIMEOUT",
        description="Seconds that turns wait while their provider is recreated, and that it waits for them first.",
    )
    gateway: str = Field(
        "auto",
        alias="ISABELLA_GATEWAY",
        description="Whether Letta reaches the vendors through Isabella's gateway: auto (with the embedded Letta), "
        "on, off, or the gateway's URL as Letta reaches it.",
    )
    watch: WatchMode = Field(
        WatchMode.AUTO,
        alias="ISABELLA_WATCH",
        description="How a changed configuration is noticed while the backend runs: auto, poll (where the file "
        "system gives no notice), or off.",
    )
    resync: Annotated[float, Field(ge=0, le=86_400)] = Field(
        300.0,
        alias="ISABELLA_RESYNC",
        description="How often drift is looked for and mended while the backend runs: seconds, or such as 5m; "
        "0 for never.",
    )
    refresh_at: time | None = Field(
        time(3, 30),
        alias="ISABELLA_REFRESH_AT",
        description="When every provider's model list is refreshed, once a night: local time such as 03:30; empty "
        "for never.",
    )
    log_format: LogFormat = Field(
        LogFormat.AUTO,
        alias="ISABELLA_LOG_FORMAT",
        description="Format of the lines on standard error: text, json, or auto (JSON from up and sync --watch if "
        "standard error is not a terminal, otherwise text).",
    )
    sources: Sources = Field(default_factory=lambda: Sources({}), exclude=True, repr=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read environment and file together, so that the origin of each value is known."""
        given = init_settings()
        sources = given.get("sources") or Sources.read()
        return init_settings, _Layers(settings_cls, sources)

    @field_validator("letta_base_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        return None if value is None or not value.strip() else http_address(value)

    @field_validator("gateway")
    @classmethod
    def _is_gateway(cls, value: str) -> str:
        text = value.strip()
        if text.lower() in ("", *_GATEWAY_MODES):
            return text.lower() or "auto"
        if "://" not in text:
            raise ValueError("it has to be auto, on, off, or a URL like http://127.0.0.1:8284")
        return http_address(text)

    @field_validator("letta_encryption_key")
    @classmethod
    def _is_master_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_master_key(value.get_secret_value()):
            raise ValueError(f"it has to be 64 hexadecimal characters (32 bytes). Make one with: {MAKE_MASTER_KEY}")
        return value

    @field_validator("letta_api_key", "database_url", "token")
    @classmethod
    def _empty_is_unset(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value is not None and value.get_secret_value().strip() else None

    @field_validator("agents_file", mode="before")
    @classmethod
    def _no_path_is_unset(cls, value: Any) -> Any:
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("resync", mode="before")
    @classmethod
    def _is_duration(cls, value: Any) -> Any:
        return duration(value) if isinstance(value, str) else value

    @field_validator("refresh_at", mode="before")
    @classmethod
    def _is_time_of_day(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.strip()
        found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
        if text and found is None:
            raise ValueError("it has to be a local time such as 03:30, or empty for never")
        return None if found is None else time(int(found[1]), int(found[2]))

    @field_validator("letta_api_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not (value.get_secret_value().isascii() and value.get_secret_value().isprintable()):
            raise ValueError("it has a character that is not printable ASCII, so no request can carry it")
        return value

    @field_validator("home", "config_file", "agents_file")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        try:
            return None if value is None else value.expanduser()
        except RuntimeError:
            raise ValueError("the home folder that ~ stands for is not known; write the whole path") from None

    def model_post_init(self, context: Any, /) -> None:
        """Register the secrets for redaction."""
        for secret in (self.letta_api_key, self.letta_encryption_key, self.database_url, self.token):
            if secret is not None:
                redaction.remember(secret.get_secret_value())
        if self.database_url is not None:
            # An error may quote the password without the URL around it.
            with suppress(ValueError):
                password = urlsplit(self.database_url.get_secret_value()).password or ""
                redaction.remember(password, unquote(password))

    @property
    def uses_gateway(self) -> bool:
        """Whether Letta is to reach the vendors through a gateway."""
        return self.gateway != "off" and (self.gateway != "auto" or self.letta_base_url is None)

    def origin(self, field: str) -> str:
        """Return the origin of a setting: `environment`, the path of `.env`, `argument` or `default`."""
        origin = self.sources.origin(variable(field))
        return "argument" if origin == DEFAULT and field in self.model_fields_set else origin

    def contradictions(self, vendors: tuple[Vendor, ...] | None = None) -> list[str]:
        """Return a sentence for each variable that the environment and `.env` set to different values."""
        names = [variable(name) for name in type(self).model_fields if name != "sources"]
        for vendor in known_vendors() if vendors is None else vendors:
            names += [vendor.api_key_env, vendor.api_key_file_env]
            names += [name for name in (vendor.base_url_env, vendor.type_env) if name]
        return [
            f"{name} is set in the environment and, differently, in {self.sources.file} "
            f"(line {self.sources.lines[name]}): the environment wins. "
            f"If the file is right, run `unset {name}`."
            for name in self.sources.contradictions(dict.fromkeys(names))
        ]


class _Layers(PydanticBaseSettingsSource):
    """Adapter of `Sources` for pydantic-settings."""

    def __init__(self, settings_cls: type[BaseSettings], sources: Sources) -> None:
        super().__init__(settings_cls)
        self._sources = sources

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        found = self._sources.get(field.alias or field_name)
        return (None if found is None else found.text.strip()), field.alias or field_name, False

    def __call__(self) -> dict[str, Any]:
        values: dict[str, Any] = {"sources": self._sources}
        for name, field in self.settings_cls.model_fields.items():
            value, key, _ = self.get_field_value(field, name)
            if value is not None and name != "sources":
                values[key] = value
        return values


def load_settings(
    env_file: Path | None = None, environment: Mapping[str, str] | None = None, **overrides: Any
) -> Settings:
    """Read the settings from the environment and `.env`.

    Args:
        env_file: replaces `.env`; it has to exist.
        environment: replaces the process environment.
        overrides: fields of `Settings` that win over both, such as command line options; None means not given.

    Raises:
        ConfigurationError: a value is malformed; the message names the variable, its origin and the expected form,
            without the value.
    """
    given = {variable(field): value for field, value in overrides.items() if value is not None}
    sources = Sources.read(env_file, environment).without(given)
    try:
        return Settings(sources=sources, **given)
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_input=False, include_url=False):
            name = variable(str(problem["loc"][0])) if problem["loc"] else "settings"
            problems.append(f"{name} ({_place(sources, name)}): {_reason(problem['msg'])}")
        raise ConfigurationError("; ".join(problems)) from None


def variable(field: str) -> str:
    """Return the environment variable of a field of `Settings`."""
    info = Settings.model_fields.get(field)
    return field if info is None or info.alias is None else info.alias


def duration(value: str) -> float:
    """Return the seconds of a duration: a number, or a text such as `90s`, `5m`, `1h30m`.

    Raises:
        ValueError: it is malformed.
    """
    text = value.strip().lower()
    with suppress(ValueError):
        return float(text)
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not text or parts is None:
        raise ValueError("it has to be seconds, or a duration such as 90s, 5m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return 3600.0 * hours + 60.0 * minutes + seconds


def http_address(value: str) -> str:
    """Return an `http` or `https` URL without a trailing slash.

    Raises:
        ValueError: it is not such a URL.
    """
    address = value.strip().rstrip("/")
    try:
        parsed = _ADDRESS.validate_python(address)
    except ValidationError:
        raise ValueError("it has to be an address like http://127.0.0.1:8283") from None
    if parsed.username or parsed.password:
        raise ValueError("it must not hold a user name or a password")
    if parsed.query or parsed.fragment:
        raise ValueError("it must not have a '?' or a '#'")
    return address


def _place(sources: Sources, name: str) -> str:
    origin = sources.origin(name)
    if origin in (ENVIRONMENT, DEFAULT):
        return origin
    return f"{origin}, line {sources.lines[name]}"


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ")
