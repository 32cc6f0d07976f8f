"""The providers that the configuration asks for, from settings, the vendor catalog and `isabella.toml`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from isabella.config import key_commands
from isabella.config.api_keys import NO_KEY, KeyEmpty, KeyPlaceholder, KeyRefused, clean_key
from isabella.config.custom_vendors import all_vendors
from isabella.config.gateway_address import gateway_address
from isabella.config.keyring_entries import KeyringEntry
from isabella.config.settings import ProviderTypes, Settings, http_address
from isabella.config.sources import ConfigValue
from isabella.config.vendors import Vendor, vendor_of_prefix
from isabella.errors import ConfigurationError, FileUnreadable
from isabella.system import files, redaction
from isabella.system.english import english
from isabella.system.redaction import mask
from isabella.system.urls import gateway_base_url, is_loopback


class RemarkKind(StrEnum):
    """The kinds of remarks about a vendor's configuration."""

    # --- these prevent the registration -------------------------------------------------------------------------
    KEY_EMPTY = "key-empty"
    KEY_PLACEHOLDER = "key-placeholder"
    KEY_MALFORMED = "key-malformed"
    KEY_FILE_UNREADABLE = "key-file-unreadable"
    KEY_COMMAND_FAILED = "key-command-failed"
    KEY_KEYRING_FAILED = "key-keyring-failed"
    BASE_URL_MALFORMED = "base-url-malformed"
    # --- these do not -------------------------------------------------------------------------------------------
    KEY_CLEANED = "key-cleaned"
    KEY_SET_TWICE = "key-set-twice"
    KEY_FILE_READABLE = "key-file-readable"
    KEY_COMMAND_STALE = "key-command-stale"
    KEY_KEYRING_STALE = "key-keyring-stale"
    KEY_OF_ANOTHER_VENDOR = "key-of-another-vendor"


@dataclass(frozen=True)
class Remark:
    """A remark about a vendor's configuration."""

    kind: RemarkKind
    variable: str
    text: str  #: one sentence; never holds a key
    path: Path | None = None


@dataclass(frozen=True)
class Desired:
    """A provider as the configuration asks for it."""

    vendor: Vendor
    name: str
    type: str
    base_url: str
    key: SecretStr | None  #: the key; None if no usable one is configured
    key_source: str  #: variable and origin of the key
    problem: str | None = None  #: why it cannot be registered; None if it can
    remedy: str | None = None
    obstacle: Remark | None = None  #: the problem as a remark
    remarks: tuple[Remark, ...] = ()  #: remarks that do not prevent the registration
    behind_gateway: str | None = None  #: the vendor's own base URL, if `base_url` is that of the gateway
    keyless: bool = False  #: whether the vendor needs no key, and `key` is `NO_KEY`

    @property
    def upstream(self) -> str:
        """The vendor's own base URL."""
        return self.behind_gateway or self.base_url

    @property
    def reached_at(self) -> str:
        """The base URL at which Isabella's own processes, except the gateway, reach the vendor.

        A gateway at an address of the network may be the only one that can reach the vendors. One on loopback may be
        on Letta's machine, so the vendor's own base URL is used.
        """
        return self.upstream if is_loopback(self.base_url) else self.base_url

    @property
    def notes(self) -> tuple[str, ...]:
        """The texts of the remarks."""
        return tuple(remark.text for remark in self.remarks)

    @property
    def configured(self) -> bool:
        """Whether the configuration has a key for it, usable or not. A vendor without one is not registered."""
        return self.key is not None or self.problem is not None

    @property
    def masked_key(self) -> str | None:
        """The key in the form that may be shown."""
        if self.keyless:
            return "none needed"
        return None if self.key is None else mask(self.key.get_secret_value())


