"""Where everything lies on the disk.

    HOME/                          ISABELLA_HOME
    ├── locks/
    ├── releases/0.16.8/           the program: the unpacked sdist and its environment; shared, never changed
    └── letta/0.16.8[-INSTANCE]/   the data of one release and one instance
        ├── master-key, server-password, database-password, postgres-password
        ├── ports.json, letta.json, rekey.json (only while the master key is changed)
        ├── home/                  the server's HOME and working folder
        ├── logs/
        └── postgres-18/           the database (elsewhere in one case: see `accounts`)

Every folder is its owner's alone. Run by root, Postgres needs a user of its own, which may pass through the
folders that lead to its data (mode 0710 and its group), but list or read none of them.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import re
import socket
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex

from pydantic import SecretStr

from isabella.errors import EmbeddedError
from isabella.system import redaction
from isabella.system.files import write_private

DEFAULT_RELEASE = "0.16.8"
DEFAULT_INSTANCE = "default"


@dataclass(frozen=True)
class InstancePaths:
    """The paths of one instance of one release.

    Attributes:
        home: Isabella's home, absolute.
        release: Letta's version.
        instance: which of several servers of that release; they share the program, not the data.

    Raises:
        EmbeddedError: release or instance cannot be part of a path.
    """

    home: Path
    release: str = DEFAULT_RELEASE
    instance: str = DEFAULT_INSTANCE

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+\.\d+\.\d+", self.release):
            raise EmbeddedError(
                f"{self.release!r} is not a Letta release.", remedy="Give one such as --version 0.16.8."
            )
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", self.instance):
            raise EmbeddedError(
                f"{self.instance!r} cannot name an instance.",
                remedy="Use lower-case letters, digits, dots, dashes and underscores.",
            )

    @property
    def releases(self) -> Path:
        """The folder of all programs."""
        return self.home / "releases"

    @property
    def program(self) -> Path:
        """The unpacked release with its environment."""
        return self.releases / self.release

    @property
    def python(self) -> Path:
        """The interpreter of the release's own environment."""
        return self.program / ".venv" / "bin" / "python"

    @property
    def install_log(self) -> Path:
        """What uv said while installing."""
        return self.releases / f"{self.release}.log"

    @property
    def folder(self) -> Path:
        """The data of this instance."""
        suffix = "" if self.instance == DEFAULT_INSTANCE else f"-{self.instance}"
        return self.home / "letta" / f"{self.release}{suffix}"

    @property
    def master_key_file(self) -> Path:
        """The master key, where Isabella made it herself."""
        return self.folder / "master-key"

    @property
    def rekey_file(self) -> Path:
        """A change of the master key that is under way: the new one, and those before it."""
        return self.folder / "rekey.json"

    @property
    def password_file(self) -> Path:
        """The password that Letta asks of its clients (fact R6)."""
        return self.folder / "server-password"

    @property
    def database_password_file(self) -> Path:
        """The password of the role that owns Letta's database."""
        return self.folder / "database-password"

    @property
    def superuser_password_file(self) -> Path:
        """The password of the database's superuser, needed to set the database up."""
        return self.folder / "postgres-password"

    @property
    def ports_file(self) -> Path:
        """The ports this instance had last time."""
        return self.folder / "ports.json"

    @property
    def run_file(self) -> Path:
        """Which Letta process runs, and how it was started."""
        return self.folder / "letta.json"

    @property
    def server_home(self) -> Path:
        """HOME and working folder of the server: without the .env and conf.yaml it would read there."""
        return self.folder / "home"

    @property
    def logs(self) -> Path:
        """The folder of this instance's logs."""
        return self.folder / "logs"

    @property
    def letta_log(self) -> Path:
        """What the server says."""
        return self.logs / "letta.log"

    @property
    def migrations_log(self) -> Path:
        """What the migrations said."""
        return self.logs / "migrations.log"

    @property
    def postgres_log(self) -> Path:
        """What Postgres says."""
        return self.logs / "postgres.log"

    @property
    def lock(self) -> Path:
        """Held by whoever brings this instance up or down."""
        return self.home / "locks" / f"{self.folder.name}.lock"

    @property
    def release_lock(self) -> Path:
        """Held by whoever installs this release."""
        return self.home / "locks" / f"release-{self.release}.lock"

    @property
    def ports_lock(self) -> Path:
        """Held by whoever chooses ports."""
        return self.home / "locks" / "ports.lock"

    def sibling_ports_files(self) -> Iterator[Path]:
        """The remembered ports of all other instances in this home."""
        for path in (self.home / "letta").glob("*/ports.json"):
            if path != self.ports_file:
                yield path


