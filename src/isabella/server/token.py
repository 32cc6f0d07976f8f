"""How a running backend is found and entered: its token and its address, kept in `ISABELLA_HOME`."""

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

#: A token that others than this machine may try has to be at least this long.
SHORTEST_TOKEN = 16

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Token:
    """What the backend asks of its clients.

    Attributes:
        secret: the token itself.
        made: whether it was made just now.
    """

    secret: SecretStr
    made: bool = False


@dataclass(frozen=True)
class RunningBackend:
    """A backend that runs, or did.

    Attributes:
        address: where it listens.
        token: what it asks of its clients.
        peer: by which its process is known before anything is sent there.
    """

    address: str
    token: SecretStr
    peer: Peer


def ensure_token(settings: Settings) -> Token:
    """The operator's token, or else the one that is kept in `ISABELLA_HOME`, made at the first call.

    Raises:
        ConfigurationError: the file cannot be read or written, or is empty.
    """
    if settings.token is not None:
        return Token(settings.token)
    path = _token_file(settings.home)
    try:
        kept = _read(path)
        if kept is None:
            settings.home.mkdir(parents=True, exist_ok=True)
            made = secrets.token_urlsafe(32)
            redaction.remember(made)
            write_private(path, made + "\n")
            return Token(SecretStr(made), made=True)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: the backend's token cannot be kept: {error.strerror}.", remedy="Correct ISABELLA_HOME."
        ) from None
    return Token(kept)


def stored_token(settings: Settings) -> SecretStr | None:
    """The token that a running backend of this home asks for; None where none was made yet."""
    try:
        return settings.token or _read(_token_file(settings.home))
    except OSError:
        return None


def check_address(settings: Settings) -> None:
    """Whether the backend may listen where the settings say.

    Raises:
        ConfigurationError: other machines could reach it, and the operator has not set a token for that.
    """
    if settings.host in _LOOPBACK:
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
    """Keep the address of the backend where other programs of the same home find it, for as long as it runs."""
    path = _address_file(home)
    text = json.dumps({"address": address, **asdict(ChildProcess.of(os.getpid()))})
    home.mkdir(parents=True, exist_ok=True)
    write_private(path, text + "\n")
    try:
        yield
    finally:
        # Another backend of the same home may have taken the place.
        if path.exists() and path.read_text().strip() == text:
            path.unlink(missing_ok=True)


def published_address(home: Path) -> str | None:
    """Where the backend of this home said that it listens; it may be gone by now."""
    try:
        found = json.loads(_address_file(home).read_text())["address"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def published_backend(settings: Settings) -> RunningBackend | None:
    """The backend of this home, which may be gone by now; None where none has said that it listens."""
    token, address = stored_token(settings), published_address(settings.home)
    if token is None or address is None:
        return None
    remedy = "Start it again with `isabella up`; where its port is taken, with another ISABELLA_PORT."
    return RunningBackend(address, token, Peer("the backend", _address_file(settings.home), remedy))


def _token_file(home: Path) -> Path:
    return home / "token"


def _address_file(home: Path) -> Path:
    return home / "backend.json"


def _read(path: Path) -> SecretStr | None:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    if not text:
        raise ConfigurationError(f"{path}: it is empty.", remedy="Delete it; a new token is made at the next start.")
    redaction.remember(text)
    return SecretStr(text)
