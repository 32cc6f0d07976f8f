"""Which lock the dependencies of the embedded Letta are installed from."""

from __future__ import annotations

from enum import StrEnum


class LettaLock(StrEnum):
    """The operator's choice between fixed dependencies and those that Letta's makers tested."""

    #: Isabella's lock, without known holes, if there is one for the release; otherwise the original.
    PATCHED = "patched"
    ORIGINAL = "original"