def desired_providers(
    settings: Settings, vendors: tuple[Vendor, ...] | None = None, *, every: bool = False
) -> tuple[Desired, ...]:
    """Return every vendor of the catalog and of `isabella.toml`, with the key configured for it.

    Vendors that are there on demand are left out until they are set up, except with `every`. An unusable key is a
    problem of its provider alone. A malformed `isabella.toml` raises `ConfigurationError`.
    """
    if vendors is None:
        vendors = all_vendors(settings.config_file)
    gateway = gateway_address(settings)
    key_commands.read_all(source for vendor in vendors if (source := _program(vendor, settings)) is not None)
    desired = (_desired(vendor, settings, gateway) for vendor in vendors)
    return tuple(one for one in desired if every or one.configured or not one.vendor.on_demand)


def _desired(vendor: Vendor, settings: Settings, gateway: str | None) -> Desired:
    remarks: list[Remark] = []
    key: SecretStr | None = None
    source, obstacle, remedy = english("%(api_key_env)s is not set", api_key_env=vendor.api_key_env), None, None
    try:
        configured = _key_text(vendor, settings, remarks)
        if configured is not None:
            variable, value = configured
            source = f"{variable} ({value.origin})"
            key = _clean_key(vendor, variable, value, remarks)
    except _Unusable as unusable:
        obstacle, remedy = unusable.obstacle, unusable.remedy
        source = unusable.source
    upstream, base_url_obstacle = _base_url(vendor, settings)
    keyless = key is None and obstacle is None and _set_up_without_key(vendor, settings)
    if keyless:
        key, source = SecretStr(NO_KEY), english("%(source)s, and need not be", source=source)
    if obstacle is None and key is not None and base_url_obstacle is not None:
        obstacle, remedy = base_url_obstacle, english("Correct it, or remove it to use the vendor's own base URL.")
    return Desired(
        vendor=_with_model(vendor, settings),
        name=vendor.provider,
        type=_provider_type(vendor, settings),
        base_url=upstream if gateway is None else gateway_base_url(gateway, vendor.provider),
        key=key,
        key_source=source,
        problem=None if obstacle is None else obstacle.text,
        remedy=remedy,
        obstacle=obstacle,
        remarks=tuple(remarks),
        behind_gateway=None if gateway is None else upstream,
        keyless=keyless,
    )


def _set_up_without_key(vendor: Vendor, settings: Settings) -> bool:
    """Return whether a vendor that may have no key is set up: by a table in `isabella.toml`, or by its base URL."""
    if not vendor.key_optional or vendor.base_url_env is None:
        return vendor.key_optional
    value = settings.sources.get(vendor.base_url_env)
    return value is not None and bool(value.text.strip())


def _with_model(vendor: Vendor, settings: Settings) -> Vendor:
    """Return the vendor with the default model of the settings."""
    value = settings.sources.get(vendor.model_env) if vendor.model_env else None
    model = "" if value is None else value.text.strip()
    return replace(vendor, default_model=model) if model else vendor


_KINDS: dict[type[KeyRefused], RemarkKind] = {
    KeyEmpty: RemarkKind.KEY_EMPTY,
    KeyPlaceholder: RemarkKind.KEY_PLACEHOLDER,
}


class _Unusable(Exception):
    """The configured key cannot be used."""

    def __init__(self, obstacle: Remark, source: str, remedy: str) -> None:
        super().__init__(obstacle.text)
        self.obstacle = obstacle
        self.source = source
        self.remedy = remedy


def _key_text(vendor: Vendor, settings: Settings, remarks: list[Remark]) -> tuple[str, ConfigValue] | None:
    """Return the variable and the raw value of the key: from that variable, or from the place that it names."""
    found = _key_values(vendor, settings)
    if not found:
        return None
    (variable, value), *others = found
    for other, _ in others:
        text = english("%(variable)s wins over %(other)s: both are set", variable=variable, other=other)
        remarks.append(Remark(RemarkKind.KEY_SET_TWICE, other, text))
    if variable == vendor.api_key_env:
        return variable, value
    if variable == vendor.api_key_file_env:
        return variable, _from_file(vendor, value, remarks)
    if variable == vendor.api_key_command_env:
        return variable, _from_command(variable, value, remarks)
    return variable, _from_keyring(vendor, value, remarks)


