"""The embedded server: Letta and Postgres on this machine, installed, migrated, started and stopped."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isabella.embedded.instance import DEFAULT_INSTANCE, DEFAULT_RELEASE
    from isabella.embedded.progress import Progress, Step, no_progress
    from isabella.embedded.server import InstanceStatus, Letta, Server, ServiceStatus

__all__ = [
    "DEFAULT_INSTANCE",
    "DEFAULT_RELEASE",
    "InstanceStatus",
    "Letta",
    "Progress",
    "Server",
    "ServiceStatus",
    "Step",
    "no_progress",
]

# Imported when first used: who needs the files of an instance only must not load what runs it.
_HOMES = {
    "isabella.embedded.instance": ("DEFAULT_INSTANCE", "DEFAULT_RELEASE"),
    "isabella.embedded.progress": ("Progress", "Step", "no_progress"),
    "isabella.embedded.server": ("InstanceStatus", "Letta", "Server", "ServiceStatus"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
