"""HAProxy with the configuration of deploy/balancers, between servers on loopback."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from isabella.embedded.ports import choose_port

_PROJECT = Path(__file__).parents[1]
#: Where `make haproxy` unpacks it.
_TOOLS = _PROJECT / ".tools" / "usr"
#: HAProxy is in a folder for administrators, which is not on everybody's PATH.
_FOLDERS = (os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", str(_TOOLS / "sbin"))
CONFIGURATION = _PROJECT / "deploy" / "balancers" / "haproxy.cfg"
PROGRAM = shutil.which("haproxy", path=os.pathsep.join(_FOLDERS))
WITHOUT = "there is no HAProxy: `make haproxy` fetches it (Debian, Ubuntu)"
#: Its libraries, if it was unpacked.
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", ""),
    "LD_LIBRARY_PATH": ":".join(map(str, _TOOLS.glob("lib/*-linux-*"))),
}
_LOOK_EVERY = 0.1
_SECONDS = 300.0


@dataclass(frozen=True)
class Balancer:
    """What is in front of the servers of one kind.

    Attributes:
        name: of the frontend and of the backend.
        port: the port of loopback that it listens on.
        socket: where HAProxy tells how the servers are.
    """

    name: str
    port: int
    socket: Path

    async def until(self, number: int, *, healthy: bool) -> None:
        """Wait until the server with this number, from 1 on, is healthy, or is not. Raises `TimeoutError`."""
        with anyio.fail_after(_SECONDS):
            # HAProxy has to be asked.
            while (await self._state(number)).startswith("UP") is not healthy:  # noqa: ASYNC110
                await anyio.sleep(_LOOK_EVERY)

    async def _state(self, number: int) -> str:
        async with await anyio.connect_unix(self.socket) as stream:
            await stream.send(b"show stat\n")
            text = b"".join([piece async for piece in stream]).decode()
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        return next(row["status"] for row in rows if row["svname"] == f"{self.name}-{number}")


@asynccontextmanager
async def balancing(folder: Path, servers: Mapping[str, Sequence[int]]) -> AsyncIterator[Mapping[str, Balancer]]:
    """Balance between servers on loopback: the ports of each kind, none of which is in use yet.

    Raises `RuntimeError` if there is no HAProxy.
    """
    if PROGRAM is None:
        raise RuntimeError(f"{WITHOUT[0].upper()}{WITHOUT[1:]}.")
    file, socket = folder / "haproxy.cfg", folder / "haproxy.sock"
    text = CONFIGURATION.read_text().replace("/run/haproxy/admin.sock", str(socket))
    balancers: dict[str, Balancer] = {}
    for name, ports in servers.items():
        used = [port for one in servers.values() for port in one] + [one.port for one in balancers.values()]
        balancers[name] = Balancer(name, choose_port(18600, avoid=used), socket)
        text = _with_addresses(text, balancers[name], ports)
    file.write_text(text)
    with _running(file, socket):
        # At first HAProxy takes all of them for healthy.
        for name, ports in servers.items():
            for number in range(1, len(ports) + 1):
                await balancers[name].until(number, healthy=False)
        yield balancers


@contextmanager
def _running(file: Path, socket: Path) -> Iterator[None]:
    """Run HAProxy with a file, in which it has this socket; it has begun to listen there."""
    said = file.with_suffix(".log")
    with said.open("wb") as log:
        process = subprocess.Popen([str(PROGRAM), "-db", "-f", file], env=ENVIRONMENT, stdout=log, stderr=log)
        try:
            while not socket.exists():
                assert process.poll() is None, said.read_text()[-2000:]
                time.sleep(_LOOK_EVERY)
            yield
        finally:
            process.kill()
            process.wait()


def _with_addresses(text: str, balancer: Balancer, ports: Sequence[int]) -> str:
    """Return the configuration with one server for each port; those that there are beyond are left out."""
    name, bind = balancer.name, f"\\1    bind 127.0.0.1:{balancer.port}\n"
    text, binds = re.subn(rf"(?s)(^frontend {name}\n.*?)^    bind :\d+\n", bind, text, count=1, flags=re.MULTILINE)

    def addressed(found: re.Match[str]) -> str:
        number = int(found[2])
        return "" if number > len(ports) else f"{found[1]} 127.0.0.1:{ports[number - 1]}{found[3]}\n"

    line = rf"^(    server {name}-(\d+)) \S+(.*)\n"
    text, count = re.subn(line, addressed, text, flags=re.MULTILINE)
    assert binds == 1, name
    assert count >= len(ports), name
    return text
