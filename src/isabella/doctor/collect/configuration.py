"""Collects the configuration, and the vendors' answers to the configured keys."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from isabella.config.custom_vendors import all_vendors
from isabella.config.settings import Settings, variable
from isabella.config.sources import DEFAULT, ENVIRONMENT, Sources
from isabella.config.vendors import Vendor, known_vendors
from isabella.doctor.evidence import (
    ConfigurationEvidence,
    ConfigurationProblem,
    ConflictingVariable,
    ProviderEvidence,
    VendorEvidence,
)
from isabella.errors import ConfigurationError, FileAbsent, FileUnreadable
from isabella.letta.encryption import KeyMatch
from isabella.providers.desired import Desired, desired_providers
from isabella.system.tasks import gather
from isabella.system.urls import is_placeholder_url
from isabella.vendors.client import KeyVerdict, ask_vendor

#: Time limits in seconds: for a vendor's first answer, and for each further request.
VENDOR_TIMEOUT, FURTHER_TIMEOUT = 3.5, 2.0

_SECRET = re.compile(r"(KEY|PASSWORD|TOKEN|SECRET|DATABASE_URL)$")


def read_configuration(
    env_file: Path | None = None,
    *,
    settings: Settings | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[ConfigurationEvidence, Settings]:
    """Read the configuration, see `run_doctor`. A setting or a file that cannot be used is noted and left out."""
    problems: list[ConfigurationProblem] = []
    if settings is None:
        settings = _usable_settings(_sources(env_file, environment, problems), problems)
    vendors = _vendors(settings, problems)
    sources = settings.sources
    path, mode = _mode(sources.file)
    has_secrets = any(text.strip() and _SECRET.search(name) for name, text in sources.dotenv.items())
    has_master_key = settings.letta_encryption_key is not None
    configuration = ConfigurationEvidence(
        desired=desired_providers(settings, vendors),
        problems=tuple(problems),
        conflicts=tuple(_conflicts(settings, vendors)),
        env_file=path,
        env_mode=mode,
        secrets_in_file=has_secrets or any(problem.code == "env-file-malformed" for problem in problems),
        env_file_option=None if env_file is None else str(env_file),
        has_master_key=has_master_key,
        sets_master_key=has_master_key,
    )
    return configuration, settings


def use_practice_vendors(
    configuration: ConfigurationEvidence, settings: Settings
) -> tuple[ConfigurationEvidence, Settings]:
    """Replace the real vendors by the practice vendors if `isabella up` would do so, too."""
    if settings.sources.overlay:
        return replace(configuration, practice=True), settings
    if configuration.problems:
        return configuration, settings
    from isabella.practice.overlay import as_served

    served = as_served(settings)
    if served is settings:
        return configuration, settings
    vendors = tuple(desired.vendor for desired in configuration.desired)
    return replace(configuration, desired=desired_providers(served, vendors), practice=True), served


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
        # Settings of the environment take precedence over the file, so they are valid without it.
        return Sources(dict(os.environ if environment is None else environment), path)


def _usable_settings(sources: Sources, problems: list[ConfigurationProblem]) -> Settings:
    """Return the settings without those that cannot be used."""
    while True:
        given: dict[str, Any] = {"sources": sources}
        try:
            return Settings(**given)
        except ValidationError as error:
            found = [_setting_problem(dict(invalid), sources) for invalid in error.errors(include_input=False)]
            problems += found
            sources = sources.without([problem.subject for problem in found])


def _setting_problem(invalid: Mapping[str, Any], sources: Sources) -> ConfigurationProblem:
    name = variable(str(invalid["loc"][0]))
    code = "master-key-malformed" if name == "LETTA_ENCRYPTION_KEY" else "setting-malformed"
    origin = sources.origin(name)
    if origin not in (ENVIRONMENT, DEFAULT):
        origin = f"{origin}, line {sources.lines[name]}"
    return ConfigurationProblem(code, name, invalid["msg"].removeprefix("Value error, "), None, origin)


def _vendors(settings: Settings, problems: list[ConfigurationProblem]) -> tuple[Vendor, ...]:
    try:
        return all_vendors(settings.config_file)
    except ConfigurationError as error:
        problems.append(ConfigurationProblem("toml-malformed", str(settings.config_file), error.what, error.remedy))
        return known_vendors()


def _conflicts(settings: Settings, vendors: Iterable[Vendor]) -> Iterable[ConflictingVariable]:
    sources = settings.sources
    fields = [name for name in type(settings).model_fields if name != "sources"]
    owners: dict[str, str | None] = {variable(name): None for name in fields}
    for vendor in vendors:
        owners |= dict.fromkeys(vendor.variables, vendor.provider)
    for name in sources.contradictions(owners):
        yield ConflictingVariable(name, str(sources.file), sources.lines[name], owners[name])


def _mode(path: Path) -> tuple[Path | None, int | None]:
    try:
        return path, stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None, None


async def ask_vendors(desired: Sequence[Desired]) -> dict[str, VendorEvidence]:
    """Return each vendor's answer to its configured key, by provider."""
    calls = {one.name: partial(_ask, one, one.key) for one in desired if one.key is not None and one.obstacle is None}
    answers = await gather(calls.values(), at_once=16)
    return dict(zip(calls, answers, strict=True))


