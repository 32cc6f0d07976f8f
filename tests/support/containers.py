"""Runs the services of compose.yaml from built images, without a daemon and without a registry. Needs root, on Linux.

Each service is a process with its own mount, process, network, IPC and host-name spaces, the image as read-only root,
the user, the mounts, the secrets and the environment of compose.yaml, and no capabilities. Each network is a bridge.
`buildah` reads the images. What this does not have of a container engine: limits of control groups, seccomp profiles,
and restarts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[2]
_SUBNET = "10.213"
_DEVICES = ("null", "zero", "full", "random", "urandom")
_SETUP = """
set -eu
mount --make-rprivate /
mount --bind "$BOX_ROOT" "$BOX_ROOT"
mount -o remount,bind,ro "$BOX_ROOT"
mount -t proc -o nosuid,nodev,noexec proc "$BOX_ROOT/proc"
mount -t tmpfs -o nosuid,mode=755 tmpfs "$BOX_ROOT/dev"
mkdir "$BOX_ROOT/dev/shm" && mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$BOX_ROOT/dev/shm"
for device in $BOX_DEVICES; do : >"$BOX_ROOT/dev/$device"; mount --bind "/dev/$device" "$BOX_ROOT/dev/$device"; done
ln -s /proc/self/fd "$BOX_ROOT/dev/fd"
%(mounts)s
exec /usr/bin/env -i /usr/sbin/chroot "$BOX_ROOT" "$@"
"""


@dataclass(frozen=True)
class Image:
    """An image, unpacked: its files, and how it is run."""

    root: Path
    environment: Mapping[str, str]
    entrypoint: Sequence[str]
    command: Sequence[str]
    folder: str


@dataclass
class Buildah:
    """Buildah with a storage of its own."""

    storage: Path
    containers: list[str] = field(default_factory=list)

    @property
    def _options(self) -> list[str]:
        return [f"--root={self.storage}/storage", f"--runroot={self.storage}/run", "--storage-driver=vfs"]

    def run(self, *arguments: str | Path) -> str:
        """Run a command and return its output."""
        return self._run(["buildah", *self._options, *arguments])

    def build(self, project: Path, base: str, tag: str, options: Sequence[str]) -> None:
        """Build the images of a project as `make image` does; with `make image-base` first if the base is missing.

        `options` come before those of `IMAGE_OPTIONS`.
        """
        if base not in self.run("images", "--format", "{{.Name}}:{{.Tag}}").split():
            self._run([project / "deploy" / "base.sh", base])
        variables = {"BASE": base, "IMAGE_TAG": tag}
        variables["IMAGE_OPTIONS"] = " ".join([*options, os.environ.get("IMAGE_OPTIONS", "")])
        self._run([project / "deploy" / "image.sh"], **variables)

    def export(self, name: str, folder: Path) -> None:
        """Write the layers of an image, each as an archive, with its configuration and its history into a folder."""
        self.run("push", "--disable-compression", name, f"dir:{folder}")

    def _run(self, command: Sequence[str | Path], **variables: str) -> str:
        environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "BUILDER": "buildah", **variables}
        environment["BUILDER_STORAGE"] = " ".join(self._options)
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
        return str(ended.stdout)

    def unpacked(self, name: str) -> Image:
        """Return an image whose files are unpacked until `close`."""
        container = self.run("from", "--pull-never", name).strip()
        self.containers.append(container)
        config = json.loads(self.run("inspect", "--type", "image", name))["OCIv1"]["config"]
        environment = dict(each.split("=", 1) for each in config.get("Env", []))
        return Image(
            Path(self.run("mount", container).strip()),
            environment,
            config.get("Entrypoint") or [],
            config.get("Cmd") or [],
            config.get("WorkingDir") or "/",
        )

    def close(self) -> None:
        """Delete what was unpacked."""
        for container in self.containers:
            self.run("rm", container)


@dataclass
class Service:
    """A running service."""

    name: str
    image: Image
    user: str
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The first process of the service, as this machine numbers it."""
        (child,) = psutil.Process(self.process.pid).children()
        return child.pid

    def is_set_up(self) -> bool:
        """Whether the first process is within its image."""
        try:
            return Path(f"/proc/{self.pid}/root").readlink() == self.image.root
        except (ValueError, OSError):
            return False

    def execute(self, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in the service, as `docker compose exec` does."""
        inside = ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--root"]
        # Within the root of the service, and in the folder of the image.
        program = [*_privileges(self.user), *_environment(self.environment), *command]
        return subprocess.run(
            [*inside, f"--wd=/proc/{self.pid}/cwd", "--", *program],
            input=text, capture_output=True, text=True, check=False, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip


def _privileges(user: str) -> list[str]:
    uid, gid = user.split(":")
    drop = ["--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    return ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={gid}", *drop]


def _environment(values: Mapping[str, str]) -> list[str]:
    return ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in values.items())]


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """Return a text of compose.yaml with its variables."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], text)


def inside(root: Path, target: str) -> Path:
    """Return the place of a path of an image; absolute links in the image are relative to its root."""
    place = root
    for part in Path(target.lstrip("/")).parts:
        place /= part
        if place.is_symlink():
            link = place.readlink()
            place = inside(root, str(link)) if link.is_absolute() else place.parent / link
    return place


class Stack:
    """The services of a compose.yaml in a folder, which also has the files that it mounts."""

    def __init__(
        self, folder: Path, images: Mapping[str, Image], commands: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.folder = folder
        self.document = yaml.safe_load(expanded((folder / "compose.yaml").read_text(), {}))
        self.images = images  # by service
        self.commands = commands or {}  # in place of those of an image that is not there
        self.extra_mounts: dict[str, list[tuple[Path, str]]] = {}
        self.services: dict[str, Service] = {}
        self.data = folder / "volumes"
        self.logs = folder / "logs"
        self._addresses = self._assign()
        self._cleanup: list[list[str]] = []

    # --- networks -----------------------------------------------------------------------------------------------

    def _assign(self) -> dict[tuple[str, str], str]:
        """Return an address for each service on each of its networks."""
        networks = list(self.document["networks"])
        return {
            (service, network): f"{_SUBNET}.{networks.index(network)}.{number}"
            for number, (service, what) in enumerate(self.document["services"].items(), start=2)
            for network in what["networks"]
        }

    def address(self, service: str, network: str) -> str:
        """Return the address of a service on a network."""
        return self._addresses[service, network]

    def _connect(self) -> None:
        for number, network in enumerate(self.document["networks"]):
            bridge = f"isb{number}"
            self._ip("link", "add", bridge, "type", "bridge", undo=("link", "del", bridge))
            self._ip("addr", "add", f"{_SUBNET}.{number}.1/24", "dev", bridge)
            self._ip("link", "set", bridge, "up")
            for service, what in self.document["services"].items():
                if network in what["networks"]:
                    self._plug(service, network, bridge, number)

    def _plug(self, service: str, network: str, bridge: str, number: int) -> None:
        space, outer, inner = f"isb-{service}", f"isb{number}{service[:6]}", f"eth{number}"
        if not Path("/run/netns", space).exists():
            self._ip("netns", "add", space, undo=("netns", "del", space))
            self._ip("-n", space, "link", "set", "lo", "up")
        self._ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space)
        self._ip("link", "set", outer, "master", bridge, "up")
        self._ip("-n", space, "addr", "add", f"{self.address(service, network)}/24", "dev", inner)
        self._ip("-n", space, "link", "set", inner, "up")
        if not (self.document["networks"][network] or {}).get("internal"):
            self._ip("-n", space, "route", "add", "default", "via", f"{_SUBNET}.{number}.1")

    def _ip(self, *arguments: str, undo: Sequence[str] = ()) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)
        if undo:
            self._cleanup.append(["ip", *undo])

    # --- services -----------------------------------------------------------------------------------------------

    def up(self, profiles: Sequence[str] = ()) -> None:
        """Start every service, each when those that it depends on are healthy."""
        self.logs.mkdir(exist_ok=True)
        self._connect()
        waiting = {
            name: what
            for name, what in self.document["services"].items()
            if set(what.get("profiles", profiles)) & {*profiles} or "profiles" not in what
        }
        while waiting:
            ready = [name for name, what in waiting.items() if not set(what.get("depends_on", ())) & set(waiting)]
            for name in ready:
                for before in waiting[name].get("depends_on", ()):
                    self.wait_until_healthy(before)
                self.start(name)
                del waiting[name]
        for name in self.services:
            self.wait_until_healthy(name)

    def start(self, name: str) -> None:
        """Start a service."""
        what, image = self.document["services"][name], self.images[name]
        environment = {**image.environment, **{key: str(value) for key, value in what.get("environment", {}).items()}}
        mounts = "\n".join(self._mounts(name, what, image.root))
        own = self.commands.get(name)
        command = own if own is not None else [*image.entrypoint, *what.get("command", image.command)]
        inside = ["/bin/sh", "-c", f'cd {image.folder} && exec "$@"', "sh", *_privileges(what["user"])]
        log = self.logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", f"isb-{name}"),
                    *("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"),
                    *("sh", "-c", _SETUP % {"mounts": mounts}, "sh"),
                    *("/usr/bin/env", *inside, *_environment(environment), *command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "BOX_ROOT": str(image.root),
                    "BOX_DEVICES": " ".join(_DEVICES),
                },
            )
        service = self.services[name] = Service(name, image, what["user"], environment, process, log)
        while process.poll() is None and not service.is_set_up():
            time.sleep(0.02)

    def _mounts(self, name: str, what: Mapping[str, Any], root: Path) -> list[str]:
        """Return the commands of a service's mounts; their places are made in the image's files first."""
        hosts = self.folder / f"hosts-{name}"
        mine = set(what["networks"])
        lines = ["127.0.0.1 localhost\n"]
        for (other, network), address in self._addresses.items():
            if network in mine:
                lines.append(f"{address} {other}\n")
        hosts.write_text("".join(lines))
        binds = [(hosts, "/etc/hosts", "ro")]
        for text in what.get("volumes", ()):
            source, target, *mode = text.split(":")
            if source.startswith("."):
                binds.append((self.folder / source, target, mode[0] if mode else "rw"))
            else:
                volume = self.data / source
                if not volume.exists():
                    volume.mkdir(parents=True)
                    uid, gid = map(int, what["user"].split(":"))
                    os.chown(volume, uid, gid)
                    volume.chmod(0o700)
                binds.append((volume, target, "rw"))
        files = self.document["secrets"]
        binds += [(self.folder / files[one]["file"], f"/run/secrets/{one}", "ro") for one in what.get("secrets", ())]
        binds += [(source, target, "ro") for source, target in self.extra_mounts.get(name, ())]
        commands = []
        for text in what.get("tmpfs", ()):
            target, _, options = text.partition(":")
            place = inside(root, target)
            place.mkdir(parents=True, exist_ok=True)
            commands.append(f'mount -t tmpfs -o nosuid,nodev,{options} tmpfs "{place}"')
        for source, target, mode in binds:
            place = inside(root, target)
            if source.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            commands.append(f'mount --bind "{source}" "{place}"')
            if mode == "ro":
                commands.append(f'mount -o remount,bind,ro "{place}"')
        return commands

    def wait_until_healthy(self, name: str) -> None:
        """Wait until the health check of a service succeeds; raise AssertionError with its log if it ends before."""
        check = self.document["services"][name].get("healthcheck")
        if check is None:
            return
        service = self.services[name]
        _, *command = check["test"]
        for _ in range(check["retries"]):
            assert service.process.poll() is None, f"{name} ended:\n{service.log.read_text()[-3000:]}"
            if service.execute(*command).returncode == 0:
                return
            time.sleep(float(check["interval"].rstrip("s")))
        raise AssertionError(f"{name} is not healthy:\n{service.log.read_text()[-3000:]}")

    def stop(self, name: str) -> None:
        """End a service as an engine does: a signal to its first process, and after a while a harder one."""
        process = self.services.pop(name).process
        for child in psutil.Process(process.pid).children() if process.poll() is None else ():
            child.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            # Everything within ends with it.
            process.kill()
            process.wait()

    def down(self) -> None:
        """End everything."""
        try:
            for name in reversed([*self.services]):
                self.stop(name)
        finally:
            for command in reversed(self._cleanup):
                subprocess.run(command, check=False, capture_output=True)


def required_tools() -> list[str]:
    """Return the programs that are missing here."""
    return [
        name for name in ("buildah", "kubectl", "ip", "unshare", "nsenter", "setpriv") if shutil.which(name) is None
    ]