def _key_values(vendor: Vendor, settings: Settings) -> list[tuple[str, ConfigValue]]:
    """Return the variables that are set for its key, the one that wins first."""
    return [(name, value) for name in vendor.key_variables if (value := settings.sources.get(name)) is not None]


def _program(vendor: Vendor, settings: Settings) -> key_commands.Source | None:
    """Return the program that has to be run for a vendor's key, if there is one."""
    variable, value = next(iter(_key_values(vendor, settings)), ("", None))
    if value is None:
        return None
    if variable == vendor.api_key_command_env:
        return key_commands.Command(value.text.strip())
    with suppress(ValueError):
        return KeyringEntry.parse(value.text) if variable == vendor.api_key_keyring_env else None
    return None


def _from_command(variable: str, named: ConfigValue, remarks: list[Remark]) -> ConfigValue:
    printed = key_commands.read(key_commands.Command(named.text.strip()))
    if printed.text is None:
        raise _Unusable(
            Remark(
                RemarkKind.KEY_COMMAND_FAILED,
                variable,
                english("%(variable)s has no key: %(failure)s", variable=variable, failure=printed.failure),
            ),
            f"{variable} ({named.origin})",
            english(
                "Run the command of %(variable)s by hand, or correct it; it is run without a shell.",
                variable=variable,
            ),
        )
    if printed.failure is not None:
        text = english(
            "%(variable)s printed no key when it was run again, so its last one stays in force: %(failure)s",
            variable=variable,
            failure=printed.failure,
        )
        remarks.append(Remark(RemarkKind.KEY_COMMAND_STALE, variable, text))
    return ConfigValue(printed.text, named.origin)


def _from_keyring(vendor: Vendor, named: ConfigValue, remarks: list[Remark]) -> ConfigValue:
    variable = vendor.api_key_keyring_env
    try:
        entry = KeyringEntry.parse(named.text)
    except ValueError as error:
        text = english("%(variable)s cannot be used: %(why)s", variable=variable, why=error.args[0])
        remedy = english(
            "Write it as %(variable)s=isabella/%(name)s, or remove the line.", variable=variable, name=vendor.name
        )
        raise _Unusable(
            Remark(RemarkKind.KEY_KEYRING_FAILED, variable, text), f"{variable} ({named.origin})", remedy
        ) from None
    printed = key_commands.read(entry)
    if printed.text is None:
        raise _Unusable(
            Remark(
                RemarkKind.KEY_KEYRING_FAILED,
                variable,
                english(
                    "%(variable)s (%(entry)s) has no key: %(failure)s",
                    variable=variable,
                    entry=entry,
                    failure=printed.failure,
                ),
            ),
            f"{variable} ({named.origin})",
            printed.remedy or "",
        )
    if printed.failure is not None:
        text = english(
            "%(variable)s returned no key when the keyring was asked again; its last key stays in force: %(failure)s",
            variable=variable,
            failure=printed.failure,
        )
        remarks.append(Remark(RemarkKind.KEY_KEYRING_STALE, variable, text))
    return ConfigValue(printed.text, f"entry {entry}")


def _from_file(vendor: Vendor, named: ConfigValue, remarks: list[Remark]) -> ConfigValue:
    path = Path(named.text.strip())
    try:
        path = _expanded(path)
        file = files.read(path)
        text = file.text
    except FileUnreadable as error:
        problem = english(
            "%(api_key_file_env)s names %(path)s, which cannot be read: %(reason)s",
            api_key_file_env=vendor.api_key_file_env,
            path=path,
            reason=error.reason,
        )
        raise _Unusable(
            Remark(RemarkKind.KEY_FILE_UNREADABLE, vendor.api_key_file_env, problem, path),
            f"{vendor.api_key_file_env} ({named.origin})",
            error.remedy or "",
        ) from None
    if file.mode & 0o004:
        warning = english("%(path)s can be read by every user of this machine: run `chmod 600 %(path)s`", path=path)
        remarks.append(Remark(RemarkKind.KEY_FILE_READABLE, vendor.api_key_file_env, warning, path))
    # A text file ends in a newline: no remark about that.
    return ConfigValue(text.removesuffix("\n"), str(path))


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        reason = english("the home folder that ~ stands for is not known")
        raise files.unreadable(path, reason, remedy=english("Write the whole path.")) from None