async def ask_with_stored_keys(
    desired: Sequence[Desired], vendors: dict[str, VendorEvidence], rows: Sequence[ProviderEvidence]
) -> dict[str, VendorEvidence]:
    """Add the answers to stored keys, for vendors that refuse the configured key if Letta holds a different one."""
    stored = {row.stored.name: row for row in rows}
    calls = {}
    for one in desired:
        row, vendor = stored.get(one.name), vendors.get(one.name)
        if row is None or vendor is None or row.reading is None or row.reading.key is None:
            continue
        # The stored key is sent only to the base URL to which Letta sends it.
        base_url = row.stored.base_url
        if base_url is None or is_placeholder_url(base_url):
            continue
        if vendor.answer.verdict is KeyVerdict.REFUSED and row.reading.match is KeyMatch.DIFFERENT:
            calls[one.name] = partial(_ask_again, base_url, row.reading.key)
    answers = await gather(calls.values())
    added = {name: replace(vendors[name], stored_answer=answer) for name, answer in zip(calls, answers, strict=True)}
    return vendors | added


async def _ask(desired: Desired, key: SecretStr) -> VendorEvidence:
    """Ask a vendor; if the base URL is wrong, also look for the right one on the same host."""
    answer = await ask_vendor(desired.reached_at, key, timeout=VENDOR_TIMEOUT)
    if answer.verdict is not KeyVerdict.WRONG_ADDRESS:
        return VendorEvidence(answer)
    urls = nearby_base_urls(desired.upstream, desired.vendor.base_url)
    answers = await gather([partial(_ask_again, url, key) for url in urls])
    for url, other in zip(urls, answers, strict=True):
        if other.verdict is KeyVerdict.ACCEPTED:
            return VendorEvidence(answer, url)
    return VendorEvidence(answer)


_ask_again = partial(ask_vendor, timeout=FURTHER_TIMEOUT)


def nearby_base_urls(base_url: str, default: str) -> list[str]:
    """Return base URLs on the host of the configured one that may have been meant; `default` is the vendor's own."""
    trimmed = base_url
    for ending in ("/chat/completions", "/completions", "/models"):
        trimmed = trimmed.removesuffix(ending)
    bare = trimmed
    while bare.endswith("/v1"):
        bare = bare.removesuffix("/v1")
    parts = urlsplit(base_url)
    urls = [trimmed, f"{bare}/v1", f"{bare}/openai/v1", f"{bare.removesuffix('/openai')}/v1", bare]
    urls.append(f"{parts.scheme}://{parts.netloc}{urlsplit(default).path}")
    return [url for url in dict.fromkeys(urls) if url != base_url]
