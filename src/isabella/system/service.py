"""Isabella as a service of the user: a unit of systemd, or an agent of launchd on macOS.

The service runs `isabella up`, restarts it after a crash, and grants it only the rights that it needs. Everything
below it inherits that: Letta, Postgres and the gateway. A sandbox around tools needs namespaces, so these stay
allowed.
"""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isabella.errors import ConfigurationError
from isabella.system.files import write_private
from isabella.system.redaction import redact

NAME = "isabella"
_STOP_SECONDS = 180

_UNIT = """\
[Unit]
Description=Isabella, memory agents on Letta
StartLimitIntervalSec=15min
StartLimitBurst=10

[Service]
Type=exec
WorkingDirectory={folder}
{environment}ExecStart={command}
Restart=on-failure
RestartSec=5
TimeoutStopSec={stop_seconds}
KillMode=mixed
# Isabella restarts a part that the kernel has killed for its memory.
OOMPolicy=continue
UMask=0077
# Keys are in its memory.
LimitCORE=0
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=~@clock @module @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM

[Install]
WantedBy=default.target
"""


@dataclass(frozen=True)
class UnitStatus:
    """The state of the service: whether it is installed, starts by itself, and runs now."""

    file: Path
    installed: bool
    enabled: bool
    active: bool


@dataclass(frozen=True)
class Service:
    """The service of this user. `file` is its definition."""

    command: Sequence[str]  #: the command, as an absolute path with its arguments
    folder: Path  #: its working folder, with `.env`
    environment: Mapping[str, str] = field(default_factory=dict)  #: no secrets: the definition is not secret
    platform: str = sys.platform

    @property
    def file(self) -> Path:
        """The file of its definition."""
        if self.platform == "darwin":
            return Path.home() / "Library" / "LaunchAgents" / f"{NAME}.plist"
        config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        return Path(config) / "systemd" / "user" / f"{NAME}.service"

    @property
    def log(self) -> Path | None:
        """The file of its log; None if it is in the journal."""
        return Path.home() / "Library" / "Logs" / f"{NAME}.log" if self.platform == "darwin" else None

    def definition(self) -> str:
        """Return the text of its definition."""
        if self.platform == "darwin":
            return plistlib.dumps(
                {
                    "Label": NAME,
                    "ProgramArguments": [*self.command],
                    "WorkingDirectory": str(self.folder),
                    "EnvironmentVariables": dict(self.environment),
                    "RunAtLoad": True,
                    "KeepAlive": {"SuccessfulExit": False},
                    "ThrottleInterval": 10,
                    "ExitTimeOut": _STOP_SECONDS,
                    "Umask": 0o077,
                    "HardResourceLimits": {"Core": 0},
                    "ProcessType": "Background",
                    "StandardOutPath": str(self.log),
                    "StandardErrorPath": str(self.log),
                }
            ).decode()
        return _UNIT.format(
            folder=_specifiers(str(self.folder)),
            environment="".join(
                f"Environment={_quoted(f'{name}={value}')}\n" for name, value in self.environment.items()
            ),
            # A dollar begins a variable in commands only.
            command=" ".join(_quoted(word).replace("$", "$$") for word in self.command),
            stop_seconds=_STOP_SECONDS,
        )

    def install(self) -> None:
        """Write the definition, and start the service now and with the machine.

        Raises:
            ConfigurationError: there is no such service manager, or it refuses; then nothing is left installed.
        """
        self._require_manager()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_private(self.file, self.definition())
        try:
            if self.platform == "darwin":
                self._run("launchctl", "bootstrap", self._domain, str(self.file))
            else:
                self._run("systemctl", "--user", "daemon-reload")
                self._run("systemctl", "--user", "enable", "--now", f"{NAME}.service")
        except ConfigurationError:
            self.file.unlink(missing_ok=True)
            raise

    def uninstall(self) -> bool:
        """Stop the service, and delete its definition. Return whether it was installed."""
        if not self.file.exists():
            return False
        self._require_manager()
        if self.platform == "darwin":
            self._succeeds("launchctl", "bootout", f"{self._domain}/{NAME}")
        else:
            self._run("systemctl", "--user", "disable", "--now", f"{NAME}.service")
        self.file.unlink(missing_ok=True)
        if self.platform != "darwin":
            self._run("systemctl", "--user", "daemon-reload")
        return True

    def status(self) -> UnitStatus:
        """Return whether it is installed, starts by itself, and runs."""
        if not self.file.exists():
            return UnitStatus(self.file, installed=False, enabled=False, active=False)
        if self.platform == "darwin":
            loaded = self._succeeds("launchctl", "print", f"{self._domain}/{NAME}")
            return UnitStatus(self.file, installed=True, enabled=loaded, active=loaded)
        enabled, active = (
            self._succeeds("systemctl", "--user", question, f"{NAME}.service")
            for question in ("is-enabled", "is-active")
        )
        return UnitStatus(self.file, installed=True, enabled=enabled, active=active)

    def starts_before_login(self) -> bool:
        """Make services of this user start with the machine, not with a login. Return whether they do."""
        return self.platform == "darwin" or self._succeeds("loginctl", "enable-linger")

    @property
    def _domain(self) -> str:
        return f"gui/{os.getuid()}"

    def _require_manager(self) -> None:
        manager = "launchctl" if self.platform == "darwin" else "systemctl"
        if shutil.which(manager) is None:
            raise ConfigurationError(
                f"There is no {manager} here, so no service can be installed.",
                remedy="Have the service manager of this machine run `isabella up`.",
            )

    def _run(self, *command: str) -> None:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise ConfigurationError(
                f"`{' '.join(command)}` failed: {redact((ended.stderr or ended.stdout).strip())}",
                remedy="Run it as the user who is to run Isabella, in a session of that user.",
            )

    def _succeeds(self, *command: str) -> bool:
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def _quoted(word: str) -> str:
    """Return a word as systemd reads it in `ExecStart` and `Environment`."""
    return '"' + _specifiers(word).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _specifiers(text: str) -> str:
    if "\n" in text:
        raise ConfigurationError(
            "A path with a line break cannot be in the definition of a service.", remedy="Rename the folder."
        )
    return text.replace("%", "%%")
