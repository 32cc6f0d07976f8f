"""What the parts of a starting backend share: its options, the lock of its home, and its URL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from isabella.config.settings import Settings
from isabella.embedded.instance import make_home, make_private
from isabella.embedded.os_users import postgres_user
from isabella.errors import ConfigurationError
from isabella.server.token import ADDRESS_FILE, published_address
from isabella.system import processes, state

if TYPE_CHECKING:
    from isabella.embedded import Progress
    from isabella.providers.report import Report

#: Wildcard addresses, and the address at which this machine reaches a server bound to them.
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to


@dataclass(frozen=True)
class ServeOptions:
    """The options of `isabella up`."""

    practice: bool | None  #: use practice vendors; None: only if no vendor has a key and Letta is the embedded one
    verify: bool  #: also send one message through each provider
    progress: Callable[[], AbstractContextManager[Progress]]  #: opens the display of what the embedded servers do
    show: Callable[[Report], None]
    say: Callable[[str], None]
    set_up_logs: Callable[[], None] = lambda: None  #: is called as soon as the backend answers


def backend_url(host: str, port: int) -> str:
    """Return the URL at which this machine reaches a server bound to an address."""
    host = WILDCARDS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def only_backend(settings: Settings) -> Iterator[None]:
    """Hold the lock of a home's backend while the block runs: a lock of the system, which ends with its process.

    Raises:
        ConfigurationError: another backend of this home runs, or the lock cannot be used.
    """
    home = settings.home.absolute()
    # The group passes through a home of root's to the database (see `os_users`).
    user = postgres_user() if settings.letta_base_url is None else None
    try:
        make_home(home, group=user.gid if user else None)
        make_private(home / "locks")
        state.make_way(home / "locks" / "backend.lock")
        lock = FileLock(home / "locks" / "backend.lock", mode=0o600)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigurationError(
            f"Isabella already runs on {home}{_running_at(home)}.",
            remedy="Use that one or stop it; for a second one, set ISABELLA_HOME to another folder.",
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or home}: cannot be used: {state.why(error)}.", remedy="Correct ISABELLA_HOME."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _running_at(home: Path) -> str:
    """Return the address of the running backend as the end of a sentence; a phrase for one that is starting."""
    process, address = processes.load(home / ADDRESS_FILE), published_address(home)
    if process is None or address is None or not process.is_running():
        return ", and is starting or stopping"
    return f" at {address} (process {process.pid})"
