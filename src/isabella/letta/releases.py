"""The abilities of each release of Letta, from `releases.toml`. Imports only the standard library."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

GENERIC = "zai"  # Letta's client for OpenAI-compatible vendors that sends nothing but what they all accept (fact M13)
OPENAI = "openai"  # the only client that uses a stored key in releases without that one


@dataclass(frozen=True)
class Capabilities:
    """The abilities and limitations of a release."""

    release: str  # its version, as its health check states it
    known: bool = True  # whether it is in the table, so that its behaviour was measured
    recreates: bool = True  # whether a deleted provider can be created again under its name (fact O1)
    refreshes: bool = True  # whether it can read a vendor's model list again (facts P11, O10)
    #: whether it mistakes a long plaintext key for an encrypted one if it has no master key (fact O7)
    mistakes_long_keys: bool = False
    remarks: tuple[str, ...] = ()  # limitations for the operator, one sentence each


def capabilities_of(release: str) -> Capabilities:
    """Return the abilities of a release. One that was not measured counts as unable to recreate a provider."""
    known = release in _table()["releases"]
    lacks = [ability for ability in ("recreate", "refresh") if not has(release, ability)] if known else ["measured"]
    return Capabilities(
        release,
        known=known,
        recreates=known and "recreate" not in lacks,
        refreshes=known and "refresh" not in lacks,
        mistakes_long_keys=_numbers(release) is not None and not has(release, "long_keys"),
        remarks=tuple(_table()["remarks"][ability].format(release=release) for ability in lacks),
    )


def has(release: str | None, ability: str) -> bool:
    """Return whether a release has an ability of the table; False for None and malformed releases."""
    return at_least(release, _table()["since"][ability])


def at_least(release: str | None, lowest: str) -> bool:
    """Return whether a release is `lowest` or later; False if it is malformed."""
    numbers, wanted = _numbers(release or ""), _numbers(lowest)
    return numbers is not None and wanted is not None and numbers >= wanted


def client_for(release: str | None) -> str:
    """Return the Letta client to bind agents with. A malformed release counts as the latest."""
    return OPENAI if _numbers(release or "") is not None and not has(release, "generic_client") else GENERIC


def supports_type(release: str | None, provider_type: str) -> bool:
    """Return whether a release knows a provider type; for a malformed release, whether any release does."""
    since = _table()["types"].get(provider_type)
    return since is not None and (_numbers(release or "") is None or at_least(release, since))


def supported_types(release: str | None) -> list[str]:
    """Return the provider types that a release knows."""
    return sorted(name for name in _table()["types"] if supports_type(release, name))


def pinned_hashes() -> Mapping[str, str]:
    """Return the sha256 of the source distribution of each release that can be installed."""
    return {release: sha256 for release, sha256 in _table()["releases"].items() if sha256}


def release_in(health: Any) -> str | None:
    """Return the release in a response of Letta's health check; None for any other response (fact R7)."""
    match health:
        case {"status": "ok", "version": str(version)}:
            return version
    return None


def _numbers(release: str) -> tuple[int, ...] | None:
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", release)
    return None if match is None else tuple(map(int, match.groups()))


@cache
def _table() -> dict[str, dict[str, str]]:
    return tomllib.loads(resources.files(__package__).joinpath("releases.toml").read_text("utf-8"))
