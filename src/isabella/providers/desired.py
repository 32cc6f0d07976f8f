"""What the configuration asks for: a pure reading of settings, catalog and declarations."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from isabella import redaction
from isabella.catalog import Vendor, known_vendors, vendor_of_prefix
from isabella.errors import ConfigurationError
from isabella.keys import KeyRefused, clean, mask
from isabella.providers.declared import declared_vendors
from isabella.settings import ProviderTypes, Settings, http_address
from isabella.sources import Value


@dataclass(frozen=True)
class Desired:
    """A provider as the configuration wants it.

    Attributes:
        vendor: whose provider it is.
        name: its name in Letta.
        type: Letta's provider type.
        base_url: where the vendor answers.
        key: the key it is to hold; None where there is none that could be used.
        key_source: variable and origin of the key, for people.
        problem: why it cannot be registered as configured; None where it can.
        remedy: what to do about the problem.
        notes: what was noticed and is worth saying, though it does not stand in the way.
    """

    vendor: Vendor
    name: str
    type: str
    base_url: str
    key: SecretStr | None
    key_source: str
    problem: str | None = None
    remedy: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def wanted(self) -> bool:
        """Whether the configuration says anything about it: a vendor without a key is simply not registered."""
        return self.key is not None or self.problem is not None

    @property
    def masked_key(self) -> str | None:
        """The key as it may be shown."""
        return None if self.key is None else mask(self.key.get_secret_value())


def desired_providers(settings: Settings) -> tuple[Desired, ...]:
    """Every vendor of the catalog and of `isabella.toml`, with the key configured for it.

    A key that cannot be one is a problem of that provider alone; the others go on.

    Raises:
        ConfigurationError: `isabella.toml` is malformed.
    """
    vendors = known_vendors() + declared_vendors(settings.config_file)
    return tuple(_desired(vendor, settings) for vendor in vendors)


def _desired(vendor: Vendor, settings: Settings) -> Desired:
    notes: list[str] = []
    key: SecretStr | None = None
    source, problem, remedy = f"{vendor.api_key_env} is not set", None, None
    try:
        found = _key_text(vendor, settings, notes)
        if found is not None:
            variable, value = found
            source = f"{variable} ({value.origin})"
            key = _clean_key(vendor, variable, value, notes)
    except _Unusable as unusable:
        problem, remedy = unusable.problem, unusable.remedy
        source = unusable.source
    base_url, base_url_problem = _base_url(vendor, settings)
    if problem is None and key is not None and base_url_problem is not None:
        problem, remedy = base_url_problem, "Correct it, or remove it to use the vendor's own address."
    return Desired(
        vendor=vendor,
        name=vendor.provider,
        type=_provider_type(vendor, settings),
        base_url=base_url,
        key=key,
        key_source=source,
        problem=problem,
        remedy=remedy,
        notes=tuple(notes),
    )


class _Unusable(Exception):
    """The configured key cannot be used."""

    def __init__(self, problem: str, source: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.source = source
        self.remedy = remedy


def _key_text(vendor: Vendor, settings: Settings, notes: list[str]) -> tuple[str, Value] | None:
    """The key's variable and raw value, from the variable itself or from the file that another one names."""
    direct = settings.sources.get(vendor.api_key_env)
    named = settings.sources.get(vendor.api_key_file_env)
    if direct is not None:
        if named is not None:
            notes.append(f"{vendor.api_key_env} wins over {vendor.api_key_file_env}: both are set")
        return vendor.api_key_env, direct
    if named is None:
        return None
    path = Path(named.text.strip()).expanduser()
    try:
        text = path.read_text("utf-8")
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise _Unusable(
            f"{vendor.api_key_file_env} names {path}, which cannot be read: {reason}",
            f"{vendor.api_key_file_env} ({named.origin})",
            "Check that the file is there and that this user may read it.",
        ) from None
    if mode & 0o004:
        notes.append(f"{path} can be read by every user of this machine: run `chmod 600 {path}`")
    # A key file ends in a newline as every text file does: nothing to remark on.
    return vendor.api_key_file_env, Value(text.removesuffix("\n"), str(path))


def _clean_key(vendor: Vendor, variable: str, value: Value, notes: list[str]) -> SecretStr:
    try:
        cleaned = clean(value.text)
    except KeyRefused as refused:
        raise _Unusable(
            f"{variable} cannot be used: {refused}",
            f"{variable} ({value.origin})",
            f"Put a key{f' from {vendor.keys_page}' if vendor.keys_page else ''} there, or remove the line.",
        ) from None
    redaction.remember(cleaned.value)
    notes += [f"{variable}: {note}" for note in cleaned.notes]
    other = vendor_of_prefix(cleaned.value)
    if other is not None and other.name != vendor.name and vendor.key_prefix != other.key_prefix:
        notes.append(f"{variable} begins with {other.key_prefix}, as keys of {other.title} do: is it the right one?")
    return SecretStr(cleaned.value)


def _base_url(vendor: Vendor, settings: Settings) -> tuple[str, str | None]:
    value = settings.sources.get(vendor.base_url_env) if vendor.base_url_env else None
    if value is None or not value.text.strip():
        return vendor.base_url, None
    try:
        return http_address(value.text), None
    except ValueError as error:
        return vendor.base_url, f"{vendor.base_url_env} ({value.origin}) cannot be used: {error}"


def _provider_type(vendor: Vendor, settings: Settings) -> str:
    value = settings.sources.get(vendor.type_env) if vendor.type_env else None
    if value is not None and value.text.strip():
        return value.text.strip().lower()
    return "openai" if settings.provider_types is ProviderTypes.OPENAI else vendor.type


def select(desired: tuple[Desired, ...], only: tuple[str, ...]) -> tuple[Desired, ...]:
    """Those with these names; all where no name is given.

    Raises:
        ConfigurationError: a name is not declared.
    """
    known = {provider.name for provider in desired}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ConfigurationError(
            f"No provider named {unknown[0]!r} is declared.",
            remedy=f"Declared are: {', '.join(sorted(known))}.",
        )
    return tuple(provider for provider in desired if not only or provider.name in only)
