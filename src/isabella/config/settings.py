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
from pydantic import AnyHttpUrl, BeforeValidator, Field, SecretStr, TypeAdapter, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from isabella.config.api_keys import is_master_key
from isabella.config.choices import LettaLock, Strategy
from isabella.config.sources import DEFAULT, ConfigValue, Sources
from isabella.config.vendors import Vendor, known_vendors
from isabella.errors import ConfigurationError, FileUnreadable
from isabella.system import files, redaction
from isabella.system.english import english, joined
from isabella.system.terminal import LogFormat

# Building the adapter takes a hundred times as long as using it.
_ADDRESS = TypeAdapter(AnyHttpUrl)
_GATEWAY_MODES = ("auto", "on", "off")
#: The secrets that a file may hold: `LETTA_API_KEY_FILE` names the file of `LETTA_API_KEY`.
_SECRETS = ("letta_api_key", "letta_encryption_key", "database_url", "postgres_url", "token")
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
    """The way a changed configuration is noticed while the backend runs."""

    #: By reports of the file system, and regular checks.
    AUTO = "auto"
    POLL = "poll"
    OFF = "off"


#: Names, in an environment variable separated by commas.
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: tuple(value.replace(",", " ").split()) if isinstance(value, str) else value),
]


class Settings(BaseSettings):
    """All settings except the vendors' own variables.

    `Settings()` reads the process environment and `.env` in the working directory; `load_settings` can read another
    file, and raises a `ConfigurationError` for invalid values. The vendors' variables (`GROQ_API_KEY`, …) depend on
    the declared vendors; `isabella.providers.desired` reads them from `sources`. docs/configuration.md explains each.
    """

    model_config = SettingsConfigDict(
        # No `env_file`: pydantic-settings would read it without limits of type and size.
        alias_generator=lambda field: field.upper() if field.startswith("letta_") else f"ISABELLA_{field.upper()}",
        extra="ignore",
        hide_input_in_errors=True,
        populate_by_name=True,
        frozen=True,
    )

    letta_base_url: str | None = None  #: Letta's base URL; None: the embedded one
    letta_api_key: SecretStr | None = None  #: Letta's password, or its cloud token
    letta_encryption_key: SecretStr | None = None  #: the master key, as in Letta's own environment
    #: the lock of the embedded Letta's dependencies; `alias_generator` would take away its prefix
    letta_lock: LettaLock = Field(default=LettaLock.PATCHED, alias="ISABELLA_LETTA_LOCK")
    tool_sandbox: bool = True  #: whether tools that the embedded Letta runs are put into a sandbox, if one works here
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000  #: 0: any free port
    allowed_hosts: Names = ()  #: names of the backend beside its IP addresses, ISABELLA_HOST and `localhost`
    cors_origins: Names = ()  #: origins of other pages that may call the API with the token
    token: SecretStr | None = None  #: what clients of the backend send; None: generated at the first start
    home: Path = Field(default_factory=lambda: user_data_path("isabella"))
    strategy: Strategy = Strategy.AUTO
    strict: bool = False  #: whether the start fails if a provider is not proven
    provider_types: ProviderTypes = ProviderTypes.NATIVE
    database_url: SecretStr | None = None  #: Letta's Postgres, for locks that hold across processes
    postgres_url: SecretStr | None = None  #: the operator's own Postgres for the embedded Letta
    config_file: Path = Path("isabella.toml")  #: declares further vendors
    agents_file: Path | None = None  #: defines the agents; None: those of the package
    embeddings: Embeddings = Embeddings.AUTO
    reflect_after: Annotated[float, Field(ge=0, le=86_400)] = 300.0  #: seconds without a message; 0: never
    block_history_days: Annotated[int, Field(ge=0, le=36_500)] = (
        365  #: how long texts of blocks are kept; 0: not at all
    )
    timeout: Annotated[float, Field(gt=0, le=3600)] = 30.0  #: seconds that Letta or a vendor may take to answer
    first_token_timeout: Annotated[float, Field(gt=0, le=3600)] = 20.0  #: seconds, before the next vendor is asked
    silence_timeout: Annotated[float, Field(gt=0, le=3600)] = 60.0  #: seconds in the middle of an answer
    answer_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 8192  #: the longest answer of a model; 0: no limit
    turn_timeout: Annotated[float, Field(gt=0, le=86_400)] = 1800.0  #: seconds that a whole answer may take
    turn_queue: Annotated[int, Field(ge=0, le=10_000)] = 8  #: how many turns may wait for one agent
    turn_wait: Annotated[float, Field(gt=0, le=3600)] = 120.0  #: seconds that a turn may wait for those before it
    gate_timeout: Annotated[float, Field(gt=0, le=3600)] = 30.0  #: seconds that turns and changes wait for each other
    #: whether Letta reaches the vendors through the gateway: `auto`, `on`, `off`, or its URL as Letta reaches it
    gateway: str = "auto"
    watch: WatchMode = WatchMode.AUTO
    resync: Annotated[float, Field(ge=0, le=86_400)] = 300.0  #: seconds between checks for drift; 0: never
    refresh_at: time | None = time(3, 30)  #: local time of the refresh of the model lists; None: never
    backup_at: time | None = time(3, 0)  #: local time of the nightly backup of the embedded Letta; None: never
    backup_keep: Annotated[int, Field(ge=1, le=10_000)] = 7  #: how many backups of each automatic kind are kept
    backup_folder: Path | None = None  #: None: `backups` in the home
    backup_recipients: Names = ()  #: public keys of age, which can open the backups; none: the home's own key
    backup_before_changes: bool = True  #: whether a backup is made before migrations, rekey and restore
    log_format: LogFormat = LogFormat.AUTO
    sources: Sources = Field(default_factory=lambda: Sources({}), alias="sources", exclude=True, repr=False)

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
        values: dict[str, Any] = {"sources": sources}
        for name in (variable(field) for field in settings_cls.model_fields if field != "sources"):
            if (found := _value(sources, name)) is not None:
                values[name] = found.text.strip()
        return init_settings, InitSettingsSource(settings_cls, values)

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
            raise ValueError(english("it must be auto, on, off, or a URL like http://127.0.0.1:8284"))
        return http_address(text)

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parsed = urlsplit(http_address(origin))
            if parsed.path or origin != f"{parsed.scheme}://{parsed.netloc}":
                raise ValueError(english("each must be an origin like https://chat.example, without a path"))
        return value

    @field_validator("letta_encryption_key")
    @classmethod
    def _is_master_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_master_key(value.get_secret_value()):
            raise ValueError(
                english(
                    "it must be 64 hexadecimal characters (32 bytes). Make one with: %(command)s",
                    command=MAKE_MASTER_KEY,
                )
            )
        return value

    @field_validator(
        "letta_api_key", "database_url", "postgres_url", "token", "agents_file", "backup_folder", mode="before"
    )
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        return None if isinstance(text, str) and not text.strip() else value

    @field_validator("resync", mode="before")
    @classmethod
    def _is_duration(cls, value: Any) -> Any:
        return duration(value) if isinstance(value, str) else value

    @field_validator("backup_recipients")
    @classmethod
    def _are_public_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(r"age1[0-9a-z]{50,}", key) for key in value):
            raise ValueError(english("each must be an age public key, which begins with age1"))
        return value

    @field_validator("refresh_at", "backup_at", mode="before")
    @classmethod
    def _is_time_of_day(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.strip()
        found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
        if text and found is None:
            raise ValueError(english("it must be a local time such as 03:30, or empty for never"))
        return None if found is None else time(int(found[1]), int(found[2]))

    @field_validator("letta_api_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not (value.get_secret_value().isascii() and value.get_secret_value().isprintable()):
            raise ValueError(english("it has a character that is not printable ASCII, so no request can carry it"))
        return value

    @field_validator("home", "config_file", "agents_file", "backup_folder")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        try:
            return None if value is None else value.expanduser()
        except RuntimeError:
            raise ValueError(
                english("the home folder that ~ stands for is not known; write the whole path")
            ) from None

    def model_post_init(self, context: Any, /) -> None:
        """Register the secrets for redaction."""
        urls = [url for url in (self.database_url, self.postgres_url) if url is not None]
        for secret in (self.letta_api_key, self.letta_encryption_key, self.token, *urls):
            if secret is not None:
                redaction.remember(secret.get_secret_value())
        for url in urls:
            # An error may quote the password without the URL around it.
            with suppress(ValueError):
                password = urlsplit(url.get_secret_value()).password or ""
                redaction.remember(password, unquote(password))

    @property
    def several_backends(self) -> bool:
        """Whether other backends may use the same Letta, or the same database, which this one does not run."""
        return (self.letta_base_url or self.postgres_url) is not None

    @property
    def known_database(self) -> SecretStr | None:
        """The URL of the Postgres of the operator's own Letta; None if it is not known."""
        return self.database_url or self.postgres_url

    @property
    def host_names(self) -> frozenset[str]:
        """The names of the backend in `Host` headers, in lower case, beside IP addresses and `localhost`."""
        return frozenset(name.lower() for name in (self.host, *self.allowed_hosts))

    @property
    def uses_gateway(self) -> bool:
        """Whether Letta is to reach the vendors through a gateway."""
        return self.gateway != "off" and (self.gateway != "auto" or self.letta_base_url is None)

    def origin(self, field: str) -> str:
        """Return the origin of a setting: `environment`, the path of `.env`, `argument` or `default`."""
        found = _value(self.sources, variable(field))
        origin = DEFAULT if found is None else found.origin
        return "argument" if origin == DEFAULT and field in self.model_fields_set else origin

    def contradictions(self, vendors: tuple[Vendor, ...] | None = None) -> list[str]:
        """Return a sentence for each variable that the environment and `.env` set to different values."""
        names = [variable(name) for name in type(self).model_fields if name != "sources"]
        names += secret_files()
        for vendor in known_vendors() if vendors is None else vendors:
            names += vendor.variables
        return [
            english(
                "%(name)s is set in the environment and, differently, in %(file)s (line %(line)s): "
                "the environment wins. If the file is right, run `unset %(name)s`.",
                name=name,
                file=self.sources.file,
                line=self.sources.lines[name],
            )
            for name in self.sources.contradictions(dict.fromkeys(names))
        ]


def load_settings(
    env_file: Path | None = None, environment: Mapping[str, str] | None = None, **overrides: Any
) -> Settings:
    """Read the settings from the environment and `.env`, or from replacements of the two.

    `overrides` are fields of `Settings` that win over both, such as command line options; None means not given.
    Raises `ConfigurationError` with the variable and the origin of a malformed value, but without the value.
    """
    given = {variable(field): value for field, value in overrides.items() if value is not None}
    sources = Sources.read(env_file, environment).without(given)
    try:
        return Settings(sources=sources, **given)
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_input=False, include_url=False):
            name = variable(str(problem["loc"][0])) if problem["loc"] else "settings"
            found = _value(sources, name)
            place = DEFAULT if found is None else found.origin
            if found is not None and place == str(sources.file):
                place = english("%(path)s, line %(line)s", path=place, line=str(sources.lines[name]))
            problems.append(
                english("%(name)s (%(place)s): %(what)s", name=name, place=place, what=what_is_wrong(problem))
            )
        remedy = english("Correct it there, or remove it to use the default.")
        raise ConfigurationError(joined(problems, "; "), remedy=remedy) from None


def what_is_wrong(problem: ErrorDetails) -> str:
    """Return the text of a problem that pydantic has found; that of an Isabella validator can be translated."""
    error = problem.get("ctx", {}).get("error")
    return error.args[0] if isinstance(error, ValueError) else problem["msg"]


def variable(field: str) -> str:
    """Return the environment variable of a field of `Settings`."""
    info = Settings.model_fields.get(field)
    return field if info is None or info.alias is None else info.alias


def secret_files() -> list[str]:
    """Return the variables that name files with Isabella's own secrets."""
    return [_file_variable(variable(field)) for field in _SECRETS]


def _file_variable(name: str) -> str:
    return f"{name}_FILE"


def _value(sources: Sources, name: str) -> ConfigValue | None:
    """Return the value of a variable, or the content of the file that is named in its place.

    Raises:
        ConfigurationError: that file cannot be read, or is empty.
    """
    found = sources.get(name)
    if name not in map(variable, _SECRETS) or (found is not None and found.text.strip()):
        return found
    file = sources.get(_file_variable(name))
    if file is None or not file.text.strip():
        return found
    path = Path(file.text.strip())
    try:
        text = files.read(path.expanduser()).text.strip()
    except (FileUnreadable, RuntimeError) as error:
        reason = (
            error.reason
            if isinstance(error, FileUnreadable)
            else english("the folder that ~ stands for is not known")
        )
        raise ConfigurationError(
            english(
                "%(name)s (%(origin)s) names %(path)s, which cannot be read: %(reason)s.",
                name=_file_variable(name),
                origin=file.origin,
                path=path,
                reason=reason,
            ),
            remedy=english("Correct the path or the permissions of the file."),
        ) from None
    if not text:
        raise ConfigurationError(
            english(
                "%(name)s (%(origin)s) names %(path)s, which is empty.",
                name=_file_variable(name),
                origin=file.origin,
                path=path,
            ),
            remedy=english("Put the secret into it."),
        )
    return ConfigValue(text, str(path))


def duration(value: str) -> float:
    """Return the seconds of a duration: a number, or a text such as `90s`, `5m`, `1h30m`."""
    text = value.strip().lower()
    with suppress(ValueError):
        return float(text)
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not text or parts is None:
        raise ValueError(english("it must be a number of seconds, or a duration such as 90s, 5m or 1h30m"))
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return 3600.0 * hours + 60.0 * minutes + seconds


def http_address(value: str) -> str:
    """Return an `http` or `https` URL without a trailing slash; raise `ValueError` for anything else."""
    address = value.strip().rstrip("/")
    try:
        parsed = _ADDRESS.validate_python(address)
    except ValidationError:
        raise ValueError(english("it must be an address like http://127.0.0.1:8283")) from None
    if parsed.username or parsed.password:
        raise ValueError(english("it must not hold a user name or a password"))
    if parsed.query or parsed.fragment:
        raise ValueError(english("it must not have a '?' or a '#'"))
    return address
