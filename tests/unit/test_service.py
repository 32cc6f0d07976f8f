"""`isabella service`: the definitions that are written, and what the service manager is told."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import subprocess
from pathlib import Path

import pytest

from isabella.errors import ConfigurationError
from isabella.system.service import Service
from tests.support.command import Command

ODD = '/opt/100% "odd" $HOME \\ folder'


def unit(folder: str = "/srv/isabella") -> str:
    """The unit of a service in a folder."""
    command = ["/usr/bin/env", "up", "--env-file", f"{folder}/.env"]
    return Service(command, Path(folder), {"ISABELLA_HOME": f"{folder}/home"}, "linux").definition()


def test_a_unit_names_command_folder_and_home() -> None:
    """Every word is quoted as systemd reads it."""
    lines = unit(ODD).splitlines()
    assert 'WorkingDirectory=/opt/100%% "odd" $HOME \\ folder' in lines
    assert 'Environment="ISABELLA_HOME=/opt/100%% \\"odd\\" $HOME \\\\ folder/home"' in lines
    assert 'ExecStart="/usr/bin/env" "up" "--env-file" "/opt/100%% \\"odd\\" $$HOME \\\\ folder/.env"' in lines
    assert {"NoNewPrivileges=yes", "UMask=0077", "LimitCORE=0", "Restart=on-failure"} <= set(lines)
    with pytest.raises(ConfigurationError, match="line break"):
        unit("/a\nExecStart=/bin/sh")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """It has nothing to say about it."""
    folder = tmp_path / "100% odd"
    folder.mkdir()
    file = tmp_path / "isabella.service"
    file.write_text(unit(str(folder)))
    environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "warning", "XDG_RUNTIME_DIR": str(tmp_path)}
    ended = subprocess.run(
        ["systemd-analyze", "--user", "verify", file], capture_output=True, text=True, env=environment, check=False
    )
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


def test_an_agent_of_launchd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same service on macOS."""
    monkeypatch.setenv("HOME", str(tmp_path))
    service = Service(["/opt/isabella", "up"], Path(ODD), {"ISABELLA_HOME": ODD}, "darwin")
    assert service.file == tmp_path / "Library" / "LaunchAgents" / "isabella.plist"
    read = plistlib.loads(service.definition().encode())
    assert (read["ProgramArguments"], read["WorkingDirectory"]) == (["/opt/isabella", "up"], ODD)
    assert read["KeepAlive"] == {"SuccessfulExit": False}
    assert (read["Umask"], read["RunAtLoad"]) == (0o077, True)


class Managed:
    """A home with a service manager that notes what it is told, and refuses some of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "told"
        programs = folder / "programs"
        programs.mkdir()
        for name in ("systemctl", "loginctl"):
            program = programs / name
            program.write_text(
                f'#!/bin/sh\necho "{name} $*" >> {self.log}\n'
                f'grep -qsx -- "$*" {folder}/refused && {{ echo "not today" >&2; exit 1; }}\nexit 0\n'
            )
            program.chmod(0o700)
        path = f"{programs}:{os.environ['PATH']}"
        variables = {"PATH": path, "XDG_CONFIG_HOME": str(folder / "config"), "GROQ_API_KEY": "gsk_of-this-shell"}
        self.command = Command(folder, variables)
        self.unit = folder / "config" / "systemd" / "user" / "isabella.service"

    def refuse(self, *commands: str) -> None:
        """Have these commands fail."""
        (self.folder / "refused").write_text("".join(f"{command}\n" for command in commands))

    @property
    def told(self) -> list[str]:
        """What the manager was told."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def managed(tmp_path: Path) -> Managed:
    """One for each test."""
    return Managed(tmp_path)


def test_install_status_and_uninstall(managed: Managed) -> None:
    """It is started now and with the machine, and afterwards nothing of it is left."""
    command = managed.command
    assert command.run("service", "status").code == 3
    installed = command.run("service", "install")
    assert installed.code == 0, installed.err
    assert managed.told == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now isabella.service",
        "loginctl enable-linger",
    ]
    # What is in the environment only is named, and is not written anywhere.
    assert "GROQ_API_KEY" in installed.out
    assert "gsk_of-this-shell" not in installed.out + managed.unit.read_text()
    assert f"WorkingDirectory={managed.folder}" in managed.unit.read_text()
    status = command.run("service", "status", "--json")
    assert (status.code, json.loads(status.out)["active"]) == (0, True)
    managed.refuse("--user is-active isabella.service")
    assert command.run("service", "status").code == 3
    assert command.run("service", "uninstall").out == "Uninstalled.\n"
    assert "systemctl --user disable --now isabella.service" in managed.told
    assert not managed.unit.exists()
    assert command.run("service", "uninstall").out == "It was not installed.\n"
    changes = [json.loads(line)["change"] for line in command.run("audit", "--json").out.splitlines()]
    assert changes == ["service.installed", "service.uninstalled"]


def test_a_manager_that_refuses_leaves_nothing(managed: Managed) -> None:
    """Its words are told."""
    managed.refuse("--user enable --now isabella.service")
    refused = managed.command.run("service", "install")
    assert refused.code == 1
    assert "not today" in refused.err
    assert not managed.unit.exists()


def test_without_a_manager_it_says_so(tmp_path: Path) -> None:
    """As in most containers."""
    command = Command(tmp_path, {"PATH": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)})
    refused = command.run("service", "install")
    assert refused.code == 1
    assert "no systemctl here" in refused.err
    assert not [*tmp_path.rglob("*.service")]
