"""What the keeper tells whoever listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from isabella.providers.report import Report
from isabella.watching.census import ModelRefresh


class SyncCause(StrEnum):
    """Why something was done."""

    CHANGE = "the configuration was changed"
    RESYNC = "a look for drift"
    RETRY = "another try"
    REFRESH = "the nightly refresh"


@dataclass(frozen=True)
class Synced:
    """Providers were brought in line, or looked at and found so.

    Attributes:
        report: how all of them stand now.
        part: what this run has found and done.
        cause: why it ran.
    """

    report: Report
    part: Report
    cause: SyncCause


@dataclass(frozen=True)
class ConfigRefused:
    """The changed configuration cannot be used: the former stays in force.

    Attributes:
        what: what is wrong with it.
        remedy: what to do about that.
    """

    what: str
    remedy: str | None = None


@dataclass(frozen=True)
class ConfigAccepted:
    """A configuration that could not be used can be used again."""


@dataclass(frozen=True)
class RestartNeeded:
    """Settings were changed that take effect when the process is started again.

    Attributes:
        variables: which ones.
    """

    variables: tuple[str, ...]


@dataclass(frozen=True)
class ProvidersDropped:
    """The configuration does not want these any more; they stay in Letta as they are.

    Attributes:
        names: of the providers.
    """

    names: tuple[str, ...]


@dataclass(frozen=True)
class WatchFailed:
    """Something could not be done; it is tried again.

    Attributes:
        what: what happened.
        cause: why it was tried.
        remedy: what to do about it.
    """

    what: str
    cause: SyncCause
    remedy: str | None = None


@dataclass(frozen=True)
class ModelsRefreshed:
    """The model lists were read anew.

    Attributes:
        census: what came of it.
    """

    census: ModelRefresh


WatchEvent = (
    Synced | ConfigRefused | ConfigAccepted | RestartNeeded | ProvidersDropped | WatchFailed | ModelsRefreshed
)
Tell = Callable[[WatchEvent], None]
