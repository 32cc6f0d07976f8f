"""Settings in which the practice vendors replace the real ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isabella.config.settings import Settings, load_settings
from isabella.config.sources import ConfigValue
from isabella.config.vendors import Vendor, usual_vendors
from isabella.errors import IsabellaError, PracticeError
from isabella.practice import daemon
from isabella.practice.server import PracticeVendors
from isabella.practice.vendor import load_keys
from isabella.practice.wire import NAMES
from isabella.providers.desired import Desired, desired_providers

ORIGIN = "practice vendors"


def with_practice_vendors(
    settings: Settings, vendors: PracticeVendors | daemon.Running, *, until_key: bool = False
) -> Settings:
    """Return the settings with keys and base URLs of the practice vendors.

    With `until_key`, the practice vendors are replaced as soon as the configuration has a key of a real one.
    """
    overlay = dict(settings.sources.overlay)
    for vendor in _replaced_vendors():
        overlay[vendor.api_key_env] = ConfigValue(vendors.key(vendor.name).get_secret_value(), ORIGIN)
        if vendor.base_url_env is not None:
            overlay[vendor.base_url_env] = ConfigValue(vendors.base_url(vendor.name), ORIGIN)
    sources = replace(settings.sources, overlay=overlay, overlaid_from=vendors.keys_file, overlay_until_key=until_key)
    return settings.model_copy(update={"sources": sources})


def left_out() -> list[str]:
    """Return the titles of the catalog's vendors that have no practice vendor."""
    return [vendor.title for vendor in usual_vendors() if vendor.name not in NAMES]


def _replaced_vendors() -> list[Vendor]:
    return [vendor for vendor in usual_vendors() if vendor.name in NAMES]


def renewed(settings: Settings) -> Settings:
    """Return the settings with the keys that the practice vendors accept now.

    If their file cannot be read, or a vendor accepts none, the former keys stay.
    """
    sources = settings.sources
    try:
        accepted = None if sources.overlaid_from is None else load_keys(sources.overlaid_from)
    except PracticeError:
        accepted = None
    if accepted is None:
        return settings
    keys = {vendor.api_key_env: accepted[vendor.name][:1] for vendor in _replaced_vendors()}
    fresh = {name: ConfigValue(key, ORIGIN) for name, first in keys.items() for key in first}
    return settings.model_copy(update={"sources": replace(sources, overlay={**sources.overlay, **fresh})})


def as_served(settings: Settings) -> Settings:
    """Return the settings that `isabella up` uses on this machine.

    If no vendor has a key, Letta is the embedded one and practice vendors run, they replace the real vendors, so that
    a command reports on the vendors that the backend uses.

    Raises:
        ConfigurationError: `isabella.toml` is malformed.
    """
    if settings.sources.overlay or settings.letta_base_url is not None or not (settings.home / "practice").is_dir():
        return settings
    if any(provider.configured for provider in desired_providers(settings)):
        return settings
    try:
        running = daemon.status(settings.home)
    except IsabellaError:
        return settings
    return settings if running is None else with_practice_vendors(settings, running, until_key=True)


def load_served_settings(env_file: Path | None = None, **arguments: Any) -> Settings:
    """Load the settings that `isabella up` uses on this machine. The arguments are those of `load_settings`.

    Raises:
        ConfigurationError: the settings or `isabella.toml` are malformed.
    """
    return as_served(load_settings(env_file, **arguments))


@dataclass(frozen=True)
class ConfigSnapshot:
    """One reading of the whole configuration."""

    settings: Settings
    desired: tuple[Desired, ...]

    @classmethod
    def of(cls, settings: Settings) -> ConfigSnapshot:
        """Return the snapshot for these settings.

        Raises:
            ConfigurationError: `isabella.toml` is malformed.
        """
        return cls(settings, desired_providers(settings))

    def again(self) -> ConfigSnapshot:
        """Read the same files again, for the same environment and command line.

        Raises:
            ConfigurationError: a file is malformed, or was deleted.
        """
        former = self.settings
        file = former.sources.file
        # `.env` may stay missing if it never existed. If it has vanished, it is being replaced, or that is a mistake.
        existed = bool(former.sources.dotenv) or file != Path(".env") or os.path.lexists(file)
        arguments = {
            field: getattr(former, field)
            for field in former.model_fields_set
            if field != "sources" and former.origin(field) == "argument"
        }
        fresh = load_settings(file if existed else None, former.sources.environment, **arguments)
        if former.sources.overlay_until_key:
            real = ConfigSnapshot.of(fresh)
            if any(one.key is not None and one.problem is None for one in real.desired):
                return real
        sources = replace(
            fresh.sources,
            overlay=former.sources.overlay,
            overlaid_from=former.sources.overlaid_from,
            overlay_until_key=former.sources.overlay_until_key,
        )
        return ConfigSnapshot.of(renewed(fresh.model_copy(update={"sources": sources})))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that were read, and those that would be read if they existed."""
        return tuple(dict.fromkeys(_expanded(path).absolute() for path in self._files()))

    def _files(self) -> Iterator[Path]:
        sources = self.settings.sources
        yield sources.file
        yield self.settings.config_file
        if sources.overlaid_from is not None:
            yield sources.overlaid_from
        for provider in self.desired:
            vendor = provider.vendor
            key_file = sources.get(vendor.api_key_file_env)
            if key_file is not None and key_file.text.strip() and sources.get(vendor.api_key_env) is None:
                yield Path(key_file.text.strip())


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        # The home folder is not known; the error is reported when the file is read.
        return path