def _clean_key(vendor: Vendor, variable: str, value: ConfigValue, remarks: list[Remark]) -> SecretStr:
    try:
        cleaned = clean_key(value.text)
    except KeyRefused as refused:
        raise _Unusable(
            Remark(
                _KINDS.get(type(refused), RemarkKind.KEY_MALFORMED),
                variable,
                english("%(variable)s cannot be used: %(why)s", variable=variable, why=refused.args[0]),
            ),
            f"{variable} ({value.origin})",
            english("Put a key from %(page)s there, or remove the line.", page=vendor.keys_page)
            if vendor.keys_page
            else english("Put a key there, or remove the line."),
        ) from None
    redaction.remember(cleaned.value)
    remarks += [
        Remark(RemarkKind.KEY_CLEANED, variable, english("%(variable)s: %(note)s", variable=variable, note=note))
        for note in cleaned.notes
    ]
    other = vendor_of_prefix(cleaned.value)
    if other is not None and other.name != vendor.name and vendor.key_prefix != other.key_prefix:
        text = english(
            "%(variable)s begins with %(key_prefix)s, as keys of %(title)s do: is it the right one?",
            variable=variable,
            key_prefix=other.key_prefix,
            title=other.title,
        )
        remarks.append(Remark(RemarkKind.KEY_OF_ANOTHER_VENDOR, variable, text))
    return SecretStr(cleaned.value)


def _base_url(vendor: Vendor, settings: Settings) -> tuple[str, Remark | None]:
    name = vendor.base_url_env
    value = settings.sources.get(name) if name else None
    if name is None or value is None or not value.text.strip():
        return vendor.base_url, None
    try:
        return with_path(http_address(value.text), vendor), None
    except ValueError as error:
        problem = english(
            "%(name)s (%(origin)s) cannot be used: %(why)s", name=name, origin=value.origin, why=error.args[0]
        )
        return vendor.base_url, Remark(RemarkKind.BASE_URL_MALFORMED, name, problem)


def with_path(address: str, vendor: Vendor) -> str:
    """Return the base URL with the path of the vendor's own if it has none and is that of a server of one's own.

    Other programs want the root of such a server, in a variable of the same name.
    """
    rootless = vendor.key_optional and not urlsplit(address).path
    return address + (urlsplit(vendor.base_url).path if rootless else "")


def _provider_type(vendor: Vendor, settings: Settings) -> str:
    value = settings.sources.get(vendor.type_env) if vendor.type_env else None
    if value is not None and value.text.strip():
        return value.text.strip().lower()
    return "openai" if settings.provider_types is ProviderTypes.OPENAI else vendor.type


def select_providers(desired: tuple[Desired, ...], only: tuple[str, ...]) -> tuple[Desired, ...]:
    """Return the providers with these names, or of the vendors with these names; all of them if no name is given.

    Raises:
        ConfigurationError: none is declared by a name.
    """
    names = {provider.vendor.name: provider.name for provider in desired}
    names |= {provider.name: provider.name for provider in desired}
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ConfigurationError(
            english("No provider named %(name)s is declared.", name=repr(unknown[0])),
            remedy=english("Declared providers: %(names)s.", names=", ".join(sorted(set(names.values())))),
        )
    chosen = {names[name] for name in only}
    return tuple(provider for provider in desired if not only or provider.name in chosen)
