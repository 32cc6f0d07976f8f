"""The strategy for syncing providers."""

from __future__ import annotations

from enum import StrEnum


class Strategy(StrEnum):
    """The operator's choice between no gap and recreating everything."""

    #: Keep what is proven, update in place if that can work, recreate only if nothing else works.
    AUTO = "auto"
    #: DELETE, then POST every provider at every start, as the earlier system did. Opens a gap (fact P7).
    RECREATE = "recreate"
    #: Never DELETE.
    IN_PLACE = "in-place"
