"""The files of an instance: their paths, its secrets, and its ports.

    HOME/                          ISABELLA_HOME
    ├── locks/
    ├── releases/0.16.8/           the program: the unpacked sdist and its environment; shared, never changed
    └── letta/0.16.8[-INSTANCE]/   the data of one release and one instance
        ├── master-key, server-password, database-password, postgres-password
        ├── ports.json, letta.json, tool-sandbox, rekey.json (only while the master key is changed), stopped
        ├── home/                  the server's HOME, working directory and temporary files
        ├── logs/
        └── postgres-18/           the database (in another place in one case: see `os_users`)

Every folder is private to its owner. If Isabella runs as root, Postgres runs as its own user, which may pass
through the folders above its data (mode 0710 and its group), but not list or read them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

from pydantic import SecretStr

from isabella.errors import EmbeddedError, FileUnreadable
from isabella.system import state

DEFAULT_RELEASE = "0.16.8"
DEFAULT_INSTANCE = "default"
LOOPBACK = "127.0.0.1"
_NO_KEY = "none"
_SECRET_FORM = re.compile(r"[0-9a-fA-F]{64}")


class InstancePaths:
    """The paths of one instance of one release, in Isabella's home (absolute)."""

    def __init__(self, home: Path, release: str = DEFAULT_RELEASE, instance: str = DEFAULT_INSTANCE) -> None:
        if not re.fullmatch(r"\d+\.\d+\.\d+", release):
            raise EmbeddedError(f"{release!r} is not a Letta release.", remedy="Give one such as --version 0.16.8.")
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", instance):
            raise EmbeddedError(
                f"{instance!r} cannot name an instance.",
                remedy="Use lower-case letters, digits, dots, dashes and underscores.",
            )
        self.home = home
        self.release = release
        self.instance = instance
        self.releases = home / "releases"
        self.program = self.releases / release  # the unpacked release with its environment
        self.python = self.program / ".venv" / "bin" / "python"
        self.staging = self.releases / f".new-{release}"  # the release while it is installed
        self.install_log = self.releases / f"{release}.log"

        #: The data of this instance.
        self.folder = home / "letta" / (release if instance == DEFAULT_INSTANCE else f"{release}-{instance}")
        self.master_key_file = self.folder / "master-key"  # the master key, if Isabella generated it
        #: The journal of a change of the master key: the new key and the previous ones.
        self.rekey_file = self.folder / "rekey.json"
        #: The password that Letta requires of its clients (fact R6).
        self.password_file = self.folder / "server-password"
        #: The password of the role that owns Letta's database.
        self.database_password_file = self.folder / "database-password"
        self.superuser_password_file = self.folder / "postgres-password"
        self.ports_file = self.folder / "ports.json"  # the last ports of this instance
        self.run_file = self.folder / "letta.json"  # the record of the running Letta process
        self.stopped_file = self.folder / "stopped"  # exists while the instance is stopped on purpose
        #: HOME and working directory of the server: without the .env and conf.yaml that it would read there.
        self.server_home = self.folder / "home"
        self.server_tmp = self.server_home / "tmp"  # its temporary files; emptied when it starts
        #: whether its tools run in a sandbox, or why not (see `confine.py`)
        self.tool_sandbox_file = self.folder / "tool-sandbox"
        self.logs = self.folder / "logs"
        self.letta_log = self.logs / "letta.log"
        self.postgres_log = self.logs / "postgres.log"

        #: For starting and stopping this instance, installing the release, and choosing ports.
        self.lock = home / "locks" / f"{self.folder.name}.lock"
        self.release_lock = home / "locks" / f"release-{release}.lock"
        self.ports_lock = home / "locks" / "ports.lock"

    def sibling_ports_files(self) -> Iterator[Path]:
        """Iterate over the ports files of all other instances in this home."""
        for path in (self.home / "letta").glob("*/ports.json"):
            if path != self.ports_file:
                yield path


def histories_folder(home: Path) -> Path:
    """Return the folder of a home with the former texts of memory blocks."""
    return home / "blocks"


def make_private(folder: Path, *, group: int | None = None) -> None:
    """Create a folder, and missing ones above it, for its owner only. A group may pass through, but not list it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if group is not None and status.st_gid != group:
        os.chown(folder, -1, group)
    # Instances share the folders above theirs: if one has let a group pass, another does not shut the group out.
    mode = 0o710 if group is not None or status.st_mode & 0o777 == 0o710 else 0o700
    if status.st_mode & 0o777 != mode:
        folder.chmod(mode)


def make_home(home: Path, *, group: int | None = None) -> None:
    """Create Isabella's home if it does not exist. An existing folder keeps its mode."""
    if not home.exists():
        make_private(home, group=group)


def load_secret(path: Path) -> SecretStr | None:
    """Return the secret in a file; None if the file is missing or empty.

    Raises:
        EmbeddedError: the file is damaged. It is left unchanged, because other data depend on the secret.
    """
    try:
        text = state.read_secret(path, _SECRET_FORM)
    except FileUnreadable as error:
        raise EmbeddedError(
            f"{path} is damaged: {error.reason}, and it should hold 64 hexadecimal characters.",
            remedy="Restore it from a backup. Isabella does not replace it: data depend on the secret that it held.",
        ) from None
    return None if text is None else SecretStr(text)


def load_or_create_secret(path: Path) -> SecretStr:
    """Return the secret in a file. If it has none, or is damaged, 32 random bytes are written to it first."""
    text, _ = state.read_or_make_secret(path, _SECRET_FORM, lambda: token_hex(32))
    return SecretStr(text)


def fingerprint(key: SecretStr | None) -> str:
    """Return a salted hash by which a master key can be recognised, but not used."""
    return _NO_KEY if key is None else _salted_hash(key, token_hex(16))


def matches_fingerprint(key: SecretStr | None, stored: str) -> bool:
    """Return whether a stored fingerprint is that of this key, or of no key."""
    if key is None:
        return stored == _NO_KEY
    return hmac.compare_digest(_salted_hash(key, stored.partition(":")[0]).encode(), stored.encode())


def _salted_hash(key: SecretStr, salt: str) -> str:
    digest = hmac.new(salt.encode(), key.get_secret_value().encode(), hashlib.sha256).hexdigest()
    return f"{salt}:{digest}"


def base_url(port: int) -> str:
    """Return the base URL of a server on this port of loopback."""
    return f"http://{LOOPBACK}:{port}"