def make_private(folder: Path, *, group: int | None = None) -> None:
    """Make a folder that only its owner can use.

    Args:
        folder: the folder; what is missing above it is made as well.
        group: a group that may pass through the folder, but not list it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if group is not None and found.st_gid != group:
        os.chown(folder, -1, group)
    # Several instances share the folders above theirs: where one has let a group pass, another does not shut it out.
    mode = 0o710 if group is not None or found.st_mode & 0o777 == 0o710 else 0o700
    if found.st_mode & 0o777 != mode:
        folder.chmod(mode)


def make_home(home: Path, *, group: int | None = None) -> None:
    """Make Isabella's home, if it is not there; one that is there keeps its mode, for it may be anybody's."""
    if not home.exists():
        make_private(home, group=group)


LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """The ports of one instance."""

    letta: int = 8283
    postgres: int = 5433


def base_url(port: int) -> str:
    """The address of a server that listens on this port of loopback."""
    return f"http://{LOOPBACK}:{port}"


def is_port_free(port: int) -> bool:
    """Whether a server could listen on this port of loopback right now."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as attempt:
        # As servers do it, so that connections which are only fading out do not count.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((LOOPBACK, port))
            attempt.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def choose_port(preferred: int, *, avoid: Collection[int] = ()) -> int:
    """The preferred port if it is free, otherwise one that the system picks.

    Args:
        preferred: the port to have if possible.
        avoid: ports that others count on, whether or not they listen now.
    """
    if preferred not in avoid and is_port_free(preferred):
        return preferred
    while True:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as attempt:
            attempt.bind((LOOPBACK, 0))
            found: int = attempt.getsockname()[1]
        if found not in avoid:
            return found


def save_ports(path: Path, ports: Ports) -> None:
    """Write down the ports of an instance."""
    write_private(path, json.dumps(asdict(ports)))


def load_ports(path: Path) -> Ports | None:
    """The ports written down at `path`; None where there are none or the file is damaged."""
    try:
        found = json.loads(path.read_text())
        return Ports(letta=int(found["letta"]), postgres=int(found["postgres"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


NO_KEY = "none"


def load_secret(path: Path) -> SecretStr | None:
    """The secret in a file; None where there is none."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    if not text:
        return None
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    redaction.remember(text)
    return SecretStr(text)


def load_or_create_secret(path: Path) -> SecretStr:
    """The secret in a file, which is made, with a new secret of 32 random bytes, where there is none."""
    found = load_secret(path)
    if found is not None:
        return found
    text = token_hex(32)
    write_private(path, text + "\n")
    redaction.remember(text)
    return SecretStr(text)


def fingerprint(key: SecretStr | None) -> str:
    """What may be kept of a master key to know it again: a salted hash, useless for opening anything."""
    return NO_KEY if key is None else _fingerprint(key, token_hex(16))


def matches_fingerprint(key: SecretStr | None, kept_fingerprint: str) -> bool:
    """Whether this is the key, or the absence of one, of which the fingerprint was kept."""
    if key is None:
        return kept_fingerprint == NO_KEY
    salt = kept_fingerprint.partition(":")[0]
    return hmac.compare_digest(_fingerprint(key, salt), kept_fingerprint)


def _fingerprint(key: SecretStr, salt: str) -> str:
    digest = hmac.new(salt.encode(), key.get_secret_value().encode(), hashlib.sha256).hexdigest()
    return f"{salt}:{digest}"
