"""How providers are brought in line: the operator's choice."""

from __future__ import annotations

from enum import StrEnum


class Strategy(StrEnum):
    """The operator's choice between no gap and a clean slate."""

    #: Keep what is proven, update in place where that can work, recreate only where it must be.
    AUTO = "auto"
    #: DELETE, then POST, every provider at every start, as the earlier system did. Opens a gap (fact P7).
    RECREATE = "recreate"
    #: Never DELETE.
    IN_PLACE = "in-place"
