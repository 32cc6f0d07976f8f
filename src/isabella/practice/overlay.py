"""Settings in which the practice vendors stand in for the real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import SecretStr

from isabella.config.settings import Settings, load_settings
from isabella.config.sources import ConfigValue
from isabella.config.vendors import Vendor, known_vendors
from isabella.errors import IsabellaError, PracticeError
from isabella.practice import daemon, keyring
from isabella.practice.profiles import NAMES
from isabella.providers.desired import desired_providers

ORIGIN = "practice vendors"


class RunningVendors(Protocol):
    """Practice vendors that run."""

    @property
    def keys_file(self) -> Path | None:
        """Where the keys that they accept stand; None where they stand in no file."""

    def base_url(self, vendor: str) -> str:
        """The base URL of a vendor."""

    def key(self, vendor: str) -> SecretStr:
        """A key that it accepts."""


def with_practice_vendors(settings: Settings, vendors: RunningVendors) -> Settings:
    """The same settings, with keys and base URLs of the practice vendors for the vendors that they stand for."""
    overlay = dict(settings.sources.overlay)
    for vendor in _practised():
        overlay[vendor.api_key_env] = ConfigValue(vendors.key(vendor.name).get_secret_value(), ORIGIN)
        if vendor.base_url_env is not None:
            overlay[vendor.base_url_env] = ConfigValue(vendors.base_url(vendor.name), ORIGIN)
    sources = replace(settings.sources, overlay=overlay, overlaid_from=vendors.keys_file)
    return settings.model_copy(update={"sources": sources})


def left_out() -> list[str]:
    """The titles of the catalog's vendors for which there is no practice vendor."""
    return [vendor.title for vendor in known_vendors() if vendor.name not in NAMES]


def _practised() -> list[Vendor]:
    return [vendor for vendor in known_vendors() if vendor.name in NAMES]


def renewed(settings: Settings) -> Settings:
    """The same settings, with the keys that the practice vendors accept by now.

    Where their file cannot be read, or a vendor accepts none, the former keys stay.
    """
    sources = settings.sources
    try:
        accepted = None if sources.overlaid_from is None else keyring.load(sources.overlaid_from)
    except PracticeError:
        accepted = None
    if accepted is None:
        return settings
    keys = {vendor.api_key_env: accepted[vendor.name][:1] for vendor in _practised()}
    fresh = {name: ConfigValue(first, ORIGIN) for name, found in keys.items() for first in found}
    return settings.model_copy(update={"sources": replace(sources, overlay={**sources.overlay, **fresh})})


def as_served(settings: Settings) -> Settings:
    """The settings as `isabella up` takes them on this machine.

    Where no vendor has a key, Letta is the embedded one and practice vendors run, these stand in: what a command says
    is then about the same vendors that the backend speaks to.

    Raises:
        ConfigurationError: `isabella.toml` is malformed.
    """
    if settings.sources.overlay or settings.letta_base_url is not None or not (settings.home / "practice").is_dir():
        return settings
    if any(provider.wanted for provider in desired_providers(settings)):
        return settings
    try:
        running = daemon.status(settings.home)
    except IsabellaError:
        return settings
    return settings if running is None else with_practice_vendors(settings, running)


def load_served_settings(env_file: Path | None = None, **given: Any) -> Settings:
    """Load the settings, as `isabella up` takes them on this machine. Arguments are those of `load_settings`.

    Raises:
        ConfigurationError: the settings or `isabella.toml` are malformed.
    """
    return as_served(load_settings(env_file, **given))
