"""Postgres and Letta on this machine: fetch, install, migrate, start, stop."""

from isabella.embedded.layout import DEFAULT_INSTANCE, DEFAULT_RELEASE
from isabella.embedded.server import Letta, Server
from isabella.embedded.status import Service, Status
from isabella.embedded.steps import Progress, Step, quiet

__all__ = ["DEFAULT_INSTANCE", "DEFAULT_RELEASE", "Letta", "Progress", "Server", "Service", "Status", "Step", "quiet"]
