"""What child processes see of the operator's environment: what is listed here, and nothing else.

A vendor key in Letta's environment would make a base provider of it, and Letta would send it to whatever
address an agent is bound to (fact P7). So the lists say what may pass, not what may not.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import psutil

from isabella.system.processes import ChildProcess
from isabella.system.redaction import redact

_ORDINARY = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "SYSTEMROOT")
# How to reach the vendors from this machine.
_NETWORK = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
# How to fetch and, for the few packages without wheels, build on this machine.
_INSTALLING = ("HOME", "USER", "LOGNAME", "NETRC", "CC", "CXX", "CFLAGS", "LDFLAGS", "CPATH", "LIBRARY_PATH")
_INSTALLING_PREFIXES = ("UV_", "PIP_", "XDG_")
_CERTIFICATE_STORES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_LOOPBACK = "127.0.0.1,localhost,::1"


def offline_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For programs that need no network."""
    return {name: environ[name] for name in _ORDINARY if name in environ}


def network_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For programs that speak to the world, by the operator's proxy if there is one, and to loopback."""
    allowed = offline_environment(environ) | {name: environ[name] for name in _NETWORK if name in environ}
    for name in ("NO_PROXY", "no_proxy"):
        allowed[name] = f"{allowed[name]},{_LOOPBACK}" if allowed.get(name) else _LOOPBACK
    return allowed


def install_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For uv and pip, which honour the machine's own configuration of indexes, caches and compilers."""
    allowed = {name: environ[name] for name in (*_ORDINARY, *_NETWORK, *_INSTALLING) if name in environ}
    allowed |= {name: value for name, value in environ.items() if name.startswith(_INSTALLING_PREFIXES)}
    # uv trusts its own list of authorities; a machine with a certificate store may know more of them.
    if ssl.get_default_verify_paths().cafile is not None or any(
        Path(store).exists() for store in _CERTIFICATE_STORES
    ):
        allowed.setdefault("UV_SYSTEM_CERTS", "true")
    return allowed


_BLOCK = 64 * 1024
_TOO_LARGE = 20 * 1024 * 1024


def tail_log(path: Path, lines: int) -> list[str]:
    """The last lines of a log, secrets taken out; none where there is no log."""
    try:
        with path.open("rb") as file:
            position = file.seek(0, os.SEEK_END)
            data = b""
            while position > 0 and data.count(b"\n") <= lines:
                size = min(_BLOCK, position)
                position = file.seek(position - size)
                data = file.read(size) + data
    except FileNotFoundError:
        return []
    text = data.decode(errors="replace").splitlines()
    return [redact(line) for line in text[-lines:]] if lines > 0 else []


def follow_log(path: Path, *, every: float = 0.3) -> Iterator[str]:
    """What is appended to a log after this call, line by line, for ever.

    Args:
        path: the log; it need not be there yet, and may be replaced.
        every: seconds between looks.
    """
    return _after(path, path.stat().st_size if path.exists() else 0, every)


def _after(path: Path, offset: int, every: float) -> Iterator[str]:
    rest = ""
    while True:
        size = path.stat().st_size if path.exists() else 0
        if size < offset:
            offset, rest = 0, ""
        if size > offset:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size - offset)
            offset += len(data)
            *complete, rest = (rest + data.decode(errors="replace")).split("\n")
            yield from (redact(line) for line in complete)
        else:
            time.sleep(every)


def rotate_log(path: Path) -> None:
    """Put a log that has grown too large aside; the one put aside before is dropped."""
    if path.exists() and path.stat().st_size > _TOO_LARGE:
        path.replace(path.with_name(f"{path.name}.1"))


def quote_log(path: Path, lines: int = 15) -> str:
    """The last lines of a log and its name, as the end of an error message."""
    last = "".join(f"\n    {line}" for line in tail_log(path, lines))
    return f"Its log is {path}{':' if last else ' (empty).'}{last}"


def find_orphans(option: str, path: Path) -> list[ChildProcess]:
    """The processes that have `option` followed by `path` among their arguments: this user's, for root anybody's."""
    found: list[ChildProcess] = []
    ours = os.geteuid()
    for process in psutil.process_iter():
        try:
            if ours not in (0, process.uids().real):
                continue
            arguments = process.cmdline()
            if (option, str(path)) in pairwise(arguments):
                found.append(ChildProcess(process.pid, process.create_time()))
        except psutil.Error:
            continue
    return found


def stop_orphans(option: str, path: Path) -> int:
    """End what `find` finds; returns how many there were."""
    return sum(process.stop() for process in find_orphans(option, path))
