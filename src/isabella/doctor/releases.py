"""What the doctor has to know of Letta's releases."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import resources


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
