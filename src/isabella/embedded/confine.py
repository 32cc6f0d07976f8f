"""Runs a program of Letta with fewer rights: `confine.py PROGRAM ARGUMENT …`.

This file runs in Letta's environment, like `launch.py`, and imports nothing of Isabella.

- Neither Letta nor a program that it starts can gain privileges, such as by a set-user-id program. Linux only.
- Programs that Letta starts, which run the tools of agents, do not get the secrets of its environment.
- With bubblewrap, those programs see the system's programs and libraries, the release, and Letta's own folder, but no
  other file and no other process. They keep the network.

Whether bubblewrap works is tried once, and written to the file that `ISABELLA_TOOL_SANDBOX_STATE` names, for
`isabella doctor`. Without that variable, programs are not put into a sandbox.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECRETS = ("LETTA_ENCRYPTION_KEY", "LETTA_PG_URI", "LETTA_SERVER_PASSWORD")
STATE = "ISABELLA_TOOL_SANDBOX_STATE"
WORKS = "bubblewrap"
MISSING = "bubblewrap is not installed"
BROKEN = "bubblewrap does not work: "

_PR_SET_NO_NEW_PRIVS = 38
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/run/systemd/resolve")
_CONFIGURATION = (
    *("alternatives", "ca-certificates", "crypto-policies", "gai.conf", "group", "host.conf", "hosts", "ld.so.cache"),
    *("localtime", "nsswitch.conf", "passwd", "pki", "resolv.conf", "services", "ssl", "timezone"),
)
#: The variables that name the machine's certificates, in whatever place they are.
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_SECONDS_TO_TRY = 20


def refuse_new_privileges() -> None:
    """Give up, for this process and all that it starts, to gain privileges by executing a program."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def without_secrets(environ: Mapping[str, str], own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return an environment without this process's secrets. A variable of the name with another value stays."""
    return {name: value for name, value in environ.items() if name not in SECRETS or value != own.get(name)}


def sandbox(bwrap: str, program: Path, folder: Path) -> list[str]:
    """Return the command that runs another one in a sandbox.

    `program` is the release, which may be read, and `folder` the one that may also be written.
    """
    readable = [*_SYSTEM, *(f"/etc/{name}" for name in _CONFIGURATION), sys.base_prefix, str(program)]
    readable += [os.environ[name] for name in _CERTIFICATES if os.environ.get(name)]
    return [
        *(bwrap, "--unshare-user-try", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run"),  # noqa: S108 - empty ones
        *(part for path in readable for part in ("--ro-bind-try", path, path)),
        *("--bind", str(folder), str(folder)),
    ]


def confine_children(prefix: list[str]) -> None:
    """Start every child program with `prefix`, and without this process's secrets.

    `subprocess.run` and asyncio's subprocesses start programs by `subprocess.Popen`, too.
    """

    class ConfinedPopen(subprocess.Popen[Any]):
        def __init__(self, args: Any, *rest: Any, **options: Any) -> None:
            options["env"] = without_secrets(os.environ if options.get("env") is None else options["env"])
            if prefix:
                args = [*prefix, *_visible(options.get("cwd")), "--", *_command(args, options)]
            super().__init__(args, *rest, **options)

    vars(subprocess)["Popen"] = ConfinedPopen


def _visible(cwd: Any) -> list[str]:
    """Return the arguments that make a program's working directory visible in the sandbox."""
    return [] if cwd is None else ["--bind", os.fsdecode(cwd), os.fsdecode(cwd)]


def _command(args: Any, options: dict[str, Any]) -> list[str]:
    command = [args] if isinstance(args, str | bytes | os.PathLike) else list(args)
    if options.pop("shell", False):
        command = ["/bin/sh", "-c", *command]
    executable = options.pop("executable", None)
    return [os.fsdecode(part) for part in ([executable, *command[1:]] if executable else command)]


def try_sandbox(program: Path, folder: Path) -> tuple[list[str], str]:
    """Return the prefix of a sandbox that works here, and `WORKS`; without one, no prefix, and why."""
    bwrap = shutil.which("bwrap") if sys.platform == "linux" else None
    if bwrap is None:
        return [], MISSING
    prefix = sandbox(bwrap, program, folder)
    try:
        tried = subprocess.run(
            [*prefix, "--", sys.executable, "-c", ""],
            capture_output=True,
            text=True,
            timeout=_SECONDS_TO_TRY,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return [], f"{BROKEN}{type(error).__name__}"
    if tried.returncode != 0:
        return [], BROKEN + (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]
    return prefix, WORKS


def main() -> None:
    """Confine this process, and run the program in it."""
    os.umask(0o077)
    refuse_new_privileges()
    del sys.argv[0]
    prefix: list[str] = []
    state = os.environ.pop(STATE, None)
    if state is not None:
        # The environment of a release is a folder of it.
        prefix, came = try_sandbox(Path(sys.prefix).parent, Path(os.environ["HOME"]))
        with contextlib.suppress(OSError):
            Path(state).write_text(f"{came}\n")
    confine_children(prefix)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
