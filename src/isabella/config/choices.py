"""Settings that are one of a few words: the strategy of a sync, and the lock of Letta's dependencies."""

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


class LettaLock(StrEnum):
    """The operator's choice between fixed dependencies and those that Letta's makers tested."""

    #: Isabella's lock, without known holes, if there is one for the release; otherwise the original.
    PATCHED = "patched"
    ORIGINAL = "original"
