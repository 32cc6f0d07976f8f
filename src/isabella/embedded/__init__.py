"""The embedded server: Letta and Postgres on this machine, installed, migrated, started and stopped."""

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
