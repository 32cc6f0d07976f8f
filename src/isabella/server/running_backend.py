"""The running backend of an `ISABELLA_HOME`: its lock, its address, and the token that clients must send."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import SecretStr

from isabella.config.settings import Settings
from isabella.embedded.instance import make_home, make_private
from isabella.embedded.os_users import postgres_user
from isabella.errors import ConfigurationError, FileUnreadable
from isabella.system import processes, state
from isabella.system.peers import Peer
from isabella.system.processes import ChildProcess

#: The minimum length of a token if other machines can reach the backend.
SHORTEST_TOKEN = 16

ADDRESS_FILE = "backend.json"
_ADDRESS_FORM = re.compile(r"http://(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}", re.ASCII)
_TOKEN_FORM = re.compile(f"[!-~]{{{SHORTEST_TOKEN},}}")
_NEW_TOKEN = "Restart the backend: it makes a new token, and everyone signs in again."  # noqa: S105 - a sentence

#: Wildcard addresses, and the address at which this machine reaches a server bound to them.
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Token:
    """The token that clients must send, and whether it was generated just now."""

    secret: SecretStr
    made: bool = False


@dataclass(frozen=True)
class RunningBackend:
    """A backend of this home, which may have ended since."""

    address: str
    token: SecretStr
    peer: Peer  #: identifies its process before anything is sent to it


def ensure_token(settings: Settings) -> Token:
    """Return the configured token, or else the one stored in `ISABELLA_HOME`, which the first call generates."""
    if settings.token is not None:
        return Token(settings.token)
    path = settings.home / "token"
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        token, made = state.read_or_make_secret(path, _TOKEN_FORM, lambda: secrets.token_urlsafe(32))
    except OSError as error:
        raise ConfigurationError(
            f"{path}: the backend's token cannot be stored: {state.why(error)}.", remedy="Correct ISABELLA_HOME."
        ) from None
    if made:
        # The backend answers before this, and should not wait for the imports of the audit log.
        from isabella.system import audit

        with audit.change("token.made", str(path), home=settings.home):
            pass
    return Token(SecretStr(token), made=made)


def stored_token(settings: Settings) -> SecretStr | None:
    """Return the token that a backend of this home requires; None if none was generated yet.

    Raises:
        FileUnreadable: the file that should hold it is damaged.
    """
    if settings.token is not None:
        return settings.token
    try:
        token = state.read_secret(settings.home / "token", _TOKEN_FORM)
    except FileUnreadable as error:
        raise FileUnreadable(error.what, reason=error.reason, remedy=_NEW_TOKEN) from None
    return None if token is None else SecretStr(token)


def check_address(settings: Settings) -> None:
    """Raise `ConfigurationError` if other machines could reach the backend and its token is missing or too short."""
    if settings.host in LOOPBACK:
        return
    if settings.token is None:
        raise ConfigurationError(
            f"ISABELLA_HOST is {settings.host}, where other machines can reach the backend, and ISABELLA_TOKEN is "
            "not set.",
            remedy="Set ISABELLA_TOKEN to your own long secret, for instance from `openssl rand -hex 32`, "
            "or ISABELLA_HOST to 127.0.0.1.",
        )
    if len(settings.token.get_secret_value()) < SHORTEST_TOKEN:
        raise ConfigurationError(
            f"ISABELLA_TOKEN is shorter than {SHORTEST_TOKEN} characters, too short for {settings.host}.",
            remedy="Make a longer one, for instance with `openssl rand -hex 32`.",
        )


@contextmanager
def address_published(home: Path, address: str) -> Iterator[None]:
    """Publish the backend's address in `ISABELLA_HOME` while the block runs."""
    path = home / ADDRESS_FILE
    home.mkdir(parents=True, exist_ok=True)
    state.save(path, {"address": address, **asdict(ChildProcess.of(os.getpid()))})
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def published_address(home: Path) -> str | None:
    """Return the address that the last backend of this home published; the backend may have ended since."""
    record = state.load(home / ADDRESS_FILE)
    match record.get("address"):
        case str(address) if _ADDRESS_FORM.fullmatch(address):
            return address
    if record:
        state.report_fields(home / ADDRESS_FILE)
    return None


def published_backend(settings: Settings) -> RunningBackend | None:
    """Return the backend that this home published; None if it published none."""
    token, address = stored_token(settings), published_address(settings.home)
    if token is None or address is None:
        return None
    remedy = "Start it again with `isabella up`; if its port is in use, set another ISABELLA_PORT."
    return RunningBackend(address, token, Peer("the backend", settings.home / ADDRESS_FILE, remedy))


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
    # The group passes through root's home to the database (see `os_users`).
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
