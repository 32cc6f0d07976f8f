"""Reads the configuration for the doctor: what cannot be used is noted, and the rest goes on."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from isabella.config.api_keys import KeyRefused, clean
from isabella.config.custom_vendors import declared_vendors
from isabella.config.settings import Settings, variable
from isabella.config.sources import DEFAULT, ENVIRONMENT, Sources
from isabella.config.vendors import Vendor, known_vendors
from isabella.doctor.evidence import ConfigurationEvidence, ConfigurationProblem, ConflictingVariable
from isabella.errors import ConfigurationError, FileAbsent, FileUnreadable
from isabella.providers.desired import desired_providers

_SECRET = re.compile(r"(KEY|PASSWORD|TOKEN|SECRET|DATABASE_URL)$")


def read_configuration(
    env_file: Path | None = None,
    *,
    settings: Settings | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[ConfigurationEvidence, Settings]:
    """Read everything that can be read.

    Args:
        env_file: another file in place of `.env`; it has to exist.
        settings: in place of all reading: those that a backend runs with.
        environment: in place of the process environment.

    Raises:
        ConfigurationError: the file that was named does not exist.
    """
    problems: list[ConfigurationProblem] = []
    if settings is None:
        sources = _sources(env_file, environment, problems)
        settings = _settings(sources, problems)
    vendors = _vendors(settings, problems)
    sources = settings.sources
    path, mode = _mode(sources.file)
    secret = any(text.strip() and _SECRET.search(name) for name, text in sources.dotenv.items())
    ours = settings.letta_encryption_key is not None
    configured = ConfigurationEvidence(
        desired=desired_providers(settings, vendors),
        problems=tuple(problems),
        contradictions=tuple(_contradictions(settings, vendors)),
        env_file=path,
        env_mode=mode,
        secrets_in_file=secret or any(problem.code == "env-file-malformed" for problem in problems),
        named=None if env_file is None else str(env_file),
        master_key=ours,
        ours=ours,
    )
    return configured, settings


def with_settings(configured: ConfigurationEvidence, settings: Settings) -> ConfigurationEvidence:
    """The same, with the providers that these settings ask for: those of the practice vendors."""
    vendors = tuple(desired.vendor for desired in configured.desired)
    return replace(configured, desired=desired_providers(settings, vendors), practice=True)


def _sources(
    env_file: Path | None, environment: Mapping[str, str] | None, problems: list[ConfigurationProblem]
) -> Sources:
    try:
        return Sources.read(env_file, environment)
    except FileAbsent:
        raise
    except ConfigurationError as error:
        path = Path(".env") if env_file is None else env_file
        code = "env-file-unreadable" if isinstance(error, FileUnreadable) else "env-file-malformed"
        problems.append(ConfigurationProblem(code, str(path), error.what, error.remedy))
        # The environment alone: its settings hold, whatever the file would have said.
        return Sources(dict(os.environ if environment is None else environment), path)


def _settings(sources: Sources, problems: list[ConfigurationProblem]) -> Settings:
    """The settings without those that cannot be used."""
    while True:
        given: dict[str, Any] = {"sources": sources}
        try:
            return Settings(**given)
        except ValidationError as error:
            names = []
            for found in error.errors(include_input=False, include_url=False):
                name = variable(str(found["loc"][0]))
                names.append(name)
                code = "master-key-malformed" if name == "LETTA_ENCRYPTION_KEY" else "setting-malformed"
                what = found["msg"].removeprefix("Value error, ")
                problems.append(ConfigurationProblem(code, name, what, None, _place(sources, name)))
            sources = sources.without(names)


def _place(sources: Sources, name: str) -> str:
    origin = sources.origin(name)
    return origin if origin in (ENVIRONMENT, DEFAULT) else f"{origin}, line {sources.lines[name]}"


def _vendors(settings: Settings, problems: list[ConfigurationProblem]) -> tuple[Vendor, ...]:
    try:
        return known_vendors() + declared_vendors(settings.config_file)
    except ConfigurationError as error:
        problems.append(ConfigurationProblem("toml-malformed", str(settings.config_file), error.what, error.remedy))
        return known_vendors()


def _contradictions(settings: Settings, vendors: Iterable[Vendor]) -> Iterable[ConflictingVariable]:
    sources = settings.sources
    fields = [name for name in type(settings).model_fields if name != "sources"]
    owners: dict[str, str | None] = {variable(name): None for name in fields}
    keys = set()
    for vendor in vendors:
        names = (vendor.api_key_env, vendor.api_key_file_env, vendor.base_url_env, vendor.type_env)
        owners |= {name: vendor.provider for name in names if name is not None}
        keys.add(vendor.api_key_env)
    for name in sources.contradictions(owners):
        other = None
        if name in keys:
            try:
                other = clean(sources.dotenv[name]).value
            except KeyRefused:
                other = None
        yield ConflictingVariable(name, str(sources.file), sources.lines[name], owners[name], other)


def _mode(path: Path) -> tuple[Path | None, int | None]:
    try:
        return path, stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None, None
