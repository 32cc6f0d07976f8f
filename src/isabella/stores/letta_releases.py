"""What each release of Letta can really do, as it was measured (facts O1 to O14)."""

from __future__ import annotations

import re

from isabella.stores import Capabilities

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
