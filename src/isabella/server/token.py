"""The backend's token, and the file by which other programs of the same `ISABELLA_HOME` find a running backend."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import SecretStr

from isabella.config.settings import Settings
from isabella.errors import ConfigurationError
from isabella.system import redaction
from isabella.system.files import write_private
from isabella.system.peers import Peer
from isabella.system.processes import ChildProcess

#: The minimum length of a token if other machines can reach the backend.
SHORTEST_TOKEN = 16

ADDRESS_FILE = "backend.json"

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
        stored = _read(path)
        if stored is not None:
            return Token(stored)
        settings.home.mkdir(parents=True, exist_ok=True)
        made = secrets.token_urlsafe(32)
        redaction.remember(made)
        write_private(path, made + "\n")
    except OSError as error:
        raise ConfigurationError(
            f"{path}: the backend's token cannot be stored: {error.strerror}.", remedy="Correct ISABELLA_HOME."
        ) from None
    return Token(SecretStr(made), made=True)


def stored_token(settings: Settings) -> SecretStr | None:
    """Return the token that a backend of this home requires; None if none was generated yet."""
    try:
        return settings.token or _read(settings.home / "token")
    except OSError:
        return None


def check_address(settings: Settings) -> None:
    """Raise `ConfigurationError` if other machines could reach the backend and its token is missing or too short."""
    if settings.host in LOOPBACK:
        return
    if settings.token is None:
        raise ConfigurationError(
            f"ISABELLA_HOST is {settings.host}, where other machines can reach the backend, and ISABELLA_TOKEN is "
            "not set.",
            remedy="Set ISABELLA_TOKEN to a long secret of your own, for instance from `openssl rand -hex 32`, "
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
    text = json.dumps({"address": address, **asdict(ChildProcess.of(os.getpid()))})
    home.mkdir(parents=True, exist_ok=True)
    write_private(path, text + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def published_address(home: Path) -> str | None:
    """Return the address that the last backend of this home published; the backend may have ended since."""
    try:
        address = json.loads((home / ADDRESS_FILE).read_text())["address"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return address if isinstance(address, str) else None


def published_backend(settings: Settings) -> RunningBackend | None:
    """Return the backend that this home published; None if it published none."""
    token, address = stored_token(settings), published_address(settings.home)
    if token is None or address is None:
        return None
    remedy = "Start it again with `isabella up`; if its port is in use, set another ISABELLA_PORT."
    return RunningBackend(address, token, Peer("the backend", settings.home / ADDRESS_FILE, remedy))


def _read(path: Path) -> SecretStr | None:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    if not text:
        raise ConfigurationError(f"{path}: it is empty.", remedy="Delete it; the next start generates a new token.")
    redaction.remember(text)
    return SecretStr(text)
