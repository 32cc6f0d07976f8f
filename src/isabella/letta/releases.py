"""What each release of Letta can really do, as it was measured (facts O1 to O14)."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import resources

from isabella.letta.store import Capabilities

#: The releases whose behaviour was measured (facts O1 to O14). Of the others nobody knows what a DELETE does.
_MEASURED = frozenset(
    ["0.12.1", "0.13.0", "0.15.1", *(f"0.16.{patch}" for patch in (0, 1, 2, 4, 5, 6, 7, 8))],
)


def capabilities_of(release: str) -> Capabilities:
    """What a release can do. One that was not measured is treated with care: nothing is deleted there."""
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", release)
    version = tuple(int(part) for part in match.groups()) if match else ()
    known = release in _MEASURED
    remarks = []
    if not known:
        remarks.append(
            f"Letta {release} is not a release that was measured: nothing is deleted there, and nothing counts "
            "but what was read back."
        )
    elif version < (0, 16, 2):
        remarks.append(
            f"Letta {release} cannot bring back a provider that was deleted (fact O1), so nothing is deleted "
            "there. Upgrade it to 0.16.2 or later."
        )
    if known and version < (0, 16, 4):
        remarks.append(
            f"Letta {release} does not read a vendor's models with the provider's key when it makes a provider "
            "(fact O10): whether models appear tells nothing about the key. Agents that are bound explicitly work."
        )
    return Capabilities(
        release,
        known=known,
        # Before 0.16.2 a deleted provider blocks its name for ever (facts O1, O2).
        recreates=known and version >= (0, 16, 2),
        refreshes=known and version >= (0, 16, 4),
        mistakes_long_keys=bool(version) and version < (0, 16, 7),
        remarks=tuple(remarks),
    )


def parse_release(release: str) -> tuple[int, ...] | None:
    """A release as numbers that compare; None where it is no release."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", release)
    return None if match is None else tuple(int(part) for part in match.groups())


def at_least(release: str | None, lowest: str) -> bool:
    """Whether a release is this one or a later one; False where it is not known."""
    found, wanted = parse_release(release or ""), parse_release(lowest)
    return found is not None and wanted is not None and found >= wanted


@cache
def _types() -> dict[str, str]:
    text = resources.files(__package__).joinpath("releases.toml").read_text("utf-8")
    return dict(tomllib.loads(text)["types"])


def supports_type(release: str | None, provider_type: str) -> bool:
    """Whether a release knows a provider type; where the release is not known, whether any does."""
    since = _types().get(provider_type)
    return since is not None and (release is None or parse_release(release) is None or at_least(release, since))


def supported_types(release: str | None) -> list[str]:
    """The provider types that a release knows."""
    return sorted(name for name in _types() if supports_type(release, name))
