"""What a changed configuration means: which providers are to be synced, and what takes a restart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from isabella.config.settings import Settings, load_settings, variable
from isabella.practice.overlay import renewed
from isabella.providers.desired import Desired, desired_providers

#: What takes effect with the next sync; every other setting was used when the process came up.
_LIVE = frozenset({"strategy", "provider_types", "config_file", "resync", "refresh_at", "sources"})


@dataclass(frozen=True)
class ConfigSnapshot:
    """One reading of the whole configuration.

    Attributes:
        settings: the settings.
        desired: the providers that they ask for.
    """

    settings: Settings
    desired: tuple[Desired, ...]

    @classmethod
    def of(cls, settings: Settings) -> ConfigSnapshot:
        """The reading that these settings stand for.

        Raises:
            ConfigurationError: `isabella.toml` is malformed.
        """
        return cls(settings, desired_providers(settings))

    def again(self) -> ConfigSnapshot:
        """Read the same files anew, for the same environment and command line.

        Raises:
            ConfigurationError: a file is malformed, or has vanished.
        """
        former = self.settings
        file = former.sources.file
        # A file that was never there may go on missing; one that has vanished is being replaced, or a mistake.
        was_there = bool(former.sources.dotenv) or file != Path(".env") or os.path.lexists(file)
        given = {
            field: getattr(former, field)
            for field in former.model_fields_set
            if field != "sources" and former.origin(field) == "argument"
        }
        fresh = load_settings(file if was_there else None, former.sources.environment, **given)
        overlaid = former.sources
        sources = replace(fresh.sources, overlay=overlaid.overlay, overlaid_from=overlaid.overlaid_from)
        return ConfigSnapshot.of(renewed(fresh.model_copy(update={"sources": sources})))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it was read from, and those that would be read if they were there."""
        return tuple(dict.fromkeys(_expanded(path).absolute() for path in self._files()))

    def _files(self) -> Iterator[Path]:
        sources = self.settings.sources
        yield sources.file
        yield self.settings.config_file
        if sources.overlaid_from is not None:
            yield sources.overlaid_from
        for provider in self.desired:
            vendor = provider.vendor
            named = sources.get(vendor.api_key_file_env)
            if named is not None and named.text.strip() and sources.get(vendor.api_key_env) is None:
                yield Path(named.text.strip())


@dataclass(frozen=True)
class ConfigDiff:
    """What is different in a later reading.

    Attributes:
        providers: those to be synced, because type, address or key are other ones, or what is wrong with them is.
        gone: those that the configuration does not want any more. They stay in Letta.
        undeclared: those of them that are not even declared any more.
        restart: variables that were changed, and take effect when the process is started again.
        timing: whether how often, or when, something is done was changed.
    """

    providers: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    undeclared: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    timing: bool = False


def diff_config(before: ConfigSnapshot, now: ConfigSnapshot, in_force: Settings) -> ConfigDiff:
    """Compare two readings.

    Args:
        before: the last one.
        now: this one.
        in_force: what the process has been using since it came up.
    """
    former = {provider.name: provider for provider in before.desired}
    fresh = {provider.name: provider for provider in now.desired}
    return ConfigDiff(
        providers=tuple(name for name, one in fresh.items() if _changed(former.get(name), one)),
        gone=tuple(name for name, one in former.items() if one.wanted and not (name in fresh and fresh[name].wanted)),
        undeclared=tuple(name for name, one in former.items() if one.wanted and name not in fresh),
        restart=(*_restart(before.settings, now.settings, in_force), *_overlaid(before.settings, now.settings)),
        timing=any(getattr(before.settings, f) != getattr(now.settings, f) for f in ("resync", "refresh_at")),
    )


def keep_in_force(now: Settings, in_force: Settings) -> Settings:
    """The fresh settings, but for what takes a restart."""
    held = [field for field in type(now).model_fields if field not in _LIVE]
    return now.model_copy(update={field: getattr(in_force, field) for field in held})


def _changed(former: Desired | None, fresh: Desired) -> bool:
    if former is None:
        return fresh.wanted
    return (former.wanted or fresh.wanted) and _asked_for(former) != _asked_for(fresh)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        # Whose home that is, nobody knows; that it cannot be read is told where it is read.
        return path


def _asked_for(provider: Desired) -> tuple[str, str, str | None, str | None]:
    key = None if provider.key is None else provider.key.get_secret_value()
    return provider.type, provider.base_url, key, provider.problem


def _restart(before: Settings, now: Settings, in_force: Settings) -> Iterator[str]:
    for field in type(now).model_fields:
        value = None if field in _LIVE else getattr(now, field)
        # What was said once is not said again with every further change of the file.
        if field not in _LIVE and value != getattr(in_force, field) and value != getattr(before, field):
            yield variable(field)


def _overlaid(before: Settings, now: Settings) -> Iterator[str]:
    """Vendors' variables that were changed while the practice vendors stand in for them."""
    for name in now.sources.overlay:
        if before.sources.dotenv.get(name) != now.sources.dotenv.get(name):
            yield name
