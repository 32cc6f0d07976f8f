"""Enumerations of settings: the strategy of a sync, and the lock file of Letta's dependencies."""

from __future__ import annotations

from enum import StrEnum


class Strategy(StrEnum):
    """The strategy by which a sync changes the providers in Letta."""

    #: Keep what is proven, update in place if that can work, recreate only if nothing else works.
    AUTO = "auto"
    #: DELETE and POST every provider at every start. In between, agents call without the configured key (fact P7).
    RECREATE = "recreate"
    #: Never DELETE.
    IN_PLACE = "in-place"


class LettaLock(StrEnum):
    """Which lock file the dependencies of the embedded Letta are installed from."""

    #: Isabella's own, without known vulnerabilities, if there is one for the release; otherwise the original.
    PATCHED = "patched"
    #: The one in Letta's release, with the versions that its makers tested.
    ORIGINAL = "original"
